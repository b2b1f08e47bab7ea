"""The journal's files: what is written comes back, what cannot be written changes nothing, and what a sync means."""

from __future__ import annotations

import errno
import os

import pytest

from state_manager.errors import OutcomeUnknown, StateError, StoreFull, Unavailable, to_wire
from state_manager.journal import (
    Journal,
    JournalFailed,
    JournalFull,
    JournalLost,
    JournalNotSynced,
    NewerVersion,
    Reading,
    frames,
)
from state_manager.journal.log import Mode
from state_manager.store import ABSENT, Change, Entry, Store
from tests.journal_disk import Disk, after, entries, read, start, work

ONE, TWO = "journal.00000001", "journal.00000002"
X: list[Change] = [("a", "x", 1)]
Y: list[Change] = [("a", "y", Entry("two", 9.5))]
DELETE: list[Change] = [("a", "x", ABSENT)]


def counters(journal: Journal) -> tuple[int, int, float]:
    return journal.number, journal.size, journal.last_now


# -- what is written comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["process", "power"])
def test_what_is_appended_is_replayed_after_a_kill(mode: Mode) -> None:
    disk = Disk()
    journal, store = start(disk, mode)
    assert entries(store) == {}
    journal.append(1.0, X, [(7, 1, b"reply")])
    journal.append(2.5, Y)
    again = Journal(disk.kill(), mode=mode)
    found = list(again.replay())
    assert [(frame.number, frame.now, frame.changes, frame.lanes) for frame in found] == [
        (1, 1.0, X, [(7, 1, b"reply")]),
        (2, 2.5, Y, []),
    ]
    assert (again.number, again.last_now, again.size, again.report) == (2, 2.5, journal.size, "")
    again.close()


def test_numbers_go_on_after_a_start() -> None:
    disk = Disk()
    for number in range(1, 4):
        journal, store = start(disk)
        assert entries(store) == after([("a", n, n) for n in range(1, number)])
        journal.append(float(number), [("a", number, number)])
        disk = disk.kill()
    assert read(disk) == {"a": {1: 1, 2: 2, 3: 3}}


def test_replaying_twice_does_no_harm() -> None:
    disk = Disk()
    journal, _ = start(disk)
    ticks: list[list[Change]] = [
        X,
        Y,
        DELETE,
        [("b", None, ABSENT)],
        X,
        [("b", 1, 1), ("b", None, ABSENT), ("b", 2, 2)],
    ]
    for changes in ticks:
        journal.append(1.0, changes)
    once, twice = Store(), Store()
    for times, store in ((1, once), (2, twice)):
        for _ in range(times):
            for frame in Reading(disk):
                store.apply(frame.changes)
    assert entries(once) == entries(twice)
    twice.check()


def test_cut_at_every_byte_restores_an_acknowledged_state() -> None:
    disk = Disk()
    journal, _ = start(disk)
    states = [after()]
    ends = [journal.size]
    ticks: list[list[Change]] = [
        X,
        [*Y, ("b", 1, b"x" * 40), ("b", 2, 2)],
        [("b", None, ABSENT), *DELETE],
        [("c", 1, 1)],
    ]
    for index, changes in enumerate(ticks, 1):
        journal.append(float(index), changes, [(1, index, b"r")])
        states.append(after(*ticks[:index]))
        ends.append(journal.size)
    whole = disk.data(ONE)
    for size in range(len(whole)):
        cut = disk.kill()
        cut.replace(ONE, whole[:size])
        journal, store = start(cut)
        kept = max(0, sum(end <= size for end in ends) - 1)
        assert entries(store) == states[kept]
        assert journal.number == kept
        assert bool(journal.report) == (size not in ends)
        assert cut.data(ONE) == whole[: ends[kept]]
        # and it goes on from there
        journal.append(9.0, [("d", 1, 1)])
        assert read(cut) == after(*ticks[:kept], [("d", 1, 1)])


def test_what_was_cut_off_is_reported_with_file_and_offset() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    end = journal.size
    journal.append(1.0, Y)
    disk.replace(ONE, disk.data(ONE)[:-1])
    journal, _ = start(disk)
    assert f"/disk/{ONE}, offset {end}: a frame was not written to its end" in journal.report
    assert "sync journal.00000001" in disk.calls[disk.calls.index(f"truncate {ONE}") :]


def test_reading_changes_nothing() -> None:
    """``export`` reads a journal like this, with no manager running."""
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    journal.append(1.0, Y)
    disk.replace(ONE, disk.data(ONE)[:-1])
    before, calls = disk.contents(), list(disk.calls)
    open_files = set(disk.open_files)
    reading = Reading(disk)
    assert [frame.changes for frame in reading] == [X]
    assert "not written to its end" in reading.report
    assert (disk.contents(), disk.calls, set(disk.open_files)) == (before, calls, open_files)


def test_progress_goes_from_nothing_to_everything() -> None:
    disk = Disk()
    journal, _ = start(disk)
    for number in range(50):
        journal.append(1.0, [("a", number, b"x" * 100_000)])
    seen: list[tuple[int, int]] = []
    again = Journal(disk.kill(), mode="process")
    for _ in again.replay(lambda done, total: seen.append((done, total))):
        pass
    again.close()
    assert {total for _, total in seen} == {journal.size}
    assert len(seen) >= 5
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] <= journal.size < seen[-1][0] + 2**21


def test_a_newer_format_is_refused_by_name_even_when_recovering(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(frames, "VERSION", 9)
    start(disk)[0].append(1.0, X)
    monkeypatch.undo()
    before = disk.contents()
    for recover in (False, True):
        with pytest.raises(NewerVersion, match=rf"/disk/{ONE} is of format 9"):
            start(disk, recover=recover)
    assert disk.contents() == before


def test_nothing_is_written_before_replay_or_after_close() -> None:
    disk = Disk()
    journal = Journal(disk, mode="process")
    with pytest.raises(RuntimeError, match="after replay"):
        journal.append(1.0, X)
    journal.close()
    journal, _ = start(disk)
    journal.close()
    journal.close()
    with pytest.raises(RuntimeError, match="before close"):
        journal.append(1.0, X)
    assert disk.open_files == {}


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'none'"):
        Journal(Disk(), mode="none")  # type: ignore[arg-type]


def test_close_leaves_a_frame_that_says_that_all_was_synced() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    journal.close()
    *_, last = Reading(disk)
    assert (last.number, last.synced, last.changes) == (2, 1, [])
    assert disk.names_[ONE].synced == disk.data(ONE)
    size = len(disk.data(ONE))
    start(disk)[0].close()
    assert len(disk.data(ONE)) == size, "nothing was written, and nothing need be said about it"


# -- what cannot be written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["process", "power"])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, JournalFull),
        (errno.EDQUOT, JournalFull),
        (errno.EFBIG, JournalFull),
        (errno.EIO, JournalFailed),
        (errno.EROFS, JournalFailed),
    ],
)
def test_a_refused_write_changes_nothing(code: int, error: type[StateError], mode: Mode) -> None:
    disk = Disk()
    journal, _ = start(disk, mode)
    journal.append(1.0, X)
    before, numbers = disk.data(ONE), counters(journal)
    disk.fail("write", code)
    for _ in range(2):
        with pytest.raises(error, match=os.strerror(code)):
            journal.append(2.0, Y)
        assert (disk.data(ONE), counters(journal)) == (before, numbers)
    disk.works()
    journal.append(3.0, Y)
    assert read(disk) == after(X, Y)


def test_half_a_write_is_cut_off() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    before, numbers = disk.contents(), counters(journal)
    for left in range(1, 60):
        disk.room = sum(map(len, before.values())) + left
        with pytest.raises(JournalFull):
            journal.append(2.0, [("a", "long", "x" * 100)])
        assert (disk.contents(), counters(journal)) == (before, numbers)
    disk.works()
    journal.append(2.0, Y)
    assert read(disk) == after(X, Y)


def test_a_write_in_two_parts_is_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    whole = disk.write
    journal, _ = start(disk)
    monkeypatch.setattr(disk, "write", lambda fd, data, offset: whole(fd, data[:7], offset))
    monkeypatch.setattr(journal, "_write", disk.write)
    journal.append(1.0, Y)
    assert read(disk) == after(Y)


def test_a_write_of_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    journal, _ = start(disk)
    monkeypatch.setattr(journal, "_write", lambda fd, data, offset: 0)
    monkeypatch.setattr(disk, "write", lambda fd, data, offset: 0)
    with pytest.raises(JournalFailed, match="wrote nothing"):
        journal.append(1.0, X)


def test_nothing_is_written_before_the_rest_of_a_failed_write_is_cut_off() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    end, numbers = journal.size, counters(journal)
    disk.room = sum(map(len, disk.contents().values())) + 20
    disk.fail("truncate")
    with pytest.raises(JournalFull):
        journal.append(2.0, [("a", "long", "x" * 100)])
    disk.room = None
    rest = disk.data(ONE)
    assert len(rest) == end + 20
    with pytest.raises(JournalFailed, match=os.strerror(errno.EIO)):
        journal.append(2.0, Y)
    assert (disk.data(ONE), counters(journal)) == (rest, numbers)
    assert read(disk.kill()) == after(X)
    disk.works()
    journal.append(2.0, DELETE)  # shorter than what was left
    assert read(disk) == after(X, DELETE)


def test_what_cannot_be_encoded_changes_nothing() -> None:
    disk = Disk()
    journal, _ = start(disk)
    before, numbers = disk.contents(), counters(journal)
    with pytest.raises(TypeError):
        journal.append(1.0, [*X, ("a", "y", object())])
    assert (disk.contents(), counters(journal)) == (before, numbers)


def test_errors_cross_the_wire_as_what_they_mean() -> None:
    assert to_wire(JournalFull("x")) == ["StoreFull", "x"]
    assert to_wire(JournalFailed("x")) == ["Unavailable", "x"]
    assert to_wire(JournalNotSynced("x")) == ["OutcomeUnknown", "x"]
    assert issubclass(JournalFull, StoreFull)
    assert issubclass(JournalFailed, Unavailable)
    assert issubclass(JournalNotSynced, OutcomeUnknown)
    assert JournalFailed("x").applied is False
    assert JournalNotSynced("x").applied is None
    assert not issubclass(JournalLost, StateError), "nobody may answer with it"


# -- syncs -------------------------------------------------------------------------------------------------------------


def test_power_syncs_before_append_returns() -> None:
    disk = Disk()
    journal, _ = start(disk, "power")
    for number in range(3):
        journal.append(1.0, [("a", number, number)])
        assert disk.names_[ONE].synced == disk.data(ONE)
    assert [frame.synced for frame in Reading(disk)] == [0, 1, 2]


def test_process_syncs_from_time_to_time_and_says_how_far() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    journal.append(1.0, Y)
    assert disk.names_[ONE].synced != disk.data(ONE)
    work(journal)
    assert disk.names_[ONE].synced == disk.data(ONE)
    journal.append(1.0, X)
    calls = len(disk.calls)
    assert [frame.synced for frame in Reading(disk)] == [0, 0, 2]
    work(journal)
    work(journal)
    assert disk.calls[calls:] == [f"sync {ONE}"], "what is synced is not synced again"


def test_a_start_syncs_what_it_found() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    journal, _ = start(disk)
    assert disk.names_[ONE].synced == disk.data(ONE)
    journal.append(1.0, Y)
    assert [frame.synced for frame in Reading(disk)] == [0, 1]


def test_a_frame_that_cannot_be_synced_is_cut_off_and_nothing_follows() -> None:
    disk = Disk()
    journal, _ = start(disk, "power")
    journal.append(1.0, X)
    before, numbers = disk.data(ONE), counters(journal)
    disk.fail("sync")
    with pytest.raises(JournalNotSynced, match=os.strerror(errno.EIO)):
        journal.append(2.0, Y)
    assert (disk.data(ONE), counters(journal)) == (before, numbers)
    disk.works()
    for changes, deletes in ((X, False), (DELETE, True)):
        with pytest.raises(JournalFailed, match="until the next start"):
            journal.append(3.0, changes, deletes_only=deletes)
    with pytest.raises(JournalFailed):
        journal.begin_compaction()
    assert not journal.wants_compaction(0)
    assert disk.data(ONE) == before
    assert "until the next start" in repr(journal)
    journal.close()
    assert read(disk) == after(X)
    start(disk)[0].append(4.0, Y)
    assert read(disk) == after(X, Y)


def test_a_frame_that_cannot_be_cut_off_either_ends_the_process() -> None:
    disk = Disk()
    journal, _ = start(disk, "power")

    def hook(call: str) -> None:
        if call.startswith(("sync", "truncate")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.hook = hook
    with pytest.raises(JournalLost, match="could not be cut off"):
        journal.append(1.0, X)
    disk.works()
    with pytest.raises(JournalFailed):
        journal.append(1.0, Y)


def test_a_failed_sync_in_the_second_thread_makes_the_journal_read_only() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    disk.fail("sync")
    work(journal)
    assert journal.failed is not None
    disk.works()
    with pytest.raises(JournalFailed, match=os.strerror(errno.EIO)):
        journal.append(2.0, Y)
    calls = len(disk.calls)
    work(journal)
    assert disk.calls[calls:] == [], "a second try would succeed and mean nothing"
    journal.close()
    assert read(disk) == after(X), "what was acknowledged stays"


def test_a_failed_sync_at_the_end_is_told_and_the_files_are_closed() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, X)
    disk.fail(f"sync {ONE}")
    with pytest.raises(JournalFailed):
        journal.close()
    assert disk.open_files == {}


@pytest.mark.parametrize("before", [0, 1])
def test_a_start_that_cannot_sync_is_refused(before: int) -> None:
    disk = Disk()
    for _ in range(before):
        start(disk)[0].append(1.0, X)
    for call in ["sync", "sync the directory"]:
        disk.fail(call)
        journal = Journal(disk, mode="process")
        with pytest.raises(StateError, match=os.strerror(errno.EIO)):
            list(journal.replay())
        journal.close()
        disk.works()
        assert read(disk) == after(*[X] * before)
