"""Whose manager the extensions of an app use, seen through ``StateCache``, which asks at each use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_caching import Cache

from state_manager import connect
from state_manager.flask import SharedState
from state_manager.flask.caching import StateCache

TYPE = "state_manager.flask.caching"


def make_app(**config: Any) -> Flask:
    app = Flask("shop")
    app.config.update({"STATE_MANAGER_ADDRESS": "memory://"} | config)
    return app


def test_it_is_the_current_apps() -> None:
    cache = StateCache()
    apps = [make_app(), make_app()]
    state = SharedState(apps[0])  # the other has settings only
    for number, app in enumerate(apps):
        with app.app_context():
            cache.set("a", number)
    for number, app in enumerate(apps):
        with app.app_context():
            assert cache.get("a") == number
    with apps[0].app_context():
        assert state.dict("cache")["a"] == 0


def test_a_shared_state_may_come_later_and_its_address_may_change() -> None:
    app = make_app()
    cache = Cache(app, config={"CACHE_TYPE": TYPE})
    state = SharedState(app)
    with app.app_context():
        addresses = ("memory://one", "memory://other")
        for address in addresses:
            app.config["STATE_MANAGER_ADDRESS"] = address
            cache.set("a", address)
        for address in addresses:
            app.config["STATE_MANAGER_ADDRESS"] = address
            assert cache.get("a") == state.dict("cache")["a"] == address
            state.shutdown()


def test_without_a_shared_state_the_settings_count_and_may_change_too() -> None:
    app = make_app(STATE_MANAGER_ADDRESS="memory://settings")
    cache = Cache(app, config={"CACHE_TYPE": TYPE})
    with app.app_context(), connect("memory://settings") as manager:
        cache.set("a", 1)
        assert manager.dict("cache")["a"] == 1
        app.config["STATE_MANAGER_ADDRESS"] = "memory://"
        assert cache.get("a") is None
        cache.set("a", 2)
        assert cache.get("a") == 2
        app.config["STATE_MANAGER_ADDRESS"] = "redis://localhost"
        with pytest.raises(ValueError, match="redis://"):
            cache.get("a")
        manager.shutdown()


def test_outside_of_an_app_it_is_that_of_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_ADDRESS", "memory://environment")
    cache = StateCache()
    cache.set("a", 1)
    with connect("memory://environment") as manager:
        assert manager.dict("cache")["a"] == 1
        manager.shutdown()


def test_flask_cachings_belongs_to_its_app_outside_of_it_too() -> None:
    app, other = make_app(), make_app()
    cache = Cache()
    cache.init_app(app, config={"CACHE_TYPE": TYPE})
    with app.app_context():
        cache.set("a", 1)
    found = app.extensions["cache"][cache]
    assert found.get("a") == 1
    with other.app_context():
        assert found.get("a") == 1
        assert StateCache().get("a") is None


def test_an_address_and_a_manager_are_what_they_say() -> None:
    app = make_app()
    state = SharedState(app)
    with connect("memory://") as manager, app.app_context():
        for cache in (StateCache("memory://"), StateCache(manager)):
            cache.set("a", 1)
            assert cache.get("a") == 1
        assert StateCache().get("a") is None
        assert manager.dict("cache")["a"] == 1
    StateCache(state).set("a", 2)  # outside, a SharedState's only app is meant
    assert state.dict("cache")["a"] == 2


def test_the_dict_of_every_app_gets_the_options() -> None:
    state = SharedState()
    cache = StateCache(state, max_bytes=10_000)
    for app in (make_app(), make_app()):
        state.init_app(app)
        with app.app_context():
            cache.set("a", 1)
            assert state.system(":options")["cache"] == [False, 10_000, "evict", False]


def test_making_them_needs_no_manager(tmp_path: Path) -> None:
    app = make_app(STATE_MANAGER_ADDRESS=str(tmp_path / "absent"), SESSION_CACHELIB=StateCache(name="sessions"))
    Cache(app, config={"CACHE_TYPE": TYPE})
    assert not (tmp_path / "absent").exists()
