"""The format: what comes back, what is noticed, and the bytes themselves, which no later version may change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_manager.errors import StateError, TooLarge
from state_manager.journal import frames
from state_manager.journal.frames import (
    COMPLETE,
    FRAME_HEADER,
    LIVE,
    SEGMENT_HEADER,
    SLICE,
    Encoder,
    Frame,
    NewerVersion,
    Problem,
    Scan,
    read_segment_header,
    segment_header,
)
from state_manager.store import ABSENT, NEVER, Entry

SEGMENT, FIRST = 3, 41

KEYS = st.one_of(st.text(max_size=5), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=5))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.binary()
)
VALUES = st.one_of(SCALARS, st.recursive(st.lists(SCALARS, max_size=3), lambda inner: st.lists(inner, max_size=3)))
DEADLINES = st.one_of(st.just(NEVER), st.floats(0, 1e12))
ENTRIES = st.builds(Entry, VALUES, DEADLINES, st.one_of(st.none(), st.integers(0, 2**40)))
CHANGES = st.one_of(
    st.tuples(st.text(max_size=5), KEYS, st.one_of(VALUES, ENTRIES, st.just(ABSENT))),
    st.tuples(st.text(max_size=5), st.none(), st.just(ABSENT)),
)
LANES = st.one_of(
    st.tuples(st.integers(0, 2**63), st.integers(0, 2**40), st.binary(max_size=20)), st.tuples(st.integers(0, 2**63))
)


def scan(data: bytes, first: int = FIRST, segment: int = SEGMENT) -> Scan:
    return Scan(lambda offset, size: data[offset : offset + size], len(data), segment, first)


def built(*ticks: Any, synced: int = 0) -> tuple[bytes, list[int]]:
    """Return a segment with one frame for each list of changes, and where each of them ends."""
    data = segment_header(SEGMENT, FIRST)
    ends = [len(data)]
    encoder = Encoder(SEGMENT)
    for number, changes in enumerate(ticks, FIRST):
        data += encoder.encode(number, 1.5 * number, LIVE, synced, changes, [(7, number, b"reply")])
        ends.append(len(data))
    return data, ends


TICKS: list[list[Any]] = [
    [("carts", "alice", b"\x81\xa1a\x01")],
    [("carts", 5, Entry("x", 17.25)), ("carts", b"b", ABSENT), ("visits", None, ABSENT)],
    [(":sessions", 1, [b"id", 77, None]), ("hits", "", -1)],
]


GOLDEN_SEGMENT = "534d4a524e4c0d0a0100000003000000000000002900000000000000bc7d77ac"
GOLDEN_FRAME = (
    "c1fe012a0000002900000000000000000000000000f83f28000000000000006368d8d2f377d4d7929393a173a16ba176"
    "93a1730183000201cb4004000000000000020393a173c08092930708c401729109"
)


def test_the_bytes_are_these() -> None:
    """Whoever changes them makes every journal unreadable that there is."""
    frame = Encoder(SEGMENT).encode(
        FIRST, 1.5, SLICE, 40, [("s", "k", "v"), ("s", 1, Entry(2, 2.5, 3)), ("s", None, ABSENT)], [(7, 8, b"r"), (9,)]
    )
    assert segment_header(SEGMENT, FIRST).hex() == GOLDEN_SEGMENT
    assert frame.hex() == GOLDEN_FRAME
    found = list(scan(bytes.fromhex(GOLDEN_SEGMENT + GOLDEN_FRAME)))
    changes: list[Any] = [("s", "k", "v"), ("s", 1, Entry(2, 2.5, 3)), ("s", None, ABSENT)]
    assert found == [Frame(FIRST, 1.5, SLICE, 40, changes, [(7, 8, b"r"), (9,)])]
    assert type(found[0]) is Frame


@given(
    st.lists(st.tuples(st.lists(CHANGES, max_size=4), st.lists(LANES, max_size=3)), max_size=5),
    st.sampled_from([LIVE, SLICE, COMPLETE]),
    st.floats(0, 1e12),
)
def test_what_is_written_comes_back_with_its_types(ticks: Any, kind: int, now: float) -> None:
    encoder = Encoder(SEGMENT)
    data = segment_header(SEGMENT, FIRST)
    for number, (changes, lanes) in enumerate(ticks, FIRST):
        data += encoder.encode(number, now, kind, number - 1, changes, lanes)
    scanned = scan(data)
    found = list(scanned)
    assert [(frame.changes, frame.lanes) for frame in found] == ticks
    assert repr([frame.changes for frame in found]) == repr([changes for changes, _ in ticks])  # 1 is not True or 1.0
    assert [frame[:4] for frame in found] == [(number, now, kind, number - 1) for number, _ in enumerate(ticks, FIRST)]
    assert (scanned.problem, scanned.offset) == (None, len(data))


def test_nan_comes_back() -> None:
    data, _ = built([("a", "x", math.nan), ("a", "y", Entry(math.nan, 1.0))])
    (frame,) = scan(data)
    assert math.isnan(frame.changes[0][2])
    assert math.isnan(frame.changes[1][2].value)


def test_cut_at_every_byte_gives_the_frames_before_the_cut() -> None:
    data, ends = built(*TICKS)
    for size in range(SEGMENT_HEADER, len(data)):
        scanned = scan(data[:size])
        found = list(scanned)
        whole = sum(end <= size for end in ends[1:])
        assert [frame.changes for frame in found] == TICKS[:whole]
        assert scanned.offset == ends[whole]
        assert scanned.number == FIRST + whole - 1
        if size == ends[whole]:
            assert scanned.problem is None
        else:
            assert scanned.problem == Problem(ends[whole], "a frame was not written to its end", torn=True)


def test_every_flipped_bit_is_noticed_where_it_is() -> None:
    data, ends = built(*TICKS)
    for bit in range(SEGMENT_HEADER * 8, len(data) * 8):
        scanned = scan(flipped(data, bit))
        found = list(scanned)
        whole = sum(end <= bit // 8 for end in ends[1:])
        assert [frame.changes for frame in found] == TICKS[:whole]
        assert scanned.problem is not None
        assert scanned.problem.offset == ends[whole]
        assert not scanned.problem.torn, "a length cannot be wrong unnoticed"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_segment_header_is_noticed() -> None:
    data = segment_header(SEGMENT, FIRST)
    assert read_segment_header(data, SEGMENT) == FIRST
    for bit in range(len(data) * 8):
        found = read_segment_header(flipped(data, bit), SEGMENT)
        assert isinstance(found, Problem)
        assert not found.torn
    for size in range(len(data)):
        found = read_segment_header(data[:size], SEGMENT)
        assert isinstance(found, Problem)
        assert found.torn


def test_a_segment_is_not_another_one() -> None:
    assert isinstance(read_segment_header(segment_header(4, FIRST), SEGMENT), Problem)
    frame = Encoder(4).encode(FIRST, 1.0, LIVE, 0, [], [])
    scanned = scan(segment_header(SEGMENT, FIRST) + frame)
    assert list(scanned) == []
    assert scanned.problem == Problem(SEGMENT_HEADER, "there is no frame where one should be", torn=False)


def test_a_newer_format_is_named_and_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "VERSION", 2)
    newer = segment_header(SEGMENT, FIRST)
    monkeypatch.undo()
    with pytest.raises(NewerVersion, match=r"format 2.* up to 1: upgrade it"):
        read_segment_header(newer, SEGMENT)
    assert issubclass(NewerVersion, StateError)


@pytest.mark.parametrize("size", [FRAME_HEADER, FRAME_HEADER + 1, 5000])
def test_zeros_are_no_frames(size: int) -> None:
    data, ends = built(*TICKS)
    scanned = scan(data + bytes(size))
    assert len(list(scanned)) == len(TICKS)
    assert scanned.problem is not None
    assert (scanned.problem.offset, scanned.problem.torn) == (ends[-1], False)
    assert not scanned.find()


def test_a_frame_that_is_missing_is_noticed() -> None:
    data, ends = built(*TICKS)
    scanned = scan(data[: ends[0]] + data[ends[1] :])
    assert list(scanned) == []
    assert scanned.problem is not None
    assert scanned.problem.reason == "frame 42 is where frame 41 should be"
    assert scanned.find()
    assert [frame.number for frame in scanned] == [42, 43]


def test_a_frame_of_long_ago_is_no_frame() -> None:
    data, ends = built(*TICKS)
    scanned = scan(data + data[ends[0] :])
    assert [frame.number for frame in scanned] == [41, 42, 43]
    assert scanned.problem is not None
    assert not scanned.find(), "what is older than what was read does not go on from there"


@pytest.mark.parametrize("chunk", [FRAME_HEADER, 64, 100, 2**20])
@pytest.mark.parametrize("spoil", [lambda start, end: start + 5, lambda start, end: end - 1], ids=["header", "body"])
def test_frames_are_found_again_behind_damage(
    spoil: Callable[[int, int], int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "CHUNK", chunk)
    ticks: list[list[Any]] = [[("a", n, b"\xc1\xfe" * n)] for n in range(40)]
    data, ends = built(*ticks)
    for lost in range(40):
        scanned = scan(flipped(data, 8 * spoil(ends[lost], ends[lost + 1])))
        found = [frame.number for frame in scanned]
        assert scanned.problem is not None
        assert scanned.problem.offset == ends[lost]
        if scanned.find():
            assert scanned.problem is None
            found += [frame.number for frame in scanned]
        assert found == [number for number in range(FIRST, FIRST + 40) if number != FIRST + lost]


def test_two_damages_are_two_problems() -> None:
    data, ends = built(*[[("a", n, n)] for n in range(6)])
    scanned = scan(flipped(flipped(data, 8 * ends[2] - 1), 8 * ends[4] + 50))
    numbers = []
    problems = []
    while True:
        numbers += [frame.number for frame in scanned]
        problems.append(scanned.problem and scanned.problem.offset)
        if scanned.problem is None or not scanned.find():
            break
    assert numbers == [41, 43, 44, 46]
    assert problems == [ends[1], ends[4], None]


def test_frames_inside_a_damaged_body_are_not_found() -> None:
    """A value may be a copy of a journal."""
    inner = Encoder(SEGMENT).encode(FIRST + 1, 1.0, LIVE, 0, [("a", "x", "old")], [])
    data, ends = built([("a", "x", inner)], [("a", "y", 1)])
    scanned = scan(flipped(data, 8 * ends[1] - 1))
    assert list(scanned) == []
    assert scanned.find()
    assert [frame.changes for frame in scanned] == [[("a", "y", 1)]]


def test_the_first_frame_is_taken_where_nobody_knows_its_number() -> None:
    data, _ = built(*TICKS)
    assert [frame.number for frame in scan(data, first=0)] == [41, 42, 43]


def test_a_good_header_tells_what_was_synced() -> None:
    data, _ends = built(*TICKS, synced=40)
    scanned = scan(flipped(data, 8 * len(data) - 1))
    assert [frame.number for frame in scanned] == [41, 42]
    assert scanned.synced == 40


@pytest.mark.parametrize("chunk", [FRAME_HEADER, 64, 4096])
def test_frames_may_be_longer_than_what_is_read_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "CHUNK", chunk)
    ticks = [[("a", n, bytes(n * 50))] for n in range(100)]
    data, _ = built(*ticks)
    assert [frame.changes for frame in scan(data)] == ticks


def test_reading_asks_for_no_more_than_there_is() -> None:
    data, _ = built(*TICKS)
    asked: list[int] = []

    def read(offset: int, size: int) -> bytes:
        asked.append(offset + size)
        return data[offset : offset + size]

    assert len(list(Scan(read, len(data), SEGMENT, FIRST))) == 3
    assert max(asked) == len(data)


def test_a_body_that_is_no_tick_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(SEGMENT)
    monkeypatch.setattr(encoder, "_pack", lambda tick: b"\x01")
    scanned = scan(segment_header(SEGMENT, FIRST) + encoder.encode(FIRST, 1.0, LIVE, 0, [], []))
    assert list(scanned) == []
    assert scanned.problem is not None
    assert "cannot be decoded (TypeError" in scanned.problem.reason


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", 1j])
def test_what_cannot_be_written_leaves_the_encoder_usable(value: object) -> None:
    encoder = Encoder(SEGMENT)
    good = encoder.encode(FIRST, 1.0, LIVE, 0, TICKS[0], [])
    with pytest.raises((TypeError, OverflowError, UnicodeEncodeError)):
        encoder.encode(FIRST, 1.0, LIVE, 0, [("a", "x", "before"), ("a", "y", value)], [])
    assert encoder.encode(FIRST, 1.0, LIVE, 0, TICKS[0], []) == good


def test_a_frame_over_its_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    encoder = Encoder(SEGMENT)
    monkeypatch.setattr(encoder, "_pack", lambda tick: Huge())
    with pytest.raises(TooLarge, match=f"a frame of {2**32} bytes"):
        encoder.encode(FIRST, 1.0, LIVE, 0, [], [])


def test_the_memory_of_a_large_frame_is_given_back() -> None:
    encoder = Encoder(SEGMENT)
    packer = encoder._pack
    encoder.encode(FIRST, 1.0, LIVE, 0, [("a", "x", bytes(frames._LARGE - 100))], [])
    assert encoder._pack is packer
    encoder.encode(FIRST, 1.0, LIVE, 0, [("a", "x", bytes(frames._LARGE))], [])
    assert encoder._pack is not packer
