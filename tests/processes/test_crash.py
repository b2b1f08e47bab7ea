"""The manager is killed with SIGKILL again and again, at random moments and at chosen ones, and nobody notices.

    STATE_TEST_KILLS=50 pytest tests/processes/test_crash.py      the nightly setting; the ordinary one is 10
    STATE_TEST_SEED=1234 pytest tests/processes/test_crash.py     the draws of the run that printed this seed

Four clients write down all that they call and get (``crash_client``), and at the end it is judged (``crashes``).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import sidecar
from tests.linearizability import NotLinearizable, Operation
from tests.processes.crash_client import COUNTER, DICT, Client
from tests.processes.crashes import ClientError, Manager, Miscounted, account, clients, killing, managing
from tests.processes.harness import Start, hello, many_requests, processes_of, wait_for

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


@pytest.fixture
def manager(directory: Path) -> Iterator[Manager]:
    with managing(directory) as running:
        yield running


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
    working.check_that_copies_were_read()


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
    working.check_that_copies_were_read()


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


def test_a_page_that_comes_late_is_noticed(manager: Manager, seed: int) -> None:
    """It shows only in reads that ask nobody."""
    with clients(manager.directory, seed) as working:
        manager.kill()
        manager.start_to_die("between commit and reply", 500, without="the page before the reply")
        manager.start()
        working.stop()
        with pytest.raises(NotLinearizable, match=r"get\(\)"):
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
