"""The classes that an application has allowed to be stored: what they become, and how they are made again.

The state of a dataclass is its fields, by name; of an Enum, its name; of a Flag, the names of its members; of another
class, what its ``encode`` returns. Decoding makes objects of these classes only. Each process has its own list of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import Enum, Flag
from functools import partial, reduce
from operator import or_
from reprlib import repr as short
from typing import Any, NamedTuple, TypeVar, overload

from .errors import NotStorable
from .leaves import PACKERS, Refused, type_name

CONTAINERS = (dict, list, tuple, set, frozenset)
"""What the codec stores without being asked, apart from the leaves."""

C = TypeVar("C", bound=type)


class Allowed(NamedTuple):
    name: str
    cls: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


BY_NAME: dict[str, Allowed] = {}
BY_CLASS: dict[type, Allowed] = {}
_allow_lock = threading.Lock()


@overload
def allow(
    cls: C,
    *,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> C: ...


@overload
def allow(
    cls: None = None,
    *,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Callable[[C], C]: ...


def allow(
    cls: Any = None,
    *,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Any:
    """Let instances of exactly ``cls`` be stored, in this process; also a class decorator, bare or with arguments.

    Dataclasses (their fields) and Enums (the member's name) work as they are. Another class needs ``encode``, which
    returns something that can be stored, and ``decode``, which makes an instance of it. ``name`` is what is stored to
    find the class again, ``module:qualname`` without it: give the old one to a class that has moved. A class that is
    allowed again, or whose module was reloaded, replaces itself.

    A dataclass is read back without a call of ``__init__`` or ``__post_init__``, as copy and pickle do: it was made
    once, and is what it was. After a change of the code, a missing field takes its default, and NotStorable is raised
    where it has none; a field that the class no longer has is dropped.

    Raises TypeError for a class that needs ``encode`` and ``decode``, ValueError for a name that another class has.
    """
    if cls is None:
        return partial(allow, encode=encode, decode=decode, name=name)
    if not isinstance(cls, type):
        raise TypeError(f"allow takes a class, not {short(cls)}")
    if cls in PACKERS or cls in CONTAINERS:
        raise TypeError(f"{type_name(cls)} can be stored as it is")
    name = f"{cls.__module__}:{cls.__qualname__}" if name is None else name
    if type(name) is not str or not name:
        raise TypeError(f"allow({cls.__qualname__}): name= is a str and not empty, not {name!r}")
    name.encode()  # a lone surrogate is a ValueError now, and not in every write
    if (encode is None) is not (decode is None):
        raise TypeError(f"allow({cls.__qualname__}): give both encode= and decode=, or neither")
    if encode is None or decode is None:
        encode, decode = _own_coders(cls)
    else:
        decode = partial(_decode_with, cls, decode)
    with _allow_lock:
        other = BY_NAME.get(name)
        if other is not None and other.cls is not cls:
            if type_name(other.cls) != type_name(cls):
                raise ValueError(f"{name!r} is the name of {type_name(other.cls)}: give {type_name(cls)} another name=")
            BY_CLASS.pop(other.cls, None)
        BY_NAME[name] = BY_CLASS[cls] = Allowed(name, cls, encode, decode)
    return cls


def _own_coders(cls: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if issubclass(cls, Flag):
        return _flag_names, partial(_flag, cls)
    if issubclass(cls, Enum):
        return _member_name, partial(_member, cls)
    # A subclass without the decorator, and a subclass of a built-in type, have state that is in no field.
    if "__dataclass_fields__" in vars(cls) and cls.__new__ is object.__new__:
        return _field_values, partial(_dataclass, cls)
    raise TypeError(
        f"allow({cls.__qualname__}): only dataclasses (with @allow above @dataclass) and Enums work as they are;"
        " give encode= and decode="
    )


def _decode_with(cls: type, decode: Callable[[Any], Any], state: Any) -> Any:
    value = decode(state)
    if not isinstance(value, cls):
        raise TypeError(f"the decode= of {type_name(cls)} returned an object of type {type_name(type(value))}")
    return value


def _member_name(member: Enum) -> str:
    return member.name


def _member(cls: type[Enum], name: Any) -> Enum:
    member = cls.__members__.get(name)
    if member is None:
        raise NotStorable(
            f"a stored value is the member {short(name)} of {type_name(cls)}, which it does not have here"
        )
    return member


def _flag_names(flag: Flag) -> list[str]:
    """Return the names of the members that make up ``flag``: its own, if it has one."""
    cls = type(flag)
    names = [name for name, member in cls.__members__.items() if member is flag]
    if names:
        return names[:1]
    names = [name for name, member in cls.__members__.items() if member.value and member in flag]
    if _flag(cls, names) is not flag:
        raise Refused(f"{flag!r} has bits that are no member of {type_name(cls)}")
    return names


def _flag(cls: type[Flag], names: Any) -> Flag:
    return reduce(or_, (_member(cls, name) for name in names), cls(0))


def _field_values(value: Any) -> dict[str, Any]:
    try:
        return {field.name: getattr(value, field.name) for field in fields(value)}
    except AttributeError as error:
        raise Refused(f"an object of type {type_name(type(value))} cannot be stored: {error}") from None


def _dataclass(cls: type, state: Any) -> Any:
    value: Any = object.__new__(cls)
    for field in fields(cls):
        if field.name in state:
            item = state[field.name]
        elif field.default is not MISSING:
            item = field.default
        elif field.default_factory is not MISSING:
            item = field.default_factory()
        else:
            raise NotStorable(f"a stored {type_name(cls)} has no field {field.name!r}: give the field a default")
        object.__setattr__(value, field.name, item)
    return value
