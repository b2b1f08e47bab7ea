"""Queues: items wait in the order of the time from which they may be had, and are taken one by one.

An item that waits is an entry of the queue's space, ``[value, deliveries, most]``. Its key, its place, is that time and
a number, so that the smallest key is the next item, delayed ones and those that came back among them. Taking one moves
it to the space of what was taken, as an entry of the session that took it; acknowledging deletes it there. When the
session or the lease ends it moves back (``returned``): so no item is lost with a worker, and the same code sees to it
that frees locks.

Rules
- A place's number is a version that no entry of the queue had before: it grows, for ever.
- What was taken has a key of its own each time, its receipt: who has lost an item and comes back late has nothing to
  say about it, were it his own process that has taken it again. It begins with the end of the lease, so that the
  smallest key is the next item to come back: who waits waits for that too.
- Who came back because his worker ended has the place that he had; one that was refused goes to the end, or waits.
- Where deliveries are bounded, by who has put the item or by who takes it, one that has had its last goes to the queue
  of this name and ":dead".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from ..checks import DEAD, QUEUE, TAKEN, Key, check_int, check_key, check_name, check_stored, seconds, timeout
from ..errors import NotOwner
from ..parking import GONE
from ..store import ABSENT, NEVER, Change, Entry, Stored
from .base import Done, Outcome, View, Wait, owner_of, row

RETURNS: Final = 500
"""Items whose lease has ended that one request gives back."""
MOVES: Final = 500
"""Undeliverable items that one request lets be delivered again."""

VALUE, DELIVERIES, MOST, PLACE, PID, SINCE = range(6)
"""What the entry of an item holds; one that waits only the first three."""

_key = struct.Struct(">QQ")
_LAST: Final = 2**64 - 1


def put(
    view: View, now: float, name: str, value: Stored, delay: float, maxsize: int, most: int | None, wait: float
) -> Outcome:
    """Add an item that may be had after ``delay`` seconds; return its number, None if there was no room in time.

    ``maxsize``: how many may wait, 0 for any number. ``most``: how often it is delivered before it is given up.
    """
    check_name(name)
    until = now + timeout(wait)
    added = item(view, now, name, value, delay, most)
    space = QUEUE + name
    if check_int(maxsize, "maxsize") > 0 and (view.ahead(space, GONE) or view.size(space) >= maxsize):
        return Wait(space, GONE, until)
    return view.space_version(space) + 1, (added,)


def item(view: View, now: float, name: str, value: Stored, delay: float, most: int | None, before: int = 0) -> Change:
    """Return the change that adds an item; ``before``: how many the same command adds before it."""
    check_stored(value)
    number = view.space_version(QUEUE + name) + 1 + before
    return QUEUE + name, _place(now + timeout(delay, "a delay"), number), [value, 0, check_most(most)]


def get(view: View, now: float, name: str, lease: float | None, most: int | None, wait: float) -> Outcome:
    """Take the next item; return ``[receipt, value, deliveries]``, None if there was none in time.

    ``lease``: after so many seconds it comes back. ``most``: how often it is delivered before it is given up, None for
    what was said when it was put.
    """
    check_name(name)
    check_most(most)
    session = owner_of(view, "an item")
    ends, until = NEVER if lease is None else now + seconds(lease, "a lease"), now + timeout(wait)
    space = QUEUE + name
    if view.ahead(space, None):
        return Wait(space, None, until)
    comes_back = _give_back(view, now, name)
    place: Any = view.first(space)
    if place is None:
        return Wait(space, None, until, comes_back)
    due, _ = _key.unpack(place)
    if due > _microseconds(now):
        return Wait(space, None, until, min(_seconds(due), comes_back))
    value, deliveries, bound = view.get(space, place)
    taken = [value, deliveries + 1, bound if most is None else most, place, session.pid, now]
    receipt = _receipt(ends, view.space_version(TAKEN + name) + 1)
    return [receipt, value, deliveries + 1], (
        (space, place, ABSENT),
        (TAKEN + name, receipt, Entry(taken, ends, session.number)),
    )


def take_back(
    view: View, now: float, result: Any, name: str, lease: float | None, most: int | None, wait: float
) -> Done:
    """Put back an item that was given to one who no longer waited: it was not delivered."""
    found: Any = ABSENT if result is None else _taken(view, name, result[0])
    if found is ABSENT:
        return None, ()
    value, deliveries, bound, place, *_ = found.value
    return None, ((TAKEN + name, result[0], ABSENT), (QUEUE + name, place, [value, deliveries - 1, bound]))


def ack(view: View, now: float, name: str, receipt: bytes) -> Done:
    """Forget an item that was taken: it is done."""
    _mine(view, name, receipt)
    return None, ((TAKEN + name, receipt, ABSENT),)


def nack(view: View, now: float, name: str, receipt: bytes, delay: float) -> Done:
    """Give back an item that was taken, to be had again after ``delay`` seconds."""
    due = now + timeout(delay, "a delay")
    found = _mine(view, name, receipt)
    return None, _back(name, receipt, found, _place(due, view.space_version(QUEUE + name) + 1))


def returned(space: str, receipt: Key, found: Entry) -> Sequence[Change]:
    """Return the changes that give back an item whose taker or lease has ended."""
    assert isinstance(receipt, bytes)
    return _back(space.removeprefix(TAKEN), receipt, found, found.value[PLACE])


def retry(view: View, now: float, name: str) -> Done:
    """Let undeliverable items be delivered again, a bounded number of them; return how many."""
    check_name(name)
    dead, _ = view.page(QUEUE + name + DEAD, None)
    changes: list[Change] = []
    for place, (value, _, most) in sorted(dead[:MOVES]):
        changes += (
            (QUEUE + name + DEAD, place, ABSENT),
            item(view, now, name, value, 0.0, most, len(changes) // 2),
        )
    return len(changes) // 2, changes


def peek(view: View, now: float, name: str) -> Done:
    """Return ``[value]`` of the item that ``get`` would take, ``[]`` if there is none now."""
    check_name(name)
    _give_back(view, now, name)
    place: Any = view.first(QUEUE + name)
    if place is None or _key.unpack(place)[0] > _microseconds(now):
        return [], ()
    return [view.get(QUEUE + name, place)[VALUE]], ()


def size(view: View, now: float, name: str) -> Done:
    """Return ``[items that wait, items taken and not acknowledged, who waits for an item, who waits for room]``."""
    check_name(name)
    _give_back(view, now, name)
    space = QUEUE + name
    return [view.size(space), view.size(TAKEN + name), view.waiting(space, None), view.waiting(space, GONE)], ()


def clear(view: View, now: float, name: str) -> Done:
    """Delete the items that wait; return how many there were."""
    check_name(name)
    count = view.size(QUEUE + name)
    return count, ((QUEUE + name, None, ABSENT),) if count else ()


def check_most(most: int | None) -> int | None:
    """Return the bound of an item's deliveries, or refuse."""
    if most is not None and check_int(most, "max_deliveries") < 1:
        raise ValueError(f"max_deliveries is at least 1, or None for no bound, not {most}")
    return most


def _place(due: float, number: int) -> bytes:
    return _key.pack(_microseconds(due), number)


def _microseconds(time: float) -> int:
    """Return a time as places have it and compare it: in seconds again it could be a little later than it was."""
    return int(time * 1e6)


def _seconds(due: int) -> float:
    """Return the first time at which something that is due then is due, however it is rounded."""
    time = due / 1e6
    return time if _microseconds(time) >= due else (due + 1) / 1e6


def _receipt(ends: float, number: int) -> bytes:
    return _key.pack(_LAST if ends == NEVER else min(_microseconds(ends), _LAST), number)


def _give_back(view: View, now: float, name: str) -> float:
    """Let come back what was taken with a lease that has ended; return when the next one ends."""
    space = TAKEN + name
    for _ in range(RETURNS):
        receipt = view.first(space)
        if receipt is None:
            return NEVER
        found = view.get(space, receipt)  # meeting one that has ended gives it back
        if found is not ABSENT:
            return float(found.deadline)
    return now


def _back(name: str, receipt: bytes, found: Entry, place: bytes) -> Sequence[Change]:
    """Return the changes that give an item back at a place, or to the undeliverable."""
    value, deliveries, most, former, *_ = found.value
    to = QUEUE + name
    if most is not None and deliveries >= most:
        # There the receipt's number makes a place that nobody has: what has come and gone since may have this one's.
        to, place = to + DEAD, former[:8] + receipt[8:]
    return (TAKEN + name, receipt, ABSENT), (to, place, [value, deliveries, most])


def _taken(view: View, name: str, receipt: bytes) -> Any:
    """Return the entry of an item that this session has taken, ABSENT if it has not, or no longer."""
    check_name(name)
    check_key(receipt)
    found = view.get(TAKEN + name, receipt)
    owner = view.session.number if view.session else None
    return ABSENT if found is ABSENT or found.owner != owner else found


def _mine(view: View, name: str, receipt: bytes) -> Any:
    found = _taken(view, name, receipt)
    if found is ABSENT:
        raise NotOwner(
            f"this item of the queue {name!r} is not this process's: it was acknowledged or given back, or its lease"
            " has ended and it is somebody else's"
        )
    return found


COMMANDS = (
    row("queue", "put", put, writes=True),
    row("queue", "get", get, writes=True, reverse=take_back),
    row("queue", "ack", ack, writes=True),
    row("queue", "nack", nack, writes=True),
    row("queue", "retry", retry, writes=True),
    row("queue", "clear", clear, writes=True),
    row("queue", "peek", peek, writes=False),
    row("queue", "size", size, writes=False),
)
