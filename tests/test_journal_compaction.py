"""Compaction: the same state in fewer bytes, at no moment less safe than before. And backups, which pin segments."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from state_manager.journal import Journal, JournalFailed, JournalFull, Reading, log
from state_manager.journal.frames import COMPLETE, LIVE, SLICE
from state_manager.journal.log import Mode
from state_manager.journal.reserve import RESERVE
from state_manager.store import ABSENT, Change, Store
from tests.journal_disk import Disk, after, entries, read, start, work

ONE, TWO, THREE = "journal.00000001", "journal.00000002", "journal.00000003"
BEFORE: list[Change] = [("a", "x", 1), ("a", "y", 2), ("b", "z", 3)]
DURING: list[Change] = [("a", "y", ABSENT), ("b", "new", 4)]
LATE: list[Change] = [("a", "x", 5)]


def begun(mode: Mode = "process") -> tuple[Disk, Journal]:
    disk = Disk()
    journal, _ = start(disk, mode)
    for _ in range(5):
        journal.append(1.0, BEFORE, [(7, 1, b"reply")])
    journal.begin_compaction()
    return disk, journal


def compacted(mode: Mode = "process") -> tuple[Disk, Journal]:
    disk, journal = begun(mode)
    journal.append_slice(2.0, [], [(7, 1, b"reply")])
    journal.append(2.0, DURING)
    journal.append_slice(2.0, [("a", "x", 1), ("b", "z", 3), ("b", "new", 4)])
    journal.complete(2.0)
    journal.append(3.0, LATE)
    return disk, journal


STATE = after(BEFORE, DURING, LATE)


@pytest.mark.parametrize("mode", ["process", "power"])
def test_a_compaction_ends_with_the_same_state_in_one_segment(mode: Mode) -> None:
    disk, journal = compacted(mode)
    assert not journal.completed()
    assert disk.segments() == [ONE, TWO]
    assert read(disk) == STATE
    work(journal)
    assert journal.completed()
    assert not journal.completed(), "it says so once"
    work(journal)
    assert disk.segments() == [TWO]
    assert read(disk) == STATE
    assert journal.size == len(disk.data(TWO))
    found = list(Reading(disk))
    assert [frame.kind for frame in found] == [SLICE, LIVE, SLICE, COMPLETE, LIVE]
    assert [frame.number for frame in found] == [6, 7, 8, 9, 10]
    assert found[0].lanes == [(7, 1, b"reply")]
    journal, store = start(disk.kill(), mode)
    assert entries(store) == STATE
    journal.append(4.0, DURING)


def test_a_segment_is_synced_before_the_next_and_older_ones_go_when_the_newest_is() -> None:
    disk, journal = begun()
    begin = disk.calls[disk.calls.index(f"sync {ONE}", 7) :]
    assert begin == [
        f"sync {ONE}",
        "create journal.new",
        "write journal.new",
        "sync journal.new",
        "rename journal.new",
        "sync the directory",
    ]
    journal.append_slice(2.0, [*BEFORE])
    journal.complete(2.0)
    calls = len(disk.calls)
    work(journal)
    assert disk.calls[calls:] == [f"sync {TWO}", "sync the directory"]
    journal.completed()
    work(journal)
    assert disk.calls[calls + 2 :] == [f"unlink {ONE}"]


def test_cut_at_every_byte_in_every_stage_restores_an_acknowledged_state() -> None:
    disk = Disk()
    stages: list[tuple[Disk, list[dict[str, dict[object, object]]]]] = []
    acknowledged = [after()]

    def stage() -> None:
        stages.append((disk.kill(), list(acknowledged)))

    journal, _ = start(disk)
    for changes in (BEFORE, DURING):
        journal.append(1.0, changes)
        acknowledged.append(after(BEFORE, DURING) if changes is DURING else after(BEFORE))
    stage()
    journal.begin_compaction()
    stage()
    journal.append_slice(2.0, [("a", "x", 1), ("b", "z", 3)])
    stage()
    journal.append(2.0, LATE)
    acknowledged.append(after(BEFORE, DURING, LATE))
    stage()
    journal.append_slice(2.0, [("b", "new", 4)])
    stage()
    journal.complete(2.0)
    stage()
    work(journal)
    stage()
    journal.completed()
    work(journal)
    synced = len(disk.data(TWO))
    journal.append(3.0, BEFORE)
    acknowledged.append(after(BEFORE, DURING, LATE, BEFORE))
    assert disk.segments() == [TWO]
    for found, states in stages:
        newest = found.segments()[-1]
        whole = found.data(newest)
        for size in range(len(whole) + 1):
            found.replace(newest, whole[:size])
            restored = read(found)
            assert restored in states
            assert entries(start(found.kill())[1]) == restored
        assert restored == states[-1]
    whole = disk.data(TWO)
    for size in range(synced, len(whole) + 1):
        disk.replace(TWO, whole[:size])
        assert read(disk) == acknowledged[-1 if size == len(whole) else -2]


def test_files_stay_bounded_under_writes() -> None:
    disk = Disk()
    journal, store = start(disk)
    slices: Iterator[list[Change]] | None = None
    largest = compactions = 0
    for number in range(3000):
        changes: list[Change] = [("a", number % 50, f"{number}".rjust(200)), ("b", number % 7, number)]
        journal.append(1.0, changes)
        store.apply(changes)
        if slices is None and journal.size > 4 * 50 * 250 and not journal._compacting:
            journal.begin_compaction()
            slices = parts(store, 5)
        elif slices is not None:
            try:
                journal.append_slice(1.0, next(slices))
            except StopIteration:
                journal.complete(1.0)
                slices = None
        else:
            work(journal)
            compactions += journal.completed()
        largest = max(largest, sum(len(disk.data(name)) for name in disk.segments()))
    assert compactions > 5
    assert largest < 12 * 50 * 250
    assert read(disk) == entries(store)


def parts(store: Store, size: int) -> Iterator[list[Change]]:
    """Yield what is there now in slices, each as it is when it is asked for."""
    keys = [(space.name, key) for space in store.spaces.values() for key in space.entries]
    for at in range(0, len(keys), size):
        yield [(name, key, store.get(name, key)) for name, key in keys[at : at + size]]


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [f"sync {ONE}", "create", "write journal.new", "sync journal.new", "rename", "sync the directory"]
)
def test_a_compaction_that_cannot_begin_leaves_the_journal_as_it_was(call: str) -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, BEFORE)
    work(journal)
    disk.fail(call)
    with pytest.raises(JournalFailed, match=os.strerror(errno.EIO)):
        journal.begin_compaction()
    disk.works()
    with pytest.raises(RuntimeError):
        journal.append_slice(1.0, [])
    if call.startswith(("sync journal.0", "sync the")):
        with pytest.raises(JournalFailed, match="until the next start"):
            journal.append(2.0, LATE)
        journal.close()
        expected = after(BEFORE)
    else:
        assert disk.segments() == [ONE]
        journal.append(2.0, LATE)
        expected = after(BEFORE, LATE)
        journal.begin_compaction()
    assert entries(start(disk.kill())[1]) == expected


def test_a_slice_that_fails_gives_up_the_completion_and_never_the_live_segment() -> None:
    disk, journal = begun()
    journal.append_slice(2.0, [("a", "x", 1)])
    numbers = journal.number, journal.size
    disk.fail("write", times=1)
    with pytest.raises(JournalFailed):
        journal.append_slice(2.0, [("a", "y", 2)])
    assert (journal.number, journal.size) == numbers
    with pytest.raises(RuntimeError, match="no compaction"):
        journal.append_slice(2.0, [])
    with pytest.raises(RuntimeError, match="no compaction"):
        journal.complete(2.0)
    journal.append(2.0, DURING)
    work(journal)
    assert not journal.completed()
    assert read(disk) == after(BEFORE, DURING)
    # the next one replaces all of it
    journal.begin_compaction()
    journal.append_slice(3.0, [("a", "x", 1), ("b", "z", 3), ("b", "new", 4)])
    journal.complete(3.0)
    work(journal)
    assert journal.completed()
    work(journal)
    assert disk.segments() == [THREE]
    assert read(disk) == after(BEFORE, DURING)


def test_a_completion_frame_that_fails_gives_up_too() -> None:
    disk, journal = begun()
    journal.append_slice(2.0, BEFORE)
    disk.fail("write", errno.ENOSPC, times=1)
    with pytest.raises(JournalFull):
        journal.complete(2.0)
    work(journal)
    assert not journal.completed()
    journal.begin_compaction()


def test_giving_up_leaves_everything_where_it_is() -> None:
    disk, journal = begun()
    journal.append_slice(2.0, [("a", "x", 1)])
    journal.give_up()
    journal.append(2.0, LATE)
    assert disk.segments() == [ONE, TWO]
    assert read(disk) == after(BEFORE, LATE)
    assert entries(start(disk.kill())[1]) == after(BEFORE, LATE)
    journal.give_up()


def test_a_completion_that_is_on_its_way_cannot_be_given_up() -> None:
    _, journal = compacted()
    journal.give_up()
    with pytest.raises(RuntimeError, match="going on"):
        journal.begin_compaction()
    work(journal)
    assert journal.completed()


@pytest.mark.parametrize("call", [f"sync {TWO}", "sync the directory"])
def test_a_completion_that_cannot_be_synced_removes_nothing(call: str) -> None:
    disk, journal = compacted()
    disk.fail(call)
    work(journal)
    disk.works()
    work(journal)
    assert not journal.completed()
    assert journal.failed is not None
    with pytest.raises(JournalFailed):
        journal.append(4.0, LATE)
    assert disk.segments() == [ONE, TWO]
    assert entries(start(disk.kill())[1]) == STATE


def test_an_older_segment_that_cannot_be_removed_goes_at_the_next_start(caplog: pytest.LogCaptureFixture) -> None:
    disk, journal = compacted()
    disk.fail("unlink")
    work(journal)
    assert journal.completed()
    work(journal)
    assert disk.segments() == [ONE, TWO]
    assert f"cannot remove /disk/{ONE}" in caplog.text
    assert journal.failed is None
    disk.works()
    _, store = start(disk)
    assert entries(store) == STATE
    assert disk.segments() == [TWO]


def test_one_compaction_at_a_time() -> None:
    disk, journal = begun()
    with pytest.raises(RuntimeError, match="going on"):
        journal.begin_compaction()
    assert disk.segments() == [ONE, TWO]


def test_a_compaction_goes_on_from_a_log_whose_end_could_not_be_cut_off() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, BEFORE)
    disk.room = sum(map(len, disk.contents().values())) + 10
    disk.fail("truncate")
    with pytest.raises(JournalFull):
        journal.append(2.0, DURING)
    disk.room = None
    with pytest.raises(JournalFailed):
        journal.begin_compaction()
    disk.works()
    journal.begin_compaction()
    assert list(map(len, (disk.data(ONE), disk.data(TWO)))) == [journal.size - 32, 32]
    assert read(disk) == after(BEFORE)


# -- when --------------------------------------------------------------------------------------------------------------

LITTLE = 2**16


@pytest.fixture
def little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SLACK", LITTLE)


def grown(journal: Journal, size: int) -> None:
    while journal.size < size:
        journal.append(1.0, [("a", "x", b"x" * (LITTLE // 16))])


@pytest.mark.usefixtures("little_slack")
def test_a_log_is_compacted_when_it_is_large_for_what_lives() -> None:
    journal, _ = start(Disk())
    grown(journal, LITTLE * 3 // 4)
    assert not journal.wants_compaction(0)
    grown(journal, LITTLE + 1)
    assert journal.wants_compaction(0)
    assert not journal.wants_compaction(journal.size // 2)
    journal.begin_compaction()
    assert not journal.wants_compaction(0)


@pytest.mark.usefixtures("little_slack")
def test_after_a_compaction_the_log_must_grow_again() -> None:
    journal, _ = start(Disk())
    live = 2 * LITTLE
    grown(journal, 2 * live + LITTLE + 1)
    assert journal.wants_compaction(live)
    journal.begin_compaction()
    journal.give_up()
    assert not journal.wants_compaction(live)
    assert journal.wants_compaction(live // 2), "there is so much less to write that it may work now"
    grown(journal, journal.size + LITTLE)
    assert journal.wants_compaction(live)


@pytest.mark.usefixtures("little_slack")
def test_no_compaction_begins_that_the_disk_has_no_room_for() -> None:
    disk = Disk()
    journal, _ = start(disk)
    grown(journal, 2 * (RESERVE + 100) + LITTLE + 100)
    disk.room = sum(map(len, disk.contents().values())) + 100
    assert journal.wants_compaction(RESERVE + 100)
    assert not journal.wants_compaction(RESERVE + 101)


def test_a_full_disk_is_made_room_on_by_a_compaction() -> None:
    disk = Disk()
    journal, _ = start(disk)
    grown(journal, RESERVE + 5 * LITTLE)
    assert not journal.wants_compaction(10_000)
    disk.room = sum(map(len, disk.contents().values()))
    with pytest.raises(JournalFull):
        journal.append(2.0, LATE)
    assert journal.wants_compaction(10_000), "it need not be as large as otherwise"
    journal.begin_compaction()
    journal.append_slice(2.0, [("a", "y", "z" * 5000)])
    journal.append(2.0, [("a", "x", ABSENT)], deletes_only=True)
    journal.complete(2.0)
    work(journal)
    assert journal.completed()
    work(journal)
    assert journal.restore_reserve()
    journal.append(3.0, LATE)
    assert read(disk) == after([("a", "y", "z" * 5000)], LATE)


def test_a_compaction_that_the_disk_fills_up_under_is_begun_again_once() -> None:
    disk = Disk()
    journal, _ = start(disk)
    grown(journal, RESERVE + 5 * LITTLE)
    journal.begin_compaction()
    disk.room = sum(map(len, disk.contents().values()))
    with pytest.raises(JournalFull):
        journal.append_slice(2.0, BEFORE)
    assert journal.wants_compaction(10_000)
    journal.begin_compaction()
    disk.fail("write", times=1)
    with pytest.raises(JournalFailed):
        journal.append_slice(2.0, BEFORE)
    assert not journal.wants_compaction(10_000)


def test_a_compaction_that_began_with_room_leaves_the_reserve_alone() -> None:
    disk, journal = begun()
    disk.room = sum(map(len, disk.contents().values()))
    with pytest.raises(JournalFull):
        journal.append_slice(2.0, BEFORE)
    journal.append(2.0, [("a", "x", ABSENT)], deletes_only=True)


@pytest.mark.usefixtures("little_slack")
def test_where_nobody_knows_how_much_room_there_is_no_compaction_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    journal, _ = start(disk)
    grown(journal, LITTLE + 1)

    def free() -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "free", free)
    assert not journal.wants_compaction(0)
    assert journal.restore_reserve(), "which is there"


# -- pins --------------------------------------------------------------------------------------------------------------


def copied(disk: Disk, files: list[tuple[str, int]]) -> Disk:
    copy = Disk()
    for name, size in files:
        copy.replace(name, disk.data(name)[:size])
    return copy


def test_a_backup_is_the_state_at_its_pin_whatever_happens_meanwhile() -> None:
    disk, journal = begun()
    first = journal.pin()
    journal.append(2.0, DURING)
    second = journal.pin()
    journal.append_slice(2.0, [("a", "x", 1), ("b", "z", 3), ("b", "new", 4)])
    journal.complete(2.0)
    work(journal)
    assert journal.completed()
    journal.append(3.0, LATE)
    third = journal.pin()
    work(journal)
    assert disk.segments() == [ONE, TWO]
    assert [name for name, _ in third.files] == [TWO]
    assert journal.size == len(disk.data(TWO)), "what only a pin keeps does not count"
    assert read(copied(disk, first.files)) == after(BEFORE)
    assert read(copied(disk, second.files)) == after(BEFORE, DURING)
    assert read(copied(disk, third.files)) == STATE
    journal.unpin(first)
    work(journal)
    assert disk.segments() == [ONE, TWO]
    journal.unpin(first)
    journal.unpin(second)
    work(journal)
    assert disk.segments() == [TWO]
    journal.unpin(third)
    assert read(disk) == STATE


def test_pins_do_not_outlive_the_process() -> None:
    disk, journal = begun()
    journal.pin()
    journal.append_slice(2.0, BEFORE)
    journal.complete(2.0)
    work(journal)
    journal.completed()
    work(journal)
    disk = disk.kill()
    assert disk.segments() == [ONE, TWO]
    start(disk)
    assert disk.segments() == [TWO]


def test_repr_says_where_it_is() -> None:
    _, journal = begun()
    assert repr(journal) == f"<Journal /disk segment 2 frame 5 {journal.size} bytes: slices>"
    journal.complete(2.0)
    assert repr(journal).endswith(": complete>")
    work(journal)
    journal.completed()
    assert repr(journal).endswith(": ready>")
