"""The Flask app that http_load.py measures: the same routes over our manager, Redis, a vanilla manager, or nothing.

Rules: the app is made in each worker, so that each has connections of its own; ours is written as README.md says, with
``SharedState``. Redis and vanilla give a session key once, when a worker starts, which is the cheapest way; ours looks
after it before every request, the constant route's too, so that a rotated key holds at once.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from common import VALUE
from flask import Flask, session
from roundtrip import AUTHKEY, Vanilla

import state_manager
from state_manager.flask import SharedState

USER = "alice"


class State(NamedTuple):
    """What the routes of a worker use."""

    read: Callable[[], str]
    increment: Callable[[], int]


def vanilla_store(path: str) -> Any:
    manager = Vanilla(path, AUTHKEY)
    manager.connect()
    return manager.store()  # type: ignore[attr-defined]  # register() adds it


def redis_client(path: str) -> Any:
    return importlib.import_module("redis").Redis(unix_socket_path=path)


def prepare(peer: str, path: str) -> None:
    """Store what the workers will read."""
    if peer == "ours":
        with state_manager.connect(path) as manager:
            manager.dict("benchmark").set("key", VALUE)
    elif peer != "nothing":
        store = redis_client(path) if peer == "redis" else vanilla_store(path)
        store.set("key", VALUE)
        store.set("secret", secrets.token_hex(32))


def connect(app: Flask, peer: str, path: str) -> State:
    """Give the app its session key, and return its state."""
    if peer == "ours":
        app.config["STATE_MANAGER_ADDRESS"] = path
        state = SharedState(app)
        entries, visits = state.dict("benchmark"), state.counter("visits")
        return State(lambda: entries["key"], visits.increment)
    if peer == "redis":
        client = redis_client(path)
        app.secret_key = client.get("secret")
        return State(lambda: client.get("key").decode(), lambda: client.incr("visits"))
    if peer == "vanilla":
        store = vanilla_store(path)
        app.secret_key = store.get("secret")
        return State(lambda: store.get("key"), lambda: store.increment("visits"))
    app.secret_key = "every worker has this one"
    return State(lambda: VALUE, lambda: 0)


def create(peer: str, path: str) -> Flask:
    """Return the app of one worker."""
    app = Flask(__name__)
    state = connect(app, peer, path)

    @app.get("/constant")
    def constant() -> str:
        return VALUE

    @app.get("/read")
    def read() -> str:
        return state.read()

    @app.get("/increment")
    def increment() -> str:
        return str(state.increment())

    @app.get("/login")
    def login() -> str:
        session["user"] = USER
        return USER

    @app.get("/session")
    def whose_session() -> str:
        return str(session["user"])

    return app
