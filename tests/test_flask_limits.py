"""The storage of limits in Flask apps, from several processes, and while there is no manager."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_limiter import Limiter
from limits import parse
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

from state_manager import Unavailable, connect, sidecar
from state_manager.errors import StateError
from state_manager.flask import SharedState
from state_manager.flask.limits import StateStorage
from tests.processes.harness import wait_for

AGES = "3 per 100 years"

HITS = """
import sys
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES
import state_manager.flask.limits

storage = storage_from_string(sys.argv[1])
storage.check()
limiters = [strategy(storage) for strategy in STRATEGIES.values()]
item = parse("50 per 100 years")
print("ready", flush=True)
sys.stdin.readline()
passed = [sum(limiter.hit(item, "k") for _ in range(60)) for limiter in limiters]
print(*passed)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A state directory with no manager yet."""
    return tmp_path / "state"


@pytest.fixture
def served(directory: Path) -> Iterator[Path]:
    process = sidecar.start(directory)
    yield directory
    process.terminate()
    assert process.wait(10) == 0


def limited(uri: str, *, shared: bool = False, address: str | None = None, **options: Any) -> Flask:
    """Return an app that a visitor may ask three times for its one page."""
    app = Flask("limited")
    if shared:
        app.config.update(STATE_MANAGER_ADDRESS=address, STATE_MANAGER_TIMEOUT=0.2)
        SharedState(app)
    options.setdefault("storage_options", {} if shared else {"timeout": 1.0})
    limiter = Limiter(lambda: "visitor", app=app, storage_uri=uri, **options)

    @app.get("/")
    @limiter.limit(AGES)
    def page() -> str:
        return "page"

    return app


def statuses(app: Flask, times: int = 5) -> list[int]:
    return [app.test_client().get("/").status_code for _ in range(times)]


def test_several_processes_share_one_limit(served: Path) -> None:
    command = [sys.executable, "-c", HITS, f"statemanager://{served}"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        counts = [[int(count) for count in process.communicate(timeout=30)[0].split()] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [sum(column) for column in zip(*counts, strict=True)] == [50] * len(STRATEGIES)


def test_limits_are_kept_when_the_manager_is_killed(directory: Path) -> None:
    storage = StateStorage(f"statemanager://{directory}")
    item = parse("40 per 100 years")
    for attempt in range(2):
        process = sidecar.start(directory)
        for strategy in STRATEGIES.values():
            limiter = strategy(storage)
            passed = [limiter.hit(item, "k") for _ in range(35)]
            assert passed == ([True] * 35 if attempt == 0 else [True] * 5 + [False] * 30)
        process.kill()
        process.wait(10)


def test_an_app_that_is_dropped_closes_its_connection(served: Path) -> None:
    app = limited(f"statemanager://{served}")
    assert statuses(app, 1) == [200]
    with connect(served) as manager:
        assert manager.stats()["connections"] == 2
        del app
        gc.collect()  # pytest shows a ResourceWarning
        wait_for(lambda: manager.stats()["connections"] == 1, "the end of its connection")


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["statemanager:///", "statemanager://here", "statemanager://./here", "statemanager:"])
def test_a_uri_without_an_absolute_directory_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="statemanager:///absolute/directory"):
        storage_from_string(uri)


def test_an_option_that_there_is_not_is_refused(directory: Path) -> None:
    with pytest.raises(TypeError, match="tiemout"):
        storage_from_string(f"statemanager://{directory}", tiemout=1)
    with pytest.raises(ValueError, match="timeout"):
        storage_from_string(f"statemanager://{directory}", timeout=-1)


def test_the_default_address_is_that_of_the_environment(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", str(served))
    app = limited("statemanager://")
    assert statuses(app) == [200, 200, 200, 429, 429]
    assert statuses(limited(f"statemanager://{served}"), 1) == [429]


def test_with_shared_state_it_is_that_of_the_app(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", str(directory))  # where nobody is
    apps = [
        limited("statemanager://", shared=True, address=f"memory://limits-{name}", default_limits=["1000/day"])
        for name in ("a", "b", "b")
    ]
    assert statuses(apps[0]) == [200, 200, 200, 429, 429]
    assert statuses(apps[1], 2) == [200, 200]
    assert statuses(apps[2], 2) == [200, 429]


def test_a_timeout_of_its_own_leaves_the_address_to_the_app(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", str(served.with_name("elsewhere")))
    options = {"storage_options": {"timeout": 3.0}}
    assert statuses(limited("statemanager://", shared=True, address=str(served), **options), 2) == [200, 200]
    assert statuses(limited(f"statemanager://{served}"), 2) == [200, 429]
    in_memory = limited("statemanager://", shared=True, address="memory://limits-timeout", **options)
    assert statuses(in_memory, 4) == [200, 200, 200, 429]


def test_the_environment_says_whether_to_start_a_manager(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_START", "1")
    storage = StateStorage(f"statemanager://{directory}")
    assert sidecar.find(directory) is None
    try:
        assert storage.incr("k", 60) == 1
    finally:
        with connect(directory) as manager:
            manager.shutdown()
    monkeypatch.setenv("STATE_MANAGER_START", "perhaps")
    with pytest.raises(ValueError, match="STATE_MANAGER_START"):
        StateStorage()


IMPORTS = {
    "from flask_limiter import Limiter; from state_manager.flask import SharedState; SharedState()": True,
    "from state_manager.flask import SharedState; from flask_limiter import Limiter; SharedState()": True,
    "import state_manager.flask.limits": True,
    "from state_manager.flask import SharedState; SharedState()": False,
}


@pytest.mark.parametrize("code", IMPORTS)
def test_the_scheme_is_known_once_somebody_may_need_it(code: str) -> None:
    told = "import sys; print('statemanager' in getattr(sys.modules.get('limits.storage'), 'SCHEMES', ()))"
    child = subprocess.run([sys.executable, "-c", f"{code}\n{told}"], capture_output=True, text=True, check=True)
    assert child.stdout == f"{IMPORTS[code]}\n"


# -- without a manager -------------------------------------------------------------------------------------------------


def test_errors_are_wrapped_if_the_app_wants_it(directory: Path) -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("incr", ("k", 60)),
        ("get", ("k",)),
        ("get_expiry", ("k",)),
        ("acquire_entry", ("k", 1, 60)),
        ("get_moving_window", ("k", 1, 60)),
        ("acquire_sliding_window_entry", ("k", 1, 60)),
        ("get_sliding_window", ("k", 60)),
        ("clear_sliding_window", ("k", 60)),
        ("clear", ("k",)),
        ("reset", ()),
    ]
    plain = storage_from_string(f"statemanager://{directory}", timeout=0.1)
    wrapping = storage_from_string(f"statemanager://{directory}", timeout=0.1, wrap_exceptions=True)
    for method, arguments in calls:
        with pytest.raises(StateError):
            getattr(plain, method)(*arguments)
        with pytest.raises(StorageError) as caught:
            getattr(wrapping, method)(*arguments)
        assert isinstance(caught.value.storage_error, Unavailable)
    assert plain.check() is False
    assert wrapping.check() is False


def test_a_request_fails_if_nothing_else_was_said(directory: Path) -> None:
    uri = f"statemanager://{directory}"
    assert statuses(limited(uri), 1) == [500]
    assert statuses(limited(uri, shared=True, address=str(directory)), 1) == [503], "as for all shared state"


def test_swallow_errors_lets_it_through(directory: Path) -> None:
    app = limited(f"statemanager://{directory}", swallow_errors=True, headers_enabled=True)
    assert statuses(app) == [200] * 5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_memory_fallback_counts_by_itself_until_there_is_a_manager(directory: Path, strategy: str) -> None:
    app = limited(
        f"statemanager://{directory}", in_memory_fallback_enabled=True, strategy=strategy, headers_enabled=True
    )
    assert statuses(app) == [200, 200, 200, 429, 429]
    process = sidecar.start(directory)
    try:
        wait_for(lambda: statuses(app, 1) == [200], "the manager's own count")
        with connect(directory) as manager:
            assert any(space.kind == "limit" for space in manager.spaces())
        assert statuses(app, 3) == [200, 200, 429]
    finally:
        process.terminate()
        process.wait(10)
