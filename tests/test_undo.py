"""A tick that cannot be logged: it is undone, reads go on, and only writers get the error. No file, no socket."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from state_manager.checks import OPTIONS
from state_manager.errors import StateError, StoreFull
from state_manager.service import Service
from state_manager.sessions import SESSIONS, Lane, LaneRecord
from state_manager.settings import SLOTS
from state_manager.store import ABSENT, Change, Entry, Store

FULL = StoreFull("the disk is full")


class FakeLog:
    """Keeps everything in a list, until it is told to fail."""

    def __init__(self) -> None:
        self.fails = False
        self.frames: list[tuple[list[Change], list[LaneRecord]]] = []

    def append(self, now: float, changes: Sequence[Change], lanes: Sequence[LaneRecord]) -> None:
        if self.fails:
            raise FULL
        self.frames.append((list(changes), list(lanes)))


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def service(log: FakeLog) -> Service:
    service = Service(Store(1), token=lambda: "ab" * 32, log=log)
    service.begin(1_000.0)
    return service


@pytest.fixture
def lane(service: Service) -> Lane:
    lane, _ = service.attach(b"s" * 16, 0, 42, 7)
    service.commit()
    return lane


def request(name: str, *args: Any, number: int | None = None) -> bytes:
    message = ["dict", name, list(args), {}]
    return msgpack.packb(message if number is None else [*message, number])


def state(service: Service) -> dict[str, dict[Any, Any]]:
    return {name: dict(space.entries) for name, space in service.store.spaces.items()}


def test_a_session_and_its_lane_are_kept_before_the_first_write(service: Service, log: FakeLog, lane: Lane) -> None:
    assert log.frames == [([(SESSIONS, 1, [b"s" * 16, 42, 7, "", 1_000.0])], [(lane.key, 0, b"")])]


def test_a_write_is_one_frame_with_its_reply(service: Service, log: FakeLog, lane: Lane) -> None:
    reply = service.handle(lane, request("set", "a", "x", 1, number=3))
    service.commit()
    assert log.frames[1:] == [([("a", "x", 1)], [(lane.key, 3, reply)])]
    service.handle(lane, request("get", "a", "x"))
    service.handle(lane, request("delete", "a", "nothing", number=4))
    service.commit()
    assert len(log.frames) == 2, "what changes nothing is not logged"


def test_what_cannot_be_logged_is_undone_and_versions_only_grow(service: Service, log: FakeLog, lane: Lane) -> None:
    service.handle(lane, request("set", "a", "x", 1, number=1))
    service.handle(lane, request("set", "a", "t", 1, 50.0, number=2))
    service.commit()
    before, reply, version = state(service), lane.reply, service.store.version("a", "x")
    log.fails = True
    writes: list[list[Any]] = [
        ["set", "a", "x", 2],
        ["pop", "a", "t"],
        ["set", "b", "y", 3, 5.0],
        ["clear", "a"],
        ["increment", "c", "n"],
    ]
    for number, write in enumerate(writes, 3):
        service.handle(lane, request(*write, number=number))
    assert state(service) != before
    with pytest.raises(StoreFull):
        service.commit()
    service.undo()
    assert state(service) == before
    assert (lane.number, lane.reply) == (2, reply)
    assert service.store.version("a", "x") > version
    service.store.check()
    log.fails = False
    service.begin(1_060.0)
    service.tidy()
    assert state(service)["a"] == {"x": 1}, "the deadline that was put back is still in force"


def test_while_refusing_reads_go_on_and_writers_get_the_error(service: Service, log: FakeLog, lane: Lane) -> None:
    service.handle(lane, request("set", "a", "x", 1, number=1))
    service.commit()
    with service.refusing(FULL):
        [kind, [name, text], number] = msgpack.unpackb(
            service.handle(lane, request("set", "a", "x", 2, number=2)) or b""
        )
        assert (kind, name, text, number) == ("#ERROR", "StoreFull", "the disk is full", 2)
        assert msgpack.unpackb(service.handle(lane, request("get", "a", "x")) or b"")[1][1] == 1
        assert msgpack.unpackb(service.handle(lane, request("add", "a", "x", 5, number=2)) or b"")[1] is False
    assert lane.number == 1, "the number is free for a retry"
    assert msgpack.unpackb(service.handle(lane, request("set", "a", "x", 2, number=2)) or b"")[0] == "#RETURN"


def test_while_refusing_what_has_expired_is_absent_and_waits(service: Service, lane: Lane) -> None:
    service.handle(lane, request("set", "a", "x", 1, 5.0, number=1))
    service.commit()
    service.begin(1_006.0)
    with service.refusing(FULL):
        assert len(msgpack.unpackb(service.handle(lane, request("get", "a", "x")) or b"")[1]) == 1
        assert service.store.get("a", "x") == Entry(1, 1_005.0)
    assert len(msgpack.unpackb(service.handle(lane, request("get", "a", "x")) or b"")[1]) == 1
    assert service.store.get("a", "x") is ABSENT


def test_a_sweep_that_cannot_be_logged_is_done_later(service: Service, log: FakeLog, lane: Lane) -> None:
    service.handle(lane, request("set", "a", "x", 1, 5.0, number=1))
    service.commit()
    service.begin(1_010.0)
    log.fails = True
    with pytest.raises(StateError):
        service.tidy()
    assert service.store.get("a", "x") is not ABSENT
    log.fails = False
    service.tidy()
    assert service.store.get("a", "x") is ABSENT
    assert log.frames[-1] == ([("a", "x", ABSENT)], [])


def test_an_attach_that_cannot_be_kept_is_undone_and_works_without(service: Service, log: FakeLog) -> None:
    log.fails = True
    service.attach(b"t" * 16, 0, 43, 8)
    with pytest.raises(StateError):
        service.commit()
    service.undo()
    assert SESSIONS not in service.store.spaces
    with service.refusing(FULL):
        lane, known = service.attach(b"t" * 16, 0, 43, 8)
        assert not known
    service.commit()
    log.fails = False
    service.handle(lane, request("set", "a", "x", 1, number=1))
    service.commit()
    [(changes, lanes)] = log.frames
    assert {change[0] for change in changes} == {"a", SESSIONS}
    assert lanes == [lane.record]


def test_the_end_of_a_session_waits_for_the_log(service: Service, log: FakeLog, lane: Lane) -> None:
    log.fails = True
    with pytest.raises(StateError):
        service.end(lane.session)
    assert service.sessions
    log.fails = False
    service.end(lane.session)
    assert service.sessions == {}
    assert log.frames[-1] == ([(SESSIONS, 1, ABSENT)], [(lane.key,)])


def replayed(log: FakeLog) -> Service:
    """A service that has read the log."""
    service = Service(Store(5), token=lambda: "", log=FakeLog())
    lanes: dict[int, tuple[int, bytes]] = {}
    for changes, records in log.frames:
        service.store.apply(changes)
        for record in records:
            if len(record) == 3:
                lanes[record[0]] = (record[1], record[2])
            else:
                lanes.pop(record[0], None)
    service.restore(lanes)
    service.begin(2_000.0)
    return service


def test_a_repeat_after_a_restart_gets_the_stored_reply(service: Service, log: FakeLog, lane: Lane) -> None:
    reply = service.handle(lane, request("increment", "a", "n", number=9))
    service.commit()
    again = replayed(log)
    lane, known = again.attach(b"s" * 16, 0, 42, 7)
    assert known
    assert again.handle(lane, request("increment", "a", "n", number=9)) == reply
    assert again.store.get("a", "n") == 1
    another, known = again.attach(b"u" * 16, 0, 43, 7)
    assert not known
    assert another.session.number == 2


def test_a_compacted_log_says_the_same_and_begins_with_the_lanes(service: Service, log: FakeLog, lane: Lane) -> None:
    reply = service.handle(lane, request("increment", "a", "n", number=9))
    for i in range(200):
        service.handle(lane, request("set", "big", i, "x" * 100, None if i % 2 else 50.0, number=10 + i))
    service.commit()
    compacted = FakeLog()
    for changes, records in service.snapshot(4_000):
        compacted.append(0.0, changes, records)
        if len(compacted.frames) == 3:  # ticks go on between the slices, and what they change is in the same log
            service.log = compacted
            service.handle(lane, request("set", "big", 199, "late", number=300))
            service.handle(lane, request("delete", "big", 0, number=301))
            service.handle(lane, request("clear", "a", number=302))
            service.commit()
    assert compacted.frames[0][1], "the lanes come first"
    assert len(compacted.frames) > 5
    assert max(sum(100 for _ in changes) for changes, _ in compacted.frames) <= 4_000
    again = replayed(compacted)
    assert state(again) == state(service)
    assert again.attach(b"s" * 16, 0, 42, 7)[0].number == 302
    assert reply is not None


def test_a_dict_that_is_not_durable_starts_empty(service: Service, log: FakeLog, lane: Lane) -> None:
    service.handle(lane, request("set", "cache", "old", 1, number=1))
    service.handle(lane, request("configure", "cache", ["durable", False], number=2))
    service.handle(lane, request("set", "cache", "x", 1, number=3))
    service.handle(lane, request("set", "kept", "x", 1, number=4))
    service.commit()
    again = replayed(log)
    assert set(again.store.spaces) == {"kept", OPTIONS, SESSIONS}
    frames = len(log.frames)
    service.handle(lane, request("set", "cache", "y", 2, number=5))
    service.commit()
    assert len(log.frames) == frames
    assert all(change[0] != "cache" for changes, _ in service.snapshot(100) for change in changes)


def test_an_ephemeral_entry_goes_with_its_writer_and_not_with_a_manager(
    service: Service, log: FakeLog, lane: Lane
) -> None:
    other, _ = service.attach(b"o" * 16, 0, 43, 8)
    service.handle(lane, request("configure", "here", ["ephemeral", True], number=1))
    service.handle(lane, request("set", "here", "mine", 1, number=2))
    service.handle(lane, request("set", "here", "short", 1, 30.0, number=3))
    service.handle(lane, request("increment", "here", "n", number=4))
    service.handle(other, request("set", "here", "theirs", 2, number=1))
    service.handle(other, request("increment", "here", "n", number=2))
    service.handle(lane, request("set", "kept", "x", 1, number=5))
    service.commit()
    service.store.check()
    assert msgpack.unpackb(service.handle(lane, request("ttl", "here", "mine")) or b"")[1] == [None]
    while not service.end(lane.session):
        pass
    service.store.check()
    assert set(state(service)["here"]) == {"theirs", "n"}
    assert state(service)["kept"] == {"x": 1}
    while not service.end(other.session):
        pass
    assert "here" not in service.store.spaces


def test_the_bound_of_all_memory() -> None:
    service = Service(Store(1), token=lambda: "", max_memory=20_000)
    service.begin(1_000.0)
    service.call("dict", "configure", ["cache", ["on_full", "evict"]])
    for i in range(100):
        service.call("dict", "set", ["cache", i, "x" * 500])
        assert service.store.bytes <= 20_000
    with pytest.raises(StoreFull, match="memory"):
        service.call("dict", "set", ["plain", 1, "x" * 5_000])
    service.call("dict", "clear", ["cache"])
    service.call("dict", "set", ["plain", 1, "x" * 5_000])
    service.call("counter", "increment", ["c"])


def test_a_page_that_is_undone_is_given_again(service: Service, log: FakeLog, lane: Lane) -> None:
    pairs = [part for i in range(1_500) for part in (i, i)]
    service.handle(lane, request("set_many", "a", pairs, number=1))
    service.commit()
    found: list[int] = []
    cursor = None
    while True:
        log.fails = True
        scan = request("scan", "a", cursor)
        service.handle(lane, scan)
        service.handle(lane, request("set", "b", "x", 1, number=2))
        with pytest.raises(StoreFull):
            service.commit()
        service.undo()
        log.fails = False
        [kind, answer] = msgpack.unpackb(service.handle(lane, scan) or b"")
        assert kind == "#RETURN", answer
        cursor, page, *_ = answer
        service.commit()
        found += page
        if cursor is None:
            break
    assert found == list(range(1_500))


def test_many_ephemeral_entries_go_in_slices(service: Service, lane: Lane) -> None:
    service.handle(lane, request("configure", "here", ["ephemeral", True], number=1))
    service.handle(lane, request("set_many", "here", [part for i in range(12_000) for part in (i, i)], number=2))
    service.commit()
    rounds = 1
    while not service.end(lane.session):
        rounds += 1
    assert rounds == 4
    assert "here" not in service.store.spaces
    service.store.check()


def test_a_dict_that_is_no_longer_ephemeral_keeps_what_is_written(service: Service, lane: Lane) -> None:
    service.handle(lane, request("configure", "here", ["ephemeral", True], number=1))
    service.handle(lane, request("set", "here", "n", 1, number=2))
    service.handle(lane, request("set", "here", "m", 1, number=3))
    service.handle(lane, request("configure", "here", ["ephemeral", False], number=4))
    service.handle(lane, request("increment", "here", "n", number=5))
    service.commit()
    while not service.end(lane.session):
        pass
    assert state(service)["here"] == {"n": 2}


class FakePage:
    def __init__(self) -> None:
        self.shown: dict[int, int] = {}

    def publish(self, versions: array[int], slots: Sequence[int]) -> None:
        self.shown |= {slot: versions[slot] for slot in slots}

    def publish_all(self, versions: array[int]) -> None:
        self.shown |= dict(enumerate(versions))


def test_readers_see_the_versions_after_an_undo_too(service: Service, log: FakeLog, lane: Lane) -> None:
    """What a read of the same tick answers, run again, carries the version that the undo left."""
    page = service.page = FakePage()
    log.fails = True
    service.handle(lane, request("set", "a", "x", 1, number=1))
    with pytest.raises(StoreFull):
        service.commit()
    assert not page.shown, "nothing is shown of what may not stay"
    service.undo()
    slot = zlib.crc32(b"x", zlib.crc32(b"a")) % SLOTS
    assert page.shown[slot] == service.store.versions[slot] == (1 << 32) + 2
