"""An app with a key of its own is told when its workers do not have the same one, and left in peace otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flask import Flask

from state_manager import StateManager, Unavailable, connect, sidecar
from state_manager.flask import SharedState, own_key


@pytest.fixture
def manager(request: pytest.FixtureRequest) -> Iterator[StateManager]:
    manager = connect(f"memory://{request.node.nodeid}")
    yield manager
    manager.shutdown()


@pytest.fixture
def neighbour() -> Iterator[int]:
    """Another process."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def make_app(manager: StateManager, key: str = "mine", name: str = "shop") -> Flask:
    app = Flask(name)
    app.config.update(STATE_MANAGER_ADDRESS=str(manager.address), SECRET_KEY=key)
    SharedState(app)
    app.add_url_rule("/", view_func=lambda: "hello")
    return app


def pretend(manager: StateManager, pid: int, key: str) -> None:
    """Leave what another process with this key would."""
    fingerprint = own_key.fingerprint(manager, key)
    manager.fingerprints("shop", pid, f"{fingerprint} {own_key.started(pid)}")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_same_key_everywhere_is_silent(
    manager: StateManager, neighbour: int, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(manager, neighbour, "mine")
    make_app(manager).test_client().get("/")
    assert warnings(caplog) == []


def test_a_difference_is_told_once_with_both_processes(
    manager: StateManager, neighbour: int, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(manager, neighbour, "theirs")
    for _ in range(2):
        client = make_app(manager).test_client()
        assert client.get("/").status_code == 200
        client.get("/")
    (text,) = warnings(caplog)
    assert f"The SECRET_KEY of process {os.getpid()} differs from that of process {neighbour}" in text
    assert "Delete the line that sets it" in text
    assert "mine" not in text


def test_a_process_that_has_ended_does_not_count(manager: StateManager, caplog: pytest.LogCaptureFixture) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        pretend(manager, process.pid, "theirs")
        process.kill()
    make_app(manager).test_client().get("/")
    assert warnings(caplog) == []


def test_nor_does_a_later_process_with_its_pid(
    manager: StateManager, neighbour: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In a container the pids of the last run come again, and the key may have been changed between."""
    if own_key.started(neighbour) == "?":
        pytest.skip("needs /proc, which is not here")
    manager.fingerprints("shop", neighbour, f"{own_key.fingerprint(manager, 'theirs')} 1")
    make_app(manager).test_client().get("/")
    assert warnings(caplog) == []


def test_without_proc_a_pid_alone_must_do(monkeypatch: pytest.MonkeyPatch, neighbour: int) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert own_key.started(neighbour) == "?"
    assert own_key.started(2**22 + 1) is None  # over the kernel's largest pid


def test_another_app_may_have_another_key(
    manager: StateManager, neighbour: int, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(manager, neighbour, "theirs")
    make_app(manager, name="office").test_client().get("/")
    assert warnings(caplog) == []


def test_a_process_compares_once(manager: StateManager, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(own_key, "compare", lambda app, manager: calls.append(os.getpid()))
    client = make_app(manager).test_client()
    client.get("/")
    client.get("/")
    assert len(calls) == 1
    monkeypatch.setattr("os.getpid", lambda: 1)  # after a fork
    client.get("/")
    assert len(calls) == 2


def test_a_difference_is_no_matter_of_rotation(
    manager: StateManager, neighbour: int, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(manager, neighbour, "mine")
    manager.secret("session").rotate()
    make_app(manager).test_client().get("/")
    assert warnings(caplog) == []


def test_a_fingerprint_says_nothing_without_the_managers_secret(manager: StateManager) -> None:
    assert own_key.fingerprint(manager, "mine") != own_key.fingerprint(connect("memory://"), "mine")
    assert own_key.fingerprint(manager, b"mine") == own_key.fingerprint(manager, "mine")


def test_a_manager_that_does_not_answer_is_not_missed(
    manager: StateManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(*args: object) -> None:
        asked.append(args)
        raise Unavailable("hangs")

    monkeypatch.setattr(StateManager, "fingerprints", fail)
    client = make_app(manager).test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 200]
    assert len(asked) == 1, "the second request must not wait for it again"
    assert warnings(caplog) == []


def test_none_means_that_nothing_is_compared(
    manager: StateManager, neighbour: int, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(manager, neighbour, "theirs")
    app = make_app(manager)
    app.config["STATE_MANAGER_SECRET"] = None
    app.test_client().get("/")
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "line",
    [
        "app.secret_key = os.urandom(24)",
        'app.config["SECRET_KEY"] = os.urandom(24)',
        "app.config.update(SECRET_KEY=os.urandom(24))",
        'app.config.from_mapping({"SECRET_KEY": os.urandom(24)})',
    ],
)
def test_the_line_to_delete_is_named(
    line: str,
    manager: StateManager,
    neighbour: int,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "shop.py"
    source.write_text(
        "# app.secret_key = 'an old one'\n"
        "app.config['SECRET_KEY_FALLBACKS'] = []\n"
        "assert app.secret_key == None\n"
        f"    {line}\n"
    )
    shop = ModuleType("shop")
    shop.__file__ = str(source)
    app = make_app(manager)
    monkeypatch.setitem(sys.modules, app.import_name, shop)
    pretend(manager, neighbour, "theirs")
    app.test_client().get("/")
    (text,) = warnings(caplog)
    assert f"Delete the line that sets it ({source}:4)" in text
    assert "urandom" not in text


WORKER = """
import os
from flask import Flask
from state_manager.flask import SharedState
app = Flask("shop")
app.secret_key = os.urandom(24)
SharedState(app)
app.test_client().get("/")
print("served", flush=True)
input()
"""


def test_two_real_workers_with_random_keys(tmp_path: Path) -> None:
    children = [sidecar.start(tmp_path / "state")]
    try:
        for _ in range(2):
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=os.environ | {"STATE_MANAGER_DIR": str(tmp_path / "state")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            children.append(worker)
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"served\n"
        log = [worker.communicate(b"\n", timeout=10)[1].decode() for worker in children[1:]]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert log[0] == ""
    assert f"The SECRET_KEY of process {children[2].pid} differs from that of process {children[1].pid}" in log[1]
