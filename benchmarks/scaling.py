"""How the manager bears more clients, more keys and larger values, and whether one client's load is another's wait.

clients    1 to 64 processes that get, and then set, values of 100 bytes, all at once
keys       1 to 1,000,000 keys, each number of them in a manager of its own; all live, one client takes them in turn
values     10 bytes to 10 MiB
fairness   a small get beside a client that does not wait for its replies, and beside one that moves 10 MiB values

Rules: as in roundtrip.py. The managers are as they are by default (``--durability process``). The near cache is off,
because a read that it answers never comes to the manager. Medians and p99 are those of a round, and what is shown is
their median over the rounds. A round of a large value has few operations: its p99 is the slowest of them.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import charts
import fairness
from common import (
    VALUE,
    ended,
    line_from,
    managed,
    median_ratio,
    pinned,
    print_goals,
    scratch_directory,
    started,
    where,
)
from fairness import latencies, latencies_within, percentile

import state_manager

OPERATIONS = ("get", "set")
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
KEYS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
FLAT = (1_000, 1_000_000)
FLAT_GOAL = 1.2
SIZES = (10, 100, 1_000, 10_000, 100_000, 2**20, 10 * 2**20)
ROUND_BYTES = 40 * 2**20
"""What a round moves of large values, at the most."""
PAGE = 1_000
THIS = str(Path(__file__).resolve())


class Figure(NamedTuple):
    """What one round found, or the median of the rounds: operations a second, and microseconds of one."""

    rate: float
    median: float
    p99: float

    @classmethod
    def of(cls, times: Sequence[float], rate: float | None = None) -> Figure:
        """Return the figure of latencies in ascending order; without a rate it is that of one client."""
        return cls(rate or len(times) / sum(times) * 1e6, percentile(times, 0.5), percentile(times, 0.99))

    @classmethod
    def middle(cls, figures: Sequence[Figure]) -> Figure:
        return cls(*(median(each) for each in zip(*figures, strict=True)))


Curves = dict[str, dict[int, list[Figure]]]
"""Of each operation: the rounds' figures at each number."""


def new_curves(numbers: Sequence[int]) -> Curves:
    return {name: {number: [] for number in numbers} for name in OPERATIONS}


def show(title: str, curves: Curves) -> None:
    print(
        f"\n{title:<12}" + "".join(f"{f'{name}s a second':>16}{'median us':>12}{'p99 us':>12}" for name in OPERATIONS)
    )
    for number in curves[OPERATIONS[0]]:
        line = f"{number:<12,}"
        for name in OPERATIONS:
            figure = Figure.middle(curves[name][number])
            line += f"{figure.rate:>16,.0f}{figure.median:>12,.1f}{figure.p99:>12,.1f}"
        print(line)


def store(entries: state_manager.SharedDict, value: object, key: str | int) -> None:
    entries.set(key, value)


# Clients


def be_a_client(path: str) -> None:
    """For each line ``OPERATION SECONDS`` do it for so long, and print the microseconds of each, in ascending order."""
    entries = state_manager.connect(path, timeout=60, near_cache=False).dict("clients")
    key = f"client:{os.getpid()}"
    operations: dict[str, Callable[[Any], object]] = {"get": entries.get, "set": partial(store, entries, VALUE)}
    entries.set(key, VALUE)
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        times = latencies_within(operations[name], key, float(seconds))
        print(*(f"{each:.1f}" for each in times), flush=True)


def measure_clients(most: int, rounds: int, seconds: float) -> Curves:
    counts = [count for count in CLIENTS if count <= most]
    curves = new_curves(counts)
    with ExitStack() as stack:
        path = os.path.join(stack.enter_context(scratch_directory("scaling-")), "clients")
        stack.enter_context(managed(path, "process"))
        clients = [
            stack.enter_context(ended(started(sys.executable, THIS, "--client", path))) for _ in range(max(counts))
        ]
        for client in clients:
            line_from(client)
        for now in (seconds / 5, *[seconds] * rounds):  # the first round is to warm up
            for count in counts:
                for name in OPERATIONS:
                    curves[name][count].append(run_together(clients[:count], name, now))
    return without_warm_up(curves)


def run_together(clients: Sequence[subprocess.Popen[bytes]], name: str, seconds: float) -> Figure:
    for client in clients:
        assert client.stdin
        client.stdin.write(f"{name} {seconds}\n".encode())
        client.stdin.flush()
    times = [[float(each) for each in line_from(client).split()] for client in clients]
    rate = sum(len(each) / sum(each) * 1e6 for each in times)
    return Figure.of(sorted(each for some in times for each in some), rate)


def without_warm_up(curves: Curves) -> Curves:
    return {name: {number: each[1:] for number, each in curve.items()} for name, curve in curves.items()}


# Keys and values


def measure_keys(most: int, rounds: int, number: int) -> Curves:
    counts = [count for count in KEYS if count <= most]
    curves = new_curves(counts)
    draw = random.Random(1)
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory("scaling-"))
        spaces = {}
        for count in counts:
            path = os.path.join(directory, str(count))
            stack.enter_context(managed(path, "process"))
            spaces[count] = state_manager.connect(path, timeout=60, near_cache=False).dict("keys")
            for first in range(0, count, PAGE):
                page = range(first, min(first + PAGE, count))
                spaces[count].set_many({f"key:{each}": VALUE for each in page})
        time.sleep(fairness.REST)  # the disk is still busy with what was stored
        for number_now in (number // 5, *[number] * rounds):  # the first round is to warm up
            for count, space in spaces.items():
                keys = [f"key:{draw.randrange(count)}" for _ in range(number_now)]
                curves["get"][count].append(Figure.of(latencies(space.get, keys)))
                curves["set"][count].append(Figure.of(latencies(partial(store, space, VALUE), keys)))
    return without_warm_up(curves)


def judge_keys(curves: Curves) -> dict[str, bool]:
    """Return whether the many keys cost as much as the few."""
    goals = {}
    few, many = FLAT
    for name, curve in curves.items():
        if many in curve:
            ratio = median_ratio([each.median for each in curve[many]], [each.median for each in curve[few]])
            goal = f"{name}: {many:,} keys take {ratio:.2f} x the time of {few:,}, at most {FLAT_GOAL} x"
            goals[goal] = ratio <= FLAT_GOAL
    return goals


def measure_values(most: int, rounds: int, number: int) -> Curves:
    sizes = [size for size in SIZES if size <= most]
    curves = new_curves(sizes)
    with scratch_directory("scaling-") as directory, managed(path := os.path.join(directory, "values"), "process"):
        values = state_manager.connect(path, timeout=60, near_cache=False).dict("values")
        for number_now in (1, *[number] * rounds):  # the first round is to warm up
            for size in sizes:
                keys = [size] * max(1, min(number_now, ROUND_BYTES // size))
                curves["set"][size].append(Figure.of(latencies(partial(store, values, bytes(size)), keys)))
                curves["get"][size].append(Figure.of(latencies(values.get, keys)))
    return without_warm_up(curves)


# Pictures


def draw(directory: Path, clients: Curves, keys: Curves, values: Curves) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    rates = {f"{name}s": points(curve, "rate") for name, curve in clients.items()}
    lines = partial(charts.lines, log_x=True)
    lines("Operations a second", "client processes", "a second", rates, directory / "scaling-clients.svg")
    latency = partial(lines, y_label="microseconds")
    for name, x_label, curves, log_y in (
        ("clients-latency", "client processes", clients, True),
        ("keys", "keys in the manager, values of 100 bytes", keys, False),
        ("values", "bytes of a value", values, True),
    ):
        series = {
            f"{operation}, {part}": points(curve, part)
            for operation, curve in curves.items()
            for part in ("median", "p99")
        }
        title = f"How long one operation takes, by {name.partition('-')[0]}"
        latency(title, x_label, series=series, path=directory / f"scaling-{name}.svg", log_y=log_y)


def points(curve: dict[int, list[Figure]], part: str) -> list[tuple[float, float]]:
    return [(number, getattr(Figure.middle(each), part)) for number, each in curve.items()]


def measure(options: argparse.Namespace) -> None:
    rounds, seconds, number, part = options.rounds, options.seconds, options.number, 1
    if options.quick:
        rounds, seconds, number, part = 2, 0.1, 100, 10
    print(f"{where()}; --durability process; medians of {rounds} rounds")
    clients = measure_clients(CLIENTS[-1] // part, rounds, seconds)
    show("clients", clients)
    with pinned() as one_cpu:
        where_now = "one client, one CPU for it and the managers" if one_cpu else "one client, all CPUs"
        print(f"\n{where_now}: keys, with values of {len(VALUE)} bytes, and bytes of a value")
        keys = measure_keys(KEYS[-1] // part, 4 * rounds, number)  # they are short
        show("keys", keys)
        values = measure_values(SIZES[-1] // part, rounds, number)
        show("bytes", values)
    goals = judge_keys(keys) | fairness.measure(rounds, seconds)
    print_goals(goals)
    if options.pictures:
        draw(Path(options.pictures), clients, keys, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="how often each figure is taken (8)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one round of clients, of fairness (0.5)")
    parser.add_argument("--number", type=int, default=1000, help="operations in one round of keys, of values (1000)")
    parser.add_argument("--pictures", metavar="DIR", help="draw the curves as SVG files in this directory")
    parser.add_argument("--quick", action="store_true", help="a quarter of a minute, to see that it works")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    gc.disable()  # as timeit does
    if options.client:
        be_a_client(options.client)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
        measure(options)


if __name__ == "__main__":
    main()
