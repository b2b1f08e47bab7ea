"""Who is logged in, and how to log somebody out."""

from __future__ import annotations

import pytest
import time_machine
from flask import Flask, session
from flask.testing import FlaskClient

from state_manager import connect
from state_manager.flask import SharedState
from state_manager.flask.session_list import SessionInfo
from state_manager.flask.session_records import NAME

DAY = 86_400


def make_app(address: str, user_key: str | None = "user", **config: object) -> tuple[Flask, SharedState]:
    app = Flask("shop")
    app.config.update({"STATE_MANAGER_ADDRESS": address} | config)
    state = SharedState(app, sessions=True, session_user_key=user_key)

    @app.get("/login/<user>")
    def login(user: str) -> str:
        session[user_key or "_user_id"] = int(user) if user.isdecimal() else user
        return str(session.sid)  # type: ignore[attr-defined]

    @app.get("/visit")
    def visit() -> str:
        session["visited"] = True
        return "visited"

    @app.get("/")
    def index() -> str:
        return repr(dict(session))

    return app, state


def login(app: Flask, user: object) -> tuple[FlaskClient, str]:
    client = app.test_client()
    return client, client.get(f"/login/{user}").text


def test_it_lists_them_all(address: str) -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        app, state = make_app(address)
        alice, sid = login(app, "alice")
        login(app, 7)
        app.test_client().get("/visit")
        clock.shift(DAY)
        assert alice.get("/").text == "{'user': 'alice'}"
        assert len(state.sessions) == 3
        first, second, third = state.sessions
        assert first == SessionInfo(sid, "alice", 1_000_000, 1_000_000 + DAY, {"user": "alice"})
        assert second[1:] == (7, 1_000_000, 1_000_000, {"user": 7})
        assert third[1:] == (None, 1_000_000, 1_000_000, {"visited": True})


def test_one_is_revoked_for_every_worker_at_once(address: str) -> None:
    workers = [make_app(address) for _ in range(2)]
    client, sid = login(workers[0][0], "alice")
    cookie = client.get_cookie("session")
    assert cookie is not None
    clients = [app.test_client() for app, _ in workers]
    for one in clients:
        one.set_cookie("session", cookie.value)
        assert one.get("/").text == "{'user': 'alice'}"
    assert workers[1][1].sessions.revoke(sid) is True
    assert [one.get("/").text for one in clients] == ["{}", "{}"]
    assert workers[0][1].sessions.revoke(sid) is False


@pytest.mark.parametrize("user", [7, "7"])
def test_all_of_a_user(address: str, user: object) -> None:
    app, state = make_app(address)
    (first, _), (second, sid), (other, _), anonymous = login(app, 7), login(app, 7), login(app, 77), app.test_client()
    anonymous.get("/visit")
    assert [one.user for one in state.sessions.of(user)] == [7, 7]
    assert state.sessions.revoke_user(user, keep=sid) == 1
    assert [client.get("/").text for client in (first, second)] == ["{}", "{'user': 7}"]
    assert state.sessions.revoke_user(user) == 1
    assert state.sessions.revoke_user(user) == 0
    texts = [client.get("/").text for client in (second, other, anonymous)]
    assert texts == ["{}", "{'user': 77}", "{'visited': True}"]


def test_nobody_is_no_user(address: str) -> None:
    app, state = make_app(address)
    app.test_client().get("/visit")
    with pytest.raises(TypeError, match="None is no user"):
        state.sessions.revoke_user(None)
    assert state.sessions.revoke_user("None") == 0
    assert len(state.sessions) == 1


def test_everybody(address: str) -> None:
    app, state = make_app(address)
    clients = [login(app, user)[0] for user in range(5)]
    assert state.sessions.revoke_all() == 5
    assert {client.get("/").text for client in clients} == {"{}"}
    assert list(state.sessions) == []


def test_one_who_logs_in_while_they_are_read_is_found_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app, state = make_app(address)
    login(app, 7)
    (again, _), found = login(app, "x"), []
    original = type(state.sessions).of

    def of(*args: object) -> list[SessionInfo]:
        found.append(original(*args))  # type: ignore[arg-type]
        if len(found) == 1:
            again.get("/login/7")
        return found[-1]

    monkeypatch.setattr(type(state.sessions), "of", of)
    assert state.sessions.revoke_user(7) == 2
    assert again.get("/").text == "{}"


def test_the_user_is_where_flask_login_has_him_unless_it_is_said(address: str) -> None:
    app, state = make_app(address, None)
    login(app, "alice")
    assert [one.user for one in state.sessions] == ["alice"]
    app, state = make_app(address, None, STATE_MANAGER_SESSION_USER_KEY="visited")
    app.test_client().get("/visit")
    assert [one.user for one in state.sessions] == [None, True]
    with pytest.raises(ValueError, match="session_user_key is '': it must be the key"):
        make_app(address, "")


def test_more_than_a_page_of_them(address: str) -> None:
    app, state = make_app(address)
    for user in range(600):
        login(app, user % 3)
    assert len(list(state.sessions)) == 600
    assert state.sessions.revoke_user(0) == 200
    assert sorted({one.user for one in state.sessions}) == [1, 2]


def test_it_may_be_made_before_the_app(address: str) -> None:
    state = SharedState(sessions=True)
    sessions = state.sessions
    assert repr(sessions) == f"<Sessions in <SharedDict {NAME!r} in <SharedState of no app yet>>>"
    app = Flask("shop")
    app.config["STATE_MANAGER_ADDRESS"] = address
    state.init_app(app)
    assert list(sessions) == []


def test_without_sessions_here_it_says_so(address: str) -> None:
    app = Flask("shop")
    app.config["STATE_MANAGER_ADDRESS"] = address
    state = SharedState(app)
    for use in (lambda: list(state.sessions), lambda: state.sessions.revoke("x"), lambda: state.sessions.revoke_all()):
        with pytest.raises(RuntimeError, match=r"keeps no sessions here: SharedState\(app, sessions=True\)"):
            use()


def test_the_command_line_can_do_it_too(address: str) -> None:
    """``state-manager keys flask-sessions`` and ``delete flask-sessions SID`` are these."""
    app, _ = make_app(address)
    client, sid = login(app, "alice")
    records = connect(address).dict(NAME)
    assert list(records) == [sid]
    assert records.delete(sid)
    assert client.get("/").text == "{}"


def test_nobody_says_whose_his_session_is(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    app, state = make_app(f"memory://{request.node.nodeid}", user_key="owner")
    app.add_url_rule("/other", view_func=lambda: session.setdefault("somebody", "alice"))
    app.test_client().get("/other")
    with app.app_context():
        assert state.sessions.revoke_user("alice") == 0
    assert "none of 1 sessions says whose it is, under 'owner'" in caplog.text
