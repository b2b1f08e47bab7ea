"""A process of the near cache's tests: the writer, a reader that has a near cache, or the observer, which has none.

    python -m tests.processes.near_client ROLE NUMBER DIRECTORY BOARD SEED

ROLE is ``write``, ``read`` or ``observe``. It says ``ready``, goes on until its standard input ends or something is
wrong, and then writes a ``Report``.

The idea: each thing in the store is written by one process, for the n-th time with the number n. Around each write the
writer puts n on the board, a file that all of them map: ``begun`` before the call, ``done`` after the answer. A reader
looks at ``done``, reads the thing, and looks at ``begun``: what it got is a number between the two. It notes what it
got in ``seen``, and no reader that looks there afterwards may get less. The store has no part in any of this.

A thing that comes and goes is there after its odd writes only. One with a deadline may be absent at any time. Nobody
may see it after the moment ``ends``, nor after the observer has found it absent: then what was done before is ``gone``.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import state_manager
from state_manager import StateManager
from state_manager.settings import SLOTS
from tests.processes.hits import asked, count_requests

READERS: Final = 3
TIMEOUT: Final = 20.0
"""Seconds for one operation: a busy machine may take long to start a manager, and that is not what is tested."""
CROWD: Final = tuple(f"face {number}" for number in range(1_100))
"""So many keys that emptying their dict changes all versions at once."""
TTL: Final = 0.02
SLACK: Final = 0.001
"""Seconds by which the machine may adjust its clock while there is no manager."""
THINGS: Final = 16
"""Things that the board has room for."""


class Wrong(Exception):
    """A read returned what it must not."""


class Board:
    """Numbers that processes show each other: rows of one 64-bit word a thing."""

    def __init__(self, path: Path) -> None:
        rows = 4 + READERS
        size = 8 * THINGS * rows
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            words = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")
        self.begun, self.done, self.gone, self.ends, *self.seen = (
            words[row * THINGS :][:THINGS] for row in range(rows)
        )


class Thing:
    """Something in the store. ``write`` gets the number of the write; each of ``reads`` returns a number or None.

    A read that cannot tell the number returns True. ``weight`` says how often it is written.
    """

    def __init__(
        self, write: Callable[[int], object], *reads: Callable[[], Any], weight: int = 100, goes: bool = False
    ) -> None:
        self.write = write
        self.reads = reads
        self.weight = weight
        self.goes = goes


def mate(space: str, key: str) -> str:
    """Return another key of the same slot."""

    def slot(key: str) -> int:
        return crc32(key.encode(), crc32(space.encode())) % SLOTS

    return next(other for number in range(10**9) if slot(other := f"mate {number}") == slot(key))


def things(manager: StateManager) -> dict[str, Thing]:
    """Return all things but the one with a deadline."""
    near, pairs, crowd = manager.dict("near"), manager.dict("pairs"), manager.dict("crowd")
    counter = manager.counter("n")

    def pair(found: dict[Any, Any]) -> Any:
        left, right = found.get("left"), found.get("right")
        if left != right:
            raise Wrong(f"one moment had two: {left} and {right}")
        return left

    def number(key: str) -> Thing:
        return Thing(lambda n: near.set(key, n), lambda: near.get(key), lambda: near.frozen(key))

    def first(found: Any) -> Any:
        return found and found[0]

    return {
        "rare": Thing(lambda n: near.set("rare", n), lambda: near.get("rare"), weight=5),
        "number": number("number"),
        "mate": number(mate("near", "number")),
        "list": Thing(
            lambda n: near.set("list", [n]), lambda: first(near.get("list")), lambda: first(near.frozen("list"))
        ),
        "sum": Thing(lambda _: near.increment("sum"), lambda: near.get("sum")),
        "guest": Thing(
            lambda n: near.add("guest", n) if n % 2 else near.delete("guest"),
            lambda: near.get("guest"),
            lambda: "guest" in near or None,
            goes=True,
        ),
        "pair": Thing(
            lambda n: pairs.set_many({"left": n, "right": n}),
            lambda: pair(pairs.get_many(["left", "right"])),
            lambda: pair(pairs.copy()),
        ),
        "crowd": Thing(
            lambda n: crowd.set_many(dict.fromkeys(CROWD, n)) if n % 2 else crowd.clear(),
            lambda: crowd.get(CROWD[0]),
            lambda: crowd.get(CROWD[-1]),
            weight=5,
            goes=True,
        ),
        "counter": Thing(lambda _: counter.increment(), lambda: counter.value or None),
    }


RARE: Final = 0
"""The place on the board of a thing that is hardly ever written."""
SHORT: Final = THINGS - 1
"""That of the thing with a deadline."""


@dataclasses.dataclass
class Report:
    """What a process did, and what was wrong if anything was: a stale read, or an error."""

    calls: int = 0
    hits: int = 0
    stale: str | None = None
    error: str | None = None


class Writer:
    rest = 0.0

    def __init__(self, manager: StateManager, board: Board, number: int, seed: int) -> None:
        self._board = board
        self._draw = random.Random(f"{seed} writer")
        self._things = list(enumerate(things(manager).values()))
        self._weights = [thing.weight for _, thing in self._things]
        near = manager.dict("near")
        self._things.append((SHORT, Thing(lambda n: near.set("short", n, ttl=TTL))))
        self._weights.append(20)
        self.report = Report()

    def step(self) -> None:
        board = self._board
        for place, thing in self._draw.choices(self._things, self._weights, k=100):
            n = board.begun[place] + 1
            board.begun[place] = n
            thing.write(n)
            board.ends[place] = time.monotonic_ns() + int((TTL + SLACK) * 1e9)
            board.done[place] = n
            if thing.reads and n % 4 < 2:  # what it wrote may be a copy by now
                got = self._draw.choice(thing.reads)()
                expected = n if n % 2 or not thing.goes else None
                if got != expected and not (got is True and expected):
                    raise Wrong(f"write {n} of thing {place} was done, and then its writer got {got}")
        self.report.calls += 100


class Reader:
    """The first reader looks at the rare thing alone, the quickest way: it hardly ever asks the manager anything."""

    rest = 0.0005  # or readers would leave the writer no time

    def __init__(self, manager: StateManager, board: Board, number: int, seed: int) -> None:
        self._board = board
        self._number = number
        self._draw = random.Random(f"{seed} reader {number}")
        known = things(manager)
        self._looks = [
            (place, name, thing.goes, read)
            for place, (name, thing) in enumerate(known.items())
            for read in thing.reads
            if number or place == RARE
        ]
        self._near = manager.dict("near")
        self.report = Report()

    def step(self) -> None:
        self._short_one()
        for place, name, goes, read in self._draw.choices(self._looks, k=100):
            self._look(place, name, goes, read)
        self.report.calls += 100

    def _look(self, place: int, name: str, goes: bool, read: Callable[[], Any]) -> None:
        board = self._board
        least = max(board.done[place], *(seen[place] for seen in board.seen))
        before = asked.count
        got = read()
        hit = asked.count == before
        most = board.begun[place]
        self.report.hits += hit
        if got is True or got is None:
            # There after odd writes only, or not there after even ones; without a coming and going, absent before all.
            number = least + (least % 2 != (got is True))
            fits = number <= most if goes else least == 0
        else:
            number = got
            fits = least <= got <= most
        if not fits:
            where = "a copy" if hit else "the manager"
            raise Wrong(
                f"{name!r} was {got} in {where}, and of its writes {least} was done before and {most} begun after"
            )
        if number > board.seen[self._number][place]:
            board.seen[self._number][place] = number

    def _short_one(self) -> None:
        if not self._number:
            return
        gone, done = self._board.gone[SHORT], self._board.done[SHORT]
        late = time.monotonic_ns() - self._board.ends[SHORT]  # if ``done`` is the last one; else less
        got = self._near.get("short")
        if got is not None and (got <= gone or got < done or (got == done and late > 0)):
            raise Wrong(f"'short' was {got}, and {gone} was gone and {done} done before, which had ended {late} ns ago")


class Observer:
    """Waits for the end of the thing with a deadline."""

    rest = 0.05  # whoever finds it absent deletes it: there must be a time in which only the deadline says so

    def __init__(self, manager: StateManager, board: Board, number: int, seed: int) -> None:
        self._board = board
        self._near = manager.dict("near")
        self.report = Report()

    def step(self) -> None:
        done = self._board.done[SHORT]
        if self._near.get("short") is None:
            self._board.gone[SHORT] = done
            self.report.calls += 1


ROLES: Final[dict[str, type[Writer | Reader | Observer]]] = {"write": Writer, "read": Reader, "observe": Observer}


def main() -> None:
    role, number, directory, board, seed = sys.argv[1:]
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    count_requests()
    with state_manager.connect(directory, timeout=TIMEOUT, near_cache=role != "observe") as manager:
        worker = ROLES[role](manager, Board(Path(board)), int(number), int(seed))
        report = worker.report
        manager.ping()
        print("ready", flush=True)
        try:
            while not stop.wait(worker.rest):
                worker.step()
        except Wrong as wrong:
            report.stale = f"{role} {number}: {wrong}"
        except Exception as error:
            report.error = f"{role} {number} saw {type(error).__name__}: {error}"
    print(json.dumps(dataclasses.asdict(report)), flush=True)


if __name__ == "__main__":
    main()
