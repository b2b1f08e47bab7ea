"""What the crash tests share: clients that record all they do, managers that die, and the verdict.

The verdict is ``Clients.judge``: no client saw an error, and an order exists that explains every answer, with a last
read of each key among them. So all that was acknowledged is there, exactly once.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import sidecar
from state_manager.errors import Unavailable
from tests.linearizability import Operation, check
from tests.processes.crash_client import COUNTER, DICT
from tests.processes.harness import ROOT, SECONDS, environment

CLIENTS = 4
FINAL = -1
"""The client number of the reads at the end."""


class ClientError(AssertionError):
    """A client saw an error."""


class Miscounted(AssertionError):
    """What is there is not the sum of what was acknowledged."""


class Clients:
    """Four client processes. ``stop`` ends them; then ``history``, ``errors`` and ``hits`` are there."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.history: list[Operation] = []
        self.errors: list[str] = []
        self.hits: list[int] = []
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.processes.crash_client", str(directory), str(number), str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=environment(directory.parent),
            )
            for number in range(CLIENTS)
        ]

    def wait_until_ready(self) -> None:
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """Let each finish what it is doing, and collect what they did."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None  # communicate would flush it
        for process in self._processes:
            output, _ = process.communicate(timeout=2 * SECONDS)
            assert process.returncode == 0
            *lines, (hits, error) = map(json.loads, output.splitlines())
            self.history += map(Operation.from_json, lines)
            self.hits.append(hits)
            self.errors += [error] if error else []

    def check_that_copies_were_read(self) -> None:
        """Raise unless many reads asked nobody: only those can show that a copy was out of date."""
        assert sum(self.hits) > len(self.history) / 10

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            with process:
                pass  # closes its pipes

    def judge(self) -> None:
        """Read what is there and raise ClientError, NotLinearizable or Miscounted unless all of it is right."""
        if self.errors:
            raise ClientError("\n".join(self.errors))
        with state_manager.connect(self.directory) as manager:
            called = time.monotonic_ns()
            left: dict[Any, Any] = {**manager.dict(DICT).copy(), COUNTER: manager.counter(COUNTER).value or None}
            returned = time.monotonic_ns()
        keys = {operation.key for operation in self.history} | left.keys()
        check([*self.history, *(Operation(FINAL, key, "get", (), left.get(key), called, returned) for key in keys)])
        account(self.history, left)


def account(history: Iterable[Operation], left: Mapping[Any, Any]) -> None:
    """Raise Miscounted unless what is there is the sum of all that was acknowledged. It knows nothing of orders."""

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            raise Miscounted(f"{what}: {found} is there, {expected} was acknowledged")

    counts: Counter[tuple[str, Any]] = Counter()
    added, popped, sum_ = set(), Counter[str](), 100
    for operation in history:
        counts[operation.name, operation.key] += 1
        if operation.name == "add" and operation.result:
            added.add(operation.args[0])
        elif operation.name == "pop" and operation.result is not None:
            popped[operation.result] += 1
        elif operation.name == "increment" and operation.key == "sum":
            sum_ += operation.args[0]
    items = [value for key, value in left.items() if str(key).startswith("item ")]
    expect("the counter", left[COUNTER], counts["increment", COUNTER])
    expect("the sum", left["sum"], sum_)
    expect("the number of transforms", int(left["chain"].split()[0]), counts["transform", "chain"])
    expect("an item popped more than once", [item for item, times in popped.items() if times > 1], [])
    expect("items that were neither popped nor left", added - popped.keys() - set(items), set())
    expect("items that were popped and are there", sorted(popped.keys() & set(items)), [])


@contextlib.contextmanager
def clients(directory: Path, seed: int) -> Iterator[Clients]:
    """Start the clients of a manager that runs, and end them."""
    running = Clients(directory, seed)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.kill()


class Manager:
    """The manager of a directory, killed and started again. ``kills`` are the moments, in the clients' time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kills: list[int] = []
        self.start()

    def start(self, *, serve: tuple[str, ...] = sidecar.SERVE) -> None:
        """Start it again; ``serve`` says how, when it is not to be the ordinary one."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sidecar, "SERVE", serve)
            self.child = sidecar.start(self.directory, timeout=SECONDS)

    def kill(self) -> None:
        self.child.kill()
        self._died()

    def _died(self) -> None:
        self.child.wait(SECONDS)
        self.kills.append(time.monotonic_ns())

    def kill_as_it_starts(self, after: float) -> None:
        self.child = subprocess.Popen([sys.executable, *sidecar.SERVE, "--dir", str(self.directory)])
        time.sleep(after)
        self.kill()

    def start_to_die(self, point: str, count: int = 1, *, without: str = "") -> None:
        """Start one that kills itself at this point, and wait until it has."""
        print(f"kill {point}, time {count}", flush=True)
        try:
            self.start(serve=killing(point, count, without))
        except Unavailable as error:
            if "was killed by signal 9 before it was ready" not in str(error):
                raise
        self._died()
        assert self.child.returncode == -signal.SIGKILL

    def check_that_clients_were_busy(self, working: Clients) -> None:
        """Raise unless each kill came in the middle of somebody's operation."""
        long = [each for each in working.history if each.returned and each.returned - each.called > 10_000_000]
        assert all(any(each.called < kill < (each.returned or 0) for each in long) for kill in self.kills)


def killing(point: str = "", count: int = 0, without: str = "") -> tuple[str, ...]:
    return "-P", str(Path(__file__).with_name("killing_manager.py")), point, str(count), without


@contextlib.contextmanager
def managing(directory: Path) -> Iterator[Manager]:
    """Start the manager of a directory, and end the one that it has last."""
    running = Manager(directory)
    try:
        yield running
    finally:
        running.child.kill()
        running.child.wait()
