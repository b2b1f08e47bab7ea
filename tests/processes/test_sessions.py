"""Sessions that the manager keeps, in real workers; and the same app with Flask-Session, to show what is lost there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.processes.harness import GUNICORN, Answer, Browser, Server, Start, run, wait_for

APP = """
import os, pathlib, time
from flask import Flask, session

here = pathlib.Path(__file__).parent
app = Flask(__name__)
if os.environ["SESSIONS"] == "manager":
    from state_manager.flask import SharedState
    state = SharedState(app, sessions=True)
else:
    import cachelib, flask_session
    cache = cachelib.SimpleCache() if os.environ["SESSIONS"] == "memory" else cachelib.FileSystemCache(here / "files")
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=cache)
    flask_session.Session(app)

@app.get("/")
def index():
    return " ".join(sorted(key for key in session if key[0] != "_"))

@app.get("/pid")
def pid():
    return f"{os.getpid()} {'in' if session.get('_user_id') else 'out'}"

@app.get("/plain")
def plain():
    return "plain"

@app.get("/set/<key>")
def set_(key):
    session[key] = "alice"
    return "set"

@app.get("/visit/<key>")
def visit(key):
    session[key] = True
    return str(session.increment("visits"))

@app.get("/visits")
def visits():
    return str(session["visits"])

@app.get("/hold/<key>")
def hold(key):
    session[key] = "alice"
    (here / "began").touch()
    while not (here / "end").exists():
        time.sleep(0.02)
    return "held"

@app.get("/revoke")
def revoke():
    return str(state.sessions.revoke_user("alice"))
"""
WITH_MANAGER = ("-c", "python:state_manager.gunicorn")
STATE_MANAGER = (sys.executable, "-m", "state_manager")


def serve(start: Start, home: Path, sessions: str, worker_class: str = "gthread", **variables: str) -> Server:
    (home / "visitors.py").write_text(APP)
    arguments = WITH_MANAGER if sessions == "manager" else ()
    threads = ("--threads", "4") if worker_class == "gthread" else ()
    options = ("-w", "2", "-k", worker_class, *threads, "visitors:app")
    return start(*arguments, *options, command=GUNICORN, SESSIONS=sessions, **variables)


def visitor(server: Server, path: str = "/set/begun") -> Browser:
    """Return a browser that has a session."""
    browser = server.browser()
    assert browser.get(path).status == 200
    assert browser.cookies
    return browser


def another(browser: Browser) -> Browser:
    """Return a second window of a browser."""
    window = Browser(browser.port)
    window.cookies.load(browser.cookies.output(header="", sep=";"))
    return window


def at_once(browser: Browser, paths: Iterable[str]) -> list[Answer]:
    """Ask for all these from four windows at the same time."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda path: another(browser).get(path), paths))


def from_both(browser: Browser) -> set[str]:
    """Return whether each of two workers says that this browser is logged in."""
    said: dict[str, str] = {}

    def ask() -> bool:
        for answer in at_once(browser, ["/pid"] * 8):
            pid, is_in = answer.text.split()
            assert said.setdefault(pid, is_in) == is_in
        return len(said) == 2

    wait_for(ask, "the answers of two workers")
    return set(said.values())


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_every_request_counts_also_when_the_manager_is_killed(start: Start, home: Path, worker_class: str) -> None:
    server = serve(start, home, "manager", worker_class)
    browser = visitor(server)
    keys = [f"key{number:02}" for number in range(60)]
    manager = server.manager()

    def visit(key: str) -> int:
        if key == "key20":
            os.kill(manager, signal.SIGKILL)
        return another(browser).get(f"/visit/{key}").status

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(visit, keys)) == [200] * len(keys)
    assert server.manager_after(manager)
    assert browser.get("/").text == " ".join(["begun", *keys, "visits"])
    assert browser.get("/visits").text == str(len(keys))

    alice = visitor(server, "/set/_user_id")
    assert from_both(alice) == {"in"}
    assert run(home, STATE_MANAGER, "secret", "rotate").returncode == 0
    assert from_both(alice) == {"in"}
    assert browser.get("/revoke").text == "1"
    assert from_both(alice) == {"out"}
    assert browser.get("/visits").text == str(len(keys))
    alice = visitor(server, "/set/_user_id")
    assert run(home, STATE_MANAGER, "secret", "rotate", "--now").returncode == 0
    assert from_both(alice) == {"out"}


@pytest.mark.parametrize(("sessions", "kept"), [("manager", "begun held meanwhile"), ("files", "begun held")])
def test_of_two_requests_at_the_same_time_both_count(start: Start, home: Path, sessions: str, kept: str) -> None:
    """A store of whole sessions loses the one that ends first."""
    server = serve(start, home, sessions)
    browser = visitor(server)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(another(browser).get, "/hold/held")
        wait_for((home / "began").exists, "the request that takes its time")
        assert browser.get("/set/meanwhile").status == 200
        assert browser.get("/").text == "begun meanwhile"
        (home / "end").touch()
        assert held.result().status == 200
    assert browser.get("/").text == kept


def test_sessions_in_a_workers_own_memory_are_gone_in_the_next(start: Start, home: Path) -> None:
    server = serve(start, home, "memory", "sync")
    browser = visitor(server, "/set/_user_id")
    wait_for(lambda: any("out" in answer.text for answer in at_once(browser, ["/pid"] * 8)), "the other worker")


def test_while_there_is_no_manager(start: Start, home: Path) -> None:
    server = serve(start, home, "manager", STATE_MANAGER_START="0", STATE_MANAGER_TIMEOUT="1")
    browser = visitor(server, "/set/_user_id")
    assert from_both(browser) == {"in"}
    assert run(home, STATE_MANAGER, "stop").returncode == 0
    assert from_both(browser) == {"in"}, "what has been read before goes on to be right"
    assert browser.get("/plain").text == "plain"
    assert browser.get("/set/more").status == 503
    assert server.text.count("503 for GET /set/more: Unavailable") == 1
    assert run(home, STATE_MANAGER, "restart").returncode == 0
    assert browser.get("/set/more").status == 200
    assert browser.get("/").text == "more"
