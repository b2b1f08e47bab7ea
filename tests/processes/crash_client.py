"""A client of the crash tests: works without a pause and writes down what it called, when, and what came back.

    python -m tests.processes.crash_client DIRECTORY NUMBER SEED

It says ``ready`` when it has begun, goes on until its standard input ends or an error comes, and then writes its
history, one JSON list a line, and last how many reads were served from its own copies, and the error, if there was one.
Times are the machine's monotonic clock, which all processes share. Every value is stored once only, so that a read
tells whose write it saw.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import state_manager
from state_manager import StateManager
from state_manager.errors import Unavailable
from tests.linearizability import Operation
from tests.processes.hits import asked, count_requests

TIMEOUT: Final = 20.0
"""Seconds for one operation: a busy machine may take long to start a manager, and that is not what is tested."""
RECENT: Final = 10
"""Items each client looks back to, when it pops one: few enough that several try to pop the same."""
AGAIN: Final = 4
"""Reads one after the other: few of them find that somebody wrote since the one before."""
COUNTER, DICT = "count", "work"


class Client:
    """One client: draws its calls from its own seed and records them."""

    def __init__(self, manager: StateManager, number: int, seed: int) -> None:
        self.number = number
        self.history: list[Operation] = []
        self.hits = 0
        self.error: str | None = None
        self._counter = manager.counter(COUNTER)
        self._dict = manager.dict(DICT)
        self._draw = random.Random(f"{seed} {number}")
        self._values = 0
        self._items = 0
        self._seen: str | None = None
        self._actions: list[Callable[[], None]] = [
            self._count,
            self._increment,
            self._add_item,
            self._pop_item,
            self._transform,
            self._read,
            self._read_again,
            self._set,
            self._compare_and_set,
        ]

    def work(self, stop: Callable[[], bool]) -> None:
        """Call one thing after the other until told to stop, or until an error."""
        while not stop() and self.error is None:
            self._draw.choice(self._actions)()

    def _call(self, key: str, name: str, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        """Call and record it. ``args`` may be a list that the call fills in. Return None after an error."""
        result, returned, called = None, None, time.monotonic_ns()
        try:
            result = call()
            returned = time.monotonic_ns()
        except Exception as error:
            self.error = f"client {self.number} saw {type(error).__name__} from {name} of {key!r}: {error}"
            if isinstance(error, Unavailable) and error.applied is False:
                return None
        self.history.append(Operation(self.number, key, name, tuple(args), result, called, returned))
        return result

    def _new(self) -> str:
        self._values += 1
        return f"{self.number}.{self._values}"

    def _item(self) -> str:
        """Return the name of an item that this client or another has added lately, or is about to."""
        return f"item {self._draw.randint(max(0, self._items - RECENT), self._items)} of {self._draw.randrange(4)}"

    # -- what it does ----------------------------------------------------------------------------------------------

    def _count(self) -> None:
        self._call(COUNTER, "increment", (), self._counter.increment)

    def _increment(self) -> None:
        by = self._draw.randint(1, 9)
        self._call("sum", "increment", (by, 100), lambda: self._dict.increment("sum", by, initial=100))

    def _add_item(self) -> None:
        item, value = f"item {self._items} of {self.number}", self._new()
        self._items += 1
        self._call(item, "add", (value,), lambda: self._dict.add(item, value))

    def _pop_item(self) -> None:
        item = self._item()
        self._call(item, "pop", (), lambda: self._dict.pop(item, None))

    def _transform(self) -> None:
        """Count in a string: the value says how many transforms there were, and whose was the last."""
        value = self._new()
        applied: list[Any] = [None, None]

        def function(old: str | None) -> str:
            new = f"{int(old.split()[0]) + 1 if old else 1} {value}"
            applied[:] = old, new
            return new

        self._call("chain", "transform", applied, lambda: self._dict.transform("chain", function) == applied[1])

    def _read(self) -> None:
        key = self._draw.choice(["sum", "chain", "register", self._item()])
        self._call(key, "get", (), lambda: self._dict.get(key))

    def _read_again(self) -> None:
        """Read few keys again and again, so that most reads find a copy, which somebody else is just outdating."""
        reads: dict[str, Callable[[], Any]] = {
            COUNTER: lambda: self._counter.value or None,
            "sum": lambda: self._dict.get("sum"),
            "register": lambda: self._dict.get("register"),
        }
        for key in self._draw.choices(list(reads), k=AGAIN):
            before = asked.count
            self._call(key, "get", (), reads[key])
            self.hits += asked.count == before

    def _set(self) -> None:
        value = self._new()
        self._call("register", "set", (value,), lambda: self._dict.set("register", value))

    def _compare_and_set(self) -> None:
        expected, value = self._call("register", "get", (), lambda: self._dict.get("register")), self._new()
        if expected is not None:
            self._call(
                "register",
                "compare_and_set",
                (expected, value),
                lambda: self._dict.compare_and_set("register", expected, value),
            )


def main() -> None:
    directory, number, seed = sys.argv[1:]
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    count_requests()
    with state_manager.connect(directory, timeout=TIMEOUT) as manager:
        client = Client(manager, int(number), int(seed))
        manager.ping()
        print("ready", flush=True)
        client.work(stop.is_set)
    print(*map(json.dumps, client.history), json.dumps([client.hits, client.error]), sep="\n")


if __name__ == "__main__":
    main()
