"""epoll, and what stands in for it: the same answers."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from state_manager.poller import READ, WRITE, Poller, SelectorsPoller, new_poller


@pytest.fixture(params=[new_poller, SelectorsPoller])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    poller = request.param()
    yield poller
    poller.close()


def test_readiness(poller: Poller) -> None:
    one, other = socket.socketpair()
    with one, other:
        poller.register(one.fileno(), READ)
        assert poller.poll(0) == []
        other.send(b"x")
        assert poller.poll(1) == [(one.fileno(), READ)]
        poller.modify(one.fileno(), WRITE)
        [(fd, mask)] = poller.poll(1)
        assert fd == one.fileno()
        assert mask & WRITE
        poller.unregister(one.fileno())
        assert poller.poll(0) == []


def test_a_hang_up_is_reported(poller: Poller) -> None:
    one, other = socket.socketpair()
    with one:
        poller.register(one.fileno(), READ)
        other.close()
        [(fd, mask)] = poller.poll(1)
        assert fd == one.fileno()
        assert mask & READ
        assert one.recv(1) == b""


def test_where_there_is_no_epoll_there_is_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    poller = new_poller()
    assert isinstance(poller, SelectorsPoller)
    read, write = os.pipe()
    poller.register(read, READ)
    os.write(write, b"x")
    assert poller.poll(1) == [(read, READ)]
    poller.close()
    os.close(read)
    os.close(write)
