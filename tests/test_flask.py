"""``SharedState``: a StateManager that belongs to whichever app is current."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask

from state_manager import StateManager, Unavailable, connect, sidecar
from state_manager.directory import SOCKET, StateDirectory
from state_manager.flask import SharedState


def make_app(name: str = "shop", **config: object) -> Flask:
    app = Flask(name)
    app.config.update({"STATE_MANAGER_ADDRESS": "memory://"} | config)
    return app


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Path]:
    """The directory of a manager process."""
    process = sidecar.start(tmp_path / "state")
    yield tmp_path / "state"
    process.terminate()
    process.wait(10)


def test_proxies_made_at_import_belong_to_the_app_that_comes_later() -> None:
    state = SharedState()
    carts, visits, key = state.dict("carts"), state.counter("visits"), state.secret("session")
    app = make_app()
    state.init_app(app)
    with app.app_context():
        carts["a"] = {"n": 1}
        visits.increment()
        assert (carts["a"], int(visits), key.current) == ({"n": 1}, 1, app.secret_key)


def test_all_that_a_manager_has_works_here() -> None:
    app = make_app()  # a SharedState does not keep its apps alive
    state = SharedState(app)
    state.dict("carts")["a"] = 1
    assert state.once("key", ttl=5) is True
    assert [space.name for space in state.spaces() if space.kind == "dict"] == ["carts"]
    assert state.drop("carts") is True
    assert state.ping() >= 0
    assert state.stats()["entries"] == state.manager.stats()["entries"]
    assert state.address == state.manager.address
    assert type(state.manager) is StateManager
    with state:
        assert len(state.system(":once")) == 1


def test_a_view_sees_the_state_of_its_own_app() -> None:
    state = SharedState()
    visits = state.counter("visits")
    apps = [make_app(name) for name in ("one", "two")]
    for app in apps:
        state.init_app(app)
        app.add_url_rule("/", view_func=lambda: str(visits.increment()))
    answers = [app.test_client().get("/").text for app in (apps[0], apps[0], apps[1])]
    assert answers == ["1", "2", "1"]


def test_outside_of_an_app_the_only_one_is_meant() -> None:
    app = make_app()
    state = SharedState(app)
    visits = state.counter("visits")
    visits.increment()
    assert visits.value == 1
    other = make_app("other")
    state.init_app(other)
    with pytest.raises(RuntimeError, match="which of 2 apps"):
        visits.increment()


def test_without_an_app_the_error_says_what_to_call() -> None:
    state = SharedState()
    with pytest.raises(RuntimeError, match=r"init_app\(app\)"):
        state.counter("visits").increment()


def test_an_app_that_it_does_not_know_gets_no_other_apps_state() -> None:
    state = SharedState(make_app())
    with Flask("stranger").app_context(), pytest.raises(RuntimeError, match="'stranger': call init_app"):
        state.counter("visits").increment()


def test_its_repr_and_those_of_its_proxies_need_no_app() -> None:
    state = SharedState()
    assert repr(state) == "<SharedState of no app yet>"
    assert repr(state.counter("visits")) == "<Counter 'visits' in <SharedState of no app yet>>"
    app = make_app()
    state.init_app(app)
    assert repr(state) == "<SharedState of shop>"


def test_the_app_knows_it() -> None:
    app = make_app()
    state = SharedState(app)
    assert app.extensions["state_manager"] is state


def test_an_app_has_only_one() -> None:
    app = make_app()
    SharedState(app)
    with pytest.raises(RuntimeError, match="'shop' has a SharedState already"):
        SharedState(app)


def test_a_bad_setting_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="STATE_MANAGER_TIMEOUT"):
        SharedState(make_app(STATE_MANAGER_TIMEOUT=-1))
    with pytest.raises(ValueError, match="redis://"):
        SharedState(make_app(STATE_MANAGER_ADDRESS="redis://localhost"))


def test_a_bad_name_is_told_at_import() -> None:
    with pytest.raises(ValueError, match="is no name"):
        SharedState().dict("")


def test_an_app_that_nobody_uses_any_more_is_freed() -> None:
    state = SharedState()
    app = make_app()
    state.init_app(app)
    app.test_client().get("/")
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    assert repr(state) == "<SharedState of no app yet>"


# -- a manager may or may not run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_making_it_starts_no_manager_and_makes_no_directory(debug: bool, tmp_path: Path) -> None:
    app = make_app(STATE_MANAGER_ADDRESS=tmp_path / "state", DEBUG=debug)
    SharedState(app)
    assert app.secret_key is None
    assert not (tmp_path / "state").exists()


def test_making_it_does_not_wait_for_a_manager_that_has_died(tmp_path: Path) -> None:
    with closing(StateDirectory.open(tmp_path / "state", create=True)) as directory:
        directory.bind().close()  # the socket of a killed manager stays
    assert (tmp_path / "state" / SOCKET).exists()
    app = make_app(STATE_MANAGER_ADDRESS=tmp_path / "state", STATE_MANAGER_TIMEOUT=30)
    before = time.monotonic()
    SharedState(app)
    app.add_url_rule("/", view_func=lambda: "needs no state")
    assert app.test_client().get("/").text == "needs no state"
    assert time.monotonic() - before < 10


def test_apps_of_one_manager_share(manager: Path) -> None:
    app, other = make_app(STATE_MANAGER_ADDRESS=manager), make_app(STATE_MANAGER_ADDRESS=manager)
    with SharedState(app) as state, SharedState(other) as state_of_other:
        state.counter("visits").increment()
        assert state_of_other.counter("visits").value == 1
        assert app.secret_key == other.secret_key


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_changed_after_init_app_count_at_the_first_use(tmp_path: Path) -> None:
    app = make_app(STATE_MANAGER_ADDRESS=tmp_path / "state")
    state = SharedState(app)
    app.config["STATE_MANAGER_TIMEOUT"] = 0.25
    app.config["STATE_MANAGER_ADDRESS"] = tmp_path / "other"
    with pytest.raises(Unavailable, match="other"):
        state.ping()


def test_a_memory_store_survives_being_used() -> None:
    app = make_app()
    state = SharedState(app)
    assert [state.counter("visits").increment() for _ in range(2)] == [1, 2]


def test_a_new_address_is_a_new_store_with_a_key_of_its_own() -> None:
    app = make_app(STATE_MANAGER_ADDRESS="memory://first")
    state = SharedState(app)
    app.add_url_rule("/", view_func=lambda: str(state.counter("visits").increment()))
    client = app.test_client()
    assert [client.get("/").text, client.get("/").text] == ["1", "2"]
    key = app.secret_key
    app.config["STATE_MANAGER_ADDRESS"] = "memory://second"
    assert client.get("/").text == "1"
    assert app.secret_key not in (None, key)
    app.config["STATE_MANAGER_ADDRESS"] = "memory://first"
    assert client.get("/").text == "3"
    assert app.secret_key == key
    for name in ("first", "second"):
        app.config["STATE_MANAGER_ADDRESS"] = f"memory://{name}"
        state.shutdown()


def test_a_new_address_closes_the_connections_to_the_old_one(manager: Path) -> None:
    app = make_app(STATE_MANAGER_ADDRESS=manager)
    state = SharedState(app)
    state.ping()
    with connect(manager) as watcher:
        assert watcher.stats()["connections"] == 2
        app.config["STATE_MANAGER_ADDRESS"] = "memory://"
        state.ping()
        deadline = time.monotonic() + 10
        while watcher.stats()["connections"] != 1:
            assert time.monotonic() < deadline


def test_a_new_address_without_a_manager_leaves_no_key_behind(tmp_path: Path) -> None:
    app = make_app()
    SharedState(app)
    assert app.secret_key
    app.config["STATE_MANAGER_ADDRESS"] = tmp_path / "state"
    with app.test_request_context():
        assert app.secret_key is None
