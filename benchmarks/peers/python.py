"""Python alone: a dict of this process, raw sockets, and the standard library's managers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.managers import BaseManager, DictProxy, SyncManager
from typing import Any

import roundtrip
from common import ended, line_from, started

from peers.base import COMPARE, Client, Server, each

AUTHKEY = b"benchmark"


@contextlib.contextmanager
def listening(directory: str, *command: str) -> Iterator[Server]:
    """Run a server of Python's, which says when it listens at the socket that is the last argument."""
    os.mkdir(directory)
    path = os.path.join(directory, "socket")
    with ended(started(sys.executable, *command, path, quiet=True)) as process:
        line_from(process)
        yield Server(path, process)


# A dict of this process


def connect_dict(_: str) -> Client:
    entries: dict[str, bytes] = {}
    numbers: dict[str, int] = {}

    def increment(key: str) -> int:
        numbers[key] = total = numbers.get(key, 0) + 1
        return total

    return Client(entries.get, entries.__setitem__, increment, each(entries.get), entries.update)


# Raw sockets: the servers of roundtrip.py


def serve_echo(directory: str) -> contextlib.AbstractContextManager[Server]:
    return listening(directory, roundtrip.THIS, "--serve", "echo")


def serve_echo_epoll(directory: str) -> contextlib.AbstractContextManager[Server]:
    return listening(directory, roundtrip.THIS, "--serve", "echo (epoll)")


def connect_echo(path: str) -> Client:
    """Exchange messages as large as ours would be. Nothing is stored, and many keys are not asked for."""
    ask = roundtrip.echo_operations(path)
    get, set_one, increment = ask["get"], ask["set"], ask["increment"]
    return Client(lambda _: get(), lambda *_: set_one(), lambda _: increment(), each(len), len)


# The standard library's managers


class Store:
    """What somebody writes who has a BaseManager and knows what a lock is."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        return self._entries.get(key)

    def set(self, key: str, value: bytes) -> None:
        self._entries[key] = value

    def increment(self, key: str) -> int:
        with self._lock:
            self._numbers[key] = total = self._numbers.get(key, 0) + 1
            return total

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        return {key: self._entries[key] for key in keys if key in self._entries}

    def set_many(self, items: Mapping[str, bytes]) -> None:
        self._entries.update(items)


class Vanilla(BaseManager):
    pass


class SharedDict(SyncManager):
    pass


STORE = Store()
ENTRIES: dict[str, Any] = {}
Vanilla.register("store", callable=lambda: STORE, exposed=("get", "set", "increment", "get_many", "set_many"))
SharedDict.register("entries", callable=lambda: ENTRIES, proxytype=DictProxy)
"""What ``Manager().dict()`` gives, but one that clients find which are not the children of one process."""


def serve_vanilla(directory: str) -> contextlib.AbstractContextManager[Server]:
    return listening(directory, COMPARE, "--serve", "vanilla")


def serve_shared_dict(directory: str) -> contextlib.AbstractContextManager[Server]:
    return listening(directory, COMPARE, "--serve", "shared-dict")


def connect_vanilla(path: str) -> Client:
    manager = Vanilla(path, AUTHKEY)
    manager.connect()
    store = manager.store()  # type: ignore[attr-defined]  # register() adds it
    return Client(store.get, store.set, store.increment, store.get_many, store.set_many)


def connect_shared_dict(path: str) -> Client:
    manager = SharedDict(path, AUTHKEY)
    manager.connect()
    entries = manager.entries()  # type: ignore[attr-defined]  # register() adds it

    def increment(key: str) -> int:
        """What ``entries[key] += 1`` does: two messages, and what another process adds in between is lost."""
        entries[key] = total = entries.get(key, 0) + 1
        return int(total)

    return Client(entries.get, entries.__setitem__, increment, each(entries.get), entries.update)


def be_a_manager(kind: str, path: str) -> None:
    server = {"vanilla": Vanilla, "shared-dict": SharedDict}[kind](path, AUTHKEY).get_server()
    print("ready", flush=True)
    server.serve_forever()
