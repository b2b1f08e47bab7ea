"""A gunicorn worker that is stopped while a request waits for a lock: it waits no longer, and leaves the line."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

import state_manager
from tests.processes.harness import GUNICORN, RUN, Answer, Command, Start, wait_for

WAITING_APP = """
from flask import Flask
from state_manager import TimedOut
from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)

@app.get("/")
def wait():
    try:
        with state.lock("m", timeout=25):
            return "held"
    except TimedOut as error:
        return str(error)
"""


@pytest.mark.parametrize(
    ("command", "worker_class"),
    [(GUNICORN, "sync"), (GUNICORN, "gthread"), (GUNICORN, "gevent"), (RUN, "gthread")],
    ids=["sync", "gthread", "gevent", "run.py"],
)
def test_a_worker_that_is_stopped_gets_its_waits_ended(
    start: Start, home: Path, command: Command, worker_class: str
) -> None:
    (home / "waits.py").write_text(WAITING_APP)
    arguments: tuple[str, ...] = ("--workers", "1", "waits:app")
    if command is GUNICORN:
        arguments = ("-c", "python:state_manager.gunicorn", "-k", worker_class, "-w", "1", "waits:app")
    server = start(*arguments, command=command)
    answers: list[Answer] = []
    with state_manager.connect(home / ".state") as manager:
        lock = manager.lock("m")
        assert lock.acquire()
        thread = threading.Thread(target=lambda: answers.append(server.browser().get("/")))
        thread.start()
        wait_for(lambda: lock.waiters == 1, "a request that waits")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert time.monotonic() - began < 10
        thread.join()
        if command is GUNICORN:  # its manager goes on
            lock.release()
            assert not lock.locked()
    assert [answer.text for answer in answers] == ["the process is being stopped, so it waits for nothing any more"]
