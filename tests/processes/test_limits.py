"""Flask-Limiter under real gunicorns: how many requests pass, next to the storage in memory that each worker has."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes.harness import GUNICORN, Answer, Server, Start, wait_for

WORKERS = 2
LIMIT = 12
MANY = 300
"""A limit that is not used up before the manager is killed."""
CLIENTS = 4

LIMITED_APP = """
import os
from flask import Flask
from flask_limiter import Limiter
from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
limiter = Limiter(
    lambda: "everybody", app=app, storage_uri=os.environ["URI"], strategy=os.environ.get("STRATEGY"),
    swallow_errors="SWALLOW" in os.environ, storage_options={"timeout": 0.3} if "SWALLOW" in os.environ else {},
)

@app.get("/")
@limiter.limit(os.environ["LIMIT"] + " per 100 years")
def page():
    return str(os.getpid())

@app.get("/unlimited")
@limiter.exempt
def unlimited():
    return "alive"
"""


@pytest.fixture
def serve(start: Start, home: Path) -> Callable[..., Server]:
    (home / "limited.py").write_text(LIMITED_APP)

    def serve(*arguments: str, limit: int = LIMIT, **variables: str) -> Server:
        arguments = ("-c", "python:state_manager.gunicorn", "-w", str(WORKERS), *arguments, "limited:app")
        return start(*arguments, command=GUNICORN, LIMIT=str(limit), **variables)

    return serve


class Visitors:
    """Several who ask for ``/`` all the time, until they are told to stop."""

    def __init__(self, server: Server) -> None:
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server,)) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: Server) -> None:
        browser = server.browser()
        while not self._stop.is_set():
            self.answers.append(browser.get("/"))

    def passed(self) -> int:
        return [answer.status for answer in self.answers].count(200)

    def refused(self) -> int:
        return [answer.status for answer in self.answers].count(429)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(
    ("worker_class", "strategy"),
    [("sync", "fixed-window"), ("gthread", "moving-window"), ("gevent", "sliding-window-counter")],
)
def test_as_many_requests_pass_as_may_whoever_dies(
    serve: Callable[..., Server], worker_class: str, strategy: str
) -> None:
    server = serve("-k", worker_class, limit=MANY, URI="statemanager://", STRATEGY=strategy)
    visitors = Visitors(server)
    try:
        wait_for(lambda: visitors.passed() > CLIENTS, "the first requests")
        manager = server.manager()
        os.kill(manager, signal.SIGKILL)
        assert visitors.passed() < MANY, "it was killed in the middle"
        server.manager_after(manager)
        wait_for(lambda: visitors.refused() > CLIENTS, "refusals")
        worker = min(server.workers())
        os.kill(worker, signal.SIGTERM)  # a count of its own would begin anew with the next one
        wait_for(lambda: len(server.workers() - {worker}) == WORKERS, "another worker")
        seen = visitors.refused()
        wait_for(lambda: visitors.refused() > seen + 5 * CLIENTS, "more refusals")
    finally:
        visitors.stop()
    assert visitors.passed() == MANY
    assert visitors.passed() + visitors.refused() == len(visitors.answers)


def test_in_memory_every_worker_lets_as_many_pass(serve: Callable[..., Server]) -> None:
    """The bug."""
    server = serve(URI="memory://")
    visitors = Visitors(server)
    try:
        wait_for(lambda: visitors.passed() == WORKERS * LIMIT, "the limit of each worker")
    finally:
        visitors.stop()
    passed = [answer.text for answer in visitors.answers if answer.status == 200]
    assert {pid: passed.count(pid) for pid in passed} == dict.fromkeys(map(str, server.workers()), LIMIT)


@pytest.mark.parametrize("swallow", [False, True])
def test_without_a_manager_the_apps_own_setting_decides(serve: Callable[..., Server], swallow: bool) -> None:
    variables = {"SWALLOW": "1"} if swallow else {}
    server = serve(URI="statemanager://", STATE_MANAGER_START="0", STATE_MANAGER_TIMEOUT="0.3", **variables)
    for _ in range(LIMIT):
        assert server.browser().get("/").status == 200
    assert server.browser().get("/").status == 429
    os.kill(server.manager(), signal.SIGKILL)
    wait_for(lambda: not server.manager(), "the end of the manager")
    assert server.browser().get("/").status == (200 if swallow else 503)
    assert server.browser().get("/unlimited").text == "alive"
