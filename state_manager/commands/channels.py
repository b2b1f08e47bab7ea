"""Channels: messages that everybody reads who wants to, each reader from where he is.

A channel is an entry of ":channels", ``[the last message's id, how many are kept, its first id, starts]``, and a space
with the messages, ``[value]`` under their ids. Readers have nothing here: each says the id of the last message that he
has, and waits if there is none after it. So one that is slow, has gone or comes back costs nobody anything.

An id is the manager's epoch in the high 32 bits, so that none comes twice even if a power failure took the last ones,
and a count of the channel's messages in the low ones, which goes on across epochs: the difference of two ids tells how
many were between them. Where the next id is not the next number, it is one of ``starts``. A channel that was dropped
leaves its last id in ":channels" under ``FLOOR``, and new ones begin after that: so ids always grow.
"""

from __future__ import annotations

from typing import Any, Final

from ..checks import CHANNEL, CHANNELS, check_int, check_name, check_stored, timeout
from ..store import ABSENT, EPOCH_SHIFT, Change, Stored, cost
from .base import Done, Outcome, View, Wait, row

HISTORY_LIMIT: Final = 1_000_000
PAGE_MESSAGES: Final = 256
PAGE_BYTES: Final = 2**20
"""What one reader is given at once."""
TRIM: Final = 100
"""Messages over the bound that one publication deletes, if the bound was lowered."""

FLOOR: Final = 0
"""A key that is no channel's name: the largest id of all that were dropped."""

LAST, HISTORY, FIRST, STARTS = range(4)
"""What a channel's entry holds."""
STARTS_KEPT: Final = 64
"""First ids of epochs that are known; who has a message of an older one may miss some, and is told how many."""

_COUNT: Final = (1 << EPOCH_SHIFT) - 1


def publish(view: View, now: float, name: str, value: Stored, history: int) -> Done:
    """Add a message and return its id; of those before it the last ``history`` - 1 are kept."""
    check_name(name)
    check_stored(value)
    if not 1 <= check_int(history, "history") <= HISTORY_LIMIT:
        raise ValueError(f"a channel keeps from 1 to {HISTORY_LIMIT:,} messages, not {history:,}")
    space = CHANNEL + name
    found = view.get(CHANNELS, name)
    before = _last(view, name)
    id_ = max(before + 1, view.version(CHANNELS, name) >> EPOCH_SHIFT << EPOCH_SHIFT | (before + 1) & _COUNT)
    first, starts = (id_, []) if found is ABSENT else (found[FIRST], found[STARTS])
    if id_ != before + 1:
        starts = [*starts[1 - STARTS_KEPT :], id_]
    changes: list[Change] = [(space, id_, [value]), (CHANNELS, name, [id_, history, first, starts])]
    oldest: Any = view.first(space)
    for _ in range(min(view.size(space) + 1 - history, TRIM)):
        changes.append((space, oldest, ABSENT))
        oldest = _next(view, space, starts, oldest) or id_
    return id_, changes


def read(view: View, now: float, name: str, after: int, wait: float) -> Outcome:
    """Return ``[messages missed, id, value, id, value, ...]``, the next after an id, ``[]`` if none came in time."""
    check_name(name)
    check_int(after, "a message's id")
    until = now + timeout(wait)
    space = CHANNEL + name
    found = view.get(CHANNELS, name)
    starts = [] if found is ABSENT else found[STARTS]
    id_ = _next(view, space, starts, after)
    if id_ is None:
        return Wait(space, None, until, timed_out=[], in_order=False)
    page: list[Any] = [_missed(found[FIRST], after, id_)]
    size = 0
    while id_ is not None and len(page) <= 2 * PAGE_MESSAGES and size < PAGE_BYTES:
        value = view.get(space, id_)[0]
        page += (id_, value)
        size += cost(id_, value)
        id_ = _next(view, space, starts, id_)
    return page, ()


def drop(view: View, now: float, name: str) -> Done:
    """Forget a channel and its messages; return whether it was there."""
    check_name(name)
    if view.get(CHANNELS, name) is ABSENT:
        return False, ()
    floor = max(_last(view, name), _floor(view))
    return True, ((CHANNEL + name, None, ABSENT), (CHANNELS, name, ABSENT), (CHANNELS, FLOOR, floor))


def last(view: View, now: float, name: str) -> Done:
    """Return the id of the last message, or one that is smaller than that of the first one will be."""
    check_name(name)
    return _last(view, name), ()


def state(view: View, now: float, name: str) -> Done:
    """Return ``[last id, messages kept, who waits for the next one]``."""
    check_name(name)
    return [_last(view, name), view.size(CHANNEL + name), view.waiting(CHANNEL + name, None)], ()


def _last(view: View, name: str) -> int:
    found = view.get(CHANNELS, name)
    return _floor(view) if found is ABSENT else int(found[LAST])


def _floor(view: View) -> int:
    found = view.get(CHANNELS, FLOOR)
    return 0 if found is ABSENT else int(found)


def _missed(first: int, after: int, id_: int) -> int:
    """Return how many messages there were after one that a reader has and before one that he gets."""
    missed = (id_ - first if after < first else id_ - after - 1) & _COUNT
    return missed if missed < 1 << EPOCH_SHIFT - 1 else 0  # a power failure has taken some, and the count went back


def _next(view: View, space: str, starts: list[int], after: int) -> int | None:
    """Return the id of the first message that is kept after an id, None if there is none."""
    if view.get(space, after + 1) is not ABSENT:
        return after + 1
    first = view.first(space)
    if type(first) is not int:
        return None
    return first if first > after else min((start for start in starts if start > after), default=None)


COMMANDS = (
    row("channel", "publish", publish, writes=True),
    row("channel", "drop", drop, writes=True),
    row("channel", "read", read, writes=False),
    row("channel", "last", last, writes=False),
    row("channel", "state", state, writes=False),
)
