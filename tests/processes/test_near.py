"""No copy that a process reads is ever out of date, whatever becomes of the manager.

    STATE_TEST_SECONDS=60 pytest tests/processes/test_near.py      the nightly setting; the ordinary one is 3
    STATE_TEST_SEED=1234 pytest tests/processes/test_near.py       the draws of the run that printed this seed

One process writes, several read from their copies, and a file that all of them map says what was acknowledged
(``near_client``).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state_manager import sidecar
from tests.processes.crashes import Manager, killing, managing
from tests.processes.harness import ROOT, SECONDS, environment, wait_for
from tests.processes.near_client import RARE, READERS, Board, Report

LOAD_SECONDS = float(os.environ.get("STATE_TEST_SECONDS", "3"))
SEED = int(os.environ.get("STATE_TEST_SEED", random.randrange(10**9)))
REST = 0.2
"""Seconds between two blows to the manager at most."""
PATIENCE = 3.0
"""Seconds in which a fault shows, unless a reader was just asking the manager when that was killed."""


class StaleRead(AssertionError):
    """Somebody read what was not so any more."""


class Load:
    """The processes. ``stop`` ends them, and then ``reports`` has what they did."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.reports: dict[str, Report] = {}
        roles = [("write", 0), ("observe", 0), *(("read", number) for number in range(READERS))]
        command = sys.executable, "-m", "tests.processes.near_client"
        path = directory.with_name("board")
        self.board = Board(path)
        self._processes = {
            f"{role} {number}": subprocess.Popen(
                [*command, role, str(number), str(directory), str(path), str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=environment(directory.parent),
            )
            for role, number in roles
        }

    def wait_until_ready(self) -> None:
        for process in self._processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def one_has_ended(self) -> bool:
        """Whether a process has found something wrong."""
        return any(process.poll() is not None for process in self._processes.values())

    def judge(self) -> None:
        """Stop it. Raise StaleRead if there was one, AssertionError if anything else was wrong."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None  # communicate would flush it
        for name, process in self._processes.items():
            output, _ = process.communicate(timeout=2 * SECONDS)
            self.reports[name] = Report(**json.loads(output))
        print(*self.reports.items(), sep="\n")
        stale = [report.stale for report in self.reports.values() if report.stale]
        if stale:
            raise StaleRead("\n".join(stale))
        assert not any(report.error for report in self.reports.values())

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            with process:
                pass  # closes its pipes


@contextlib.contextmanager
def load(directory: Path, seed: int) -> Iterator[Load]:
    running = Load(directory, seed)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.kill()


@pytest.fixture
def seed() -> int:
    print(f"STATE_TEST_SEED={SEED} STATE_TEST_SECONDS={LOAD_SECONDS:g}")  # pytest shows it when the test fails
    return SEED


@pytest.fixture
def manager(home: Path) -> Iterator[Manager]:
    with managing(home / ".state") as running:
        yield running


def stop_for_a_while(manager: Manager, draw: random.Random) -> None:
    manager.child.send_signal(signal.SIGSTOP)
    time.sleep(draw.uniform(0, REST))
    manager.child.send_signal(signal.SIGCONT)


def kill(manager: Manager, draw: random.Random) -> None:
    manager.kill()
    manager.start(serve=draw.choice([sidecar.SERVE, killing()]))  # the second one is busy compacting


def kill_before_the_page(manager: Manager, draw: random.Random) -> None:
    """Kill it between journal and page: what nobody was told is there after the start."""
    manager.kill()
    manager.start_to_die("after an append", draw.randint(1, 200))
    manager.start()


def kill_before_the_reply(manager: Manager, draw: random.Random) -> None:
    manager.kill()
    manager.start_to_die("between commit and reply", draw.randint(1, 50))
    manager.start()


BLOWS: tuple[Callable[[Manager, random.Random], None], ...] = (
    stop_for_a_while,
    kill,
    kill_before_the_page,
    kill_before_the_reply,
)


@pytest.mark.timeout(60 + 2 * LOAD_SECONDS)
def test_nobody_reads_what_is_not_so_any_more(manager: Manager, seed: int) -> None:
    draw = random.Random(seed)
    with load(manager.directory, seed) as running:
        end = time.monotonic() + LOAD_SECONDS
        while not running.one_has_ended() and time.monotonic() < end:
            time.sleep(draw.uniform(0, REST))
            draw.choice(BLOWS)(manager, draw)
        running.judge()
    readers = [report for name, report in running.reports.items() if name.startswith("read")]
    print(f"{len(manager.kills)} kills, {sum(reader.hits for reader in readers):,} hits")
    assert all(reader.hits > reader.calls / 4 > 0 for reader in readers)
    assert running.reports["write 0"].calls > 0
    assert running.reports["observe 0"].calls > 0


# The verdict itself: a manager with a fault.


@pytest.mark.parametrize("without", ["versions at start", "one bump in a thousand", "the page before the reply"])
def test_a_stale_read_is_noticed(manager: Manager, seed: int, without: str) -> None:
    with load(manager.directory, seed) as running:

        def noticed() -> bool:
            """Kill the manager while all have copies, and start the one with the fault."""
            wait_for(lambda: running.board.seen[0][RARE], "a copy of the rare thing")
            manager.kill()
            manager.start(serve=killing(without=without))
            end = time.monotonic() + PATIENCE
            while not running.one_has_ended() and time.monotonic() < end:
                time.sleep(0.02)
            return running.one_has_ended()

        wait_for(noticed, "a stale read")
        with pytest.raises(StaleRead):
            running.judge()
