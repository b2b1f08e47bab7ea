"""Where the state lives and how large things may get.

This is the only module that reads the environment or decides a path, so that "which directory does this process use?"
has one answer. Everything here is a value that does not change once it was read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

VERSION = "0.1.0"
PROTOCOL = 1
NAME_LIMIT = 100
"""Characters of what a process calls itself."""
"""Grows when a client and a manager of two releases can no longer understand each other."""

ADDRESS_VARIABLE = "STATE_MANAGER_ADDRESS"
DIRECTORY_VARIABLE = "STATE_MANAGER_DIR"
START_VARIABLE = "STATE_MANAGER_START"
DURABILITY_VARIABLE = "STATE_MANAGER_DURABILITY"
SPIN_VARIABLE = "STATE_MANAGER_SPIN"
DEFAULT_DIRECTORY = ".state"
DEFAULT_SPIN = 50e-6
"""Seconds of looking for the next request: waking an idle CPU takes longer than all else in a round trip."""
DEFAULT_TIMEOUT = 5.0
"""Seconds for one operation, retries included."""

Durability = Literal["process", "power", "none"]
"""What an acknowledged write survives: the end of any process, also a power failure, nothing."""

MEMORY_SCHEME = "memory://"

SLOTS = 65_536
"""Versions that a manager keeps and shows. Two keys that share one cost a needless fetch, never a stale read."""
KEY_LIMIT = 1024
"""Bytes of one key or name."""
VALUE_LIMIT = 64 * 2**20
"""Bytes of one stored value."""
FRAME_LIMIT = VALUE_LIMIT + 2**20
"""Bytes of one message."""
HANDSHAKE_LIMIT = 256
"""Bytes of a message from a peer that has not shown that it knows the key."""
HANDSHAKE_SECONDS = 5.0
"""How long such a peer may stay."""

if sys.platform == "win32":  # pragma: no cover
    raise ImportError("state_manager runs on Linux and macOS (and in WSL), not on Windows: it needs Unix sockets")


@dataclass(frozen=True, slots=True)
class DirectoryAddress:
    """A manager process that serves this directory (absolute)."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class MemoryAddress:
    """A store inside this process; ``name`` is None for one that nobody else shares."""

    name: str | None

    def __str__(self) -> str:
        return MEMORY_SCHEME + (self.name or "")


Address = DirectoryAddress | MemoryAddress


def state_directory(directory: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Return the absolute state directory: the one given, else ``$STATE_MANAGER_DIR``, else ``./.state``.

    It is made absolute now, because an application may change its working directory later.
    """
    environ = os.environ if environ is None else environ
    return Path(os.path.abspath(directory or environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY))


def resolve_address(address: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Address:
    """Return what ``connect(address)`` means. Raises ValueError for a scheme that this version does not know."""
    environ = os.environ if environ is None else environ
    if address is None:
        address = environ.get(ADDRESS_VARIABLE) or None
    if address is None:
        return DirectoryAddress(state_directory(None, environ))
    text = os.fspath(address)
    if not isinstance(text, str):
        raise TypeError(f"an address is a str or a path, not {text!r}")
    if not text:
        raise ValueError("an address must not be empty: leave it out, or give a directory or 'memory://'")
    if text.startswith(MEMORY_SCHEME):
        return MemoryAddress(text.removeprefix(MEMORY_SCHEME) or None)
    if "://" in text:
        raise ValueError(f"unknown address {text!r}: give a directory, 'memory://' or 'memory://NAME'")
    return DirectoryAddress(state_directory(text, environ))


def durability(environ: Mapping[str, str] | None = None) -> Durability:
    """Return ``$STATE_MANAGER_DURABILITY``, else "process". Raises ValueError for anything else."""
    given = variable(DURABILITY_VARIABLE, environ) or "process"
    for known in get_args(Durability):
        if given == known:
            found: Durability = known
            return found
    raise ValueError(f"{DURABILITY_VARIABLE} is {', '.join(get_args(Durability))} or not set, not {given!r}")


def spin(environ: Mapping[str, str] | None = None) -> float:
    """Return how many seconds a manager looks for work before it sleeps, where that has paid lately.

    ``$STATE_MANAGER_SPIN`` says it in microseconds; without it, it is the default where there is another CPU for the
    client to run on, else 0. Raises ValueError.
    """
    given = variable(SPIN_VARIABLE, environ)
    if given is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return DEFAULT_SPIN if cpus > 1 else 0.0
    if not given.isdecimal() or int(given) > 1_000_000:
        raise ValueError(f"{SPIN_VARIABLE} is a number of microseconds up to a million, not {given!r}")
    return int(given) / 1e6


def variable(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """Return an environment variable, with an empty one counted as absent."""
    return (os.environ if environ is None else environ).get(name) or None
