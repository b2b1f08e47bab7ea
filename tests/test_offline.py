"""Reading a journal without a manager, and putting a backup in its place."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from state_manager import archive, offline
from state_manager.codec import encode
from state_manager.directory import StateDirectory
from state_manager.errors import StateError, Unavailable
from state_manager.journal.files import DirectoryFiles
from state_manager.journal.log import Journal
from state_manager.store import ABSENT, NEVER, Change, Entry


def silent(done: int, total: int) -> None: ...


def write(path: Path, *ticks: list[Change]) -> None:
    """Add these ticks to the journal of a directory."""
    with contextlib.closing(StateDirectory.open(path, create=True)) as state:
        journal = Journal.open(state, mode="process")
        for _ in journal.replay():
            pass
        for changes in ticks:
            journal.append(time.time(), changes, [])
        journal.close()


def back_up(path: Path, backup: Path) -> Path:
    """Write what `state-manager backup` writes of a directory."""
    files = sorted(path.glob("journal.0*"))
    sources = [archive.Source(file.name, os.open(file, os.O_RDONLY), file.stat().st_size) for file in files]
    with backup.open("wb") as target:
        archive.write(target, path, sources, silent)
    for source in sources:
        os.close(source.descriptor)
    return backup


def found(path: Path) -> dict[tuple[str, Any], Any]:
    return {(space, key): stored for space, key, stored, _ in offline.exported(path, silent)}


def restore(backup: Path, path: Path) -> offline.Restored:
    return offline.restore(backup, path, silent, ready=lambda: None, patience=0.1)


def files(path: Path) -> dict[str, bytes]:
    """Return all that a restore could spoil."""
    return {file.name: file.read_bytes() for file in path.glob("journal*")} if path.exists() else {}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    write(path, [("carts", "a", 1), ("carts", "b", 2)], [("carts", "b", ABSENT)])
    return path


# Reading


def test_what_a_journal_keeps_is_found_and_no_file_changes(state: Path) -> None:
    before, times = files(state), {file: file.stat().st_mtime_ns for file in state.iterdir()}
    assert found(state) == {("carts", "a"): 1}
    assert files(state) == before
    assert {file: file.stat().st_mtime_ns for file in state.iterdir()} == times


def test_deadlines_and_bookkeeping(tmp_path: Path) -> None:
    now = time.time()
    write(
        tmp_path / "state",
        [
            (":options", "mine", [True, None, "refuse", True]),
            (":secrets", "session", [1, "key"]),
            (":counters", "visits", 7),
            ("mine", "x", Entry(1, NEVER, 5)),
            ("carts", "gone", Entry(1, now - 1)),
            ("carts", "later", Entry(encode([2]), now + 100)),
            ("carts", "owned", Entry(3, NEVER, 5)),
        ],
    )
    ttls = {(space, key): ttl for space, key, _, ttl in offline.exported(tmp_path / "state", silent)}
    assert list(ttls) == [(":counters", "visits"), ("carts", "later"), ("carts", "owned")]
    later = ttls.pop(("carts", "later"))
    assert later is not None
    assert 98 < later <= 100
    assert set(ttls.values()) == {None}


def test_where_there_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no manager runs"):
        found(tmp_path / "missing")
    (tmp_path / "empty").mkdir(0o700)
    with pytest.raises(Unavailable, match="no manager runs"):
        found(tmp_path / "empty")


def test_a_damaged_journal_is_named(state: Path) -> None:
    journal = state / "journal.00000001"
    data = bytearray(journal.read_bytes())
    data[60] ^= 1
    journal.write_bytes(data)
    with pytest.raises(StateError, match=f"damaged: {journal}, offset"):
        found(state)


# Restoring


def test_a_backup_takes_the_place_of_what_was_there(state: Path, tmp_path: Path) -> None:
    backup = back_up(state, tmp_path / "backup")
    write(state, [("carts", "a", 5), ("carts", "c", 6)])
    before = files(state)
    assert restore(backup, state) == offline.Restored(1, [state / "journal.00000001.before-restore"])
    assert found(state) == {("carts", "a"): 1}
    assert (state / "journal.00000001.before-restore").read_bytes() == before["journal.00000001"]
    names = {"journal.00000001.before-restore", "journal.00000002", "journal.reserve"}
    assert files(state).keys() == names
    write(state, [("carts", "d", 7)])  # a manager goes on from there
    assert found(state) == {("carts", "a"): 1, ("carts", "d"): 7}
    assert restore(backup, state).kept == [state / "journal.00000002.before-restore"]
    assert found(state) == {("carts", "a"): 1}
    assert not list(state.glob("journal.new"))


def test_the_same_name_is_not_taken_twice(state: Path, tmp_path: Path) -> None:
    backup = back_up(state, tmp_path / "backup")
    (state / "journal.00000001.before-restore").write_text("older")
    assert restore(backup, state).kept == [state / "journal.00000001.before-restore-2"]
    assert (state / "journal.00000001.before-restore").read_text() == "older"


def test_a_new_directory_is_made(state: Path, tmp_path: Path) -> None:
    new = tmp_path / "new" / "state"
    assert restore(back_up(state, tmp_path / "backup"), new).kept == []
    assert found(new) == {("carts", "a"): 1}
    assert new.stat().st_mode & 0o777 == 0o700
    assert (new / "journal.00000002").stat().st_mode & 0o777 == 0o600


def test_a_directory_with_a_manager_is_refused(state: Path, tmp_path: Path) -> None:
    backup = back_up(state, tmp_path / "backup")
    before = files(state)
    with contextlib.closing(StateDirectory.open(state, create=False)) as directory:
        lock = directory.lock()
        with pytest.raises(StateError, match=rf"another manager \(pid {os.getpid()}\)"):
            restore(backup, state)
        os.close(lock)
    assert files(state) == before


def test_a_backup_with_a_damaged_journal_changes_nothing(state: Path, tmp_path: Path) -> None:
    """The checksums agree, and yet: it was damaged, or cut, before it was backed up."""
    journal = state / "journal.00000001"
    data = journal.read_bytes()
    target = tmp_path / "target"
    write(target, [("carts", "z", 9)])
    before = files(target)
    asked: list[bool] = []
    for damaged in (data[:60] + b"!" + data[61:], data[:-3], data[:20], b""):
        journal.write_bytes(damaged)
        with pytest.raises(StateError, match=r"damaged|no journal"):
            offline.restore(
                back_up(state, tmp_path / "backup"), target, silent, ready=lambda: asked.append(True), patience=0.1
            )
        assert files(target) == before
    journal.unlink()
    with pytest.raises(StateError, match="no journal"):
        restore(back_up(state, tmp_path / "backup"), target)
    assert not asked  # no manager is ended for a bad backup
    with pytest.raises(FileNotFoundError):
        restore(tmp_path / "missing", target)
    assert files(target) == before


@pytest.mark.parametrize("step", ["open", "write", "sync", "link", "sync_directory", "rename"])
def test_a_failure_at_any_step_leaves_the_old_state(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = tmp_path / "target"
    write(target, [("carts", "z", 9)])
    backup = back_up(state, tmp_path / "backup")

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryFiles, step, fail)
        with pytest.raises(StateError, match="No space left"):
            restore(backup, target)
    assert found(target) == {("carts", "z"): 9}
    assert not (target / "journal.new").exists()
    restore(backup, target)
    assert found(target) == {("carts", "a"): 1}


def test_damage_to_what_was_restored_is_no_torn_tail(state: Path, tmp_path: Path) -> None:
    """It was whole before it had its name, so nothing of it may be cut off in silence."""
    new = tmp_path / "new"
    restore(back_up(state, tmp_path / "backup"), new)
    journal = new / "journal.00000002"
    data = journal.read_bytes()
    for offset in range(len(data)):
        journal.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(StateError, match=r"damaged|upgrade"):
            found(new)
