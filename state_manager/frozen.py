"""Which values nobody can change, and read-only forms of the others. Pure.

A value that cannot change all the way down is shared by its readers; any other is decoded anew for each of them.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from .codec import SCALARS
from .leaves import PACKERS, type_name

IMMUTABLE: Final = SCALARS | {bytes} | (frozenset(PACKERS) - {bytearray})


def is_immutable(value: Any) -> bool:
    """Return whether nothing in a value that came from the store can be changed."""
    kind = type(value)
    if kind in IMMUTABLE:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_immutable, value))
    return isinstance(value, Enum)


def freeze(value: Any) -> Any:
    """Return a read-only form of a value that nobody else holds.

    A dict becomes a ``types.MappingProxyType``, a list a tuple, a set a frozenset, a bytearray bytes. Raises TypeError
    for an object of the app's own class, which nothing here can make read-only.
    """
    kind = type(value)
    if is_immutable(value):
        return value
    if kind is dict:
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    if kind is list or kind is tuple:
        return tuple(map(freeze, value))
    if kind is set or kind is frozenset:
        return frozenset(map(freeze, value))
    if kind is bytearray:
        return bytes(value)
    raise TypeError(f"an object of type {type_name(kind)} cannot be made read-only: use get(), which gives a copy")
