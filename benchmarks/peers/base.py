"""What a peer is: a way to serve a directory, and a way for a process to become its client.

Rules: a client's operations are the library's own functions wherever these do what is asked, with nothing around them.
A peer that is missing says so when it is served, by ``Missing``. All that a server leaves lies in its directory.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

COMPARE = str(Path(__file__).resolve().parent.parent / "compare.py")
"""Run with ``--serve KIND SOCKET`` it is one of the servers that are written in Python."""
COUNTER = "n"
"""The key that is incremented. Clients may make it, as 0, when they connect; it never holds anything else."""


@dataclass
class Client:
    """One process's way to a peer. Keys go through ``key`` once, before they are used."""

    get: Callable[[Any], object]
    set: Callable[[Any, bytes], object]
    increment: Callable[[Any], object]
    get_many: Callable[[Sequence[Any]], object]
    set_many: Callable[[Mapping[Any, bytes]], object]
    key: Callable[[str], Any] = str
    close: Callable[[], object] = lambda: None


class Server(NamedTuple):
    address: str
    process: subprocess.Popen[bytes] | None
    """None: the peer is a file, or nothing at all, and each client does the work itself."""


@dataclass(frozen=True)
class Peer:
    serve: Callable[[str], AbstractContextManager[Server]]
    connect: Callable[[str], Client]
    writer: Callable[[str], Client] | None = None
    """Given if clients keep copies of what they read: a client that does not, so that it can write what no copy has."""
    store: bool = True
    """Whether it keeps what several processes give it; if not, it is a limit, or something to measure by."""
    many: bool = True
    """Whether it can be asked for values of any size, and for several at once."""


@contextlib.contextmanager
def no_server(directory: str) -> Iterator[Server]:
    os.mkdir(directory)
    yield Server(directory, None)


class Missing(Exception):
    """What a peer would need and this machine does not have."""


def package(name: str) -> Any:
    """Import an optional package. Here, so that nothing else needs to know which of them has annotations."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"the package {name.partition('.')[0]} is not installed ({error})") from error


def one_by_one(set_one: Callable[[Any, bytes], object]) -> Callable[[Mapping[Any, bytes]], object]:
    """Return a ``set_many`` for a peer that has none."""

    def set_many(items: Mapping[Any, bytes]) -> None:
        for key, value in items.items():
            set_one(key, value)

    return set_many


def each(get_one: Callable[[Any], object]) -> Callable[[Sequence[Any]], object]:
    """Return a ``get_many`` for a peer that has none."""

    def get_many(keys: Sequence[Any]) -> list[object]:
        return [get_one(key) for key in keys]

    return get_many
