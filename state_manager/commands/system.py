"""Counters, secrets and the rest of the manager's own spaces: entries like all others, with commands of their own."""

from __future__ import annotations

from ..checks import (
    CHANNEL,
    COUNTERS,
    LEADERS,
    LOCKS,
    OPTIONS,
    QUEUE,
    SECRETS,
    SEMAPHORE,
    check_int,
    check_key,
    check_name,
    seconds,
)
from ..store import ABSENT, Entry
from .base import FINGERPRINTS, ONCE, Done, View, row, value_of
from .entries import add_to
from .flights import emptied
from .limits import LIMITS

PREVIOUS_LIMIT = 16
"""Former keys of a secret that may stay valid."""
FINGERPRINT_LIMIT = 64
"""Processes whose fingerprint of one name is remembered."""

KINDS = {COUNTERS: "counter", SECRETS: "secret", LOCKS: "lock", LEADERS: "leader", **dict.fromkeys(LIMITS, "limit")}
PREFIXES = {SEMAPHORE: "semaphore", QUEUE: "queue", CHANNEL: "channel"}
"""The kind of the things that a space of the manager's own holds, or is; the others are of kind "system"."""


# -- counters ----------------------------------------------------------------------------------------------------------


def counter_add(view: View, now: float, name: str, by: int = 1) -> Done:
    """Add to the counter and return the sum."""
    check_name(name)
    found = view.get(COUNTERS, name)
    return add_to(0 if found is ABSENT else found, by, COUNTERS, name)


def counter_reset(view: View, now: float, name: str, value: int = 0) -> Done:
    """Set the counter and return the value before."""
    check_name(name)
    found = view.get(COUNTERS, name)
    return (0 if found is ABSENT else value_of(found)), ((COUNTERS, name, check_int(value, "a counter")),)


# -- secrets -----------------------------------------------------------------------------------------------------------


def secret_keys(view: View, now: float, name: str) -> Done:
    """Return ``[version, [generation, current key, former keys, newest first ...]]``; the first to ask has it made.

    It needs no number, though it may write: asked again, it answers the same.
    """
    check_name(name)
    found = view.get(SECRETS, name)
    if found is not ABSENT:
        return (view.version(SECRETS, name), value_of(found)), ()
    made = [1, view.token()]
    return (0, made), ((SECRETS, name, made),)  # version 0 is never current: nobody keeps this copy


def secret_rotate(view: View, now: float, name: str, keep: int = 2) -> Done:
    """Make a new current key, keep the newest ``keep`` former ones valid, and return what ``keys`` returns."""
    check_name(name)
    if not 0 <= check_int(keep, "keep") <= PREVIOUS_LIMIT:
        raise ValueError(f"keep must be from 0 to {PREVIOUS_LIMIT}, not {keep}")
    found = view.get(SECRETS, name)
    generation, *keys = [0] if found is ABSENT else value_of(found)
    made = [generation + 1, view.token(), *keys[:keep]]
    return made, ((SECRETS, name, made),)


# -- the rest ----------------------------------------------------------------------------------------------------------


def once(view: View, now: float, key: str, ttl: float) -> Done:
    """Return True to the first who asks within ``ttl`` seconds, False to all others."""
    check_key(key)
    ends = now + seconds(ttl)
    return (False, ()) if view.get(ONCE, key) is not ABSENT else (True, ((ONCE, key, Entry(True, ends)),))


def fingerprints(view: View, now: float, name: str, pid: int, digest: str) -> Done:
    """Remember this process's digest and return all that are known as ``[pid, digest, pid, digest, ...]``."""
    check_name(name)
    check_int(pid, "a pid")
    if type(digest) is not str or len(digest) > 128:
        raise TypeError("a digest is a str of at most 128 characters")
    found = view.get(FINGERPRINTS, name)
    known = [] if found is ABSENT else value_of(found)
    others = [item for pair in zip(known[::2], known[1::2], strict=True) if pair[0] != pid for item in pair]
    latest = [*others[-2 * (FINGERPRINT_LIMIT - 1) :], pid, digest]
    return latest, ((FINGERPRINTS, name, latest),)


def spaces(view: View, now: float) -> Done:
    """Return ``[name, kind, entries, bytes]`` of every space."""
    return [
        [name, _kind(name) if name[0] == ":" else "dict", entries, size] for name, entries, size in view.spaces()
    ], ()


def _kind(name: str) -> str:
    return next((kind for prefix, kind in PREFIXES.items() if name.startswith(prefix)), KINDS.get(name, "system"))


def drop(view: View, now: float, name: str) -> Done:
    """Delete a dict with all that belongs to it; return whether it was there."""
    check_name(name)
    there = view.size(name) > 0 or view.get(OPTIONS, name) is not ABSENT
    options = ((OPTIONS, name, ABSENT),) if view.get(OPTIONS, name) is not ABSENT else ()
    return there, (*emptied(view, name), *options)


def ping(view: View, now: float) -> Done:
    """Do nothing, and so tell that the manager is well."""
    return None, ()


COMMANDS = (
    row("counter", "increment", counter_add, writes=True),
    row("counter", "reset", counter_reset, writes=True),
    row("secret", "keys", secret_keys, writes=False),
    row("secret", "rotate", secret_rotate, writes=True),
    row("manager", "once", once, writes=True),
    row("manager", "fingerprints", fingerprints, writes=True),
    row("manager", "spaces", spaces, writes=False),
    row("manager", "drop", drop, writes=True),
    row("manager", "ping", ping, writes=False),
)
