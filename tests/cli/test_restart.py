"""serve's options, and a manager that takes the place of another."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import cli, cli_commands, manager, sidecar
from state_manager.directory import StateDirectory
from tests.cli.harness import DEADLINE, Spawn


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def end(directory: Path) -> None:
    """End the detached manager of a directory."""
    pid = sidecar.find(directory)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        until(lambda: sidecar.find(directory) != pid)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A directory whose manager, if there is one at the end, is ended."""
    yield tmp_path / "state"
    end(tmp_path / "state")


# Options of serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the manager was asked to do; none is run."""
    calls: list[dict[str, Any]] = []

    def serve(path: Path, **options: Any) -> int:
        calls.append({"path": path, **options})
        return 0

    monkeypatch.setattr(manager, "serve", serve)
    return calls


def test_serve_gets_its_options(served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["serve", "--dir", "/x", "--durability", "power", "--recover", "--max-memory", "3M"]) == 0
    monkeypatch.setenv("STATE_MANAGER_DURABILITY", "none")
    assert cli.main(["serve", "--dir", "/x", "--ready-fd", "7"]) == 0
    assert cli.main(["serve", "--dir", "/x", "--durability", "process"]) == 0
    none = {"path": Path("/x"), "ready_fd": None, "durability": "process", "recover": False, "max_memory": None}
    assert served == [
        none | {"durability": "power", "recover": True, "max_memory": 3 * 2**20},
        none | {"durability": "none", "ready_fd": 7},
        none,
    ]


def test_an_unknown_durability_is_refused(
    served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STATE_MANAGER_DURABILITY", "forever")
    assert cli.main(["serve", "--dir", "/x"]) == 2
    assert "STATE_MANAGER_DURABILITY is process, power, none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["serve", "--durability", "forever"])
    assert not served


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("500k", 512000), ("2M", 2 << 20), ("3G", 3 << 30)])
def test_sizes(text: str, size: int) -> None:
    assert cli.size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1", "1.5G", "1T", "M", "1 M"])
def test_no_sizes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", f"--max-memory={text}"])
    assert f"invalid size value: {text!r}" in capsys.readouterr().err


def test_the_memory_has_a_bound(path: Path, spawn: Spawn) -> None:
    spawn("serve", "--dir", str(path), "--max-memory", "20K")
    until(lambda: sidecar.find(path))
    with state_manager.connect(path) as client:
        client.dict("carts")["a"] = "x" * 10_000
        with pytest.raises(state_manager.StoreFull, match="memory"):
            client.dict("carts")["b"] = "x" * 10_000


# Restart


class Writer:
    """Writes without a break until it is asked whether anything went wrong."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended = threading.Event()
        self.errors: list[Exception] = []
        self.count = 0
        self.slowest = 0.0
        self._threads = [threading.Thread(target=self._write) for _ in range(3)]

    def __enter__(self) -> Writer:
        for thread in self._threads:
            thread.start()
        until(lambda: self.count > 100)
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        with state_manager.connect(self._directory) as client:
            written = 0
            counter = client.dict("written")
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    counter.increment("n")
                except Exception as error:
                    self.errors.append(error)
                    return
                written += 1
                self.count += 1  # only to see that it goes on
                self.slowest = max(self.slowest, time.monotonic() - began)
            counter.increment("acknowledged", written)


def test_clients_see_a_pause_and_no_error(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sidecar.ensure(path)
    with Writer(path) as writer:
        for _ in range(3):
            before, count = sidecar.find(path), writer.count
            assert cli.main(["restart", "--dir", str(path)]) == 0
            now = sidecar.find(path)
            said = f"restarted the manager of {path}: pid {before} before, {now} now\n"
            assert capsys.readouterr().out == said
            assert now not in (None, before)
            until(lambda count=count: writer.count > count + 100)  # type: ignore[misc]
    assert not writer.errors
    assert sidecar.find(path) != first
    with state_manager.connect(path) as client:
        written = client.dict("written")
        assert written["n"] == written["acknowledged"]  # each of them once


def test_a_restart_where_no_manager_runs_starts_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restart", "--json", "--dir", str(path)]) == 0
    assert capsys.readouterr().out == (f'{{"directory": "{path}", "before": null, "pid": {sidecar.find(path)}}}\n')


def test_a_successor_takes_over_or_says_who_has(path: Path, spawn: Spawn) -> None:
    first = sidecar.start(path)
    second = spawn("serve", "--takeover", "--dir", str(path))
    assert first.wait(DEADLINE) == 0
    until(lambda: sidecar.find(path) == second.pid)
    third = spawn("serve", "--dir", str(path))
    assert f"another manager (pid {second.pid})" in third.communicate(timeout=DEADLINE)[1]
    second.send_signal(signal.SIGTERM)
    assert second.wait(DEADLINE) == 0


def test_a_manager_that_does_not_understand_gets_a_signal(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shutdown(self: state_manager.StateManager) -> None:
        raise state_manager.StateError("the manager speaks protocol 7")

    monkeypatch.setattr(state_manager.StateManager, "shutdown", shutdown)
    first = sidecar.start(path)
    cli_commands.take_over(path)
    assert first.wait(DEADLINE) == 0
    assert capsys.readouterr().err == (
        f"state-manager: the manager speaks protocol 7; sending SIGTERM to the manager (pid {first.pid})\n"
    )
    cli_commands.take_over(path)  # there is nobody now
    cli_commands.take_over(path / "missing")


def test_a_successor_waits_until_the_lock_is_free(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old manager may still have to put its journal on disk."""
    StateDirectory.open(path, create=True).close()
    holders = iter([7, 7, 7, None])
    monkeypatch.setattr(StateDirectory, "holder", lambda self: next(holders))
    monkeypatch.setattr(state_manager.StateManager, "shutdown", lambda self: None)
    monkeypatch.setattr(sidecar, "find", lambda directory: 7)
    cli_commands.take_over(path)
    assert not list(holders)


def test_a_restart_keeps_the_options_of_the_old_manager(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[tuple[str, ...]] = []

    def replace(directory: Path, *options: str) -> tuple[int, int]:
        replaced.append(options)
        return 1, 2

    monkeypatch.setattr(sidecar, "replace", replace)
    monkeypatch.setattr(state_manager.StateManager, "stats", lambda self: {"durability": "power", "max_memory": 4096})
    assert cli.main(["restart", "--dir", str(path)]) == 0
    assert cli.main(["restart", "--dir", str(path), "--durability", "none", "--max-memory", "1K"]) == 0
    monkeypatch.setattr(state_manager.StateManager, "stats", lambda self: {"max_memory": None})
    assert cli.main(["restart", "--dir", str(path)]) == 0
    assert replaced == [
        ("--durability", "power", "--max-memory", "4096"),
        ("--durability", "none", "--max-memory", "1024"),
        (),
    ]
