"""What an app's configuration says about the shared state.

Each setting is looked up in ``app.config``, then in the environment variable of the same name, then here. A text is
parsed in both places, because a configuration file or ``from_prefixed_env`` may hold one too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from flask import Flask

from ..api import StateManager, open_manager
from ..settings import ADDRESS_VARIABLE, DEFAULT_TIMEOUT, START_VARIABLE, variable

T = TypeVar("T")

BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class FlaskSettings:
    """One app's settings, read at once."""

    address: str | PurePath | None
    timeout: float
    near_cache: bool
    start: bool
    secret: str | None
    retry_after: int
    sessions: bool
    session_user_key: str | None
    session_max_bytes: int

    @classmethod
    def of(cls, app: Flask) -> FlaskSettings:
        """Read them. Raises ValueError that names the setting, the value and what it may be."""
        start = _look_up(app, START_VARIABLE, _boolean, None)
        return cls(
            address=_look_up(app, ADDRESS_VARIABLE, _address, None),
            timeout=_look_up(app, "STATE_MANAGER_TIMEOUT", _seconds, DEFAULT_TIMEOUT),
            near_cache=_look_up(app, "STATE_MANAGER_NEAR_CACHE", _boolean, True),
            # A test starts no process behind its author's back.
            start=app.debug and not app.testing if start is None else start,
            secret=None if _leaves_key_alone(app) else _look_up(app, "STATE_MANAGER_SECRET", _name, "session"),
            retry_after=_look_up(app, "STATE_MANAGER_RETRY_AFTER", _whole_seconds, 1),
            sessions=_look_up(app, "STATE_MANAGER_SESSIONS", _boolean, False),
            session_user_key=_look_up(app, "STATE_MANAGER_SESSION_USER_KEY", check_user_key, None),
            session_max_bytes=_look_up(app, "STATE_MANAGER_SESSION_MAX_BYTES", _bytes, 65_536),
        )

    def connect(self) -> StateManager:
        """Return the manager that they say; nothing is connected yet. Raises ValueError for a bad address."""
        return open_manager(self.address, timeout=self.timeout, near_cache=self.near_cache, start=self.start)


def starts_manager() -> bool:
    """Return whether the environment tells processes to start a manager where none runs. Raises ValueError."""
    value = variable(START_VARIABLE)
    try:
        return value is not None and _boolean(value)
    except ValueError as error:
        raise ValueError(f"the environment variable {START_VARIABLE} is {value!r}: {error}") from None


def _look_up(app: Flask, name: str, parse: Callable[[Any], T], default: T) -> T:
    value = app.config.get(name)
    source = f"app.config[{name!r}]"
    if value is None:
        value = variable(name)
        source = f"the environment variable {name}"
    if value is None:
        return default
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} is {value!r}: {error}") from None


def _leaves_key_alone(app: Flask) -> bool:
    """Only here None is a choice of its own, so the configuration must hold it."""
    return app.config.get("STATE_MANAGER_SECRET", "") is None


def _address(value: Any) -> str | PurePath:
    if not isinstance(value, str | PurePath) or not str(value):
        raise ValueError("it must be a directory, 'memory://' or 'memory://NAME'")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("it must be the name of a secret, or None in app.config for a key of your own")
    return value


def _boolean(value: Any) -> bool:
    known = value if isinstance(value, bool) else BOOLEANS.get(str(value).lower())
    if known is None:
        raise ValueError(f"it must be one of {', '.join(BOOLEANS)}")
    return known


def _seconds(value: Any) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError("it must be a number of seconds above zero")
    return seconds


def _whole_seconds(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal():
        raise ValueError("it must be a whole number of seconds")
    return int(value)


def check_user_key(value: Any) -> str:
    """Return the key of a session under which it says whose it is. Raises ValueError for anything but a text."""
    if not isinstance(value, str) or not value:
        raise ValueError("it must be the key under which a session says whose it is, as '_user_id' of Flask-Login")
    return value


def _bytes(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) == 0:
        raise ValueError("it must be a whole number of bytes above zero")
    return int(value)
