"""Damage is named and never silently skipped; the trace of a crash is cut off and told; ``recover`` saves the rest."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import pytest

from state_manager.errors import StateError
from state_manager.journal import Journal, Reading
from state_manager.journal.frames import COMPLETE, LIVE, SEGMENT_HEADER, SLICE, Encoder, segment_header
from state_manager.store import Change
from tests.journal_disk import Disk, Killed, after, entries, read, start, work

ONE, TWO, THREE = "journal.00000001", "journal.00000002", "journal.00000003"


def tick(number: int) -> list[Change]:
    return [("a", number, "x" * number), ("a", "last", number)]


def ticks(*numbers: int) -> dict[str, dict[object, object]]:
    return after(*map(tick, numbers))


def written(count: int, synced_after: int) -> tuple[Disk, list[int]]:
    """Return a disk with so many ticks, synced after that one, and where each frame ends."""
    disk = Disk()
    journal, _ = start(disk)
    ends = [journal.size]
    for number in range(1, count + 1):
        journal.append(float(number), tick(number), [(1, number, b"r")])
        ends.append(journal.size)
        if number == synced_after:
            work(journal)
    return disk.kill(), ends


def spoilt(disk: Disk, name: str, spoil: Callable[[bytes], bytes]) -> Disk:
    found = disk.kill()
    found.replace(name, spoil(found.data(name)))
    return found


def flip(offset: int, bit: int = 0) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]


def test_every_flipped_bit_is_told_and_only_what_was_not_synced_is_cut_off() -> None:
    disk, ends = written(6, synced_after=3)
    for offset in range(len(disk.data(ONE))):
        for bit in range(8):
            found = spoilt(disk, ONE, flip(offset, bit))
            before = found.contents()
            good = sum(end <= offset for end in ends) - 1
            if good < 3:  # frames 4 to 6 say that frames 1 to 3 were on disk
                where = ends[good] if good >= 0 else 0
                with pytest.raises(StateError, match=re.escape(f"/disk/{ONE}, offset {where}: ")) as caught:
                    start(found)
                assert "--recover" in str(caught.value)
                assert found.contents() == before
            else:
                journal, store = start(found)
                assert entries(store) == ticks(*range(1, good + 1))
                assert f"/disk/{ONE}, offset {ends[good]}: " in journal.report
                assert len(found.data(ONE)) == ends[good]


def test_a_bit_that_flipped_after_an_orderly_end_is_damage() -> None:
    disk = Disk()
    journal, _ = start(disk)
    journal.append(1.0, tick(1))
    end = journal.size
    journal.close()
    for offset in range(SEGMENT_HEADER, end):
        with pytest.raises(StateError, match=f"offset {SEGMENT_HEADER}: "):
            start(spoilt(disk, ONE, flip(offset)))


@pytest.mark.parametrize("tail", [bytes(1), bytes(39), bytes(4096), b"\xff" * 100, b"\xc1\xfe" * 50], ids=repr)
def test_a_tail_of_rubbish_is_cut_off(tail: bytes) -> None:
    disk, ends = written(3, synced_after=3)
    journal, store = start(spoilt(disk, ONE, lambda data: data + tail))
    assert entries(store) == ticks(1, 2, 3)
    assert f"offset {ends[3]}: " in journal.report
    assert f"the {len(tail)} bytes from there on" in journal.report


def test_zeros_where_synced_frames_were_are_damage() -> None:
    disk, ends = written(6, synced_after=3)
    for first in range(6):
        found = spoilt(disk, ONE, lambda data, at=ends[first]: data[:at] + bytes(40) + data[at + 40 :])  # type: ignore[misc]
        if first < 3:
            with pytest.raises(StateError, match=f"offset {ends[first]}: "):
                start(found)
        else:
            assert entries(start(found)[1]) == ticks(*range(1, first + 1))


def test_what_was_synced_is_known_from_a_frame_whose_body_is_damaged_too() -> None:
    disk, ends = written(4, synced_after=3)
    found = spoilt(spoilt(disk, ONE, flip(ends[1] + 5)), ONE, flip(ends[4] - 1))
    with pytest.raises(StateError, match=f"offset {ends[1]}: "):
        start(found)


# -- several segments --------------------------------------------------------------------------------------------------


def segment(number: int, first: int, *kinds: int, synced: int = 0) -> bytes:
    """Return a segment of frames of these kinds, each with the tick of its number."""
    encoder = Encoder(number)
    data = segment_header(number, first)
    for frame, kind in enumerate(kinds, first):
        data += encoder.encode(frame, float(frame), kind, synced, () if kind == COMPLETE else tick(frame), ())
    return data


def disk_of(**segments: bytes) -> Disk:
    disk = Disk()
    for name, data in segments.items():
        disk.replace(f"journal.0000000{name[1:]}", data)
    return disk


def test_reading_begins_at_the_newest_segment_that_is_complete() -> None:
    one = segment(1, 1, LIVE)
    two = segment(2, 2, SLICE, COMPLETE, LIVE)
    three = segment(3, 5, SLICE, COMPLETE)
    four = segment(4, 7, SLICE)
    assert read(disk_of(s1=one, s2=two)) == ticks(2, 4)
    assert read(disk_of(s1=one, s2=two, s3=three)) == ticks(5)
    assert read(disk_of(s2=two, s3=three, s4=four)) == ticks(5, 7)
    assert read(disk_of(s1=one, s2=segment(2, 2, SLICE, LIVE))) == ticks(1, 2, 3)


def test_both_complete_the_older_one_goes() -> None:
    disk = disk_of(s1=segment(1, 1, LIVE), s2=segment(2, 2, SLICE, COMPLETE), s3=segment(3, 4, SLICE, COMPLETE))
    journal, store = start(disk)
    assert entries(store) == ticks(4)
    assert disk.segments() == [THREE]
    assert journal.size == len(disk.data(THREE))


def test_a_segment_that_is_complete_behind_damage_is_not() -> None:
    """As after a power failure that left out a slice and not what came after it."""
    one, two = segment(1, 1, LIVE, LIVE), segment(2, 3, SLICE, SLICE, COMPLETE, LIVE, synced=2)
    for offset in range(SEGMENT_HEADER, len(segment(2, 3, SLICE, SLICE))):
        disk = disk_of(s1=one, s2=flip(offset)(two))
        assert read(disk) in (ticks(1, 2), ticks(1, 2, 3))
        start(disk)
        assert ONE in disk.names()


@pytest.mark.parametrize(
    ("segments", "named"),
    [
        (
            {"s1": segment(1, 1, LIVE, LIVE)[:-1], "s2": segment(2, 3, SLICE)},
            f"{ONE}, offset {len(segment(1, 1, LIVE))}: ",
        ),
        ({"s1": flip(60)(segment(1, 1, LIVE, LIVE)), "s2": segment(2, 3, SLICE)}, f"{ONE}, offset 32: "),
        ({"s1": segment(1, 1, LIVE), "s2": segment(2, 3, SLICE)}, f"{TWO}, offset 0: it begins with frame 3"),
        ({"s1": segment(1, 1, LIVE), "s3": segment(3, 2, SLICE)}, f"{THREE}, offset 0: the segment before it is miss"),
        ({"s2": segment(2, 3, SLICE, LIVE)}, f"{TWO}, offset {len(segment(2, 3, SLICE, LIVE))}: it ends before"),
        ({"s2": segment(2, 3, SLICE, COMPLETE)[:-1]}, f"{TWO}, offset {len(segment(2, 3, SLICE))}: a frame was not"),
        ({"s2": segment(2, 3, SLICE, COMPLETE)[:5]}, f"{TWO}, offset 0: the file ends within its header"),
        ({"s2": flip(60)(segment(2, 3, SLICE, COMPLETE))}, f"{TWO}, offset 32: "),
        ({"s1": segment(1, 1, LIVE), "s2": flip(9)(segment(2, 2, SLICE))}, f"{TWO}, offset 0: the file's header"),
        ({"s1": segment(2, 1, LIVE)}, f"{ONE}, offset 0: the file's header is not that of this segment"),
    ],
)
def test_what_a_crash_cannot_do_is_damage(segments: dict[str, bytes], named: str) -> None:
    disk = disk_of(**segments)
    before = disk.contents()
    with pytest.raises(StateError, match=re.escape(f"/disk/{named}")):
        start(disk)
    assert disk.contents() == before


def test_files_of_other_names_are_left_alone() -> None:
    disk = disk_of(s1=segment(1, 1, LIVE))
    others = ("journal.00000002.damaged", "journal.2", "journal.000000002", "xjournal.00000002", "journal.00000003~")
    for name in others:
        disk.replace(name, b"other")
    assert entries(start(disk)[1]) == ticks(1)
    assert {disk.data(name) for name in others} == {b"other"}


def test_a_tail_that_is_shorter_than_a_header_is_no_segment() -> None:
    for size in range(SEGMENT_HEADER):
        disk = disk_of(s1=segment(1, 1, LIVE), s2=segment(2, 2, SLICE)[:size])
        journal, store = start(disk)
        assert entries(store) == ticks(1)
        assert f"{TWO}, offset 0" in journal.report
        journal.append(2.0, tick(2))
        journal.begin_compaction()
        assert entries(start(disk.kill())[1]) == ticks(1, 2)


# -- recover -----------------------------------------------------------------------------------------------------------


def test_recover_saves_all_that_can_be_read_and_keeps_the_damaged_file() -> None:
    disk, ends = written(6, synced_after=6)
    journal, _ = start(disk)
    journal.append(7.0, tick(7))  # which says that the others were synced
    work(journal)
    for lost in range(1, 7):
        found = spoilt(disk, ONE, flip(ends[lost] - 1))
        damaged = found.data(ONE)
        with pytest.raises(StateError, match="damaged"):
            start(found)
        journal, store = start(found, recover=True)
        saved = [number for number in range(1, 8) if number != lost]
        assert entries(store) == ticks(*saved)
        assert found.segments() == [TWO]
        assert found.data(f"{ONE}.damaged") == damaged
        assert f"{ONE}, offset {ends[lost - 1]}: frame {lost} is damaged" in journal.report
        assert f"6 frames were saved; the damaged files are kept as {ONE}.damaged" in journal.report
        journal.append(9.0, tick(9))
        journal, store = start(found.kill())
        assert entries(store) == ticks(*saved, 9)
        assert journal.report == ""


def test_recover_does_nothing_where_nothing_is_damaged() -> None:
    disk, ends = written(6, synced_after=3)
    found = spoilt(disk, ONE, flip(ends[5] + 3))
    journal, store = start(found, recover=True)
    assert entries(store) == ticks(1, 2, 3, 4, 5)
    assert sorted(found.names()) == [ONE, "journal.reserve"]
    assert "offset" in journal.report


@pytest.mark.parametrize(
    ("segments", "saved"),
    [
        ({"s1": segment(1, 1, LIVE, LIVE)[:-1], "s2": segment(2, 3, SLICE)}, [1, 3]),
        ({"s1": segment(1, 1, LIVE), "s2": segment(2, 3, SLICE)}, [1, 3]),
        ({"s1": segment(1, 1, LIVE), "s3": segment(3, 2, SLICE)}, [1, 2]),
        ({"s2": segment(2, 3, SLICE, LIVE)}, [3, 4]),
        ({"s2": segment(2, 3, SLICE, COMPLETE)[:5]}, []),
        ({"s2": bytes(SEGMENT_HEADER) + segment(2, 3, SLICE, LIVE, COMPLETE)[SEGMENT_HEADER:]}, [3, 4]),
        ({"s1": segment(1, 1, LIVE), "s2": flip(9)(segment(2, 2, SLICE, LIVE))}, [1, 2, 3]),
        ({"s1": flip(60)(segment(1, 1, LIVE, LIVE)), "s2": segment(2, 3, SLICE, COMPLETE)}, None),
    ],
)
def test_recover_goes_on_from_every_kind_of_damage(segments: dict[str, bytes], saved: list[int] | None) -> None:
    disk = disk_of(**segments)
    before = disk.contents()
    journal, store = start(disk, recover=True)
    expected = ticks(3) if saved is None else ticks(*saved)
    assert entries(store) == expected
    if saved is None:
        assert journal.report == "", "damage that does not count any more is none"
        return
    kept = [name for name in disk.names() if ".damaged" in name]
    assert kept
    assert all(disk.data(name) == before[name.removesuffix(".damaged")] for name in kept)
    journal.append(50.0, tick(50))
    work(journal)
    _, store = start(disk.kill())
    assert entries(store) == after(*map(tick, saved), tick(50))


def test_recover_may_break_off_at_any_point_and_be_done_again() -> None:
    disk, ends = written(6, synced_after=5)
    damaged = spoilt(disk, ONE, flip(ends[2] - 1))
    original = damaged.data(ONE)
    chance = random.Random("recover")
    for point in itertools.count():
        found = damaged.kill()
        found.kill_at(point)
        try:
            start(found, recover=True)
        except Killed:
            pass
        else:
            break
        for again in (found.kill(), *(found.lose_power(chance) for _ in range(20))):
            journal, store = start(again, recover=True)
            assert entries(store) == ticks(1, 3, 4, 5, 6), f"broken off at {point}"
            assert original in again.contents().values()
            assert journal.number >= 6
    assert point > 8


def test_damage_after_damage_is_kept_under_other_names() -> None:
    disk, ends = written(6, synced_after=6)
    journal, _ = start(disk)
    journal.append(7.0, tick(7))
    for name in (f"{ONE}.damaged", f"{ONE}.damaged-2"):
        disk.replace(name, b"former")
    found = spoilt(disk, ONE, flip(ends[2] - 1))
    start(found, recover=True)
    assert f"{ONE}.damaged-3" in found.names()
    assert found.data(f"{ONE}.damaged") == b"former"


def test_a_start_that_was_refused_holds_nothing() -> None:
    disk, ends = written(6, synced_after=6)
    journal, _ = start(disk)
    journal.append(7.0, tick(7))
    found = spoilt(disk, ONE, flip(ends[2] - 1))
    refused = Journal(found, mode="process")
    with pytest.raises(StateError, match="damaged"):
        list(refused.replay())
    refused.close()
    assert found.open_files == {}
    reading = Reading(found)
    next(iter(reading))
    del reading
    assert found.open_files == {}
