"""``state_manager.flask.caching`` in Flask apps: Flask-Caching and Flask-Session over it.

Whose manager it uses is in ``test_flask_managers``, several workers are in ``processes/test_caching``.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import time_machine
from cachelib import BaseCache
from cachelib.serializers import JSONSerializer
from flask import Flask, Response, abort, jsonify, render_template_string, session
from flask_caching import Cache, make_template_fragment_key
from flask_session import Session
from markupsafe import Markup

from state_manager import NotStorable, connect
from state_manager.flask import SharedState
from state_manager.flask.caching import StateCache

TYPE = "state_manager.flask.caching"


def make_app(**config: Any) -> Flask:
    app = Flask("shop")
    app.config.update({"STATE_MANAGER_ADDRESS": "memory://", "SECRET_KEY": "x", "TESTING": True} | config)
    return app


def back_end(cache: Cache, app: Flask) -> StateCache:
    found = app.extensions["cache"][cache]
    assert type(found) is StateCache
    return found


def test_how_it_is_called() -> None:
    parameters = inspect.signature(StateCache).parameters
    assert list(parameters)[:4] == ["address", "name", "default_timeout", "serializer"]
    assert [parameters[name].default for name in list(parameters)[:4]] == [None, "cache", 300, None]
    public = {name for name, member in vars(BaseCache).items() if callable(member) and name[0] != "_"}
    assert public - set(vars(StateCache)) == {"get_dict"}  # which cachelib makes of get_many


# Flask-Caching


def test_its_configuration_is_the_constructors() -> None:
    app = make_app()
    config = {"CACHE_TYPE": TYPE, "CACHE_DEFAULT_TIMEOUT": 60, "CACHE_IGNORE_ERRORS": True}
    options = {"name": "pages", "serializer": "pickle", "max_bytes": 10_000, "durable": True}
    found = back_end(Cache(app, config=config | {"CACHE_OPTIONS": options}), app)
    assert (found.default_timeout, found.ignore_delete_many_errors) == (60, True)
    assert repr(found) == "<StateCache 'pages' {'durable': True, 'max_bytes': 10000, 'on_full': 'refuse'}>"
    arguments = {"CACHE_ARGS": ["memory://arguments", "pages"]}
    found = back_end(Cache(app, config=config | arguments), app)
    found.set("a", 1)
    with connect("memory://arguments") as manager:
        assert manager.dict("pages")["a"] == 1
        assert 50 < (manager.dict("pages").ttl("a") or 0) <= 60
        manager.shutdown()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"CACHE_OPTIONS": {"threshold": 5}}, TypeError, "threshold"),
        ({"CACHE_OPTIONS": {"serializer": "yaml"}}, TypeError, "not str 'yaml'"),
        ({"CACHE_KEY_PREFIX": lambda: "a"}, TypeError, "CACHE_KEY_PREFIX becomes part of a dict's name"),
        ({"CACHE_OPTIONS": {"name": ":own"}}, ValueError, "':own' is no name"),
        ({"CACHE_TYPE": f"{TYPE}.StateCache"}, TypeError, f"write CACHE_TYPE = '{TYPE}'"),
    ],
)
def test_a_mistake_is_told_when_the_app_is_made(config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Cache(make_app(), config={"CACHE_TYPE": TYPE} | config)


def test_clear_empties_the_cache_of_its_prefix_only() -> None:
    app = make_app()
    state = SharedState(app)
    caches = [Cache(app, config={"CACHE_TYPE": TYPE, "CACHE_KEY_PREFIX": prefix}) for prefix in ("a_", "b_")]
    caches.append(Cache(app, config={"CACHE_TYPE": TYPE}))
    with app.app_context():
        state.dict("carts")["a"] = 1
        for number, cache in enumerate(caches):
            cache.set("a", number)
        assert caches[0].clear()
        assert [cache.get("a") for cache in caches] == [None, 1, 2]
        assert caches[2].clear()
        assert [cache.get("a") for cache in caches] == [None, 1, None]
        assert state.dict("carts")["a"] == 1
        assert state.dict("cache:b_")["a"] == 1


@pytest.fixture
def app() -> Iterator[Flask]:
    app = make_app(CACHE_TYPE=TYPE, CACHE_OPTIONS={"serializer": "pickle"})
    with app.app_context():
        yield app


def test_memoize(app: Flask) -> None:
    cache = Cache(app)
    calls: list[tuple[int, int]] = []

    @cache.memoize(timeout=60)
    def add(a: int, b: int = 0) -> int:
        calls.append((a, b))
        return a + b

    assert [add(1, 2), add(1, b=2), add(2, 2)] == [3, 3, 4]
    assert calls == [(1, 2), (2, 2)]
    cache.delete_memoized(add, 1, 2)
    assert [add(1, 2), add(2, 2)] == [3, 4]
    assert calls == [(1, 2), (2, 2), (1, 2)]
    cache.delete_memoized(add)
    assert [add(1, 2), add(2, 2)] == [3, 4]
    assert len(calls) == 5
    cache.delete_memoized_verhash(add)
    assert add(1, 2) == 3
    assert len(calls) == 6


def test_memoize_of_methods(app: Flask) -> None:
    cache = Cache(app)
    calls: list[str] = []

    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return f"Shop({self.name})"

        @cache.memoize()
        def price(self, item: int) -> int:
            calls.append(self.name)
            return item

    one, other = Shop("one"), Shop("other")
    for shop in (one, other, one, other):
        assert shop.price(5) == 5
    assert calls == ["one", "other"]
    cache.delete_memoized(one.price)
    assert [one.price(5), other.price(5)] == [5, 5]
    assert calls == ["one", "other", "one"]
    cache.delete_memoized(Shop.price)
    assert [one.price(5), other.price(5)] == [5, 5]
    assert calls == ["one", "other", "one", "one", "other"]


def test_what_was_memoized_ends_with_its_timeout(app: Flask) -> None:
    cache = Cache(app)
    calls: list[int] = []

    @cache.memoize(timeout=60)
    def count() -> int:
        calls.append(1)
        return len(calls)

    with time_machine.travel(1_000_000, tick=False) as traveller:
        assert [count(), count()] == [1, 1]
        traveller.shift(59)
        assert count() == 1
        traveller.shift(2)
        assert count() == 2


def test_views_and_their_responses(app: Flask) -> None:
    cache = Cache(app)
    calls: list[str] = []

    @app.get("/page/<name>")
    @cache.cached()
    def page(name: str) -> Response:
        calls.append(name)
        if name == "none":
            abort(404)
        return jsonify(name=name)

    browser = app.test_client()
    for _ in range(3):
        answer = browser.get("/page/a")
        assert (answer.status_code, answer.mimetype, answer.json) == (200, "application/json", {"name": "a"})
        assert browser.get("/page/none").status_code == 404
        assert browser.get("/page/" + "b" * 5_000).status_code == 200
    assert calls == ["a", "none", "b" * 5_000]


def test_a_response_without_pickle_says_what_to_write(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(CACHE_TYPE=TYPE)
    cache = Cache(app)

    @app.get("/")
    @cache.cached()
    def page() -> Response:
        return jsonify(1)

    assert app.test_client().get("/").json == 1  # Flask-Caching logs it, and in debug mode raises it
    assert "Response cannot be stored" in caplog.text
    app.debug = True
    with pytest.raises(NotStorable, match=r'serializer="pickle" \(Flask-Caching: CACHE_OPTIONS = '):
        app.test_client().get("/")


def test_a_template_fragment() -> None:
    app = make_app(CACHE_TYPE=TYPE)
    cache = Cache(app)
    template = "{% cache 60, 'fragment' %}<b>{{ n }}</b>{% endcache %}"
    with app.test_request_context():
        assert [render_template_string(template, n=n) for n in ("<1>", "<2>")] == ["<b>&lt;1&gt;</b>"] * 2
        assert type(cache.get(make_template_fragment_key("fragment"))) is Markup


def test_flask_cachings_own_setting_of_a_serializer_counts() -> None:
    app = make_app(CACHE_TYPE=TYPE, CACHE_SERIALIZER=JSONSerializer)
    cache = Cache(app)
    with app.app_context():
        cache.set("a", (1, 2))
        assert cache.get("a") == [1, 2]


def test_a_value_that_a_view_changes_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(CACHE_TYPE=TYPE)
    app.debug = True
    state = SharedState(app)
    cache = Cache(app)

    @app.get("/")
    def page() -> str:
        cache.set("a", [3, 1])
        cache.get("a").sort()
        cache.get_many("a")[0].sort()
        state.dict("carts").get("a", []).append(1)
        return str(cache.get("a"))

    assert app.test_client().get("/").text == "[3, 1]"
    assert [record.args[0] for record in caplog.records if record.args] == ["carts"]  # type: ignore[index]


def test_without_a_manager_flask_caching_computes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    absent = {"STATE_MANAGER_ADDRESS": str(tmp_path / "absent"), "STATE_MANAGER_TIMEOUT": 0.1}
    app = make_app(CACHE_TYPE=TYPE, **absent)
    SharedState(app)
    cache = Cache(app)

    @cache.memoize()
    def double(n: int) -> int:
        return 2 * n

    @app.get("/double")
    def page() -> str:
        return str(double(2))

    @app.get("/get")
    def get() -> str:
        return str(cache.get("a"))

    assert app.test_client().get("/double").text == "4"
    assert "Exception possibly due to cache backend" in caplog.text
    assert app.test_client().get("/get").status_code == 503


# Flask-Session


def test_sessions_of_flask_session() -> None:
    app = make_app(SESSION_TYPE="cachelib", SESSION_CACHELIB=StateCache(name="sessions", durable=True))
    state = SharedState(app)
    Session(app)

    @app.get("/login/<name>")
    def login(name: str) -> str:
        session["user"] = {"name": name, "roles": ("admin", 1)}
        return "in"

    @app.get("/who")
    def who() -> str:
        return str(session.get("user"))

    @app.get("/logout")
    def logout() -> str:
        session.clear()
        session.pop("_permanent")
        return "out"

    with time_machine.travel(1_000_000, tick=False) as traveller:
        alice, bob = app.test_client(), app.test_client()
        alice.get("/login/alice")
        assert alice.get("/who").text == "{'name': 'alice', 'roles': ('admin', 1)}"
        assert bob.get("/who").text == "None"
        (key,) = state.dict("sessions")
        assert str(key).startswith("session:")
        assert state.dict("sessions").ttl(key) == app.permanent_session_lifetime.total_seconds()
        alice.get("/logout")
        assert list(state.dict("sessions")) == []
        bob.get("/login/bob")
        traveller.shift(app.permanent_session_lifetime)
        assert bob.get("/who").text == "None"


def test_without_a_manager_a_session_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    absent = {"STATE_MANAGER_ADDRESS": str(tmp_path / "absent"), "STATE_MANAGER_TIMEOUT": 0.1}
    app = make_app(SESSION_TYPE="cachelib", SESSION_CACHELIB=StateCache(name="sessions", durable=True), **absent)
    SharedState(app)
    Session(app)
    browser = app.test_client()
    browser.set_cookie("session", "somebody's")
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "Set-Cookie" not in answer.headers


def test_it_alone_needs_cachelib() -> None:
    code = "import sys; sys.modules['cachelib'] = None; import state_manager.flask"
    subprocess.run([sys.executable, "-c", code], check=True)
    failed = subprocess.run([sys.executable, "-c", f"{code}.caching"], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "cachelib" in failed.stderr.splitlines()[-1]
