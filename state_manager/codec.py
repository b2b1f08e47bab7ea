"""Python values to their stored form and back, without pickle.

The stored form is None, bool, float, str or an int of 64 bits, as they are, or ``bytes``: msgpack of everything else, a
``bytes`` value included. So stored bytes are always this module's. Rules:

* A value comes back with exactly the type that it went in with. Other types are refused when they are written, by name,
  and so is a subclass (it would come back as its base), unless it was given to ``allow``.
* Decoding calls only the constructors of ``leaves`` and of allowed classes. Damaged bytes raise ValueError; a class,
  field, member or time zone that this process does not know raises NotStorable.
* Plain data is packed and unpacked in C alone. Other leaves become extensions. Other containers become arrays whose
  first item is an extension of one byte, the marker: so one depth limit holds for all, decoding needs no recursion, and
  the encoding of a value is the same wherever it stands. Bytes without that byte's header are decoded in C alone too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from itertools import chain
from reprlib import repr as short
from types import MappingProxyType
from typing import Any

from msgpack import ExtType, Packer, unpackb

from . import settings
from .classes import BY_CLASS, BY_NAME, CONTAINERS
from .classes import allow as allow
from .errors import NotStorable, TooLarge
from .leaves import PACKERS, Refused, construct, type_name, utf8

Stored = None | bool | int | float | str | bytes

SCALARS = frozenset({type(None), bool, int, float, str})
DEPTH = 256
"""How many containers may lie in one another: well within msgpack's 511 and Python's 1000 calls."""

_FLAT = SCALARS | {bytes}
_AS_IT_IS = _FLAT - {int, str}  # an int may be too large, a str may hold a lone surrogate
_MIN, _MAX = -(2**63), 2**63 - 1

_TUPLE, _SET, _FROZENSET, _MAPPING, _CLASS = (ExtType(code, b"\0") for code in range(1, 6))
"""The markers. Their codes are the format of what is on disk: none may ever change its meaning. Leaves have others."""
_BIN8 = b"\xc4"
"""What msgpack begins bytes with that are shorter than 256; their length is the next byte."""
_BIN8_HEADERS = [_BIN8 + bytes((size,)) for size in range(256)]
_MARK = 0xD4
"""What every marker begins with in msgpack: the header of an extension of one byte."""


def encode(value: Any) -> Stored:
    """Return the stored form of ``value``.

    Raises NotStorable, naming the type and where it sits, and TooLarge above ``settings.VALUE_LIMIT`` bytes.
    """
    kind = type(value)
    if kind is str:
        if value.isascii() and len(value) <= settings.VALUE_LIMIT:
            return value  # type: ignore[no-any-return]
    elif kind in SCALARS and (kind is not int or _MIN <= value <= _MAX):
        return value  # type: ignore[no-any-return]
    elif kind is bytes and len(value) < 256:
        # What msgpack makes of it, without a packer.
        return _BIN8_HEADERS[len(value)] + value  # type: ignore[no-any-return]
    return _encode(value)


def decode(stored: Stored) -> Any:
    """Return the value of a stored form, built anew by every call unless it is a scalar.

    Raises ValueError for damaged bytes, and NotStorable for what this process does not know.
    """
    if type(stored) in SCALARS:
        return stored
    if isinstance(stored, bytes) and len(stored) > 1 and stored[:1] == _BIN8 and stored[1] == len(stored) - 2:
        return stored[2:]
    try:
        return _decode(stored)  # type: ignore[arg-type]
    except (NotStorable, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"a stored value cannot be decoded: {type(error).__name__}: {error}") from error


# Encoding


def _encode(value: Any) -> str | bytes:
    try:
        encoded = utf8(value) if type(value) is str else _pack(value)
    except Refused as refused:
        raise NotStorable(str(refused)) from None
    except RecursionError:
        raise NotStorable("value: nested too deep for what is left of Python's stack") from None
    if len(encoded) > settings.VALUE_LIMIT:
        raise TooLarge(f"the value takes {len(encoded)} bytes, the limit is {settings.VALUE_LIMIT}: store it in parts")
    return value if type(value) is str else encoded


def _pack(value: Any) -> bytes:
    # A packer for each call: one must not be entered twice, and its default buffer is 256 KiB.
    pack: Callable[[Any], bytes] = Packer(strict_types=True, buf_size=512).pack  # type: ignore[call-arg]
    if type(value) is bytes or _is_plain(value, 0):
        try:
            return pack(value)
        except (UnicodeEncodeError, OverflowError):
            pass  # a lone surrogate, or an int of more than 64 bits
    return pack(_native(value, 0))


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether msgpack packs all of this as it is. (It would take a bytearray too, but as bytes.)"""
    if depth == DEPTH:
        return False
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) not in _FLAT or (type(item) not in _FLAT and not _is_plain(item, depth + 1)):
                return False
        return True
    if kind is list:
        for item in value:  # noqa: SIM110  # all() takes twice the time
            if type(item) not in _FLAT and not _is_plain(item, depth + 1):
                return False
        return True
    return False


def _native(value: Any, depth: int) -> Any:
    """Return ``value`` rebuilt from what msgpack has: flat types, lists, dicts with flat keys, extensions."""
    kind = type(value)
    if pack_leaf := PACKERS.get(kind):
        return pack_leaf(value)
    if depth == DEPTH:
        raise Refused(f"nested more than {DEPTH} deep, or inside itself")
    depth += 1
    if kind is dict:
        pairs = list(value.items())
        keys = _natives([key for key, _ in pairs], depth, lambda index: f" key {short(pairs[index][0])}")
        items = _natives([item for _, item in pairs], depth, lambda index: f"[{short(pairs[index][0])}]")
        if _FLAT.issuperset(map(type, keys)):
            return dict(zip(keys, items, strict=True))
        return [_MAPPING, *chain.from_iterable(zip(keys, items, strict=True))]
    if kind is list:
        return _natives(value, depth, "[{}]".format)
    if kind is tuple:
        return [_TUPLE, *_natives(value, depth, "[{}]".format)]
    if kind is set or kind is frozenset:
        return [_SET if kind is set else _FROZENSET, *_natives(value, depth, lambda _: " item")]
    if allowed := BY_CLASS.get(kind):
        return [_CLASS, allowed.name, _native(allowed.encode(value), depth)]
    raise Refused(_reason(value))


def _natives(values: Iterable[Any], depth: int, step: Callable[[int], str]) -> list[Any]:
    natives: list[Any] = []
    try:
        for value in list(values):
            kind = type(value)
            as_it_is = kind in _AS_IT_IS or (kind is str and value.isascii())
            natives.append(value if as_it_is else _native(value, depth))
    except Refused as refused:
        refused.steps.append(step(len(natives)))
        raise
    return natives


def _reason(value: object) -> str:
    """Return the sentence that names the type of ``value`` and the way out."""
    kind = type(value)
    refused = f"an object of type {type_name(kind)} cannot be stored"
    if isinstance(value, Enum) or is_dataclass(kind):
        return f"{refused}; call state_manager.allow({kind.__qualname__}) where the class is defined"
    if isinstance(value, Iterator):
        return f"{refused}; make a list of it"
    if kind is MappingProxyType:
        return f"{refused}: frozen() gives these, for reading; take get() for what is to be stored"
    if isinstance(value, memoryview):
        return f"{refused}; store bytes(value)"
    allow_it = f"state_manager.allow({kind.__qualname__}, encode=..., decode=...)"
    for base in (*PACKERS, *CONTAINERS):
        if isinstance(value, base):
            plain = type_name(base)
            return f"{refused}: it would come back as a plain {plain}; store a plain {plain}, or call {allow_it}"
    return f"{refused}; store plain data (numbers, texts, lists, dicts ...), or call {allow_it}"


# Decoding


def _decode(stored: bytes) -> Any:
    # timestamp=2: msgpack's own extension, which is never written here, reads as an int.
    if _MARK not in stored:  # it may be there by chance: then the other way is only slower
        return unpackb(stored, strict_map_key=False, timestamp=2, ext_hook=construct)
    unused = 0

    def extension(code: int, payload: bytes) -> Any:
        nonlocal unused
        if code not in _MARKERS:
            return construct(code, payload)
        unused += 1
        return _MARKERS[code]

    def array(items: list[Any]) -> Any:
        nonlocal unused
        if not items or type(items[0]) is not _Marker:
            return items
        unused -= 1
        return items[0].build(items)

    value = unpackb(stored, strict_map_key=False, timestamp=2, ext_hook=extension, list_hook=array)
    if unused:
        raise ValueError("a marker is out of place")
    return value


class _Marker:
    """Stands first in an array, and says what to make of it."""

    def __init__(self, build: Callable[[list[Any]], Any]) -> None:
        self.build = build


def _mapping(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[1::2], items[2::2], strict=True))


def _instance(items: list[Any]) -> Any:
    _, name, state = items
    allowed = BY_NAME.get(name)
    if allowed is None:
        raise NotStorable(
            f"a stored value has the class {short(name)}, which this process does not know:"
            " import the module that calls state_manager.allow with it, or give name= to a class that has moved"
        )
    return allowed.decode(state)


_MARKERS = {
    _TUPLE.code: _Marker(lambda items: tuple(items[1:])),
    _SET.code: _Marker(lambda items: set(items[1:])),
    _FROZENSET.code: _Marker(lambda items: frozenset(items[1:])),
    _MAPPING.code: _Marker(_mapping),
    _CLASS.code: _Marker(_instance),
}
