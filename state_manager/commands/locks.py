"""Locks and semaphores: who holds one has an entry, which ends with his process or with its lease.

A lock's entry is in ":locks", under its name, and a leader's, which is a lock by another name, in ":leaders"; a
semaphore has a space of its own, with an entry for each holder under his token. So the machinery of owners and
deadlines frees them, and a holder is who has an entry.

A token is a version that no entry before had: it grows with every grant, for ever, across restarts too. A holder sends
it along when he writes to a third place, which refuses a smaller one than the last: so he does no harm if his lease has
ended without his noticing.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from ..checks import LEADERS, LOCKS, SEMAPHORE, Key, check_int, check_name, seconds, timeout
from ..errors import NotOwner
from ..sessions import Session
from ..store import ABSENT, NEVER, Entry
from .base import Command, Done, Outcome, View, Wait, owner_of, row

SLOTS_LIMIT: Final = 512
"""Holders that a semaphore may have at a time: so many entries are one page of a space."""

TOKEN, PID, THREAD, SINCE, COUNT = range(5)
"""What an entry holds."""


def acquire(
    space: str, view: View, now: float, name: str, thread: int, lease: float | None, held: int, wait: float
) -> Outcome:
    """Return the fencing token, or None after ``wait`` seconds. ``held``: the token of a grant to be held once more.

    First come, first served: nobody overtakes one who waits.
    """
    session = _session(view, name, thread)
    ends, until = _ends(lease, now), now + timeout(wait)
    found = view.get(space, name)
    if found is not ABSENT and found.owner == session.number and found.value[TOKEN] == held:
        value = [*found.value[:COUNT], found.value[COUNT] + 1]
        return held, ((space, name, Entry(value, found.deadline if lease is None else ends, session.number)),)
    if view.ahead(space, name):
        return Wait(space, name, until)
    if found is not ABSENT:
        return Wait(space, name, until, found.deadline)
    token = view.version(space, name) + 1
    return token, ((space, name, Entry([token, session.pid, thread, now, 1], ends, session.number)),)


def release(space: str, view: View, now: float, name: str, token: int) -> Done:
    """Let go of a lock; return how often it is still held."""
    check_name(name)
    found = held_by(view, space, name, token)
    if found is None:
        raise NotOwner(f"the lock {name!r} is not yours: its lease has ended, or it was never granted to this process")
    count = found.value[COUNT] - 1
    value = [*found.value[:COUNT], count]
    return count, ((space, name, Entry(value, found.deadline, found.owner) if count else ABSENT),)


def take_back(
    space: str,
    view: View,
    now: float,
    token: int | None,
    name: str,
    thread: int,
    lease: float | None,
    held: int,
    wait: float,
) -> Done:
    """Let go of a lock that was granted to one who no longer waited."""
    if token is None or held_by(view, space, name, token) is None:
        return 0, ()
    return release(space, view, now, name, token)


def holder(space: str, view: View, now: float, name: str) -> Done:
    """Return ``[waiting, [token, pid, thread, since, seconds left]]``, only ``[waiting]`` if nobody holds it."""
    check_name(name)
    found = view.get(space, name)
    return [view.waiting(space, name), *([] if found is ABSENT else [_shown(found, now)])], ()


# -- semaphores --------------------------------------------------------------------------------------------------------


def take(view: View, now: float, name: str, slots: int, thread: int, lease: float | None, wait: float) -> Outcome:
    """Return the token of one of ``slots`` places, or None after ``wait`` seconds. First come, first served."""
    session = _session(view, name, thread)
    if not 1 <= check_int(slots, "the number of places") <= SLOTS_LIMIT:
        raise ValueError(f"a semaphore has from 1 to {SLOTS_LIMIT} places, not {slots}")
    ends, until = _ends(lease, now), now + timeout(wait)
    space = SEMAPHORE + name
    if view.ahead(space, None):
        return Wait(space, None, until)
    if view.size(space) >= slots:  # or are some of them over?
        holders, _ = view.page(space, None)
        if len(holders) >= slots:
            return Wait(space, None, until, min(found.deadline for _, found in holders))
    token = view.space_version(space) + 1
    return token, ((space, token, Entry([token, session.pid, thread, now, 1], ends, session.number)),)


def give(view: View, now: float, name: str, token: int) -> Done:
    """Let go of a semaphore's place."""
    check_name(name)
    check_int(token, "a token")
    if held_by(view, SEMAPHORE + name, token, token) is None:
        raise NotOwner(f"no place of the semaphore {name!r} is yours: its lease has ended, or there never was one")
    return 0, ((SEMAPHORE + name, token, ABSENT),)


def give_back(
    view: View, now: float, token: int | None, name: str, slots: int, thread: int, lease: float | None, wait: float
) -> Done:
    """Let go of a place that was given to one who no longer waited."""
    if token is None or held_by(view, SEMAPHORE + name, token, token) is None:
        return 0, ()
    return give(view, now, name, token)


def holders(view: View, now: float, name: str) -> Done:
    """Return ``[waiting, [token, pid, thread, since, seconds left], ...]``, those who came first first."""
    check_name(name)
    found, _ = view.page(SEMAPHORE + name, None)
    return [view.waiting(SEMAPHORE + name, None), *(_shown(entry, now) for _, entry in found)], ()


def _session(view: View, name: str, thread: int) -> Session:
    """Check what all who want something say, and return who it is."""
    check_name(name)
    check_int(thread, "a thread")
    return owner_of(view, "a lock")


def _ends(lease: float | None, now: float) -> float:
    return NEVER if lease is None else now + seconds(lease, "a lease")


def held_by(view: View, space: str, key: Key, token: object) -> Any:
    """Return the entry of a grant to this session, None if there is none any more."""
    found = view.get(space, key)
    owner = view.session.number if view.session else None
    return None if found is ABSENT or found.owner != owner or found.value[TOKEN] != token else found


def _shown(found: Any, now: float) -> list[Any]:
    return [*found.value[:COUNT], None if found.deadline == NEVER else found.deadline - now]


def _rows(kind: str, space: str) -> tuple[Command, ...]:
    """Return the commands of what one holds at a time."""
    return (
        row(kind, "acquire", partial(acquire, space), writes=True, reverse=partial(take_back, space)),
        row(kind, "release", partial(release, space), writes=True),
        row(kind, "holders", partial(holder, space), writes=False),
    )


COMMANDS = (
    *_rows("lock", LOCKS),
    *_rows("leader", LEADERS),
    row("semaphore", "acquire", take, writes=True, reverse=give_back),
    row("semaphore", "release", give, writes=True),
    row("semaphore", "holders", holders, writes=False),
)
