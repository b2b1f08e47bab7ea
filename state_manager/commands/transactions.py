"""A transaction's end: all of its writes, if nothing that it read has changed, else none of them.

What it read is named by versions, as for ``put``: of a key's slot or, where it looked at a whole dict, of the dict
itself, which every change in it advances. So a transaction that only reads is a snapshot, once it has ended well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checks import COUNTERS, Key, check_int, check_key, check_name, check_stored
from ..errors import Conflict, TooLarge
from ..store import Change
from .base import Done, View, entry, row, with_value
from .flights import deleted, emptied
from .many import MANY
from .queues import item

DELETE, SET, KEEP, CLEAR, PUT = range(5)
"""What a write is: a deletion, a value with a ttl or for ever, a value that keeps the deadline, an emptying; an item
that is put into a queue, ``[name, max_deliveries, PUT, value, delay]``."""


def commit(view: View, now: float, reads: list[Any], writes: list[Any]) -> Done:
    """Make all writes, or raise Conflict and make none.

    ``reads``: ``[space, key or None, version, deadline]`` each, the deadline being that of a whole dict, or infinite.
    ``writes``: ``[space, key or None, what, value, ttl]`` each, in
    order; a key comes once, and after its dict's emptying.
    """
    if type(reads) is not list or type(writes) is not list:
        raise TypeError("reads and writes are lists")
    if len(reads) + len(writes) > MANY:
        raise TooLarge(f"a transaction of {len(reads) + len(writes):,} reads and writes is over the limit of {MANY:,}")
    for space, key, version, deadline in reads:
        _check_space(space)
        check_int(version, "a version")
        if type(deadline) is not float:
            raise TypeError("a deadline is a float")
        if key is not None:
            check_key(key)
            view.get(space, key)  # first: meeting an expired entry advances the version
        if deadline <= now or (view.space_version(space) if key is None else view.version(space, key)) != version:
            what = f"the dict {space!r}" if key is None else f"{space}[{key!r}]"
            raise Conflict(f"{what} has changed since this transaction read it, so nothing was applied: run it again")
    changes: list[Change] = []
    put: dict[str, int] = {}
    for space, key, what, value, ttl in writes:
        if what == PUT:
            check_name(space)
            changes.append(item(view, now, space, value, ttl, key, put.get(space, 0)))
            put[space] = put.get(space, 0) + 1
        else:
            changes += _changes(view, now, space, key, what, value, ttl)
    return None, changes


def _changes(view: View, now: float, space: str, key: Key | None, what: int, value: Any, ttl: Any) -> Sequence[Change]:
    _check_space(space)
    if space == COUNTERS:
        check_name(key)
        check_int(value, "a counter")
    if what == CLEAR:
        return emptied(view, space)
    check_key(key)
    assert key is not None
    if what == DELETE:
        return deleted(view, space, key, view.get(space, key))
    check_stored(value)
    if what == KEEP:
        return ((space, key, with_value(view.get(space, key), value)),)
    if what == SET:
        return ((space, key, entry(value, ttl, now)),)
    raise ValueError(f"a write is one of {DELETE} to {PUT}, not {what!r}")


def _check_space(space: object) -> None:
    if space != COUNTERS:
        check_name(space)


COMMANDS = (row("transaction", "commit", commit, writes=True),)
