"""Backups of a running manager: of one moment, whole, and in nobody's way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import backups, offline, sidecar
from state_manager.archive import BEGINNING, SUMS, Archive
from state_manager.errors import StateError


def silent(done: int, total: int) -> None: ...


def contents(backup: Path, directory: Path) -> dict[str, dict[Any, Any]]:
    """Restore a backup to a new directory and return its dicts and counters, as they are stored."""
    offline.restore(backup, directory, silent, ready=lambda: None, patience=1.0)
    found: dict[str, dict[Any, Any]] = {}
    for space, key, stored, _ in offline.exported(directory, silent):
        found.setdefault(space, {})[key] = stored
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a manager."""
    path = tmp_path_factory.mktemp("backups") / "state"
    child = sidecar.start(path)
    yield path
    child.terminate()
    child.wait(20)


@pytest.fixture
def manager(directory: Path) -> Iterator[state_manager.StateManager]:
    with state_manager.connect(directory) as manager:
        yield manager


def test_a_backup_is_of_one_moment_while_writes_go_on(
    manager: state_manager.StateManager, directory: Path, tmp_path: Path
) -> None:
    accounts = manager.dict("accounts")
    accounts.set_many({"a": 500, "b": 500, "step": 0})
    manager.dict("bulk").set_many(dict.fromkeys(range(5000), "x" * 1000))
    ended = threading.Event()

    def transfer() -> None:
        step = 0
        with state_manager.connect(directory) as own:
            while not ended.is_set():
                step += 1
                own.dict("accounts").set_many({"a": 500 + step % 400, "step": step, "b": 500 - step % 400})

    thread = threading.Thread(target=transfer)
    thread.start()
    try:
        steps = []
        for number in range(3):
            before = accounts["step"]
            manager.backup(tmp_path / f"backup-{number}")
            found = contents(tmp_path / f"backup-{number}", tmp_path / f"state-{number}")
            assert found["accounts"]["a"] + found["accounts"]["b"] == 1000
            assert found["accounts"]["step"] >= before
            assert len(found["bulk"]) == 5000
            steps.append(found["accounts"]["step"])
    finally:
        ended.set()
        thread.join()
    assert steps == sorted(set(steps))


def test_a_restored_backup_is_served(
    manager: state_manager.StateManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.dict("carts").set("alice", {"n": (1, 2)}, ttl=1000)
    manager.counter("visits").reset(41)
    secret = manager.secret("session").keys()
    monkeypatch.chdir(tmp_path)
    assert manager.backup("relative") == tmp_path / "relative"
    assert stat.S_IMODE((tmp_path / "relative").stat().st_mode) == 0o600
    copy = tmp_path / "copy"
    offline.restore(tmp_path / "relative", copy, silent, ready=lambda: None, patience=1.0)
    child = sidecar.start(copy)
    try:
        with state_manager.connect(copy) as restored:
            assert restored.dict("carts")["alice"] == {"n": (1, 2)}
            left = restored.dict("carts").ttl("alice")
            assert left is not None
            assert 900 < left <= 1000
            assert restored.counter("visits").increment() == 42
            assert restored.secret("session").keys() == secret
    finally:
        child.terminate()
        child.wait(20)


def test_a_backup_replaces_a_backup_and_no_other_file(manager: state_manager.StateManager, tmp_path: Path) -> None:
    path, thesis = tmp_path / "backup", tmp_path / "thesis"
    manager.backup(path)
    first = path.read_bytes()
    manager.dict("carts")["bob"] = 1
    manager.backup(path)
    assert path.read_bytes() != first
    thesis.write_text("years of work")
    with pytest.raises(FileExistsError, match=f"not a backup.*{thesis}"):
        manager.backup(thesis)
    assert thesis.read_text() == "years of work"
    with pytest.raises(IsADirectoryError):
        manager.backup(tmp_path)
    with pytest.raises(FileNotFoundError):
        manager.backup(tmp_path / "missing" / "backup")
    assert sorted(os.listdir(tmp_path)) == ["backup", "thesis"]


def test_a_backup_that_fails_leaves_the_one_before(
    manager: state_manager.StateManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "backup"
    manager.backup(path)
    before = path.read_bytes()
    manager.dict("carts")["eve"] = 1

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        manager.backup(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["backup"]


def test_progress_is_told(manager: state_manager.StateManager, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    manager.backup(tmp_path / "backup", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert told == sorted(told)


class Stand:
    """Stands in for a client: it passes pin and unpin on, notes them, and does something after the pin."""

    def __init__(self, manager: state_manager.StateManager, after: Callable[[], object]) -> None:
        self._caller = manager._caller
        self._after = after
        self.calls: list[str] = []

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        self.calls.append(name)
        answer = self._caller.call(kind, name, args, numbered)
        if name == "pin":
            self._after()
        else:
            assert answer is True  # it was still pinned
        return answer

    def close(self) -> None: ...


def test_the_files_are_let_go_whatever_happens(
    manager: state_manager.StateManager, directory: Path, tmp_path: Path
) -> None:
    stand = Stand(manager, lambda: None)
    backups.back_up(stand, directory, tmp_path / "backup")
    assert stand.calls == ["pin", "unpin"]
    hidden = directory / "hidden"
    stand = Stand(manager, lambda: os.rename(directory / "journal.00000001", hidden))
    try:
        with pytest.raises(StateError, match=r"journal\.00000001"):
            backups.back_up(stand, directory, tmp_path / "other")
    finally:
        os.rename(hidden, directory / "journal.00000001")
    assert stand.calls == ["pin", "unpin"]
    assert not (tmp_path / "other").exists()


def test_what_is_written_after_the_pin_is_not_in_it(
    manager: state_manager.StateManager, directory: Path, tmp_path: Path
) -> None:
    manager.counter("moment").reset(1)
    backups.back_up(Stand(manager, lambda: manager.counter("moment").reset(2)), directory, tmp_path / "backup")
    assert contents(tmp_path / "backup", tmp_path / "copy")[":counters"]["moment"] == 1


def test_a_file_that_loses_its_name_is_still_copied(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(0o700)
    journal = state / "journal.00000001"
    journal.write_bytes(b"12345678")
    journal.chmod(0o600)

    class Compacting:
        def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
            if name == "pin":
                return [1, journal.name, 5]
            journal.unlink()
            return True

        def close(self) -> None: ...

    backups.back_up(Compacting(), state, tmp_path / "backup")
    with Archive(tmp_path / "backup", silent) as archive:
        assert archive.names() == ["journal.00000001", SUMS]
        assert archive.read(0, 100, 0) == b"12345"


def test_a_manager_without_a_journal_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "state_manager", "serve", "--dir", str(tmp_path / "state"), "--durability", "none"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while sidecar.find(tmp_path / "state") is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with (
            state_manager.connect(tmp_path / "state") as manager,
            pytest.raises(StateError, match=r"durability none.*state-manager export"),
        ):
            manager.backup(tmp_path / "backup")
    finally:
        child.terminate()
        child.wait(20)
    with pytest.raises(StateError, match=r"memory://.*directory"):
        state_manager.connect("memory://").backup(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_backup_can_be_told_from_other_files(manager: state_manager.StateManager, tmp_path: Path) -> None:
    assert manager.backup(tmp_path / "backup").read_bytes().startswith(BEGINNING)
