"""Channels: messages that everybody reads who wants to, each reader from where he is.

A channel is an entry of ":channels", ``[count of the last message, history, count of the first, epoch of the last]``,
and a space with the messages, ``[value, epoch]`` under their counts, which have no gaps. Readers have nothing here:
each says the id of the last message that he has, and waits if there is none after it. So one that is slow, has gone or
comes back costs nobody anything.

An id is the epoch in which the message was published, in the high 32 bits, and the low ones of its count. So no id
comes twice, though a power failure may take the last messages and others have their counts then; and ids grow. A
channel that was dropped leaves its last count in ":channels" under ``FLOOR``, and new ones begin after that.
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
"""A key that is no channel's name: the largest count of all that were dropped."""

LAST, HISTORY, FIRST, EPOCH = range(4)
"""What a channel's entry holds."""

_LOW: Final = (1 << EPOCH_SHIFT) - 1


def publish(view: View, now: float, name: str, value: Stored, history: int) -> Done:
    """Add a message and return its id; of those before it the last ``history`` - 1 are kept."""
    check_name(name)
    check_stored(value)
    if not 1 <= check_int(history, "history") <= HISTORY_LIMIT:
        raise ValueError(f"a channel keeps from 1 to {HISTORY_LIMIT:,} messages, not {history:,}")
    space = CHANNEL + name
    before, _, first, former = _entry(view, name)
    count = before + 1
    epoch = max(view.version(CHANNELS, name) >> EPOCH_SHIFT, former + (count & _LOW == 0))
    changes: list[Change] = [(space, count, [value, epoch]), (CHANNELS, name, [count, history, first, epoch])]
    kept = view.size(space)
    oldest = count - kept
    changes += [(space, key, ABSENT) for key in range(oldest, oldest + min(kept + 1 - history, TRIM))]
    return _id(count, epoch), changes


def read(view: View, now: float, name: str, after: int, wait: float) -> Outcome:
    """Return ``[messages missed, id, value, id, value, ...]``, the next after an id, ``[]`` if none came in time."""
    check_name(name)
    check_int(after, "a message's id")
    until = now + timeout(wait)
    space = CHANNEL + name
    last, _, first, _ = _entry(view, name)
    count, missed = _next(view, space, last, first, after)
    page: list[Any] = [missed]
    size = 0
    while count <= last and len(page) <= 2 * PAGE_MESSAGES and size < PAGE_BYTES:
        found = view.get(space, count)
        if found is not ABSENT:  # else damage to the journal has taken it, which --recover steps over
            value, epoch = found
            page += (_id(count, epoch), value)
            size += cost(count, value)
        count += 1
    if len(page) == 1:
        return Wait(space, None, until, timed_out=[], in_order=False)
    return page, ()


def drop(view: View, now: float, name: str) -> Done:
    """Forget a channel and its messages; return whether it was there."""
    check_name(name)
    if view.get(CHANNELS, name) is ABSENT:
        return False, ()
    floor = max(_entry(view, name)[LAST], _floor(view))
    return True, ((CHANNEL + name, None, ABSENT), (CHANNELS, name, ABSENT), (CHANNELS, FLOOR, floor))


def last(view: View, now: float, name: str) -> Done:
    """Return the id of the last message, or one that is smaller than that of the first one will be."""
    check_name(name)
    found = _entry(view, name)
    return _id(found[LAST], found[EPOCH]), ()


def state(view: View, now: float, name: str) -> Done:
    """Return ``[last id, messages kept, who waits for the next one]``."""
    id_, _ = last(view, now, name)
    return [id_, view.size(CHANNEL + name), view.waiting(CHANNEL + name, None)], ()


def _entry(view: View, name: str) -> list[int]:
    found = view.get(CHANNELS, name)
    if found is not ABSENT:
        entry: list[int] = found
        return entry
    floor = _floor(view)
    return [floor, 0, floor + 1, 0]


def _floor(view: View) -> int:
    found = view.get(CHANNELS, FLOOR)
    return 0 if found is ABSENT else int(found)


def _id(count: int, epoch: int) -> int:
    return epoch << EPOCH_SHIFT | count & _LOW


def _next(view: View, space: str, last: int, first: int, after: int) -> tuple[int, int]:
    """Return the count of the first message that is kept after an id, and how many there were between the two."""
    oldest = last + 1 - view.size(space)
    count = last - (last - after & _LOW)  # of all with these low bits the last one that there is
    if 0 <= count < oldest:
        return oldest, oldest - max(count + 1, first)
    epoch = after >> EPOCH_SHIFT
    if oldest <= count and _epoch(view, space, count) == epoch:
        return count + 1, 0
    # A power failure has taken it, and another may have its count: all that came in later epochs are new.
    low, high = oldest, last + 1
    while low < high:
        middle = (low + high) // 2
        if _epoch(view, space, middle) > epoch:
            high = middle
        else:
            low = middle + 1
    return low, 0


def _epoch(view: View, space: str, count: int) -> int:
    found = view.get(space, count)
    return 0 if found is ABSENT else int(found[1])


COMMANDS = (
    row("channel", "publish", publish, writes=True),
    row("channel", "drop", drop, writes=True),
    row("channel", "read", read, writes=False),
    row("channel", "last", last, writes=False),
    row("channel", "state", state, writes=False),
)
