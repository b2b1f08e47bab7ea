"""What one client feels of another's load: the p99 of a small ``get``, and the loads. scaling.py prints it.

pipeline   a client that sends requests without waiting for the replies to the former ones
large      a client that sets and gets a value of 10 MiB, all the time

What is to be measured is the manager's loop, and not how a system with few CPUs shares them. So the manager has a CPU
of its own, the client another, and the load runs on the client's CPU at idle priority: it gets what is left over, but
that is most of the time, because the client waits for the manager. One baseline is the client with nothing beside it.
But then both CPUs go to sleep between two requests, and the caches are the client's alone. So the other one has the
same load beside it, which goes to a second manager, on the first one's CPU at idle priority.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Client
from pathlib import Path
from statistics import median
from typing import Any

from common import VALUE, ended, line_from, managed, median_ratio, scratch_directory, started

import state_manager
from state_manager.settings import PROTOCOL
from state_manager.wire import frame, packer

LOADS = ("pipeline", "large")
GOAL = 3.0
LARGE = 10 * 2**20
PIPELINED = 256
"""Requests that are handed to the socket at once; how many of them lie there is up to its buffer."""
REST = 1.0
"""Seconds after a load: until then the manager may find that its journal wants compaction, and the disk is busy."""
PACK = packer().pack
THIS = str(Path(__file__).resolve())


def latencies(operation: Callable[[Any], object], keys: Sequence[object]) -> list[float]:
    """Return the microseconds of one call for each key, in ascending order."""
    clock, times = time.perf_counter, []
    for key in keys:
        start = clock()
        operation(key)
        times.append(clock() - start)
    return sorted(each * 1e6 for each in times)


def latencies_within(operation: Callable[[Any], object], key: object, seconds: float) -> list[float]:
    """Return the same for as many calls as there are in so many seconds."""
    clock, times = time.perf_counter, []
    now = clock()
    end = now + seconds
    while now < end:
        start = now
        operation(key)
        now = clock()
        times.append(now - start)
    return sorted(each * 1e6 for each in times)


def percentile(ascending: Sequence[float], part: float) -> float:
    """Return the figure that this part of them does not exceed."""
    return ascending[min(int(len(ascending) * part), len(ascending) - 1)]


# The loads, each a process that prints what it did when it is told to stop


def told() -> bool:
    """Whether a line has come."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def raw_lane(path: str) -> socket.socket:
    """Return a connection with a lane, on which frames can be sent as one likes."""
    key = Path(path, "key").read_bytes()
    with Client(os.path.join(path, "socket"), authkey=key) as connection:
        connection.send_bytes(PACK([None, "accept_connection", [[PROTOCOL, "raw", os.urandom(16), 0]], {}]))
        connection.recv_bytes()
        return socket.socket(fileno=os.dup(connection.fileno()))


def pipeline(path: str) -> Generator[float, None, None]:
    """Send requests as fast as the manager takes them; yield, after each step, how many were answered."""
    request = frame(PACK(["dict", "get", ["fairness", "key"], {}]))
    with raw_lane(path) as sock:
        sock.sendall(request)
        size = len(sock.recv(65_536))  # of every reply: it is the same request each time
        sock.setblocking(False)
        poller = select.poll()
        poller.register(sock, select.POLLIN | select.POLLOUT)
        unsent, received = memoryview(b""), 0
        while True:
            for _, events in poller.poll():
                if events & select.POLLIN:
                    received += len(sock.recv(65_536))
                if events & select.POLLOUT:
                    unsent = unsent or memoryview(request * PIPELINED)
                    unsent = unsent[sock.send(unsent) :]
            yield received / size


def large(path: str) -> Generator[float, None, None]:
    """Move large values; yield, after each two of them, how many MB there were."""
    entries = state_manager.connect(path, timeout=60, near_cache=False).dict("large")
    value, moved = bytes(LARGE), 0
    while True:
        entries.set("key", value)
        entries.get("key")
        moved += 2 * LARGE
        yield moved / 1e6


def be_a_load(name: str, path: str) -> None:
    """For each line on standard input begin or stop; print a line when it goes on, and how much a second at the end."""
    print("ready", flush=True)
    while sys.stdin.readline():
        start = time.perf_counter()
        with contextlib.closing((pipeline if name == "pipeline" else large)(path)) as steps:
            next(steps)
            print("going", flush=True)
            for amount in steps:
                if told():
                    sys.stdin.readline()
                    print(amount / (time.perf_counter() - start), flush=True)
                    break


class Load:
    """A process that loads a manager while it is entered."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.rates: list[float] = []
        line_from(process)

    def _tell(self) -> str:
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return line_from(self._process)

    def __enter__(self) -> None:
        self._tell()

    def __exit__(self, *exception: object) -> None:
        self.rates.append(float(self._tell()))
        time.sleep(REST)


# Measuring


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on one CPU."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def idle(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Let a process have only the time that no other one on its CPU wants."""
    os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    return process


def small_value(path: str) -> state_manager.SharedDict:
    entries = state_manager.connect(path, timeout=60, near_cache=False).dict("fairness")
    entries.set("key", VALUE)
    return entries


def measure(rounds: int, seconds: float) -> dict[str, bool]:
    """Print the table. Return the goals that could be judged."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        print("\nfairness: left out, because this needs Linux and two CPUs")
        return {}
    client_cpu, manager_cpu = sorted(os.sched_getaffinity(0))[-2:]
    times: dict[tuple[str, str], list[list[float]]] = {}
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory("scaling-"))
        ours, other = os.path.join(scratch, "ours"), os.path.join(scratch, "other")
        with on_cpu(manager_cpu):
            stack.enter_context(managed(ours, "process"))
            idle(stack.enter_context(managed(other, "process")))
        stack.enter_context(on_cpu(client_cpu))
        loads = {
            (name, where): Load(idle(stack.enter_context(ended(started(sys.executable, THIS, "--load", name, path)))))
            for name in LOADS
            for where, path in (("another manager", other), ("this manager", ours))
        }
        small = small_value(ours)
        small_value(other)
        conditions: dict[tuple[str, str], contextlib.AbstractContextManager[None]] = {
            ("nothing", ""): contextlib.nullcontext(),
            **loads,
        }
        for now in (seconds / 10, *[seconds] * rounds):  # the first round is to warm up
            for condition, load in conditions.items():
                with load:
                    found = latencies_within(small.get, "key", now)
                times.setdefault(condition, []).append(found)
    return show({condition: each[1:] for condition, each in times.items()}, loads)


def show(times: dict[tuple[str, str], list[list[float]]], loads: dict[tuple[str, str], Load]) -> dict[str, bool]:
    def of(condition: tuple[str, str], part: float) -> list[float]:
        return [percentile(each, part) for each in times[condition]]

    print("\na small get of one client: microseconds, and what another client did meanwhile")
    print(f"{'beside':<28}{'median':>10}{'p99':>10}{'p99.9':>10}{'longest':>10}{'over 1 ms':>12}    the load")
    for condition in times:
        figures = "".join(f"{median(of(condition, part)):>10.1f}" for part in (0.5, 0.99, 0.999, 1))
        waiting = median(sum(took for took in each if took > 1_000) / sum(each) for each in times[condition])
        unit = "requests/s" if condition[0] == "pipeline" else "MB/s"
        did = f"    {median(loads[condition].rates[1:]):,.0f} {unit}" if condition in loads else ""
        print(f"{', '.join(filter(None, condition)):<28}{figures}{waiting:>12.1%}{did}")
    print("over 1 ms: how much of the time passed in gets that took longer: how likely a request meets a long wait")
    goals = {}
    for name in LOADS:
        p99 = of((name, "this manager"), 0.99)
        for baseline, meaning in (
            ((name, "another manager"), "beside the same load on another manager"),
            (("nothing", ""), "alone"),
        ):
            ratio = median_ratio(p99, of(baseline, 0.99))
            goals[f"{name}: p99 {ratio:.2f} x that {meaning}, at most {GOAL:.0f} x"] = ratio <= GOAL
    return goals


if __name__ == "__main__":
    gc.disable()
    be_a_load(*sys.argv[2:])
