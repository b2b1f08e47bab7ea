"""Flask-Caching and Flask-Session in a gunicorn with two workers, over the manager and over the libraries' own memory.

Both stand side by side in one gunicorn and are asked the same. Where the library's own memory gives a wrong answer the
test expects that one too: it is the bug that is gone over the manager.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path

import pytest

import state_manager
from tests.processes.harness import GUNICORN, SECONDS, Server, Start, gone, wait_for

CACHES = """
import os
from flask import Flask, jsonify
from flask_caching import Cache
from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
prices = state.dict("prices")


def serve(kind, **config):
    cache = Cache(app, config={"CACHE_DEFAULT_TIMEOUT": 0} | config)

    @cache.memoize()
    def price(item):
        state.counter(f"{kind} computed").increment()
        return prices.get(item)

    @cache.cached(key_prefix="response")
    def response():
        return jsonify(os.getpid())

    @app.get(f"/{kind}/price", endpoint=f"{kind} price")
    def show():
        return f"{price('apple')} {os.getpid()}"

    @app.get(f"/{kind}/response", endpoint=f"{kind} response")
    def show_response():
        return f"{response().json} {os.getpid()}"

    @app.post(f"/{kind}/change/<int:value>/<how>", endpoint=f"{kind} change")
    def change(value, how):
        prices["apple"] = value
        if how == "one":
            cache.delete_memoized(price, "apple")
        if how == "all":
            cache.delete_memoized(price)
        if how == "verhash":
            cache.delete_memoized_verhash(price)
        if how == "clear":
            cache.clear()
        return str(os.getpid())


serve("shared", CACHE_TYPE="state_manager.flask.caching", CACHE_OPTIONS={"serializer": "pickle"})
serve("own", CACHE_TYPE="SimpleCache")
"""

SESSIONS = """
import os
from cachelib import SimpleCache
from flask import Flask, session
from flask_session import Session
from state_manager.flask import SharedState
from state_manager.flask.caching import StateCache
from werkzeug.middleware.dispatcher import DispatcherMiddleware


def make_app(kind, cache):
    app = Flask(kind)
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=cache, SESSION_COOKIE_NAME=kind)
    SharedState(app)
    Session(app)

    @app.post("/login")
    def login():
        session["user"] = "alice"
        session["clicks"] = ()
        return str(os.getpid())

    @app.post("/click")
    def click():
        session["clicks"] = (*session.get("clicks", ()), os.getpid())
        return str(len(session["clicks"]))

    @app.get("/")
    def who():
        return f"{session.get('user')} {os.getpid()}"

    return app


app = DispatcherMiddleware(
    make_app("own", SimpleCache()),
    {"/shared": make_app("shared", StateCache(name="sessions", durable=True))},
)
"""

Serve = Callable[[str], Server]


@pytest.fixture(params=["sync", "gthread", "gevent"])
def serve(start: Start, home: Path, request: pytest.FixtureRequest) -> Serve:
    """``serve(source of an app)`` starts a gunicorn with two workers of each class in turn."""

    def serve(source: str) -> Server:
        (home / "served.py").write_text(source)
        arguments = ("-c", "python:state_manager.gunicorn", "-w", "2", "-k", request.param, "served:app")
        return start(*arguments, command=GUNICORN)

    return serve


def from_both(server: Server, path: str, cookies: SimpleCookie | None = None) -> dict[int, str]:
    """Ask until both workers have answered; return what each said last, by its pid, which ends the answer."""

    def ask(_: int) -> str:
        browser = server.browser()
        browser.cookies = cookies or browser.cookies
        answer = browser.get(path)
        assert answer.status == 200, answer
        return answer.text

    said: dict[int, str] = {}
    deadline = time.monotonic() + SECONDS
    with ThreadPoolExecutor(4) as pool:
        while len(said) < 2:
            assert time.monotonic() < deadline, "the answers of a second worker"
            for text in pool.map(ask, range(8)):
                what, _, pid = text.rpartition(" ")
                said[int(pid)] = what
    return said


def kill_manager(server: Server) -> None:
    """Kill it. The next worker that needs one starts another."""
    pid = server.manager()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gone(pid), "the manager's end")


def test_what_one_worker_computed_or_deleted_all_have(serve: Serve) -> None:
    server = serve(CACHES)
    browser = server.browser()
    with state_manager.connect(server.directory) as manager:
        computed, computed_by_own = (manager.counter(f"{kind} computed") for kind in ("shared", "own"))

        def change(kind: str, value: int, how: str) -> tuple[int, dict[int, str]]:
            """Change the price and delete what was cached; return which worker did it, and what each one says then."""
            worker = int(browser.post(f"/{kind}/change/{value}/{how}").text)
            browser.get(f"/{kind}/price")  # nobody else asks meanwhile, so it is computed once
            return worker, from_both(server, f"/{kind}/price")

        for number, how in enumerate(["one", "all", "verhash", "clear"], 1):
            _, said = change("shared", number, how)
            assert set(said.values()) == {str(number)}
            assert computed.value == number

        assert set(change("own", 1, "all")[1].values()) == {"1"}
        assert computed_by_own.value >= 2  # each worker for itself, and under gevent each request that came meanwhile
        worker, said = change("own", 2, "all")
        assert said.pop(worker) == "2"
        assert set(said.values()) == {"1"}  # and the other one goes on with the old price

        for kind, makers in (("shared", 1), ("own", 2)):
            browser.get(f"/{kind}/response")
            assert len(set(from_both(server, f"/{kind}/response").values())) == makers

        kill_manager(server)
        assert set(change("shared", 5, "one")[1].values()) == {"5"}  # no worker serves what went with the manager
        assert computed.value == 5


def test_a_session_holds_in_every_worker_and_outlives_the_manager(serve: Serve) -> None:
    server = serve(SESSIONS)
    browser = server.browser()
    worker = int(browser.post("/login").text)
    said = from_both(server, "/", browser.cookies)
    assert said.pop(worker) == "alice"
    assert set(said.values()) == {"None"}  # logged out in the other one

    browser.post("/shared/login")
    assert set(from_both(server, "/shared/", browser.cookies).values()) == {"alice"}
    assert [browser.post("/shared/click").text for _ in range(10)] == [str(number) for number in range(1, 11)]
    kill_manager(server)
    assert browser.post("/shared/click").text == "11"
    assert set(from_both(server, "/shared/", browser.cookies).values()) == {"alice"}
