"""Leaders in real gunicorns: who is elected where, and who is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import state_manager
from state_manager import sidecar
from tests.processes.harness import GUNICORN, RUN, Command, Start, run, wait_for

LEADER_APP = """
import os, pathlib
from flask import Flask
from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
leader = state.leader("scheduler")
log = pathlib.Path(__file__).with_name("log")

def note(what):
    with log.open("a") as file:
        file.write(f"{what} {os.getpid()}\\n")

@leader.every(0.05)
def tick():
    state.counter("ticks").increment()

leader.run(lambda: note("leads"))
note("imported")

@app.get("/")
def index():
    return "leader" if leader.is_leader else "worker"
"""


@pytest.fixture
def manager_process(home: Path) -> Iterator[None]:
    """A manager that gunicorn does not bring along."""
    process = sidecar.start(home / ".state")
    yield
    process.terminate()
    process.wait(10)


def leaders(home: Path) -> list[int]:
    """Return the processes that were elected, in order."""
    try:
        lines = (home / "log").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [int(line.split()[1]) for line in lines if line.startswith("leads")]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (GUNICORN, ("-k", "sync")),
        (GUNICORN, ("-k", "gthread", "--preload")),
        (GUNICORN, ("-k", "gevent")),
        (RUN, ()),
    ],
    ids=["sync", "gthread with preload", "gevent", "run.py"],
)
def test_one_worker_leads_and_the_next_one_when_it_is_killed(
    start: Start, home: Path, command: Command, options: tuple[str, ...]
) -> None:
    (home / "leading.py").write_text(LEADER_APP)
    if command is GUNICORN:
        options = ("-c", "python:state_manager.gunicorn", *options)
    server = start(*options, "--workers", "2", "leading:app", command=command)
    wait_for(lambda: len(server.workers()) == 2, "two workers")
    wait_for(lambda: leaders(home), "a leader, without a request")
    first = leaders(home)[0]
    assert first in server.workers(), "not the master, which may have imported the app"
    with state_manager.connect(server.directory) as manager:
        ticks = manager.counter("ticks")
        wait_for(lambda: ticks.value >= 3, "periodic work")
        (worker,) = [worker for worker in manager.workers() if worker.pid == first]
        assert worker.holds == ("leader scheduler",)
        assert worker.name == "gunicorn worker of leading:app"
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda: len(leaders(home)) > 1, "another leader")
        assert time.monotonic() - began < 2.5
        second = leaders(home)[1]
        assert second in server.workers() - {first}
        before = ticks.value
        wait_for(lambda: ticks.value >= before + 3, "periodic work in the next leader")
        owner = manager.leader("scheduler").owner
        assert owner is not None
        assert owner.pid == second
    assert len(leaders(home)) == 2


@pytest.mark.usefixtures("manager_process")
def test_without_our_configuration_a_worker_stands_as_well(start: Start, home: Path) -> None:
    (home / "leading.py").write_text(LEADER_APP)
    server = start("-w", "2", "leading:app", command=GUNICORN, STATE_MANAGER_DIR=str(home / ".state"))
    wait_for(lambda: leaders(home), "a leader")
    assert leaders(home)[0] in server.workers()


@pytest.mark.usefixtures("manager_process")
def test_a_flask_command_elects_nobody(home: Path) -> None:
    (home / "leading.py").write_text(LEADER_APP)
    for command in (("routes",), ("shell",)):
        done = run(home, (*GUNICORN[:1], "-m", "flask", "--app", "leading", *command))
        assert done.returncode == 0, done.stderr
    assert (home / "log").read_text().count("imported") == 2
    assert leaders(home) == []
    with state_manager.connect(home / ".state") as manager:
        assert manager.leader("scheduler").owner is None


BUSY_APP = """
from flask import Flask
from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
leader = state.leader("scheduler")

def begin():
    @leader.every(0.05)
    def tick():
        state.counter("ticks").increment()

leader.run(begin)

@app.get("/")
def index():
    return "ok"
"""


def test_a_leader_that_was_made_before_gevent_came_does_not_stop_its_worker(start: Start, home: Path) -> None:
    """With preload its lock is a real one, which a greenlet that waits for it would keep for ever."""
    (home / "busy.py").write_text(BUSY_APP)
    server = start(
        "-c", "python:state_manager.gunicorn", "--preload", "-k", "gevent", "-w", "1", "busy:app", command=GUNICORN
    )
    assert server.browser().get("/").text == "ok"
    with state_manager.connect(server.directory) as manager:
        wait_for(lambda: manager.counter("ticks").value >= 3, "what was added from within")
    assert server.browser().get("/").text == "ok"
