"""The journal on a real file system, with its real second thread."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from state_manager.directory import StateDirectory
from state_manager.errors import StateError
from state_manager.journal import DirectoryFiles, Journal, JournalFull, Reading, syncing
from state_manager.journal.frames import SEGMENT_HEADER
from state_manager.journal.log import Mode
from state_manager.journal.reserve import RESERVE
from state_manager.store import ABSENT, Change, Entry, Store
from tests.journal_disk import Disk, entries, start

ONE = "journal.00000001"
X: list[Change] = [("a", "x", 1)]
Y: list[Change] = [("a", "y", Entry("two", 9.5))]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory.open(tmp_path / "state", create=True)
    yield opened
    opened.close()


def real(directory: StateDirectory, mode: Mode = "process") -> tuple[Journal, list[Any]]:
    journal = Journal.open(directory, mode=mode)
    return journal, [frame.changes for frame in journal.replay()]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.005)


def test_real_files_are_closed_to_others_and_come_back(directory: StateDirectory) -> None:
    before = os.umask(0)
    try:
        journal, _ = real(directory)
    finally:
        os.umask(before)
    journal.append(1.0, X)
    for name in (ONE, "journal.reserve"):
        assert stat.S_IMODE((directory.path / name).stat().st_mode) == 0o600
    assert (directory.path / "journal.reserve").stat().st_blocks * 512 >= RESERVE
    journal.close()
    journal, found = real(directory, "power")
    assert found == [X, []]
    journal.append(2.0, Y)
    journal.begin_compaction()
    journal.append_slice(3.0, [*X, *Y])
    journal.complete(3.0)
    wait_for(journal.completed)
    journal.close()
    assert not (directory.path / ONE).exists()
    journal, found = real(directory)
    assert found == [[*X, *Y], [], []]
    journal.close()


def test_the_second_thread_syncs_and_ends(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "INTERVAL", 0.001)
    journal, _ = real(directory)
    journal.append(1.0, X)
    wait_for(lambda: journal._syncer.synced == 1)
    journal.append(2.0, Y)
    assert [frame.synced for frame in Reading(journal._files)] == [0, 1]
    assert any(thread.name == "journal" for thread in threading.enumerate())
    journal.close()
    assert not any(thread.name == "journal" for thread in threading.enumerate())


def test_each_thread_syncs_by_a_descriptor_of_its_own() -> None:
    """The kernel tells each of them once that writing back failed."""
    disk = Disk()
    journal, _ = start(disk)
    assert journal._fd != journal._sync_fd
    journal.begin_compaction()
    assert journal._fd != journal._sync_fd
    assert disk.open_files[journal._fd] is disk.open_files[journal._sync_fd]
    journal, _ = start(disk)
    assert journal._fd != journal._sync_fd


def test_both_threads_at_work(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "INTERVAL", 0.0001)
    journal, _ = real(directory)
    store = Store()
    compactions = 0
    end = time.monotonic() + 1.0
    for number in itertools.count():
        changes: list[Change] = [("a", number % 20, number), ("b", number % 3, ABSENT if number % 2 else number)]
        journal.append(1.0, changes)
        store.apply(changes)
        compactions += journal.completed()
        if not journal._compacting:
            if time.monotonic() > end:
                break
            journal.begin_compaction()
            for space in list(store.spaces.values()):
                journal.append_slice(1.0, [(space.name, key, value) for key, value in space.entries.items()])
            journal.complete(1.0)
    assert compactions > 3
    assert journal.failed is None
    journal.close()
    found = Store()
    for changes in real_changes(directory):
        found.apply(changes)
    assert entries(found) == entries(store)
    assert len([name for name in os.listdir(directory.path) if name.startswith("journal.0")]) == 1


def real_changes(directory: StateDirectory) -> list[list[Change]]:
    return [frame.changes for frame in Reading(DirectoryFiles(directory.fd, directory.path))]


def test_a_file_that_must_be_new_is_never_an_old_one(directory: StateDirectory) -> None:
    files = DirectoryFiles(directory.fd, directory.path)
    files.close(files.open("journal.new", create=True))
    with pytest.raises(FileExistsError):
        files.open("journal.new", create=True)
    with pytest.raises(FileNotFoundError):
        files.open("journal.old")


def test_links_and_open_files_are_refused(directory: StateDirectory) -> None:
    real(directory)[0].close()
    segment = directory.path / ONE
    segment.chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        real(directory)
    segment.chmod(0o600)
    segment.rename(directory.path / "elsewhere")
    segment.symlink_to("elsewhere")
    with pytest.raises(StateError, match="symbolic link"):
        real(directory)


def test_the_systems_own_limit_is_a_full_disk(directory: StateDirectory) -> None:
    """A real short write, and a real refusal."""
    journal, _ = real(directory)
    journal.append(1.0, X)
    size = (directory.path / ONE).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(JournalFull, match=os.strerror(errno.EFBIG)):
            journal.append(2.0, Y)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (directory.path / ONE).stat().st_size == size
    journal.append(3.0, Y)
    journal.close()
    journal, found = real(directory)
    assert found == [X, Y, []]
    journal.close()


def test_a_journal_that_was_never_written_is_one_header(directory: StateDirectory) -> None:
    journal, found = real(directory)
    journal.close()
    assert found == []
    assert (directory.path / ONE).stat().st_size == SEGMENT_HEADER
