"""Single flight: of all who want a value that is not there one computes it, and the others wait for him.

Who computes has an entry of the dict's ":flight:" space, under the value's key: ``[token, version, pid, since]``, with
the value's version at the beginning. It ends with his process, with its lease, with the value that he brings, and when
somebody deletes the key meanwhile: then what he computes is out of date, and is not stored. After any of these the next
computes, but for a failure, which those who wait are told: for that it stays for a moment as ``[FAILED, text]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..checks import FLIGHT, Key, check_int, check_key, check_name, check_stored, seconds, timeout
from ..errors import ComputeFailed
from ..store import ABSENT, Change, Entry, Stored
from .base import Done, Outcome, View, Wait, entry, owner_of, row

FAILED: Final = 0
"""Stands where the token of one who computes is."""
FAILURE_SECONDS: Final = 1.0
FAILURE_LIMIT: Final = 1_000
"""Characters of what is told of a failure."""

TOKEN, VERSION = range(2)


def compute(view: View, now: float, space: str, key: Key, lease: float, wait: float) -> Outcome:
    """Return True if the value is there, the token of him who is to compute it, or None if it did not come in time.

    The value itself is for who asks again: a reply of a write is kept for a retry, and each who has waited would have
    one with the value in it.

    Raises ComputeFailed if he has failed for whom this request has waited.
    """
    _check(space, key)
    until = now + timeout(wait)
    if view.get(space, key) is not ABSENT:
        return True, ()
    flight = view.get(FLIGHT + space, key)
    if flight is ABSENT or (flight.value[TOKEN] == FAILED and not view.parked):
        return _begin(view, now, space, key, lease)
    if flight.value[TOKEN] == FAILED:
        raise ComputeFailed(flight.value[1])
    return Wait(FLIGHT + space, key, until, flight.deadline, in_order=False)


def refresh(view: View, now: float, space: str, key: Key, lease: float) -> Done:
    """Return the token of him who is to compute a value anew that is there; None if somebody does, or it is not."""
    _check(space, key)
    flight = view.get(FLIGHT + space, key)
    if view.get(space, key) is ABSENT or (flight is not ABSENT and flight.value[TOKEN] != FAILED):
        return None, ()
    return _begin(view, now, space, key, lease)


def take_back(view: View, now: float, result: Any, space: str, key: Key, lease: float, wait: float = 0.0) -> Done:
    """Let the next compute: the one who was to do it has gone."""
    return give_up(view, now, space, key, result) if type(result) is int else (None, ())


def computed(view: View, now: float, space: str, key: Key, token: int, value: Stored, ttl: float | None = None) -> Done:
    """Store a value that was computed; return whether that was done: not if the key was written or deleted since."""
    _check(space, key)
    check_stored(value)
    made = entry(value, ttl, now)
    flight = _mine(view, space, key, token)
    if flight is ABSENT:
        return False, ()
    done = (FLIGHT + space, key, ABSENT)
    if view.get(space, key) is not ABSENT and view.version(space, key) != flight.value[VERSION]:
        return False, (done,)
    return True, ((space, key, made), done)


def failed(view: View, now: float, space: str, key: Key, token: int, text: str) -> Done:
    """Tell those who wait why the value could not be computed."""
    _check(space, key)
    if type(text) is not str:
        raise TypeError("what is told of a failure is a str")
    if _mine(view, space, key, token) is ABSENT:
        return None, ()
    return None, ((FLIGHT + space, key, Entry([FAILED, text[:FAILURE_LIMIT]], now + FAILURE_SECONDS)),)


def give_up(view: View, now: float, space: str, key: Key, token: int) -> Done:
    """Let the next compute."""
    _check(space, key)
    return None, () if _mine(view, space, key, token) is ABSENT else ((FLIGHT + space, key, ABSENT),)


def deleted(view: View, space: str, key: Key, found: Any) -> Sequence[Change]:
    """Return the changes that delete a key: what is being computed for it is out of date then, and is not stored.

    They name the key even if it is absent: a single change would be taken for the key's own by who asked.
    """
    if view.get(FLIGHT + space, key) is not ABSENT:
        return (space, key, ABSENT), (FLIGHT + space, key, ABSENT)
    return () if found is ABSENT else ((space, key, ABSENT),)


def emptied(view: View, space: str) -> Sequence[Change]:
    """Return the changes that empty a dict, with the same effect; what is empty does not change."""
    return tuple((name, None, ABSENT) for name in (space, FLIGHT + space) if view.size(name))


def _begin(view: View, now: float, space: str, key: Key, lease: float) -> Done:
    session = owner_of(view, "what is being computed")
    token = view.version(FLIGHT + space, key) + 1
    held = [token, view.version(space, key), session.pid, now]
    return token, ((FLIGHT + space, key, Entry(held, now + seconds(lease, "a lease"), session.number)),)


def _mine(view: View, space: str, key: Key, token: int) -> Any:
    """Return the entry of him who computes, if that is this session with this token, else ABSENT."""
    check_int(token, "a token")
    flight = view.get(FLIGHT + space, key)
    owner = view.session.number if view.session else None
    found = flight is not ABSENT and flight.owner == owner and flight.value[TOKEN] == token
    return flight if found else ABSENT


def _check(space: str, key: Key) -> None:
    check_name(space)
    check_key(key)


COMMANDS = (
    row("dict", "compute", compute, writes=True, reverse=take_back),
    row("dict", "refresh", refresh, writes=True, reverse=take_back),
    row("dict", "computed", computed, writes=True),
    row("dict", "failed", failed, writes=True),
    row("dict", "give_up", give_up, writes=True),
)
