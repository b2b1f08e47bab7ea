"""A full disk: deletes still fit, and writes do again when there is room."""

from __future__ import annotations

import errno

import pytest

from state_manager.journal import Journal, JournalFull
from state_manager.journal.reserve import RESERVE
from state_manager.store import ABSENT, Change, Entry
from tests.journal_disk import Disk, after, read, start

ONE = "journal.00000001"
X: list[Change] = [("a", "x", 1)]
Y: list[Change] = [("a", "y", Entry("two", 9.5))]
DELETE: list[Change] = [("a", "x", ABSENT)]


def full_disk() -> tuple[Disk, Journal]:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, [*X, ("a", "big", b"x" * 1000)])
    assert len(disk.data("journal.reserve")) == RESERVE
    disk.room = sum(map(len, disk.contents().values()))
    return disk, journal


def test_deletes_still_fit_on_a_full_disk_and_writes_do_when_there_is_room() -> None:
    disk, journal = full_disk()
    assert disk.room is not None
    with pytest.raises(JournalFull, match="deletes still work"):
        journal.append(2.0, Y)
    assert "journal.reserve" in disk.names()
    journal.append(2.0, DELETE, deletes_only=True)
    assert "journal.reserve" not in disk.names()
    with pytest.raises(JournalFull, match="deletes still work"):
        journal.append(3.0, Y)  # what is left is for deletes
    assert not journal.restore_reserve()
    for _ in range(100):
        journal.append(3.0, DELETE, deletes_only=True)
    disk.room += RESERVE
    assert not journal.restore_reserve(), "there is room for it, and for nothing else"
    assert "journal.reserve" not in disk.names()
    disk.room += RESERVE
    assert journal.restore_reserve()
    assert len(disk.data("journal.reserve")) == RESERVE
    journal.append(4.0, Y)
    assert read(disk) == after([*X, ("a", "big", b"x" * 1000)], DELETE, Y)


def test_when_the_reserve_is_used_up_too_deletes_are_refused() -> None:
    disk, journal = full_disk()
    assert disk.room is not None
    disk.room -= RESERVE
    before = disk.data(ONE)
    with pytest.raises(JournalFull):
        journal.append(2.0, DELETE, deletes_only=True)
    assert disk.data(ONE) == before


def test_a_disk_that_was_full_when_the_manager_ended_is_so_at_the_start() -> None:
    disk, journal = full_disk()
    journal.append(2.0, DELETE, deletes_only=True)
    room = disk.room
    disk = disk.kill()
    disk.room = room
    journal, _ = start(disk)
    with pytest.raises(JournalFull):
        journal.append(3.0, Y)
    journal.append(3.0, DELETE, deletes_only=True)


@pytest.mark.parametrize("left", [0, 5, RESERVE - 1])
def test_half_a_reserve_is_made_anew(left: int) -> None:
    disk = Disk()
    disk.replace("journal.reserve", bytes(left))
    start(disk)
    assert len(disk.data("journal.reserve")) == RESERVE


def test_a_reserve_that_cannot_be_made_leaves_nothing_behind() -> None:
    disk = Disk()
    disk.fail("write journal.reserve", errno.ENOSPC)
    journal, _ = start(disk)
    assert disk.names() == [ONE]
    with pytest.raises(JournalFull):
        journal.append(1.0, X)
    disk.works()
    assert journal.restore_reserve()
    journal.append(1.0, X)


def test_restoring_the_reserve_costs_nothing_while_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    journal, _ = start(disk)
    monkeypatch.setattr(disk, "free", None)
    assert journal.restore_reserve()
