"""How long a lock takes to go from one process to another that waits for it, and how exactly a wait ends.

Peers:

ours          ``manager.lock``: the waiting process sleeps until the manager answers
file          ``fcntl.flock`` on a file: the waiting process sleeps in the kernel; no timeout, no order, no owner
redis         redis-py's ``Lock`` with its default settings: the waiting process asks again every tenth of a second

A hand-over is the time from just before the holder's ``release`` to just after the waiter's ``acquire``, in two
processes that share the clock. The holder lets go at random moments, or a waiter that polls would be in step with it.

Rules: as in roundtrip.py; and a peer whose program or package is missing is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from common import ended, managed, print_goals, started, where

import state_manager

GOAL = 50
LONGEST_HOLD = 0.2
"""Seconds: longer than redis-py's interval, so that it is met at every point."""
TIMEOUT = 0.1


class Lock(Protocol):
    def acquire(self) -> object: ...

    def release(self) -> object: ...


class FileLock:
    """An exclusive ``flock``."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def acquire(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


def redis_lock(path: str) -> Any:
    return importlib.import_module("redis").Redis(unix_socket_path=path).lock("benchmark")


LOCKS: dict[str, Callable[[str], Lock]] = {
    "ours": lambda path: state_manager.connect(path).lock("benchmark", timeout=60.0),
    "file": FileLock,
    "redis": redis_lock,
}


@contextlib.contextmanager
def redis_server(directory: str) -> Iterator[str]:
    path = f"{directory}/redis"
    command = ("redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory)
    with ended(started(*command, quiet=True)):
        deadline = time.monotonic() + 20
        while not Path(path).exists():
            if time.monotonic() > deadline:
                raise SystemExit("redis-server does not start")
            time.sleep(0.01)
        yield path


def be_a_waiter(peer: str, path: str) -> None:
    """Acquire whenever a line comes, and tell when it was had."""
    lock = LOCKS[peer](path)
    for _ in sys.stdin:
        print("asks", flush=True)
        lock.acquire()
        had = time.perf_counter()
        lock.release()
        print(had, flush=True)


def hand_over(lock: Lock, waiter: Any) -> float:
    """Return the microseconds from one process's release to the other's acquisition."""
    lock.acquire()
    waiter.stdin.write(b"go\n")
    waiter.stdin.flush()
    waiter.stdout.readline()
    time.sleep(random.uniform(0.02, LONGEST_HOLD))
    began = time.perf_counter()
    lock.release()
    return (float(waiter.stdout.readline()) - began) * 1e6


def overrun(manager: state_manager.StateManager, number: int) -> list[float]:
    """Return the microseconds by which waits of TIMEOUT seconds end late, sorted."""
    late = []
    for _ in range(number):
        with manager.lock("timeout") as lock:
            began = time.perf_counter()
            assert not lock.acquire(timeout=TIMEOUT)
            late.append((time.perf_counter() - began - TIMEOUT) * 1e6)
    return sorted(late)


def measure(rounds: int) -> None:
    print(where())
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(managed(f"{directory}/state", "process"))
        paths = {"ours": f"{directory}/state", "file": f"{directory}/file"}
        if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
            print("redis: left out, because redis-server or the package redis is missing")
        else:
            paths["redis"] = stack.enter_context(redis_server(directory))
        peers: list[tuple[str, Lock, Any, list[float]]] = []
        for peer, path in paths.items():
            waiter = stack.enter_context(ended(started(sys.executable, __file__, "--wait", peer, path)))
            peers.append((peer, LOCKS[peer](path), waiter, []))
        for number in range(rounds + 1):
            for _, lock, waiter, figures in peers:
                figure = hand_over(lock, waiter)
                if number:  # the first warms up
                    figures.append(figure)
        print(f"\nhand-over between two processes, {rounds} rounds, in microseconds")
        print(f"{'':8}{'median':>10}{'least':>10}{'most':>10}")
        for peer, _, _, figures in peers:
            print(f"{peer:8}{median(figures):10.0f}{min(figures):10.0f}{max(figures):10.0f}")
        with state_manager.connect(paths["ours"]) as manager:
            late = overrun(manager, rounds)
        print(f"\na wait of {TIMEOUT} s ends late by, in microseconds")
        print(f"{'ours':8}{median(late):10.0f}{late[0]:10.0f}{late[-1]:10.0f}")
        ours = median(peers[0][3])
        if len(peers) == 3:
            print_goals(
                {f"a hand-over at least {GOAL} x quicker than redis-py's Lock": median(peers[2][3]) >= GOAL * ours}
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="how often each figure is taken (60)")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all, to see that it works")
    parser.add_argument("--wait", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wait:
        be_a_waiter(*options.wait)
    else:
        measure(10 if options.quick else options.rounds)


if __name__ == "__main__":
    main()
