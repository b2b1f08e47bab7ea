"""Queues: items wait in the order of the time from which they may be had, and are taken one by one.

An item that waits is an entry of the queue's space, ``[value, deliveries]``. Its key is that time and a number, so that
the smallest key is the next item, delayed ones and those that came back among them. Taking one moves it to the space of
what was taken, under its number, as an entry of the session that took it; acknowledging deletes it there. When the
session or the lease ends it moves back (``returned``): so no item is lost with a worker, and the same code sees to it
that frees locks.

Rules
- An item's number is a version that no entry of the queue had before: it grows, for ever.
- Who came back because his worker ended has the place that he had; one that was refused goes to the end, or waits.
- Where deliveries are bounded, an item that has had its last goes to the queue of this name and ":dead".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from ..checks import DEAD, QUEUE, TAKEN, Key, check_int, check_name, check_stored, seconds, timeout
from ..errors import NotOwner
from ..parking import GONE
from ..store import ABSENT, NEVER, Change, Entry, Stored
from .base import Done, Outcome, View, Wait, owner_of, row

DELAY_LIMIT: Final = 1e10
"""Seconds that an item may be delayed: about three centuries, and its time still fits the key."""

VALUE, DELIVERIES, PLACE, MOST, PID, SINCE = range(6)
"""What the entry of an item holds; one that waits only the first two."""

_key = struct.Struct(">QQ")


def put(view: View, now: float, name: str, value: Stored, delay: float, maxsize: int, wait: float) -> Outcome:
    """Add an item that may be had after ``delay`` seconds; return its number, None if there was no room in time.

    ``maxsize``: how many may wait, 0 for any number.
    """
    check_name(name)
    check_stored(value)
    due, until = now + check_delay(delay), now + timeout(wait)
    space = QUEUE + name
    if check_int(maxsize, "maxsize") > 0 and (view.ahead(space, GONE) or view.size(space) >= maxsize):
        return Wait(space, GONE, until)
    number = view.space_version(space) + 1
    return number, ((space, _place(due, number), [value, 0]),)


def get(view: View, now: float, name: str, lease: float | None, most: int | None, wait: float) -> Outcome:
    """Take the next item; return ``[number, value, deliveries]``, None if there was none in time.

    ``lease``: after so many seconds it comes back. ``most``: how often it is delivered before it is given up.
    """
    check_name(name)
    session = owner_of(view, "an item")
    ends, until = NEVER if lease is None else now + seconds(lease), now + timeout(wait)
    if most is not None and check_int(most, "max_deliveries") < 1:
        raise ValueError(f"max_deliveries is at least 1, or None for no bound, not {most}")
    space = QUEUE + name
    if view.ahead(space, None):
        return Wait(space, None, until)
    place = view.first(space)
    if place is None:
        return Wait(space, None, until)
    due, number = _read(place)
    if due > now:
        return Wait(space, None, until, due)
    value, deliveries = view.get(space, place)
    taken = [value, deliveries + 1, place, most, session.pid, now]
    return [number, value, deliveries + 1], (
        (space, place, ABSENT),
        (TAKEN + name, number, Entry(taken, ends, session.number)),
    )


def take_back(
    view: View, now: float, result: Any, name: str, lease: float | None, most: int | None, wait: float
) -> Done:
    """Put back an item that was given to one who no longer waited: it was not delivered."""
    found: Any = ABSENT if result is None else _taken(view, name, result[0], result[2])
    if found is ABSENT:
        return None, ()
    value = [found.value[VALUE], found.value[DELIVERIES] - 1]
    return None, ((TAKEN + name, result[0], ABSENT), (QUEUE + name, found.value[PLACE], value))


def ack(view: View, now: float, name: str, number: int, delivery: int) -> Done:
    """Forget an item that was taken: it is done. ``delivery``: which one of it this was."""
    _mine(view, name, number, delivery)
    return None, ((TAKEN + name, number, ABSENT),)


def nack(view: View, now: float, name: str, number: int, delivery: int, delay: float) -> Done:
    """Give back an item that was taken, to be had again after ``delay`` seconds."""
    due = now + check_delay(delay)
    return None, _back(name, number, _mine(view, name, number, delivery), _place(due, number))


def returned(space: str, number: Key, found: Entry) -> Sequence[Change]:
    """Return the changes that give back an item whose taker or lease has ended."""
    return _back(space.removeprefix(TAKEN), number, found, found.value[PLACE])


def peek(view: View, now: float, name: str) -> Done:
    """Return ``[value]`` of the item that ``get`` would take, ``[]`` if there is none now."""
    check_name(name)
    place = view.first(QUEUE + name)
    if place is None or _read(place)[0] > now:
        return [], ()
    return [view.get(QUEUE + name, place)[VALUE]], ()


def size(view: View, now: float, name: str) -> Done:
    """Return ``[items that wait, items taken and not acknowledged, who waits for an item, who waits for room]``."""
    check_name(name)
    space = QUEUE + name
    return [view.size(space), view.size(TAKEN + name), view.waiting(space, None), view.waiting(space, GONE)], ()


def clear(view: View, now: float, name: str) -> Done:
    """Delete the items that wait; return how many there were."""
    check_name(name)
    count = view.size(QUEUE + name)
    return count, ((QUEUE + name, None, ABSENT),) if count else ()


def check_delay(delay: object) -> float:
    """Return a delay in seconds, or refuse."""
    if (found := timeout(delay)) > DELAY_LIMIT:
        raise ValueError(f"a delay is at most {DELAY_LIMIT:.0f} seconds, not {delay!r}")
    return found


def _place(due: float, number: int) -> bytes:
    return _key.pack(int(due * 1e6), number)


def _read(place: Any) -> tuple[float, int]:
    """Return the time from which an item may be had, and its number."""
    due, number = _key.unpack(place)
    return due / 1e6, number


def _back(name: str, number: Key, found: Entry, place: bytes) -> Sequence[Change]:
    value, deliveries, _, most, *_ = found.value
    to = QUEUE + name + (DEAD if most is not None and deliveries >= most else "")
    return (TAKEN + name, number, ABSENT), (to, place, [value, deliveries])


def _taken(view: View, name: str, number: int, delivery: int) -> Any:
    """Return the entry of an item that this session was given with this delivery, ABSENT if it has it no longer."""
    check_name(name)
    found = view.get(TAKEN + name, check_int(number, "an item's number"))
    owner = view.session.number if view.session else None
    mine = found is not ABSENT and found.owner == owner and found.value[DELIVERIES] == delivery
    return found if mine else ABSENT


def _mine(view: View, name: str, number: int, delivery: int) -> Any:
    found = _taken(view, name, number, delivery)
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
    row("queue", "clear", clear, writes=True),
    row("queue", "peek", peek, writes=False),
    row("queue", "size", size, writes=False),
)
