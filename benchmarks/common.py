"""What the benchmarks share: processes that surely end, one CPU for all, our manager, a clock."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from statistics import median

import state_manager
from state_manager.versions import sweep

VALUE = "x" * 100
PATIENCE = 120.0
"""Seconds to wait for what takes its time, such as a compaction."""

Operations = dict[str, Callable[[], object]]


# Processes


def started(*command: str, quiet: bool = False) -> subprocess.Popen[bytes]:
    errors = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End the process at the end, whatever happens."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def line_from(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    line = process.stdout.readline().decode().strip()
    if not line or line.startswith("error"):
        reason = line or f"exit code {process.wait()}"
        raise SystemExit(f"{process.args!r} ended early ({reason}): run it by hand to see why")
    return line


@contextlib.contextmanager
def managed(directory: str, durability: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a manager of the directory; give its process when clients can connect."""
    # Its log would run into the tables; why it does not start is in the line that it prints as well.
    command = ("-m", "state_manager", "serve", "--ready-fd", "1", "--durability", durability, "--dir", directory)
    with ended(started(sys.executable, *command, quiet=True)) as process:
        while line_from(process) == "loading":
            pass
        yield process


def our_operations(directory: str) -> Operations:
    entries = state_manager.connect(directory, near_cache=False).dict("benchmark")
    return {
        "get": partial(entries.get, "key"),
        "set": partial(entries.set, "key", VALUE),
        "increment": partial(entries.increment, "n"),
    }


@contextlib.contextmanager
def scratch_directory(prefix: str, parent: str | None = None) -> Iterator[str]:
    """Make a temporary directory, and remove it in the end with what its managers have left in shared memory."""
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as directory:
            yield directory
    finally:
        sweep()  # removes the pages of directories that have gone


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {PATIENCE:.0f} s, and it is not so that {what}")
        time.sleep(0.02)


# Measuring


def where() -> str:
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


@contextlib.contextmanager
def pinned() -> Iterator[bool]:
    """Keep this process, and those that it starts meanwhile, on one CPU; give whether this system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, cpus)


def timed(operation: Callable[[], object], number: int) -> float:
    """Return the microseconds of one call."""
    start = time.perf_counter()
    for _ in repeat(None, number):
        operation()
    return (time.perf_counter() - start) / number * 1e6


def median_ratio(over: list[float], under: list[float]) -> float:
    return median(one / other for one, other in zip(over, under, strict=True))


def print_goals(goals: dict[str, bool]) -> None:
    print()
    for goal, reached in goals.items():
        print(f"goal: {goal}: {'reached' if reached else 'NOT reached'}")
