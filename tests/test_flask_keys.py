"""The session key: made by the manager, given to the app, fresh before each request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Config, Flask, session
from flask.sessions import SecureCookieSessionInterface
from flask.testing import FlaskClient

from state_manager import AuthenticationFailed, Unavailable, connect
from state_manager.flask import SharedState
from state_manager.flask.keys import FALLBACKS, SessionKeys, SharedKeyInterface


def make_app(**config: object) -> Flask:
    app = Flask("shop")
    app.config.update({"STATE_MANAGER_ADDRESS": "memory://"} | config)

    @app.get("/visit")
    def visit() -> str:
        session["visits"] = session.get("visits", 0) + 1
        return str(session["visits"])

    @app.get("/plain")
    def plain() -> str:
        return "no session"

    return app


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Any:
    """A store that several apps of this test share, as workers share a manager."""
    name = f"memory://{request.node.nodeid}"
    yield name
    connect(name).shutdown()


# -- who has which key -------------------------------------------------------------------------------------------------


def test_the_app_has_the_managers_key_at_once(address: str) -> None:
    apps = [make_app(STATE_MANAGER_ADDRESS=address) for _ in range(2)]
    keys = []
    for app in apps:
        SharedState(app)
        keys.append(app.secret_key)
    assert keys == [connect(address).secret("session").current] * 2


def test_the_secret_may_have_another_name(address: str) -> None:
    app = make_app(STATE_MANAGER_ADDRESS=address, STATE_MANAGER_SECRET="admin")
    SharedState(app)
    assert app.secret_key == connect(address).secret("admin").current


def test_none_leaves_the_key_alone() -> None:
    app = make_app(STATE_MANAGER_SECRET=None)
    SharedState(app)
    assert app.test_client().get("/plain").status_code == 200
    assert app.secret_key is None


def test_an_app_with_a_key_keeps_it() -> None:
    app = make_app(SECRET_KEY="its own")
    SharedState(app)
    app.test_client().get("/visit")
    assert app.secret_key == "its own"


def test_a_key_set_after_init_app_is_the_apps_own_too() -> None:
    app = make_app()
    SharedState(app)
    app.secret_key = b"its own"
    app.test_client().get("/visit")
    assert app.secret_key == b"its own"


def test_an_empty_key_is_no_key() -> None:
    app = make_app(SECRET_KEY="")
    SharedState(app)
    assert app.secret_key


def test_own_fallbacks_stay_valid_for_an_app_that_gives_up_its_key() -> None:
    before = make_app(SECRET_KEY="its own")
    client = before.test_client()
    client.get("/visit")
    cookie = client.get_cookie("session")
    assert cookie is not None
    app = make_app(SECRET_KEY_FALLBACKS=["its own"])
    state = SharedState(app)
    state.secret("session").rotate()
    client = app.test_client()
    client.set_cookie("session", cookie.value)
    assert client.get("/visit").text == "2"
    assert app.config[FALLBACKS] == [*state.secret("session").previous, "its own"]


# -- rotation ----------------------------------------------------------------------------------------------------------


def test_a_rotated_key_is_used_by_the_next_request_and_nobody_is_logged_out() -> None:
    app = make_app()
    state = SharedState(app)
    client = app.test_client()
    assert client.get("/visit").text == "1"
    first = app.secret_key
    state.secret("session").rotate()
    assert client.get("/visit").text == "2"
    assert app.secret_key == state.secret("session").current != first
    assert app.config[FALLBACKS] == [first]
    state.secret("session").rotate()
    assert client.get("/visit").text == "3"


def test_a_rotation_that_keeps_nothing_logs_everybody_out() -> None:
    app = make_app()
    state = SharedState(app)
    client = app.test_client()
    client.get("/visit")
    state.secret("session").rotate(keep=0)
    assert client.get("/visit").text == "1"
    assert app.config[FALLBACKS] == []


def test_the_key_is_fresh_before_the_session_is_opened(address: str) -> None:
    """The cookie is signed by another worker, with a key that this one has not seen."""
    worker, other = make_app(STATE_MANAGER_ADDRESS=address), make_app(STATE_MANAGER_ADDRESS=address)
    state = SharedState(worker)
    SharedState(other)
    worker.test_client().get("/visit")
    state.secret("session").rotate()
    client = other.test_client()
    client.get("/visit")
    cookie = client.get_cookie("session")
    assert cookie is not None
    client = worker.test_client()
    client.set_cookie("session", cookie.value)
    assert client.get("/visit").text == "2"


def of_a_request_context(app: Flask) -> None:
    with app.test_request_context():
        pass


def of_a_session_transaction(app: Flask) -> None:
    with app.test_client().session_transaction() as opened:
        opened["visits"] = 1


@pytest.mark.parametrize("begin", [of_a_request_context, of_a_session_transaction])
def test_the_key_is_fresh_in_tests_without_a_request(begin: Callable[[Flask], None]) -> None:
    app = make_app()
    state = SharedState(app)
    state.secret("session").rotate()
    begin(app)
    assert app.secret_key == state.secret("session").current


def test_the_key_is_fresh_for_an_extension_that_brings_its_own_sessions() -> None:
    seen = []

    class OtherSessions(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Any) -> Any:
            seen.append(app.secret_key)
            return super().open_session(app, request)

    app = make_app()
    state = SharedState(app)
    app.session_interface = OtherSessions()
    state.secret("session").rotate()
    app.test_client().get("/visit")
    assert seen == [state.secret("session").current]


def test_an_apps_own_session_interface_is_left_to_it() -> None:
    class OtherSessions(SecureCookieSessionInterface):
        salt = "other"

    app = make_app()
    app.session_interface = own = OtherSessions()
    SharedState(app)
    assert app.session_interface is own


# -- threads -----------------------------------------------------------------------------------------------------------


class FakeSecret:
    """Answers with these keys, after ``meanwhile`` happened."""

    def __init__(self, generation: int, *keys: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.answer = (generation, keys)
        self.meanwhile = meanwhile

    def keys(self) -> tuple[int, tuple[str, ...]]:
        self.meanwhile()
        return self.answer


def test_an_answer_that_was_overtaken_does_not_bring_back_an_older_key() -> None:
    app, keys = Flask("shop"), SessionKeys()
    keys.refresh(app, FakeSecret(1, "first"))  # type: ignore[arg-type]
    newer = FakeSecret(3, "third", "second")
    older = FakeSecret(2, "second", "first", meanwhile=lambda: keys.refresh(app, newer))  # type: ignore[arg-type]
    keys.refresh(app, older)  # type: ignore[arg-type]
    assert (app.secret_key, app.config[FALLBACKS]) == ("third", ["second"])


def test_an_answer_that_overtakes_is_used() -> None:
    app, keys = Flask("shop"), SessionKeys()
    older = FakeSecret(1, "first")
    newer = FakeSecret(2, "second", "first", meanwhile=lambda: keys.refresh(app, older))  # type: ignore[arg-type]
    keys.refresh(app, newer)  # type: ignore[arg-type]
    assert app.secret_key == "second"


def test_a_manager_that_lost_its_keys_is_followed_though_it_counts_from_one() -> None:
    app, keys = Flask("shop"), SessionKeys()
    keys.refresh(app, FakeSecret(7, "seventh", "sixth"))  # type: ignore[arg-type]
    keys.refresh(app, FakeSecret(1, "first"))  # type: ignore[arg-type]
    assert (app.secret_key, app.config[FALLBACKS]) == ("first", [])
    keys.refresh(app, FakeSecret(1, "another first"))  # type: ignore[arg-type]
    assert app.secret_key == "another first"


def test_both_settings_change_and_are_read_under_one_lock() -> None:
    """Else a session could be opened with old fallbacks and the new key: without the one that it was signed with."""
    keys = SessionKeys()
    touched = []

    class Watched(Config):
        def __setitem__(self, name: str, value: Any) -> None:
            touched.append(("set", name, keys.lock.locked()))
            super().__setitem__(name, value)

        def __getitem__(self, name: str) -> Any:
            touched.append(("get", name, keys.lock.locked()))
            return super().__getitem__(name)

    app = Flask("shop")
    app.config = Watched(app.root_path, app.config)
    keys.refresh(app, FakeSecret(2, "second", "first"))  # type: ignore[arg-type]
    SharedKeyInterface(keys).get_signing_serializer(app)
    names = {FALLBACKS, "SECRET_KEY"}
    assert {(how, name) for how, name, _ in touched if name in names} == {(h, n) for h in ("get", "set") for n in names}
    assert all(locked for _, name, locked in touched if name in names)


# -- no manager --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lonely(tmp_path: Path) -> FlaskClient:
    """A client of an app whose manager does not run."""
    app = make_app(STATE_MANAGER_ADDRESS=tmp_path / "state", STATE_MANAGER_TIMEOUT=0.1)
    SharedState(app)
    app.add_url_rule("/read", view_func=lambda: str("name" in session))
    return app.test_client()


def test_a_page_without_a_session_needs_no_manager(lonely: FlaskClient) -> None:
    assert lonely.get("/plain").text == "no session"


@pytest.mark.parametrize("path", ["/visit", "/read"])
def test_a_session_without_a_key_is_not_an_empty_one(lonely: FlaskClient, path: str) -> None:
    answer = lonely.get(path)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_a_session_transaction_without_a_key_says_how_to_start_a_manager(lonely: FlaskClient) -> None:
    with pytest.raises(Unavailable, match="state-manager serve --dir"), lonely.session_transaction() as opened:
        opened["visits"] = 1


def test_the_log_says_once_why_there_is_no_key(lonely: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    lonely.get("/plain")
    lonely.get("/plain")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no manager runs in" in record.getMessage()


def test_a_key_that_the_app_has_outlives_its_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()
    SharedState(app)
    client = app.test_client()
    client.get("/visit")

    def fail(*args: object) -> None:
        raise AuthenticationFailed("another key")

    monkeypatch.setattr("state_manager.proxies.secrets.Secret.keys", fail)
    assert client.get("/visit").text == "2"


def test_a_setting_that_went_bad_is_an_error_of_the_pages_that_need_it() -> None:
    app = make_app(STATE_MANAGER_ADDRESS="memory://")
    SharedState(app)
    app.config["STATE_MANAGER_ADDRESS"] = "redis://localhost"
    app.secret_key = None
    client = app.test_client()
    assert client.get("/plain").status_code == 200
    assert client.get("/visit").status_code == 500
