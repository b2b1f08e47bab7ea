"""Locks and semaphores, for every way to reach a store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from state_manager import Lock, NotOwner, Owner, Semaphore, StateManager, TimedOut


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def wait_for_waiters(lock: Lock | Semaphore, number: int) -> None:
    deadline = time.monotonic() + 20
    while lock.waiters != number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_lock(manager: StateManager, name: str) -> None:
    lock = manager.lock(name)
    assert (lock.locked(), lock.owner, lock.waiters, lock.token) == (False, None, 0, None)
    with lock as same:
        assert same is lock
        assert lock.locked()
        assert lock.waiters == 0
        assert lock.owner is not None
        assert lock.owner[:2] == (os.getpid(), threading.get_ident())
        assert lock.owner.since == pytest.approx(time.time(), abs=60)
        assert isinstance(lock.owner, Owner)
        first = lock.token
        assert not manager.lock(name).acquire(blocking=False), "not re-entrant unless asked"
    assert (lock.locked(), lock.token) == (False, None)
    assert lock.acquire(timeout=0)
    assert isinstance(first, int)
    assert isinstance(lock.token, int)
    assert lock.token > first
    lock.release()
    assert name in repr(lock)


def test_who_does_not_hold_it_cannot_let_go(manager: StateManager, name: str, threads: ThreadPoolExecutor) -> None:
    lock = manager.lock(name)
    with pytest.raises(NotOwner):
        lock.release()
    with lock:
        with pytest.raises(NotOwner):
            threads.submit(lock.release).result()
        assert threads.submit(lambda: lock.token).result() is None
        assert not threads.submit(lock.acquire, blocking=False).result()
    with pytest.raises(NotOwner):
        lock.release()


def test_another_object_of_the_name_is_the_same_lock(manager: StateManager, name: str) -> None:
    manager.lock(name).acquire()
    manager.lock(name).release()
    assert not manager.lock(name).locked()


def test_reentrant(manager: StateManager, name: str, threads: ThreadPoolExecutor) -> None:
    lock = manager.lock(name, reentrant=True)
    with lock:
        token = lock.token
        with manager.lock(name, reentrant=True):
            assert lock.token == token
            assert not threads.submit(lock.acquire, blocking=False).result()
        assert lock.locked()
        assert lock.token == token
    assert not lock.locked()
    with pytest.raises(NotOwner):
        lock.release()


def test_a_wait_ends_after_its_timeout(manager: StateManager, name: str) -> None:
    lock = manager.lock(name, timeout=0.2)
    lock.acquire()
    for attempt in (lock.acquire, partial(manager.lock(name).acquire, timeout=0.2)):
        began = time.monotonic()
        assert attempt() is False
        assert 0.19 < time.monotonic() - began < 2
    with pytest.raises(TimedOut, match=r"not free within 0\.2 s"), lock:
        pass
    assert lock.waiters == 0


def test_first_come_first_served(manager: StateManager, name: str, threads: ThreadPoolExecutor) -> None:
    lock = manager.lock(name)
    order: list[int] = []
    tokens: list[Any] = []

    def work(number: int) -> None:
        with lock:
            order.append(number)
            tokens.append(lock.token)

    with lock:
        futures = []
        for number in range(6):
            futures.append(threads.submit(work, number))
            wait_for_waiters(lock, number + 1)
    for future in futures:
        future.result()
    assert order == list(range(6))
    assert tokens == sorted(tokens)


def test_a_lease_frees_and_the_late_holder_is_told(
    manager: StateManager, name: str, threads: ThreadPoolExecutor
) -> None:
    lock = manager.lock(name, lease=timedelta(seconds=0.3))
    lock.acquire()
    late = lock.token
    began = time.monotonic()

    def take_over() -> int | None:
        with manager.lock(name) as lock:
            assert time.monotonic() - began < 2.3
            return lock.token

    token = threads.submit(take_over).result()
    assert late is not None
    assert token is not None
    assert token > late
    with pytest.raises(NotOwner, match="lease"):
        lock.release()
    assert lock.token is None


def test_an_exception_in_the_body_lets_go(manager: StateManager, name: str) -> None:
    with pytest.raises(ZeroDivisionError), manager.lock(name):
        _ = 1 / 0
    assert not manager.lock(name).locked()


def test_no_two_at_a_time(reach: Callable[[], StateManager], name: str, threads: ThreadPoolExecutor) -> None:
    inside: list[int] = []
    tokens: list[Any] = []

    def work(number: int) -> None:
        with reach() as manager:
            lock = manager.lock(name)
            for _ in range(15):
                with lock:
                    assert not inside
                    inside.append(number)
                    tokens.append(lock.token)
                    inside.remove(number)

    for future in [threads.submit(work, number) for number in range(4)]:
        future.result()
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 60


def test_a_semaphore(manager: StateManager, name: str, threads: ThreadPoolExecutor) -> None:
    semaphore = manager.semaphore(name, 2)
    with semaphore, semaphore:
        assert semaphore.locked()
        assert [owner.pid for owner in semaphore.owners] == [os.getpid()] * 2
        assert not semaphore.acquire(blocking=False)
        assert not semaphore.acquire(timeout=0.05)
        with pytest.raises(NotOwner):
            threads.submit(semaphore.release).result()
        future = threads.submit(manager.semaphore(name, 2).acquire)
        wait_for_waiters(semaphore, 1)
        first = semaphore.token
    assert future.result()
    assert not semaphore.locked()
    assert len(semaphore.owners) == 1
    assert semaphore.token is None
    assert first is not None
    with pytest.raises(NotOwner):
        semaphore.release()
    assert manager.semaphore(name, 1).acquire(blocking=False) is False, "each goes by its own n"


def test_a_semaphore_with_a_lease(manager: StateManager, name: str) -> None:
    semaphore = manager.semaphore(name, 1, lease=0.2, timeout=5)
    semaphore.acquire()
    semaphore.acquire()
    semaphore.release()
    with pytest.raises(NotOwner):
        semaphore.release()


def test_their_kinds(manager: StateManager, name: str) -> None:
    with manager.lock(name), manager.semaphore(name, 3):
        kinds = {space.name: space.kind for space in manager.spaces()}
        assert kinds[":locks"] == "lock"
        assert kinds[f":semaphore:{name}"] == "semaphore"
        held = {(one.kind, one.name): one for one in manager.held()}
        assert held["lock", name].owner == manager.lock(name).owner
        assert held["semaphore", name].token == manager.semaphore(name, 3).token
        with pytest.raises(ValueError, match="':'"):
            manager.dict(":locks")


def test_what_is_refused(manager: StateManager, name: str) -> None:
    for bad in ("", ":locks"):
        with pytest.raises(ValueError, match="no name"):
            manager.lock(bad)
    with pytest.raises(ValueError, match="above zero"):
        manager.lock(name, lease=0)
    with pytest.raises(ValueError, match="below zero"):
        manager.lock(name, timeout=-1)
    with pytest.raises(ValueError, match="finite"):
        manager.lock(name).acquire(timeout=float("inf"))
    with pytest.raises(TypeError):
        manager.lock(name).acquire(timeout="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without blocking"):
        manager.lock(name).acquire(False, 1.0)
    with pytest.raises(ValueError, match="from 1 to 512"):
        manager.semaphore(name, 0).acquire()
    with pytest.raises(TypeError):
        manager.semaphore(name, 1.5)  # type: ignore[arg-type]
