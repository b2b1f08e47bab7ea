"""Commands on one entry of a dict. A write sets the deadline or removes it; increment, put and expiry's own keep it."""

from __future__ import annotations

from typing import Any

from ..checks import INT_MAX, INT_MIN, SHORT, Key, check_int, check_key, check_name, check_stored, seconds
from ..store import ABSENT, NEVER, Entry, Stored
from .base import Done, View, check_readable, entry, row, shown, value_of, with_value
from .flights import deleted


def get(view: View, now: float, space: str, key: Key) -> Done:
    """Return ``[version, value]``, with a deadline if it has one, or ``[version]`` when the key is absent."""
    check_readable(space)
    if type(key) is not str or len(key) > SHORT or not key.isascii():
        check_key(key)
    return shown(view, space, key), ()


def contains(view: View, now: float, space: str, key: Key) -> Done:
    """Return what ``get`` returns, with True in place of the value."""
    check_readable(space)
    check_key(key)
    version, *found = shown(view, space, key)
    return (version, True, *found[1:]) if found else (version,), ()


def set_(view: View, now: float, space: str, key: Key, value: Stored, ttl: float | None = None) -> Done:
    """Store a value, whatever was there."""
    check_name(space)
    if type(key) is not str or len(key) > SHORT or not key.isascii():
        check_key(key)
    check_stored(value)
    return None, ((space, key, value if ttl is None else entry(value, ttl, now)),)


def add(view: View, now: float, space: str, key: Key, value: Stored, ttl: float | None = None) -> Done:
    """Store a value only if the key is absent; return whether it was."""
    _, changes = set_(view, now, space, key, value, ttl)
    return (True, changes) if view.get(space, key) is ABSENT else (False, ())


def replace(view: View, now: float, space: str, key: Key, value: Stored, ttl: float | None = None) -> Done:
    """Store a value only if the key is present; return whether it was."""
    _, changes = set_(view, now, space, key, value, ttl)
    return (False, ()) if view.get(space, key) is ABSENT else (True, changes)


def setdefault(view: View, now: float, space: str, key: Key, value: Stored) -> Done:
    """Return the value that is there, or store this one and return it."""
    _, changes = set_(view, now, space, key, value)
    found = view.get(space, key)
    return (value, changes) if found is ABSENT else (value_of(found), ())


def put(view: View, now: float, space: str, key: Key, version: int, value: Stored, ttl: float | None = None) -> Done:
    """Store a value only if the key's slot still has this version; return whether it had.

    Without a ttl the deadline stays. Compare-and-set and transform compare and compute in the client, and end in this.
    """
    check_name(space)
    check_key(key)
    check_stored(value)
    check_int(version, "a version")
    stored = None if ttl is None else entry(value, ttl, now)
    found = view.get(space, key)  # first: meeting an expired entry advances the version
    if view.version(space, key) != version:
        return False, ()
    return True, ((space, key, with_value(found, value) if stored is None else stored),)


def delete(view: View, now: float, space: str, key: Key) -> Done:
    """Delete a key; return whether it was there."""
    check_name(space)
    check_key(key)
    found = view.get(space, key)
    return found is not ABSENT, deleted(view, space, key, found)


def pop(view: View, now: float, space: str, key: Key) -> Done:
    """Delete a key and return ``[value]``, or ``[]`` when it was absent."""
    check_name(space)
    check_key(key)
    found = view.get(space, key)
    return [] if found is ABSENT else [value_of(found)], deleted(view, space, key, found)


def popitem(view: View, now: float, space: str) -> Done:
    """Delete the key that was added last and return ``[key, value]``, or ``[]`` when there is none."""
    check_name(space)
    key = view.last(space)
    if key is None:
        return [], ()
    found = view.get(space, key)
    return [key, value_of(found)], deleted(view, space, key, found)


def increment(
    view: View, now: float, space: str, key: Key, by: int = 1, initial: int = 0, ttl: float | None = None
) -> Done:
    """Add to an integer and return the sum; an absent key counts as ``initial`` and only then takes the ttl."""
    check_name(space)
    if type(key) is not str or len(key) > SHORT or not key.isascii():
        check_key(key)
    found = view.get(space, key)
    if found is ABSENT:
        total = check_int(check_int(initial, "initial") + check_int(by, "by"), "the sum")
        return total, ((space, key, entry(total, ttl, now)),)
    if ttl is not None:
        seconds(ttl)  # refused when it is bad, though a key that is there keeps the deadline it has
    return add_to(found, by, space, key)


def add_to(found: Any, by: int, space: str, key: Key) -> Done:
    """Return the sum of a live entry and ``by``, and the change that stores it."""
    value = found.value if type(found) is Entry else found
    if type(value) is not int:
        # An integer past 64 bits is stored encoded, so it is refused here as well.
        raise TypeError(f"{space}[{key!r}] is not a 64-bit integer, so it cannot be incremented")
    total = value + check_int(by, "by")
    if not INT_MIN <= total <= INT_MAX:
        check_int(total, f"the sum for {space}[{key!r}]")
    return total, ((space, key, with_value(found, total)),)


def ttl(view: View, now: float, space: str, key: Key) -> Done:
    """Return ``[seconds left]``, ``[None]`` without a deadline, ``[]`` when the key is absent."""
    check_readable(space)
    check_key(key)
    found = view.get(space, key)
    if found is ABSENT:
        return [], ()
    return [found.deadline - now if type(found) is Entry and found.deadline < NEVER else None], ()


def expire(view: View, now: float, space: str, key: Key, ttl: float) -> Done:
    """Give a key that is there a new deadline; return whether it was there."""
    check_name(space)
    check_key(key)
    ends = now + seconds(ttl)
    found = view.get(space, key)
    return (False, ()) if found is ABSENT else (True, ((space, key, Entry(value_of(found), ends)),))


def persist(view: View, now: float, space: str, key: Key) -> Done:
    """Remove a key's deadline; return whether it had one."""
    check_name(space)
    check_key(key)
    found = view.get(space, key)
    if type(found) is not Entry or found.deadline == NEVER:
        return False, ()
    return True, ((space, key, found.value),)


COMMANDS = (
    row("dict", "get", get, writes=False),
    row("dict", "contains", contains, writes=False),
    row("dict", "ttl", ttl, writes=False),
    row("dict", "set", set_, writes=True),
    row("dict", "add", add, writes=True),
    row("dict", "replace", replace, writes=True),
    row("dict", "setdefault", setdefault, writes=True),
    row("dict", "put", put, writes=True),
    row("dict", "delete", delete, writes=True),
    row("dict", "pop", pop, writes=True),
    row("dict", "popitem", popitem, writes=True),
    row("dict", "increment", increment, writes=True),
    row("dict", "expire", expire, writes=True),
    row("dict", "persist", persist, writes=True),
)
