"""The state directory: key, epochs, lock and socket. What it refuses to open is in ``test_checked``."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state_manager import directory as module
from state_manager.checked import write_new_file
from state_manager.directory import StateDirectory
from state_manager.errors import StateError, Unavailable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(path: Path) -> Iterator[StateDirectory]:
    with contextlib.closing(StateDirectory.open(path, create=True)) as state:
        yield state


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def leftovers(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name not in (*module.FILES, "manager.log.1"))


# Opening


def test_a_missing_directory_is_unavailable_and_not_found(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        StateDirectory.open(path, create=False)
    assert isinstance(caught.value, Unavailable)
    assert str(caught.value) == (
        f"no manager runs in {path}: start the app with `state-manager run` or `gunicorn -c "
        f"python:state_manager.gunicorn`, or a manager alone with `state-manager serve --dir {path}`"
    )
    assert not path.exists()


def test_only_an_empty_directory_is_hidden_from_git(tmp_path: Path, path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir(0o700)
    (project / "app.py").touch()
    for directory in (project, path):
        StateDirectory.open(directory, create=True).close()
    assert os.listdir(project) == ["app.py"]
    assert (path / ".gitignore").read_text() == "*\n"


def test_a_link_to_the_directory_is_followed_once(tmp_path: Path, path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    with contextlib.closing(StateDirectory.open(tmp_path / "link", create=True)) as state:
        assert state.path == path
        (tmp_path / "link").unlink()
        with state.bind(), state.connect(1.0):
            pass


def test_repr_tells_the_state(path: Path) -> None:
    state = StateDirectory.open(path, create=True)
    assert repr(state) == f"<StateDirectory {path} fd={state.fd}>"
    state.close()
    state.close()
    assert repr(state) == f"<StateDirectory {path} closed>"


# The key


def test_the_key_is_made_once_and_is_the_whole_file(state: StateDirectory) -> None:
    key = state.key(create=True)
    assert len(bytes.fromhex(key.decode())) == 32
    assert (state.path / "key").read_bytes() == key
    assert mode(state.path / "key") == 0o600
    assert state.key(create=True) == state.key(create=False) == key
    assert leftovers(state.path) == []


def test_without_a_key_no_manager_has_run(state: StateDirectory) -> None:
    with pytest.raises(Unavailable, match="no manager runs in"):
        state.key(create=False)


def test_racers_agree_on_one_key(path: Path) -> None:
    go, gate = os.pipe()
    answers, answer = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            os.close(gate)
            os.read(go, 1)
            with contextlib.closing(StateDirectory.open(path, create=True)) as state:
                os.write(answer, state.key(create=True))
            os._exit(0)
        children.append(child)
    os.close(answer)
    os.close(go)
    os.close(gate)  # all of them read end of file now
    with open(answers, "rb") as lines:
        said = lines.read()
    for child in children:
        os.waitpid(child, 0)
    assert said == (path / "key").read_bytes() * 8
    assert leftovers(path) == []


def test_who_links_its_key_second_takes_the_first(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link
    rival = b"5" * 64

    def too_late(*args: Any, **options: Any) -> None:
        write_new_file(state.fd, state.path / "key", rival)
        link(*args, **options)

    monkeypatch.setattr(os, "link", too_late)
    assert state.key(create=True) == rival
    assert leftovers(state.path) == []


@pytest.mark.parametrize("text", ["", "f" * 63, "f" * 65, "G" * 64])
def test_a_damaged_key_is_named(state: StateDirectory, text: str) -> None:
    (state.path / "key").write_text(text)
    (state.path / "key").chmod(0o600)
    with pytest.raises(
        StateError, match=f"{state.path}/key does not hold a key; stop the manager, `rm {state.path}/key`"
    ):
        state.key(create=True)


# Epochs


def test_an_epoch_is_the_time_or_one_more_than_the_last(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.9
    monkeypatch.setattr(time, "time", lambda: now)
    assert state.next_epoch() == 1_800_000_000
    assert state.next_epoch() == 1_800_000_001
    now = 1_000_000_000.0  # the clock was set back
    assert state.next_epoch() == 1_800_000_002
    state.reserve_epoch(1_800_000_010)
    state.reserve_epoch(1_800_000_005)
    assert state.next_epoch() == 1_800_000_011
    now = 1_900_000_000.0
    assert state.next_epoch() == 1_900_000_000
    assert (state.path / "epoch").read_text() == "1900000000\n"
    assert mode(state.path / "epoch") == 0o600


def test_an_epoch_is_synced_before_it_has_its_name(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    fsync, rename = os.fsync, os.rename

    def note_sync(fd: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        fsync(fd)

    def note_rename(*args: Any, **options: Any) -> None:
        steps.append("rename")
        rename(*args, **options)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    state.next_epoch()
    assert steps == ["sync file", "rename", "sync directory"]


def test_an_epoch_that_a_killed_manager_left_half_written_is_ignored(state: StateDirectory) -> None:
    first = state.next_epoch()
    (state.path / ".epoch").write_text("99")
    assert state.next_epoch() > first
    assert leftovers(state.path) == []


def test_a_damaged_epoch_is_named(state: StateDirectory) -> None:
    (state.path / "epoch").touch(0o600)
    (state.path / "epoch").write_text("soon")
    with pytest.raises(StateError, match=f"{state.path}/epoch holds b'soon', not a number"):
        state.next_epoch()


def test_an_epoch_fits_half_a_version(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    state.reserve_epoch(2**32 - 2)
    assert state.next_epoch() == 2**32 - 1
    with pytest.raises(StateError, match="epoch 4294967296 is over 4294967295; is the clock right"):
        state.next_epoch()
    assert (state.path / "epoch").read_text() == "4294967295\n"


# The log


def test_a_long_log_is_put_aside(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_LIMIT", 5)
    for text in (b"first", b"second", b"third"):
        fd = state.open_log()
        os.write(fd, text)
        os.close(fd)
    assert (state.path / "manager.log.1").read_bytes() == b"firstsecond"
    assert (state.path / "manager.log").read_bytes() == b"third"
    assert mode(state.path / "manager.log") == 0o600


# The lock


def test_a_second_manager_is_told_the_first_ones_pid(state: StateDirectory, impatient: None) -> None:
    fd = state.lock()
    try:
        assert not os.get_inheritable(fd)
        assert state.holder() == os.getpid()
        with contextlib.closing(StateDirectory.open(state.path, create=False)) as second:
            with pytest.raises(
                StateError, match=rf"another manager \(pid {os.getpid()}\) serves {state.path}.* stop --dir"
            ):
                second.lock()
            assert second.holder() == os.getpid()
    finally:
        os.close(fd)
    assert state.holder() is None
    os.close(state.lock())


def test_nobody_holds_a_lock_that_was_never_made(state: StateDirectory) -> None:
    assert state.holder() is None
    assert not (state.path / "lock").exists()


def test_a_longer_pid_of_a_predecessor_does_not_shine_through(state: StateDirectory) -> None:
    (state.path / "lock").touch(0o600)
    (state.path / "lock").write_text("99999999999")
    os.close(state.lock())
    assert (state.path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_waits_for_a_predecessor_that_is_ending(state: StateDirectory) -> None:
    fd = state.lock()
    tried = threading.Event()
    flock = fcntl.flock

    def note(fd: int, operation: int) -> None:
        tried.set()
        flock(fd, operation)

    def end() -> None:
        tried.wait(10)
        os.close(fd)

    predecessor = threading.Thread(target=end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", note)
        predecessor.start()
        os.close(state.lock())
    predecessor.join()


def test_a_lock_file_that_was_unlinked_while_it_was_locked_is_no_lock(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    victims = iter([state.path / "lock"])

    def steal(fd: int, operation: int) -> None:
        flock(fd, operation)
        for path in victims:
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", steal)
    fd = state.lock()
    assert os.path.samestat(os.fstat(fd), (state.path / "lock").stat())
    os.close(fd)


def test_a_file_system_without_locks_is_named(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(StateError, match=f"cannot use {state.path}/lock: No locks available; choose another directory"):
        state.lock()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("change", ["nothing", "lock removed", "lock replaced", "moved", "remade", "no longer visible"])
def test_a_manager_notices_that_its_place_is_gone(
    state: StateDirectory, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = state.lock()
    if change.startswith("lock"):
        (state.path / "lock").unlink()
    if change == "lock replaced":
        (state.path / "lock").touch(0o600)
    if change in ("moved", "remade"):
        state.path.rename(tmp_path / "elsewhere")
    if change == "remade":
        shutil.copytree(tmp_path / "elsewhere", state.path)
    if change == "no longer visible":

        def fails(*args: Any, **options: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "stat", fails)
    assert state.still_mine(fd) is (change in ("nothing", "no longer visible"))
    os.close(fd)
