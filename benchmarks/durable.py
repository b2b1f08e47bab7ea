"""The price of keeping the state on disk: ``set`` and ``increment`` against Redis and SQLite, memory, and a start.

Peers, all with one client, which does one operation after the other:

ours (process)   a manager with ``--durability process``, the default: an answered write survives any ``kill -9``
ours (none)      the same in memory only
ours (power)     with ``--durability power``: synced before the answer; fewer operations, as each waits for the disk
redis            redis-server with an append-only file that is synced every second, through redis-py with hiredis
sqlite           a file in WAL mode that this process writes to itself, one transaction an operation: no server at all

Rules: as in roundtrip.py; and a peer whose program or package is missing is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median

from common import (
    PATIENCE,
    VALUE,
    Operations,
    ended,
    managed,
    median_ratio,
    our_operations,
    pinned,
    print_goals,
    scratch_directory,
    started,
    timed,
    wait_for,
    where,
)

import state_manager

OURS = "ours (process)"
POWER = "ours (power)"
OPERATIONS = ("set", "increment")
REDIS_GOAL = 1.5
MEMORY_GOAL = 300
ENTRIES = 100_000
REPLAYED = 1_000_000


class Missing(Exception):
    """What a peer would need and this machine does not have."""


# The peers


@contextlib.contextmanager
def ours(durability: str, directory: str) -> Iterator[Operations]:
    with managed(directory, durability):
        yield our_operations(directory)


@contextlib.contextmanager
def redis(directory: str) -> Iterator[Operations]:
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("the program redis-server is not installed")
    try:
        client = importlib.import_module("redis")
        importlib.import_module("hiredis")  # without it redis-py is slower, and the comparison is not fair
    except ImportError as error:
        raise Missing(f"the package {error.name} is not installed") from error
    os.mkdir(directory)
    path = os.path.join(directory, "socket")
    keeping = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
    with ended(started(program, "--port", "0", "--unixsocket", path, "--dir", directory, *keeping, quiet=True)):
        connection = client.Redis(unix_socket_path=path)
        with contextlib.closing(connection):
            wait_for(lambda: answers(connection.ping, client.ConnectionError), "redis-server answers")
            server = connection.info("server")["redis_version"]
            print(f"redis-server {server}, redis-py {client.__version__} with hiredis")
            yield {
                "get": lambda: connection.get("key").decode(),
                "set": partial(connection.set, "key", VALUE),
                "increment": partial(connection.incr, "n"),
            }


def answers(question: Callable[[], object], error: type[Exception]) -> bool:
    try:
        question()
    except error:
        return False
    return True


@contextlib.contextmanager
def sqlite(directory: str) -> Iterator[Operations]:
    if sqlite3.sqlite_version_info < (3, 35):
        raise Missing(f"SQLite {sqlite3.sqlite_version} has no RETURNING")
    os.mkdir(directory)
    print(f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=NORMAL")
    with contextlib.closing(sqlite3.connect(os.path.join(directory, "file"), isolation_level=None)) as connection:
        run = connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT)")
        run("CREATE TABLE numbers (key TEXT PRIMARY KEY, n INTEGER)")
        run("INSERT INTO numbers VALUES ('n', 0)")
        yield {
            "get": lambda: run("SELECT value FROM entries WHERE key = ?", ("key",)).fetchone()[0],
            "set": partial(run, "INSERT OR REPLACE INTO entries VALUES (?, ?)", ("key", VALUE)),
            "increment": lambda: run("UPDATE numbers SET n = n + 1 WHERE key = ? RETURNING n", ("n",)).fetchall()[0][0],
        }


PEERS: dict[str, Callable[[str], contextlib.AbstractContextManager[Operations]]] = {
    OURS: partial(ours, "process"),
    "ours (none)": partial(ours, "none"),
    POWER: partial(ours, "power"),
    "redis": redis,
    "sqlite": sqlite,
}


def check(peer: str, operations: Operations) -> None:
    operations["set"]()
    first, second = operations["increment"](), operations["increment"]()
    if (operations["get"](), first, second) != (VALUE, 1, 2):
        raise SystemExit(f"{peer} does not do what it is to be measured at")


# Operations


def measure_operations(scratch: str, rounds: int, number: int) -> dict[str, bool]:
    """Print the tables of one client. Return the goals that could be judged."""
    with ExitStack() as stack:
        peers: dict[str, Operations] = {}
        for position, (peer, use) in enumerate(PEERS.items()):
            try:
                operations = stack.enter_context(use(os.path.join(scratch, str(position))))
            except Missing as missing:
                print(f"{peer}: left out, because {missing}")
                continue
            check(peer, operations)
            peers[peer] = operations
        times: dict[tuple[str, str], list[float]] = {(peer, name): [] for peer in peers for name in OPERATIONS}
        for number_now in (max(1, number // 10), *repeat(number, rounds)):  # the first round is to warm up
            for name in OPERATIONS:
                for peer, operations in peers.items():
                    fewer = max(1, number_now // 20) if peer == POWER else number_now
                    times[peer, name].append(timed(operations[name], fewer))
    goals = {}
    for name in OPERATIONS:
        print(f"\n{name:<16}{'microseconds':>14}{'a second':>12}{f'x the time of {OURS}':>36}")
        for peer in peers:
            took = times[peer, name][1:]
            ratio = median_ratio(took, times[OURS, name][1:])
            print(f"{peer:<16}{median(took):>14.1f}{1e6 / median(took):>12,.0f}{ratio:>36.2f}")
            if peer == "redis":
                goals[f"{name} at least {REDIS_GOAL} x as often as redis-py"] = ratio >= REDIS_GOAL
    return goals


# Sizes


def resident(process: subprocess.Popen[bytes]) -> int:
    """Return the bytes of memory that a process has."""
    with contextlib.suppress(FileNotFoundError):  # Linux, where ps is often missing
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], check=True, capture_output=True, text=True)
    return int(found.stdout) * 1024


def segments(directory: str) -> dict[str, int]:
    """Return the files of a journal and their sizes."""
    return {path.name: path.stat().st_size for path in sorted(Path(directory).glob("journal.0*"))}


def value_of(number: int) -> str:
    return f"{number:0{len(VALUE)}d}"


def measure_sizes(directory: str, entries: int) -> dict[str, bool]:
    """Print what an entry takes in memory and in the journal. Return the goal."""
    with managed(directory, "process") as process, state_manager.connect(directory, near_cache=False) as manager:
        sizes = manager.dict("sizes")
        sizes["warm"] = "up"
        del sizes["warm"]
        memory, counted = resident(process), manager.stats()["bytes"]
        journal = sum(segments(directory).values())
        for number in range(entries):
            sizes.set(f"key:{number:06d}", value_of(number))
        memory, counted = resident(process) - memory, manager.stats()["bytes"] - counted
        journal = sum(segments(directory).values()) - journal
        print(f"\n{entries:,} entries with keys of 10 and values of {len(VALUE)} bytes, each set for itself")
        print(f"memory that the process grew by: {memory / entries:.0f} bytes an entry")
        print(
            f"memory by its own count (stats): {counted / entries:.0f} bytes an entry, {counted / memory:.2f} of that"
        )
        print(f"journal: {journal / entries:.0f} bytes a set")
        before = segments(directory)
        if len(before) > 1:
            raise SystemExit("a compaction came between: the journal's bytes are not those of the sets")
        for _ in repeat(None, 1000):
            sizes.increment("n")
        journal = sum(segments(directory).values()) - sum(before.values())
        print(f"journal: {journal / 1000:.0f} bytes an increment")
    return {f"an entry takes at most {MEMORY_GOAL} bytes of memory": memory / entries <= MEMORY_GOAL}


# A start


def measure_start_up(directory: str, entries: int) -> None:
    """Print how long a manager reads a journal, as single sets left it and as a compaction left it."""
    with timed_start(directory, "an empty directory") as process:
        with state_manager.connect(directory, near_cache=False) as manager:
            numbers = manager.dict("numbers")
            for number in range(entries):
                numbers.set(number, value_of(number))
        kill(process)
    with timed_start(directory, f"{entries:,} sets, after a kill") as process:
        with state_manager.connect(directory, timeout=PATIENCE, near_cache=False) as manager:
            print_start_memory(process, manager)
            compact(directory, manager, entries)
        kill(process)
    with (
        timed_start(directory, f"{entries:,} entries, after a compaction and a kill") as process,
        state_manager.connect(directory, near_cache=False) as manager,
    ):
        print_start_memory(process, manager)
        if len(manager.dict("numbers")) != entries:
            raise SystemExit("entries were lost")


@contextlib.contextmanager
def timed_start(directory: str, what: str) -> Iterator[subprocess.Popen[bytes]]:
    size = sum(segments(directory).values())
    start = time.perf_counter()
    with managed(directory, "process") as process:
        print(f"start with {what}: {time.perf_counter() - start:.2f} s, {size / 1e6:.1f} MB of journal")
        yield process


def print_start_memory(process: subprocess.Popen[bytes], manager: state_manager.StateManager) -> None:
    memory, counted = resident(process), manager.stats()["bytes"]
    print(f"    memory of the whole process {memory / 1e6:.0f} MB; its own count (stats) {counted / 1e6:.0f} MB")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def compact(directory: str, manager: state_manager.StateManager, entries: int) -> None:
    """Write entries anew until the manager compacts its journal, and wait for the end of that."""
    numbers, first = manager.dict("numbers"), next(iter(segments(directory)))
    for number in range(0, 20 * entries, 1000):
        if len(segments(directory)) > 1:
            break
        numbers.set_many({each % entries: value_of(each % entries) for each in range(number, number + 1000)})
    wait_for(lambda: first not in segments(directory), "the journal was compacted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="how often each figure is taken (30)")
    parser.add_argument("--number", type=int, default=1000, help="operations in one round (1000)")
    parser.add_argument("--start-up", action="store_true", help="also how long a million entries are read; a minute")
    parser.add_argument("--dir", help="where to make the temporary directory: on the disk that is to be measured")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all, to see that it works")
    options = parser.parse_args()
    rounds, number = (3, 200) if options.quick else (options.rounds, options.number)
    gc.disable()  # as timeit does
    print(f"{where()}; values of {len(VALUE)} bytes; medians of {rounds} rounds")
    with scratch_directory("durable-", options.dir) as scratch, pinned() as one_cpu:
        print("one client, one CPU for it and its server" if one_cpu else "this system cannot pin a process to a CPU")
        goals = measure_operations(scratch, rounds, number)
        goals |= measure_sizes(os.path.join(scratch, "sizes"), ENTRIES // 10 if options.quick else ENTRIES)
        if options.start_up:
            print()
            measure_start_up(os.path.join(scratch, "start"), REPLAYED // 20 if options.quick else REPLAYED)
    print_goals(goals)


if __name__ == "__main__":
    main()
