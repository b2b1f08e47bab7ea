"""The public names and how they are called. A change here is a change for every user: it belongs into CHANGELOG.md."""

from __future__ import annotations

import inspect
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import errors, settings
from state_manager.flask import SharedState
from state_manager.flask.session import ServerSession
from state_manager.flask.session_list import SessionInfo, Sessions

REPOSITORY = Path(__file__).parents[1]

NAMES = {
    "connect": "(address=None, *, timeout=5.0, near_cache=True, start=False)",
    "allow": "(cls=None, *, encode=None, decode=None, name=None)",
    "StateManager": {
        "dict": "(name, *, durable=..., max_bytes=..., on_full=..., ephemeral=...)",
        "counter": "(name)",
        "secret": "(name)",
        "lock": "(name, lease=None, timeout=20.0, reentrant=False)",
        "semaphore": "(name, n, lease=None, timeout=20.0)",
        "leader": "(name)",
        "queue": "(name, maxsize=0, max_deliveries=None, lease=None)",
        "channel": "(name, history=1000)",
        "transaction": "()",
        "run_transaction": "(function, timeout=20.0)",
        "workers": "()",
        "once": "(key, ttl)",
        "spaces": "()",
        "drop": "(name)",
        "stats": "()",
        "ping": "()",
        "backup": "(path, *, progress=None)",
        "shutdown": "()",
        "close": "()",
    },
    "SharedDict": {
        "get": "(key, default=None)",
        "set": "(key, value, ttl=None)",
        "delete": "(key)",
        "add": "(key, value, ttl=None)",
        "replace": "(key, value, ttl=None)",
        "pop": "(key, default=...)",
        "popitem": "()",
        "setdefault": "(key, default=None)",
        "update": "(other=(), /, **named)",
        "clear": "()",
        "increment": "(key, by=1, initial=0, ttl=None)",
        "decrement": "(key, by=1, initial=0, ttl=None)",
        "compare_and_set": "(key, expected, value)",
        "transform": "(key, function, default=None)",
        "get_many": "(keys)",
        "set_many": "(mapping, ttl=None)",
        "delete_many": "(keys)",
        "ttl": "(key)",
        "expire": "(key, ttl)",
        "persist": "(key)",
        "keys": "()",
        "values": "()",
        "items": "()",
        "copy": "()",
        "get_or_compute": "(key, function, ttl=None, *, early=None, timeout=20.0, lease=60.0)",
    },
    "Counter": {"value": "property", "increment": "(by=1)", "decrement": "(by=1)", "reset": "(value=0)"},
    "Lock": {
        "acquire": "(blocking=True, timeout=None)",
        "release": "()",
        "locked": "()",
        "token": "property",
        "owner": "property",
        "waiters": "property",
    },
    "Semaphore": {
        "acquire": "(blocking=True, timeout=None)",
        "release": "()",
        "locked": "()",
        "token": "property",
        "owners": "property",
        "waiters": "property",
    },
    "Owner": {"pid": "field", "thread": "field", "since": "field"},
    "Leader": {
        "is_leader": "property",
        "token": "property",
        "owner": "property",
        "run": "(function)",
        "every": "(seconds, name=None)",
        "resign": "()",
    },
    "Queue": {
        "put": "(value, delay=0, timeout=20.0)",
        "get": "(timeout=20.0)",
        "consume": "()",
        "peek": "(default=None)",
        "retry": "()",
        "clear": "()",
        "state": "()",
    },
    "Item": {"ack": "()", "nack": "(delay=0)"},
    "Channel": {
        "publish": "(value)",
        "subscribe": "(after=None)",
        "drop": "()",
        "state": "()",
    },
    "Subscription": {"after": "property", "get": "(timeout=20.0)", "close": "()"},
    "Message": {"id": "field", "value": "field", "missed": "field"},
    "Transaction": {"dict": "(name)", "counter": "(name)", "queue": "(name, max_deliveries=None)"},
    "Worker": {"pid": "field", "name": "field", "since": "field", "holds": "field", "waits": "field"},
    "Secret": {"current": "property", "previous": "property", "rotate": "(keep=2)"},
    "Space": {"name": "field", "kind": "field", "entries": "field", "bytes": "field"},
}


PLAIN = (type(None), bool, int, float, str, tuple, type(inspect.Parameter.empty))


def signature(found: Any) -> str:
    """Return how something is called, without ``self`` and annotations; a default that nobody types is ``...``."""
    if isinstance(found, property):
        return "property"
    if not callable(found):
        return "field"
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=parameter.default if type(parameter.default) in PLAIN else ...,
        )
        for name, parameter in inspect.signature(found).parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters)).replace("Ellipsis", "...")


def test_all_is_what_is_documented() -> None:
    assert sorted(state_manager.__all__) == sorted(
        [*NAMES, *(cls for cls in vars(errors) if is_error(cls)), "__version__"]
    )
    assert state_manager.__version__ == settings.VERSION


def is_error(name: str) -> bool:
    found = getattr(errors, name)
    return isinstance(found, type) and issubclass(found, errors.StateError)


@pytest.mark.parametrize("name", ["connect", "allow"])
def test_functions(name: str) -> None:
    assert signature(getattr(state_manager, name)) == NAMES[name]


@pytest.mark.parametrize("name", [name for name, expected in NAMES.items() if isinstance(expected, dict)])
def test_methods(name: str) -> None:
    cls = getattr(state_manager, name)
    expected = NAMES[name]
    assert isinstance(expected, dict)
    assert {member: signature(getattr(cls, member)) for member in expected} == expected


def test_protocols() -> None:
    for method in ("__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__", "__iter__", "__eq__"):
        assert method in vars(state_manager.SharedDict)
    for cls in (state_manager.StateManager, state_manager.Lock, state_manager.Semaphore):
        for method in ("__enter__", "__exit__"):
            assert hasattr(cls, method)
    assert "__int__" in vars(state_manager.Counter)


def test_shared_state() -> None:
    assert signature(SharedState) == "(app=None, *, sessions=None, session_user_key=None)"
    for method in ("init_app", "dict", "counter", "secret", "lock", "semaphore", "manager", "sessions"):
        assert hasattr(SharedState, method), method


SESSIONS = {
    Sessions: {
        "of": "(user)",
        "revoke": "(sid)",
        "revoke_user": "(user, *, keep=None)",
        "revoke_all": "()",
    },
    SessionInfo: {"sid": "field", "user": "field", "created": "field", "seen": "field", "data": "field"},
    ServerSession: {
        "sid": "property",
        "new": "property",
        "increment": "(key, by=1, initial=0)",
        "regenerate": "()",
        "clear": "()",
    },
}


@pytest.mark.parametrize("cls", SESSIONS, ids=lambda cls: cls.__name__)
def test_sessions(cls: type) -> None:
    assert {member: signature(getattr(cls, member)) for member in SESSIONS[cls]} == SESSIONS[cls]


@pytest.mark.parametrize("error", errors.BY_NAME.values(), ids=lambda error: error.__name__)
def test_errors_pickle(error: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error("what happened")))
    assert type(copy) is error
    assert copy.args == ("what happened",)


def test_errors_are_also_pythons_own() -> None:
    assert issubclass(state_manager.NotStorable, TypeError)
    assert issubclass(state_manager.TooLarge, ValueError)
    assert issubclass(state_manager.NotOwner, RuntimeError)
    assert issubclass(state_manager.TimedOut, TimeoutError)
    assert issubclass(state_manager.OutcomeUnknown, state_manager.Unavailable)
    assert state_manager.Unavailable.applied is False
    assert state_manager.OutcomeUnknown.applied is None


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "state_manager/settings.py"
