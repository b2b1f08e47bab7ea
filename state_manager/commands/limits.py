"""Rate limits: how many hits a key has had within a window of time. ``flask.limits`` brings them to the library limits.

There are three ways to count, each in a space of its own:

    fixed     a count that ends with its window, which the first hit begins
    sliding   a count of this window of the clock, and one of the window before, which fades out during this one
    moving    when every hit was, so that no span of ``expiry`` seconds has more than ``limit`` of them

Rules
- A hit is judged and counted in one step, so there is no moment in which a second one could slip through. One that a
  sliding or a moving window refuses changes nothing.
- Something at ``then`` is over as soon as ``then + expiry <= now``: what a deadline says, and what is computed here.
- The newest hits of a moving window are in one entry, under the limit's key. When that is full it moves away as it is,
  and ends by its own deadline. So a hit writes up to ``RECORDS`` records, however many the limit allows; a list of all
  of them would be written anew for each. A hit of many units is one record too.
"""

from __future__ import annotations

from bisect import bisect_left
from math import floor
from struct import Struct
from typing import Any, Final

from ..checks import Key, check_int, check_key, seconds
from ..store import ABSENT, Entry
from .base import Done, View, row

FIXED: Final = ":limits:fixed"
SLIDING: Final = ":limits:sliding"
MOVING: Final = ":limits:moving"
FULL: Final = ":limits:moving:full"
LIMITS: Final = (FIXED, SLIDING, MOVING, FULL)
"""The spaces."""

RECORD: Final = Struct("<dq")
"""When a hit was, and how many there had been since the key's first one."""
RECORDS: Final = 32
"""Hits in one entry: one under `10000/day` then takes 35 bytes of memory, 400 of the journal and 18 microseconds. In an
entry of its own it would take 460, 190 and 10; in one list of all of them 32, 45,000 and 1,900."""
SPANS: Final = (1e-3, 1e11)
"""Seconds that a window may have."""

# -- fixed window ------------------------------------------------------------------------------------------------------


def hit_fixed(view: View, now: float, key: Key, expiry: float, amount: int = 1) -> Done:
    """Add hits to a window and return the sum; the first one begins a window of ``expiry`` seconds."""
    _check_key(key)
    ends = now + _span(expiry)
    found = view.get(FIXED, key)
    count = 0 if found is ABSENT else found.value
    total = check_int(count + check_int(amount, "an amount"), "the sum")
    if total == count:
        return total, ()
    return total, ((FIXED, key, Entry(total, found.deadline if count else ends)),)


def fixed(view: View, now: float, key: Key) -> Done:
    """Return ``[hits in the window, seconds until it ends]``."""
    _check_key(key)
    found = view.get(FIXED, key)
    return ([0, 0.0] if found is ABSENT else [found.value, found.deadline - now]), ()


# -- sliding window counter --------------------------------------------------------------------------------------------


def hit_sliding(view: View, now: float, key: Key, limit: int, expiry: float, amount: int = 1) -> Done:
    """Add hits unless there would be more than ``limit``, the former window's weighted; return whether it did."""
    span = _checked(key, limit, expiry, amount)
    window, elapsed = divmod(now, span)
    former, current = _counts(view, key, window)
    if floor(former * (span - elapsed) / span + current) + amount > limit:
        return False, ()
    if not amount:
        return True, ()
    value = [int(window), former, check_int(current + amount, "the sum")]
    return True, ((SLIDING, key, Entry(value, now - elapsed + 2 * span)),)


def sliding(view: View, now: float, key: Key, expiry: float) -> Done:
    """Return ``[hits in the former window, seconds that it counts, hits in this one, seconds that it will count]``."""
    _check_key(key)
    span = _span(expiry)
    window, elapsed = divmod(now, span)
    former, current = _counts(view, key, window)
    return [former, span - elapsed if former else 0.0, current, 2 * span - elapsed], ()


def _counts(view: View, key: Key, window: float) -> tuple[int, int]:
    """Return the hits in the window before this one of the clock, and in this one."""
    found = view.get(SLIDING, key)
    last, former, current = (0, 0, 0) if found is ABSENT else found.value
    if last == window:
        return former, current
    return (current, 0) if last == window - 1 else (0, 0)


# -- moving window -----------------------------------------------------------------------------------------------------


def hit_moving(view: View, now: float, key: Key, limit: int, expiry: float, amount: int = 1) -> Done:
    """Add hits unless there would be more than ``limit`` in the last ``expiry`` seconds; return whether it did."""
    span = _checked(key, limit, expiry, amount)
    found = view.get(MOVING, key)
    count, _ = _in_window(view, now, key, found, limit, span)
    if count + amount > limit:
        return False, ()
    if not amount:
        return True, ()
    number, total, records = (0, 0, b"") if found is ABSENT else found.value
    full = len(records) >= RECORDS * RECORD.size
    if full:
        records = b""
    value = [number + full, check_int(total + amount, "the sum"), records + RECORD.pack(now, total)]
    newest = MOVING, key, Entry(value, now + span)
    return True, ((FULL, _full_key(key, number), found), newest) if full else (newest,)


def moving(view: View, now: float, key: Key, limit: int, expiry: float) -> Done:
    """Return ``[hits in the last seconds, how many seconds ago the first of them was]``."""
    span = _checked(key, limit, expiry, 0)
    count, began = _in_window(view, now, key, view.get(MOVING, key), limit, span)
    return [count, now - began], ()


def _in_window(view: View, now: float, key: Key, newest: Any, limit: int, span: float) -> tuple[int, float]:
    """Return how many hits the window has, and when the first of them was."""
    if newest is ABSENT:
        return 0, now
    number, total, records = newest.value

    def starts_in(older: int) -> bool:
        """Whether the window has hits of this full entry. After the first that says so, all do."""
        found = view.get(FULL, _full_key(key, older))
        return found is not ABSENT and not over(found.value[2], -1)

    def over(records: bytes, at: int) -> bool:
        then, _ = RECORD.unpack_from(records, at * RECORD.size)
        return bool(then + span <= now)

    if number:
        # There are `limit` hits in the window at the most, so it does not reach further back than this.
        older = range(max(0, number - 1 - limit // RECORDS), number)
        at = bisect_left(older, True, key=starts_in)
        if at < len(older):
            records = view.get(FULL, _full_key(key, older[at])).value[2]
    size = len(records) // RECORD.size
    first = bisect_left(range(size), True, key=lambda at: not over(records, at))
    if first == size:
        return 0, now
    began, before = RECORD.unpack_from(records, first * RECORD.size)
    return total - before, began


def _full_key(key: Key, number: int) -> Key:
    """Return the key of a full entry. What is left of one after ``clear`` is written over before it could be read."""
    return b"%d " % number + key if isinstance(key, bytes) else f"{number} {key}"


# -- all of them -------------------------------------------------------------------------------------------------------


def clear(view: View, now: float, key: Key) -> Done:
    """Forget all hits of a key."""
    _check_key(key)
    spaces = [space for space in (FIXED, SLIDING, MOVING) if view.get(space, key) is not ABSENT]
    return None, tuple((space, key, ABSENT) for space in spaces)


def reset(view: View, now: float) -> Done:
    """Forget all hits of all keys; return how many keys there were."""
    count = sum(view.size(space) for space in (FIXED, SLIDING, MOVING))
    return count, tuple((space, None, ABSENT) for space in LIMITS if view.size(space))


def _checked(key: object, limit: object, expiry: object, amount: object) -> float:
    """Check what a hit says, and return its window in seconds."""
    _check_key(key)
    for number, what in ((limit, "a limit"), (amount, "an amount")):
        if check_int(number, what) < 0:
            raise ValueError(f"{what} is not below zero, and {number} is")
    return _span(expiry)


def _check_key(key: object) -> None:
    if type(key) is int:
        raise TypeError(f"a limit's key is a str or bytes, not int {key}")
    check_key(key)


def _span(expiry: object) -> float:
    span = seconds(expiry)
    if not SPANS[0] <= span <= SPANS[1]:
        raise ValueError(f"a window has from {SPANS[0]:g} to {SPANS[1]:g} seconds, not {span:g}")
    return span


COMMANDS = (
    row("limits", "hit_fixed", hit_fixed, writes=True),
    row("limits", "hit_sliding", hit_sliding, writes=True),
    row("limits", "hit_moving", hit_moving, writes=True),
    row("limits", "clear", clear, writes=True),
    row("limits", "reset", reset, writes=True),
    row("limits", "fixed", fixed, writes=False),
    row("limits", "sliding", sliding, writes=False),
    row("limits", "moving", moving, writes=False),
)
