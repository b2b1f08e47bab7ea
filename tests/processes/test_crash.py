"""The manager is killed with SIGKILL again and again, at random moments and at chosen ones, and nobody notices.

    STATE_TEST_KILLS=50 pytest tests/processes/test_crash.py      the nightly setting; the ordinary one is 10
    STATE_TEST_SEED=1234 pytest tests/processes/test_crash.py     the draws of the run that printed this seed

Four clients write down all that they call and get (``crash_client``), and at the end it is judged (``crashes``).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import sidecar
from state_manager.errors import Unavailable
from tests.linearizability import NotLinearizable, Operation
from tests.processes.crash_client import COUNTER, DICT, Client
from tests.processes.crashes import ClientError, Clients, Miscounted, account, clients
from tests.processes.harness import SECONDS, Start, hello, many_requests, processes_of, wait_for

KILLS = int(os.environ.get("STATE_TEST_KILLS", "10"))
SEED = int(os.environ.get("STATE_TEST_SEED", random.randrange(10**9)))
LIFE = 0.3
"""Seconds that a manager lives at most, after it is ready."""
START = 0.3
"""Seconds that one is killed after at most, which may not be ready then."""


@pytest.fixture
def directory(home: Path) -> Path:
    return home / ".state"


@pytest.fixture
def seed() -> int:
    print(f"STATE_TEST_SEED={SEED} STATE_TEST_KILLS={KILLS}")  # pytest shows it when the test fails
    return SEED


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


@pytest.fixture
def manager(directory: Path) -> Iterator[Manager]:
    running = Manager(directory)
    yield running
    running.child.kill()
    running.child.wait()


@pytest.mark.timeout(60 + 4 * KILLS)
def test_kills_at_random_moments(manager: Manager, seed: int) -> None:
    draw = random.Random(seed)
    with clients(manager.directory, seed) as working:
        for _ in range(KILLS):
            time.sleep(draw.uniform(0, LIFE))
            manager.kill()
            if draw.random() < 0.2:
                manager.kill_as_it_starts(draw.uniform(0, START))
            manager.start(serve=draw.choice([sidecar.SERVE, killing()]))  # the second one is busy compacting
        working.stop()
        working.judge()
    manager.check_that_clients_were_busy(working)


# Each point, and how often the manager may pass it before.
POINTS = {
    "before an append": 200,
    "in the middle of an append": 200,
    "before a cut": 0,  # of what the last one has left
    "after a cut": 0,
    "after an append": 200,
    "between commit and reply": 50,
    "between commit and reply, after a compaction": 50,
    "before a segment is begun": 3,
    "after a segment is begun": 3,
    "before a slice": 100,
    "in the middle of a slice": 100,
    "after a slice": 100,
    "before completion": 3,
    "in the middle of completion": 3,
    "after completion": 3,
    "before an unlink": 3,
    "after an unlink": 3,
}


@pytest.mark.timeout(60 + 4 * KILLS)
def test_kills_at_chosen_points(manager: Manager, seed: int) -> None:
    draw = random.Random(seed)
    with clients(manager.directory, seed) as working:
        manager.kill()
        for _ in range(max(1, KILLS // 10)):
            for point, passed in POINTS.items():
                manager.start_to_die(point, 1 + draw.randint(0, passed))
        manager.start()
        working.stop()
        working.judge()
    manager.check_that_clients_were_busy(working)


# The verdict itself: what it would say of a manager with a fault, and what of wrong sums alone.


def test_a_lost_reply_is_noticed(manager: Manager, seed: int) -> None:
    """It shows only if the manager died between a write and its answer: the retry counts again."""
    with clients(manager.directory, seed) as working:
        manager.kill()
        manager.start_to_die("between commit and reply", 5)
        manager.start(serve=killing(without="stored replies"))
        working.stop()
        with pytest.raises(NotLinearizable):
            working.judge()


def test_lanes_that_a_compaction_left_out_are_noticed(manager: Manager, seed: int) -> None:
    """It shows only if a whole compaction came between a write and its answer: nobody knows of the write any more."""
    with clients(manager.directory, seed) as working:
        manager.kill()
        manager.start_to_die("between commit and reply, after a compaction", 5, without="lane slices")
        manager.start()
        working.stop()
        with pytest.raises(ClientError, match="saw OutcomeUnknown"):
            working.judge()


def test_one_lost_frame_in_a_thousand_is_noticed(manager: Manager, seed: int) -> None:
    with clients(manager.directory, seed) as working:
        manager.kill()
        manager.start_to_die("after an append", 8_000, without="one append in a thousand")
        manager.start()
        working.stop()
        with pytest.raises(NotLinearizable, match="key 'item "):
            working.judge()


def a_quiet_history() -> tuple[list[Operation], dict[Any, Any]]:
    """Return what one client did in memory, and what it left."""
    manager = state_manager.connect("memory://")
    client = Client(manager, 0, 1)
    client.work(lambda: len(client.history) >= 1000)
    assert client.error is None
    return client.history, {**manager.dict(DICT).copy(), COUNTER: manager.counter(COUNTER).value}


def a_popped_item(history: Iterable[Operation]) -> Operation:
    return next(each for each in history if each.name == "pop" and each.result is not None)


def an_item(left: Iterable[Any]) -> Any:
    return next(key for key in left if key.startswith("item "))


WRONG_SUMS: dict[str, Callable[[list[Operation], dict[Any, Any]], object]] = {
    "the counter: 1 is there": lambda history, left: left.update({COUNTER: 1}),
    "the sum: 1 is there": lambda history, left: left.update(sum=1),
    "the number of transforms: 1 is there": lambda history, left: left.update(chain="1 x"),
    "popped more than once": lambda history, left: history.append(a_popped_item(history)),
    "neither popped nor left": lambda history, left: left.pop(an_item(left)),
    "popped and are there": lambda history, left: left.update({"item x": a_popped_item(history).result}),
}


@pytest.mark.parametrize("message", WRONG_SUMS)
def test_wrong_sums_are_noticed(message: str) -> None:
    history, left = a_quiet_history()
    account(history, left)
    WRONG_SUMS[message](history, left)
    with pytest.raises(Miscounted, match=message):
        account(history, left)


def test_the_whole_tree_killed(start: Start, home: Path) -> None:
    server = start("--workers", "2")
    visitor = server.browser()
    visitor.post("/login", name="Ada")
    last = many_requests(server.port)[-1].number
    with state_manager.connect(server.directory) as manager:
        notes = manager.dict("notes")
        notes.set("short", 1, ttl=1.0)
        notes.set("long", 2, ttl=1000.0)
        before = time.monotonic()
    tree = processes_of(home)
    assert len(tree) == 5  # run.py, gunicorn's master, two workers, the manager
    server.signal(signal.SIGKILL)  # first: it would start the others again
    for process in tree:
        process.kill()
    server.exit_code()
    wait_for(lambda: not processes_of(home), "the end of all")
    wait_for(lambda: time.monotonic() > before + 1.0, "the end of the short entry's time")

    again = start("--workers", "2", port=server.port)
    assert hello(again.browser()).number == last + 1
    assert "Hello, Ada" in visitor.get("/login").text
    with state_manager.connect(again.directory) as manager:
        notes = manager.dict("notes")
        assert notes.copy() == {"long": 2}
        left = notes.ttl("long")
        assert left is not None
        assert left == pytest.approx(1000.0 - (time.monotonic() - before), abs=1.0)
    again.signal(signal.SIGTERM)
    assert again.exit_code() == 0
