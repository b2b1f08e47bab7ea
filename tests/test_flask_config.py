"""Where the Flask settings come from, and what is said about a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from state_manager.flask.config import FlaskSettings

DEFAULTS = FlaskSettings(
    address=None,
    timeout=5.0,
    near_cache=True,
    start=False,
    secret="session",
    retry_after=1,
    sessions=False,
    session_user_key=None,
    session_max_bytes=65_536,
)


def settings(**config: Any) -> FlaskSettings:
    app = Flask(__name__)
    app.config.update(config)
    return FlaskSettings.of(app)


def test_defaults() -> None:
    assert settings() == DEFAULTS


EXAMPLES = [
    ("ADDRESS", "address", "/run/state", "/run/state"),
    ("ADDRESS", "address", Path("/run/state"), Path("/run/state")),
    ("TIMEOUT", "timeout", 2, 2.0),
    ("TIMEOUT", "timeout", "0.5", 0.5),
    ("NEAR_CACHE", "near_cache", False, False),
    ("NEAR_CACHE", "near_cache", "off", False),
    ("START", "start", True, True),
    ("START", "start", "Yes", True),
    ("SECRET", "secret", "other", "other"),
    ("RETRY_AFTER", "retry_after", 30, 30),
    ("RETRY_AFTER", "retry_after", "0", 0),
    ("SESSIONS", "sessions", "yes", True),
    ("SESSION_USER_KEY", "session_user_key", "user", "user"),
    ("SESSION_MAX_BYTES", "session_max_bytes", "1000000", 1_000_000),
]


@pytest.mark.parametrize(("name", "field", "given", "meant"), EXAMPLES)
def test_the_configuration_comes_first(
    name: str, field: str, given: Any, meant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"STATE_MANAGER_{name}", "0")  # a bad value in the environment is not even looked at
    assert getattr(settings(**{f"STATE_MANAGER_{name}": given}), field) == meant


@pytest.mark.parametrize(("name", "field", "given", "meant"), [row for row in EXAMPLES if isinstance(row[2], str)])
def test_then_the_environment(name: str, field: str, given: str, meant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"STATE_MANAGER_{name}", given)
    assert getattr(settings(), field) == meant
    if name != "SECRET":
        assert getattr(settings(**{f"STATE_MANAGER_{name}": None}), field) == meant, "None in app.config is not set"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS", "TIMEOUT", "NEAR_CACHE", "START", "SECRET", "RETRY_AFTER", "SESSIONS", "SESSION_USER_KEY"):
        monkeypatch.setenv(f"STATE_MANAGER_{name}", "")
    assert settings() == DEFAULTS


def test_none_leaves_the_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_SECRET", "session")
    assert settings(STATE_MANAGER_SECRET=None).secret is None


@pytest.mark.parametrize(
    ("config", "starts"),
    [
        ({"DEBUG": True}, True),
        ({"DEBUG": True, "TESTING": True}, False),
        ({"DEBUG": True, "STATE_MANAGER_START": False}, False),
        ({"TESTING": True, "STATE_MANAGER_START": True}, True),
    ],
)
def test_a_manager_is_started_in_debug_mode_but_not_by_tests(config: dict[str, bool], starts: bool) -> None:
    assert settings(**config).start is starts


BAD = [
    ("ADDRESS", 5),
    ("TIMEOUT", "soon"),
    ("TIMEOUT", 0),
    ("TIMEOUT", float("nan")),
    ("TIMEOUT", "inf"),
    ("TIMEOUT", True),
    ("TIMEOUT", [1]),
    ("NEAR_CACHE", "maybe"),
    ("START", 2),
    ("SECRET", b"session"),
    ("SECRET", ""),
    ("RETRY_AFTER", -1),
    ("RETRY_AFTER", 1.5),
    ("RETRY_AFTER", True),
    ("SESSIONS", "maybe"),
    ("SESSION_USER_KEY", ""),
    ("SESSION_USER_KEY", 7),
    ("SESSION_MAX_BYTES", 0),
    ("SESSION_MAX_BYTES", "64K"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_with_its_place(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="it must be") as caught:
        settings(**{f"STATE_MANAGER_{name}": value})
    assert f"app.config['STATE_MANAGER_{name}'] is {value!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["TIMEOUT", "NEAR_CACHE", "START", "RETRY_AFTER"])
def test_a_bad_variable_is_named_as_such(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"STATE_MANAGER_{name}", "soon")
    with pytest.raises(ValueError, match=f"the environment variable STATE_MANAGER_{name} is 'soon': it must be"):
        settings()
