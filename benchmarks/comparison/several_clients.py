"""Several processes at once, each connected to all peers: how much they do together, and whether a sum is right."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle, islice, repeat

from common import ended, line_from, started
from peers import PEERS
from peers.base import COMPARE, COUNTER, Client

from comparison.sections import COUNT, MIXED, Section
from comparison.subjects import KEYS, PROGRESS, VALUE, Scale, Subject

CLIENTS = 4
PLAN = 5000
"""Operations that a client chooses at random before it begins; then it begins again."""


def be_a_client(addresses: dict[str, str]) -> None:
    """For each line ``WORKLOAD/SECONDS/PEER`` on standard input, do it for so long, print how often and how long."""
    works = {name: workloads(PEERS[name].connect(address)) for name, address in addresses.items()}
    print("ready", flush=True)
    for line in sys.stdin:
        workload, seconds, name = line.strip().split("/")
        work, done = works[name][workload], 0
        try:
            start = now = time.perf_counter()
            end = start + float(seconds)
            while now < end:
                done += work()
                now = time.perf_counter()
            print(done, now - start, flush=True)
        except Exception as error:
            print(f"failed {type(error).__name__}: {error}".replace("\n", " "), flush=True)


def workloads(client: Client) -> dict[str, Callable[[], int]]:
    """Return what does a few operations and says how many."""
    get, set_one, increment, counter = client.get, client.set, client.increment, client.key(COUNTER)
    chosen = random.Random(os.getpid())
    plan = iter(cycle([(client.key(chosen.choice(KEYS)), chosen.random() < 0.1) for _ in range(PLAN)]))

    def mixed() -> int:
        for key, write in islice(plan, 20):
            if write:
                set_one(key, VALUE)
            else:
                get(key)
        return 20

    def count() -> int:
        for _ in repeat(None, 10):
            increment(counter)
        return 10

    return {MIXED: mixed, COUNT: count}


def measure_clients(found: dict[str, Subject], scale: Scale) -> Section:
    section = Section(f"{CLIENTS} clients", "operations a second, together", (MIXED, COUNT), more_is_better=True)
    section.rounds = {name: {column: [] for column in section.columns} for name in found}
    counted = {name: subject.counted for name, subject in found.items()}
    addresses = json.dumps({name: subject.server.address for name, subject in found.items()})
    with ExitStack() as stack:
        command = (sys.executable, COMPARE, "--client", addresses)
        clients = [stack.enter_context(ended(started(*command))) for _ in range(CLIENTS)]
        for process in clients:
            line_from(process)
        for number in range(scale.rounds + 1):  # the first round warms up and does not count
            PROGRESS.say(f"{section.title}: round {number + 1} of {scale.rounds + 1}")
            for column in section.columns:
                for name in found:
                    if section.wrong.get(name, {}).get(column):
                        continue
                    try:
                        done, rate = run_together(clients, f"{column}/{scale.together}/{name}")
                    except Failed as failed:
                        section.wrong.setdefault(name, {})[column] = str(failed)
                        continue
                    if number:
                        section.rounds[name][column].append(rate)
                    counted[name] += done if column == COUNT else 0
    for name, subject in found.items():
        lost = counted[name] - int(str(subject.client.increment(subject.client.key(COUNTER)))) + 1
        if lost and COUNT not in section.wrong.get(name, {}):
            found_it = f"lost {lost:,}" if lost > 0 else f"counted {-lost:,} twice"
            section.wrong.setdefault(name, {})[COUNT] = f"{found_it} of {counted[name]:,}"
    return section


class Failed(Exception):
    """What went wrong in a client."""


def run_together(clients: list[subprocess.Popen[bytes]], line: str) -> tuple[int, float]:
    for process in clients:
        assert process.stdin
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
    results = [line_from(process) for process in clients]
    for each in results:
        if each.startswith("failed"):
            raise Failed(each)
    pairs = [each.split() for each in results]
    return sum(int(done) for done, _ in pairs), sum(int(done) / float(took) for done, took in pairs)
