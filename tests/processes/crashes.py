"""What the crash tests share: clients that record all they do, managers that die, and the verdict.

The verdict is ``Clients.judge``: no client saw an error, and an order exists that explains every answer, with a last
read of each key among them. So all that was acknowledged is there, exactly once.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import state_manager
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
    """Four client processes. ``stop`` ends them; then ``history`` and ``errors`` are there."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.history: list[Operation] = []
        self.errors: list[str] = []
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
            *lines, error = map(json.loads, output.splitlines())
            self.history += map(Operation.from_json, lines)
            self.errors += [error] if error else []

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
