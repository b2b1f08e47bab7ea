"""503 with Retry-After, no traceback, one line in the log: wherever in a request the manager was missed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from state_manager import OutcomeUnknown, Unavailable
from state_manager.flask import SharedState

MODES: list[dict[str, bool]] = [{}, {"TESTING": True}, {"DEBUG": True}, {"PROPAGATE_EXCEPTIONS": True}]


def make_app(error: type[Exception] = Unavailable, **config: Any) -> Flask:
    app = Flask("shop")
    app.config.update({"STATE_MANAGER_ADDRESS": "memory://"} | config)

    @app.get("/")
    def index() -> str:
        raise error("the reason")

    return app


class RemoteSessions(SecureCookieSessionInterface):
    """Sessions kept where one of these two cannot reach them."""

    def __init__(self, method: str) -> None:
        def fail(*args: object) -> None:
            raise Unavailable("the reason")

        setattr(self, method, fail)


def get(app: Flask, path: str = "/") -> TestResponse:
    return app.test_client().get(path)


def check(answer: TestResponse, caplog: pytest.LogCaptureFixture, retry_after: str = "1") -> None:
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, retry_after)
    assert "Traceback" not in answer.text
    assert "the reason" not in answer.text
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "503 for GET /: " in record.getMessage()
    assert record.getMessage().endswith(": the reason")


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("error", [Unavailable, OutcomeUnknown])
def test_in_a_view(mode: dict[str, bool], error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(error, **mode)
    SharedState(app)
    check(get(app), caplog)
    assert error.__name__ in caplog.text


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("method", ["open_session", "save_session"])
def test_while_the_session_is_opened_or_saved(
    mode: dict[str, bool], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(Unavailable, **mode)
    app.view_functions["index"] = lambda: "never seen"
    app.session_interface = RemoteSessions(method)
    SharedState(app)
    check(get(app), caplog)


def before(app: Flask, function: Callable[[], None]) -> None:
    app.before_request(function)


def after(app: Flask, function: Callable[[], None]) -> None:
    @app.after_request
    def call(response: Response) -> Response:
        if response.status_code == 200:
            function()
        return response


@pytest.mark.parametrize("where", [before, after])
def test_around_a_view(where: Callable[[Flask, Callable[[], None]], None], caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise Unavailable("the reason")

    app = make_app()
    app.view_functions["index"] = lambda: "never seen"
    SharedState(app)
    where(app, fail)
    check(get(app), caplog)


def test_head_gets_the_same_headers() -> None:
    app = make_app()
    SharedState(app)
    answer = app.test_client().head("/")
    assert (answer.status_code, answer.headers["Retry-After"], answer.data) == (503, "1", b"")


def test_the_seconds_are_a_setting(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(STATE_MANAGER_RETRY_AFTER=30)
    SharedState(app)
    check(get(app), caplog, retry_after="30")


def test_with_no_manager_at_all_the_log_says_how_to_start_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(STATE_MANAGER_ADDRESS=tmp_path / "state", SECRET_KEY="its own")
    state = SharedState(app)
    app.view_functions["index"] = lambda: str(state.counter("visits").increment())
    assert get(app).status_code == 503
    assert "state-manager serve --dir" in caplog.text


def raise_again(error: Exception) -> str:
    raise Unavailable("the page needs it too")


def raise_something_else(error: Exception) -> str:
    raise ZeroDivisionError


# -- the app's own pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False], ids=["before init_app", "after init_app"])
@pytest.mark.parametrize("what", [Unavailable, 503, HTTPException])
def test_the_apps_own_handler_comes_first(what: Any, early: bool) -> None:
    app = make_app()
    state = SharedState()
    if not early:
        state.init_app(app)
    app.register_error_handler(what, lambda error: (f"please wait: {type(error).__name__}", 503))
    if early:
        state.init_app(app)
    answer = get(app)
    assert answer.status_code == 503
    if what is Unavailable:
        assert answer.text == "please wait: Unavailable"
    else:
        assert answer.text == "please wait: ServiceUnavailable"
        assert answer.headers["Retry-After"] == "1"


def test_a_blueprints_own_handler_comes_first() -> None:
    app = make_app()
    SharedState(app)
    part = Blueprint("part", "part", url_prefix="/part")
    part.add_url_rule("/", "index", app.view_functions["index"])
    part.register_error_handler(Unavailable, lambda error: ("the part's page", 200))
    app.register_blueprint(part)
    assert get(app, "/part/").text == "the part's page"
    assert get(app).status_code == 503


def test_a_handler_of_every_exception_sees_a_503_and_not_a_failure() -> None:
    app = make_app()
    SharedState(app)
    app.register_error_handler(Exception, lambda error: error if isinstance(error, HTTPException) else ("bug", 500))
    answer = get(app)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_the_apps_own_handler_is_asked_about_its_session_as_well() -> None:
    app = make_app()
    app.session_interface = RemoteSessions("open_session")
    SharedState(app)
    app.register_error_handler(Unavailable, lambda error: (f"own page: {error}", 503))
    assert get(app).text == "own page: the reason"


def test_an_own_page_that_needs_the_manager_too_is_left_out() -> None:
    app = make_app()
    SharedState(app)
    app.register_error_handler(503, raise_again)
    answer = get(app)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "<h1>Service Unavailable</h1>" in answer.text


# -- other errors ------------------------------------------------------------------------------------------------------


def test_other_errors_stay_what_they_are(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(ZeroDivisionError)
    SharedState(app)
    assert get(app).status_code == 500
    assert "Traceback" in caplog.text
    app.testing = True
    with pytest.raises(ZeroDivisionError):
        get(app)


@pytest.mark.parametrize("method", ["open_session", None])
def test_a_bug_in_the_own_page_is_logged_as_one(method: str | None, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    if method is not None:
        app.session_interface = RemoteSessions(method)
    SharedState(app)
    app.register_error_handler(Unavailable, raise_something_else)
    assert get(app).status_code == (500 if method is None else 503)
    assert "ZeroDivisionError" in caplog.text
