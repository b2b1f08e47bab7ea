"""Locks, leaders, queues, channels, single flight and transactions while workers and the manager are killed.

    STATE_TEST_KILLS=50 pytest tests/processes/test_together.py      the nightly setting; the ordinary one is 10
    STATE_TEST_SEED=1234 pytest tests/processes/test_together.py     the draws of the run that printed this seed

Four workers do all of it at once, each thing in a thread, and write down what they do (``together_client``); at the end
it is judged (``together``).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.linearizability import NotLinearizable
from tests.processes.crashes import Manager, killing, managing
from tests.processes.together import WORKERS, Workers, Wrong, faulty, workers

KILLS = int(os.environ.get("STATE_TEST_KILLS", "10"))
SEED = int(os.environ.get("STATE_TEST_SEED", random.randrange(10**9)))
GRANT, ITEM = "between a lock's grant and its reply", "between an item and its reply"
REST = 0.2
"""Seconds between two blows at most."""


@pytest.fixture
def seed() -> int:
    print(f"STATE_TEST_SEED={SEED} STATE_TEST_KILLS={KILLS}")  # pytest shows it when the test fails
    return SEED


@pytest.fixture
def manager(home: Path) -> Iterator[Manager]:
    with managing(home / ".state") as running:
        yield running


BLOWS: dict[str, Callable[[Workers, Manager, random.Random], None]] = {
    "a worker": lambda working, _, draw: working.kill_one(draw.randrange(WORKERS)),
    "a holder": lambda working, *_: working.kill_one_who(holds="lock exclusive"),
    "a waiter": lambda working, *_: working.kill_one_who(waits_for="lock exclusive"),
    "a consumer": lambda working, *_: working.kill_one_who(holds="item of queue jobs"),
    "who computes": lambda working, *_: working.kill_one_who(holds="computing computed"),
    "the leader": lambda working, *_: working.kill_one_who(holds="leader boss"),
    "a hang": lambda working, _, draw: working.hang_one(draw.randrange(WORKERS)),
    "the manager": lambda working, manager, _: working.kill_manager(manager),
    "the manager, before a compacting one": lambda working, manager, _: working.kill_manager(manager, killing()),
    "the manager, at a grant": lambda working, manager, draw: working.kill_manager(
        manager, point=GRANT, count=draw.randint(1, 50)
    ),
    "the manager, at an item": lambda working, manager, draw: working.kill_manager(
        manager, point=ITEM, count=draw.randint(1, 50)
    ),
}


@pytest.mark.timeout(60 + 4 * KILLS)
def test_kills_of_workers_and_of_the_manager(manager: Manager, seed: int) -> None:
    draw = random.Random(seed)
    with workers(manager.directory, seed) as working:
        for _ in range(max(1, KILLS // len(BLOWS))):
            for name in draw.sample(list(BLOWS), len(BLOWS)):
                time.sleep(draw.uniform(0, REST))
                print(name, flush=True)
                BLOWS[name](working, manager, draw)
        time.sleep(draw.uniform(0, REST))
        working.stop()
        working.judge()
    working.check_that_all_was_tried()


# The verdict itself: what it says of a manager with faults, each of another thing, so that several are tried at once.

Verdict = tuple[Callable[[Workers], None], type[AssertionError], str]
NOTICED: dict[str, Verdict] = {
    "several holders": (Workers.judge_locks, Wrong, "one holder at a time"),
    "one place more": (Workers.judge_places, Wrong, "as many holders as places"),
    "items that are given twice": (
        Workers.judge_queue,
        Wrong,
        "one delivery to one|every item once",
    ),
    "messages that are not kept": (Workers.judge_channels, Wrong, "what was published is there"),
    "several who compute": (Workers.judge_computing, Wrong, "one computes at a time"),
    "several leaders": (Workers.judge_leaders, Wrong, "one leader at a time|a leader leads until it ends|tokens grow"),
    "commits that look at nothing": (Workers.judge_transactions, NotLinearizable, "key 'bank'"),
}
NOTICED_AFTER_A_KILL: dict[str, Verdict] = {
    "tokens that shrink": (Workers.judge_locks, Wrong, "tokens grow"),
    "items that die with workers": (Workers.judge_queue, Wrong, "no item is lost"),
    "messages missed that are not counted": (Workers.judge_channels, Wrong, "what was missed is counted"),
    "leaders that end with the manager": (Workers.judge_leaders, Wrong, "a leader leads until it ends"),
    "halves of commits": (Workers.judge_transactions, NotLinearizable, "key 'bank'"),
}
NOTICED_AFTER_TWO_SECONDS: list[Verdict] = [
    (Workers.judge_locks, NotLinearizable, "key 'lock'"),
    (Workers.judge_computing, Wrong, "the next computes within two seconds"),
    (Workers.judge_leaders, Wrong, "the next leads within two seconds"),
]
LOAD = 1.0
"""Seconds in which a fault shows."""


def notice(working: Workers, verdicts: Iterable[Verdict]) -> None:
    working.stop()
    working.collect()
    for judge, error, message in verdicts:
        print(message)
        with pytest.raises(error, match=message):
            judge(working)


def test_faults_are_noticed(manager: Manager, seed: int) -> None:
    manager.kill()
    manager.start(serve=faulty(*NOTICED))
    with workers(manager.directory, seed) as working:
        time.sleep(LOAD)
        notice(working, NOTICED.values())


def test_faults_that_show_after_a_kill_are_noticed(manager: Manager, seed: int) -> None:
    manager.kill()
    manager.start(serve=faulty(*NOTICED_AFTER_A_KILL))
    with workers(manager.directory, seed) as working:
        time.sleep(LOAD)
        working.kill_one_who(holds="item of queue jobs")
        working.kill_manager(manager, faulty(*NOTICED_AFTER_A_KILL))
        time.sleep(LOAD)
        notice(working, NOTICED_AFTER_A_KILL.values())


def test_a_lost_reply_is_noticed(manager: Manager, seed: int) -> None:
    """Who was granted the lock asks again, and waits for himself."""
    with workers(manager.directory, seed) as working:
        working.kill_manager(manager, killing(without="stored replies"), point=GRANT, count=20)
        time.sleep(LOAD)
        notice(working, [(Workers.judge_locks, NotLinearizable, "key 'lock'")])


def test_what_outlives_workers_is_noticed(manager: Manager, seed: int) -> None:
    manager.kill()
    manager.start(serve=faulty("what outlives workers"))
    with workers(manager.directory, seed) as working:
        for what in ("leader boss", "lock exclusive", "computing computed"):
            working.kill_one_who(holds=what)
        time.sleep(2 + LOAD)
        notice(working, NOTICED_AFTER_TWO_SECONDS)
