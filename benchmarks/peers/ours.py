"""This project: a manager as ``state-manager serve`` starts it, and its dict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from common import managed

import state_manager
from peers.base import Client, Server


@contextlib.contextmanager
def serve_process(directory: str) -> Iterator[Server]:
    with managed(directory, "process") as process:
        yield Server(directory, process)


@contextlib.contextmanager
def serve_none(directory: str) -> Iterator[Server]:
    with managed(directory, "none") as process:
        yield Server(directory, process)


def connect(directory: str) -> Client:
    return client_of(state_manager.connect(directory))


def connect_uncached(directory: str) -> Client:
    return client_of(state_manager.connect(directory, near_cache=False))


def client_of(manager: state_manager.StateManager) -> Client:
    entries = manager.dict("benchmark")
    return Client(entries.get, entries.set, entries.increment, entries.get_many, entries.set_many, close=manager.close)
