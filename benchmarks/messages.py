"""How long a message takes from one process to another that waits for it, and how many go through.

Peers, each with processes of its own and their own clients:

ours                a manager as it is by default: what was put or published survives the end of any process
ours (none)         the same in memory only
redis (everysec)    redis-server with an append-only file that is synced every second, redis-py with hiredis
redis               the same that keeps nothing

Ways from one process to the other:

queue               ours ``put``, ``get``; Redis ``RPUSH``, ``BLPOP``, which forgets what it hands out
queue, ack          ours ``put``, ``get``, ``ack``; Redis ``RPUSH``, ``BLMOVE`` to a list of what was taken, ``LREM``
channel             ours ``publish``, ``get``; Redis ``PUBLISH``, ``listen``, which keeps nothing for who was away
channel, history    ours the same; Redis ``XADD`` to a stream of about 1000 messages, ``XREAD``

A hop is the time from just before the message is given to just after it was had, in two processes that share the clock;
it is given at random moments, while the other one waits. What ``queue`` leaves unacknowledged here is acknowledged
after the clock was read.

Rules: as in roundtrip.py; and a peer whose program or package is missing is named and left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from common import (
    PATIENCE,
    ended,
    line_from,
    median_ratio,
    pinned,
    print_goals,
    scratch_directory,
    started,
    timed,
    wait_for,
    where,
)
from message_peers import CHANNEL, EVERYSEC, OURS, PEERS, QUEUE, STREAM, VALUE, WAYS, Client, Receiver
from peers.base import Missing, Server

OVERRUN = 0.1
REST = (0.001, 0.01)
"""Seconds between a receiver's beginning to wait and the message."""
SUBSCRIBERS = 10
WAITERS = 1000
"""Divided among the SUBSCRIBERS processes, each in a thread of its own."""
THIS = str(Path(__file__).resolve())

FAN_OUT = (CHANNEL, STREAM)
TRANSFER = "transaction"


# Who receives: processes that are told what to do, a line each


def be_a_receiver(addresses: dict[str, str]) -> None:
    """Do what each line of standard input says, say when it has begun to be done, and then what came of it."""
    clients = {peer: PEERS[peer].connect(address) for peer, address in addresses.items()}
    gc.disable()
    print("ready", flush=True)
    for line in sys.stdin:
        what, peer, number = line.strip().split("/")
        if what == "idle":
            wait_in_threads(partial(clients[peer].get, 2 * PATIENCE), int(number))
        else:
            receive_all(clients[peer].open[what], int(number))


def receive_all(open_it: Callable[[], AbstractContextManager[Receiver]], number: int) -> None:
    with open_it() as receive:
        print("begins", flush=True)
        got = [receive() for _ in range(number)]
        had = time.perf_counter()
    print(had if got == [VALUE] * number else f"error: it got {got}", flush=True)


def wait_in_threads(wait: Callable[[], object], number: int) -> None:
    threads = [threading.Thread(target=wait) for _ in range(number)]
    for thread in threads:
        thread.start()
    print("begins", flush=True)
    for thread in threads:
        thread.join()
    print("done", flush=True)


def tell(receivers: list[subprocess.Popen[bytes]], line: str) -> None:
    """Tell them what to do, and wait until they have begun."""
    for process in receivers:
        assert process.stdin
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
    for process in receivers:
        line_from(process)


# Measuring


@dataclass
class Subject:
    """A peer that was started: its server, this process's client of it, and what was measured."""

    server: Server
    client: Client
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, row: str, figure: float) -> None:
        self.rounds.setdefault(row, []).append(figure)


@dataclass(frozen=True)
class Scale:
    """How often each figure is taken: in so many rounds, of so many hops, messages in a row and transactions each."""

    rounds: int
    hops: int
    messages: int
    seconds: float
    """How long the CPU time of those who wait is watched."""


QUICK = Scale(rounds=2, hops=3, messages=100, seconds=1.0)


def hop(send: Callable[[], object], receivers: list[subprocess.Popen[bytes]], line: str) -> float:
    """Return the microseconds until the last receiver has the message."""
    tell(receivers, f"{line}/1")
    time.sleep(random.uniform(*REST) * len(receivers))
    began = time.perf_counter()
    send()
    return (max(float(line_from(process)) for process in receivers) - began) * 1e6


def rate(send: Callable[[], object], receiver: subprocess.Popen[bytes], line: str, number: int) -> float:
    """Return the messages a second that go through."""
    tell([receiver], f"{line}/{number}")
    began = time.perf_counter()
    for _ in range(number):
        send()
    return number / (float(line_from(receiver)) - began)


def measure_a_round(found: dict[str, Subject], receivers: list[subprocess.Popen[bytes]], scale: Scale) -> None:
    for way in WAYS:
        hops: dict[str, list[float]] = {peer: [] for peer in found}
        for _ in range(scale.hops):
            for peer, subject in found.items():
                hops[peer].append(hop(subject.client.send[way], receivers[:1], f"{way}/{peer}"))
        for peer, subject in found.items():
            subject.note(way, median(hops[peer]))
    for way in FAN_OUT:
        for peer, subject in found.items():
            fans = [hop(subject.client.send[way], receivers, f"{way}/{peer}") for _ in range(3)]
            subject.note(fan_out(way), median(fans))
    for way in WAYS:
        for peer, subject in found.items():
            subject.note(rate_of(way), rate(subject.client.send[way], receivers[0], f"{way}/{peer}", scale.messages))
    for subject in found.values():
        subject.note(TRANSFER, timed(subject.client.transfer, scale.messages))


def fan_out(way: str) -> str:
    return f"{way}: the last of {SUBSCRIBERS}"


def rate_of(way: str) -> str:
    return f"{way}, a second"


def overruns(get: Callable[[float], object], number: int) -> list[float]:
    """Return the microseconds by which waits of OVERRUN seconds, begun at random moments, end late, sorted."""
    late = []
    for _ in range(number):
        time.sleep(random.uniform(0, OVERRUN))  # or a server that looks every now and then would be in step with it
        began = time.perf_counter()
        assert get(OVERRUN) is None
        late.append((time.perf_counter() - began - OVERRUN) * 1e6)
    return sorted(late)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the CPU time that a process has taken. Only Linux says it in nanoseconds."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9


def cpu_of_waiters(
    peer: str, subject: Subject, receivers: list[subprocess.Popen[bytes]], seconds: float
) -> tuple[float, float]:
    """Return the milliseconds of CPU time a second of a server with nobody waiting, and with WAITERS who wait."""
    server = subject.server.process
    assert server
    figures = []
    for waiting in (False, True):
        if waiting:
            tell(receivers, f"idle/{peer}/{WAITERS // len(receivers)}")
            wait_for(lambda: subject.client.waiting() == WAITERS, f"{WAITERS:,} wait for an item of {peer}")
        before = cpu_seconds(server)
        time.sleep(seconds)
        figures.append((cpu_seconds(server) - before) / seconds * 1e3)
    for _ in range(WAITERS):
        subject.client.put()
    for process in receivers:
        line_from(process)
    return figures[0], figures[1]


# All of it


def measure(scale: Scale) -> None:
    print(where())
    goals: dict[str, bool] = {}
    with pinned() as done:
        if done:
            measure_together("all on one CPU", scale, goals, waits=False)
    measure_together("as the system places them", scale, goals, waits=True)
    print_goals(goals)


def measure_together(placed: str, scale: Scale, goals: dict[str, bool], *, waits: bool) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory("messages-"))
        found: dict[str, Subject] = {}
        for number, (name, peer) in enumerate(PEERS.items()):
            try:
                server = stack.enter_context(peer.serve(f"{directory}/{number}"))
            except Missing as missing:
                print(f"{name}: left out, because {missing}")
                continue
            found[name] = Subject(server, peer.connect(server.address))
        addresses = json.dumps({name: subject.server.address for name, subject in found.items()})
        receivers = [
            stack.enter_context(ended(started(sys.executable, THIS, "--receive", addresses)))
            for _ in range(SUBSCRIBERS)
        ]
        for process in receivers:
            line_from(process)
        for number in range(scale.rounds + 1):
            measure_a_round(found, receivers, scale)
            if not number:  # it warms up
                for subject in found.values():
                    subject.rounds.clear()
        print_rounds(placed, scale, found)
        if EVERYSEC in found:
            better = median_ratio(found[EVERYSEC].rounds[QUEUE], found[OURS].rounds[QUEUE])
            goals[f"a hop through a queue at least as quick as Redis ({placed})"] = better >= 1
        if waits:
            print_waits(found, receivers, scale)


def print_rounds(placed: str, scale: Scale, found: dict[str, Subject]) -> None:
    print(f"\n{placed}, {scale.rounds} rounds: microseconds, or messages a second")
    peers = "".join(f"{peer:>18}" for peer in found)
    print(f"{'':34}{peers}{'ours ahead of redis (everysec)':>34}")
    for row, ours in found[OURS].rounds.items():
        figures = "".join(f"{median(subject.rounds[row]):18,.0f}" for subject in found.values())
        print(f"{row:34}{figures}", end="")
        if EVERYSEC in found:
            theirs = found[EVERYSEC].rounds[row]
            ahead = median_ratio(ours, theirs) if row.endswith("a second") else median_ratio(theirs, ours)
            print(f"{ahead:32.2f} x", end="")
        print()


def print_waits(found: dict[str, Subject], receivers: list[subprocess.Popen[bytes]], scale: Scale) -> None:
    print(f"\na get of {OVERRUN} s ends late by, in microseconds")
    print(f"{'':18}{'median':>10}{'least':>10}{'most':>10}")
    for peer, subject in found.items():
        late = overruns(subject.client.get, 3 * scale.rounds)
        print(f"{peer:18}{median(late):10.0f}{late[0]:10.0f}{late[-1]:10.0f}")
    if not Path("/proc/self/schedstat").exists():
        return
    print(f"\nCPU time of the server a second, in milliseconds, watched for {scale.seconds:.0f} s")
    print(f"{'':18}{'idle':>10}{f'{WAITERS:,} wait for an item':>30}")
    for peer, subject in found.items():
        idle, waiting = cpu_of_waiters(peer, subject, receivers, scale.seconds)
        print(f"{peer:18}{idle:10.2f}{waiting:30.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how often each figure is taken (20)")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all, to see that it works")
    parser.add_argument("--receive", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        be_a_receiver(options.receive)
        return
    gc.disable()
    measure(QUICK if options.quick else Scale(options.rounds, hops=10, messages=500, seconds=10.0))


if __name__ == "__main__":
    main()
