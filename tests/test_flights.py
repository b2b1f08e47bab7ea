"""Single flight and transactions as the manager runs them. Payloads in, payloads out."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from state_manager.checks import COUNTERS, FLIGHT
from state_manager.commands import flights
from state_manager.commands.transactions import CLEAR, DELETE, KEEP, SET
from state_manager.store import ABSENT, Entry
from tests.test_parking import Room


class FlightRoom(Room):
    def compute(self, who: int, wait: float = 20.0, lease: float = 60.0) -> Any:
        return self.ask(who, "dict", "compute", "d", "k", lease, wait)

    def computed(self, who: int, token: int, value: Any = "v") -> Any:
        return self.ask(who, "dict", "computed", "d", "k", token, value)

    def end(self, who: int) -> None:
        while not self.service.end(self.lanes[who].session):
            pass
        self.commit()

    def flight(self) -> Any:
        return self.service.store.get(FLIGHT + "d", "k")


@pytest.fixture
def room() -> FlightRoom:
    return FlightRoom()


def test_the_next_computes_if_one_ends(room: FlightRoom) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.compute(a)
    assert room.compute(b) is None
    assert room.compute(c) is None
    room.end(a)
    [second] = room.answers[b]
    assert second > token
    assert room.answers[c] == []
    assert room.computed(b, second) is True
    assert room.answers[c] == [True]
    assert room.flight() is ABSENT


def test_a_lease_frees(room: FlightRoom) -> None:
    a, b = room.lane(), room.lane()
    token = room.compute(a, lease=5.0)
    room.compute(b)
    room.at(5.0)
    [second] = room.answers[b]
    assert room.computed(a, token) is False
    assert room.computed(b, second, "w") is True
    assert room.service.store.get("d", "k") == "w"


def test_who_gives_up_lets_the_next_compute(room: FlightRoom) -> None:
    a, b = room.lane(), room.lane()
    other = room.lane(session=a)
    room.compute(a)
    room.compute(b)
    arguments = (a, room.lanes[a].number, "dict", "compute", ["d", "k", 60.0, 20.0])
    assert room.ask(other, "manager", "abandon", *arguments) is True
    assert len(room.answers[b]) == 1


def test_a_failure_is_told_once_to_those_who_wait_and_is_gone_soon(room: FlightRoom) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.compute(a)
    room.compute(b)
    room.ask(a, "dict", "failed", "d", "k", token, "ValueError: " + "x" * 5_000)
    [(name, text)] = room.answers[b]
    assert name == "ComputeFailed"
    assert len(text) == flights.FAILURE_LIMIT
    assert type(room.compute(c)) is int, "a newcomer tries again at once"
    room.ask(c, "dict", "failed", "d", "k", room.flight().value[0], "again")
    room.service.begin(room.service._view.now + 3.0)
    room.service.tidy()
    assert room.flight() is ABSENT


def test_nobody_finishes_for_another(room: FlightRoom) -> None:
    a, b = room.lane(), room.lane()
    token = room.compute(a)
    assert room.computed(b, token) is False
    assert room.computed(a, token + 1) is False
    room.ask(b, "dict", "failed", "d", "k", token, "no")
    room.ask(b, "dict", "give_up", "d", "k", token)
    assert room.flight().value[0] == token
    assert room.computed(a, token) is True
    assert room.computed(a, token) is False


def test_a_deletion_of_an_absent_key_says_no_version_of_another_key(room: FlightRoom) -> None:
    """Its reply is kept as a copy of the key's absence; with the flight's version that copy would never end."""
    a = room.lane()
    room.compute(a)
    import msgpack

    reply = room.service.handle(
        room.lanes[a], msgpack.packb(["dict", "delete", ["d", "k"], {}, room.lanes[a].number + 1])
    )
    assert msgpack.unpackb(reply or b"") == ["#RETURN", False, room.lanes[a].number]
    assert room.flight() is ABSENT


def test_refreshing_what_is_not_there(room: FlightRoom) -> None:
    a = room.lane()
    assert room.ask(a, "dict", "refresh", "d", "k", 60.0) is None
    assert room.flight() is ABSENT


def test_what_expires_while_it_is_computed_anew_is_stored(room: FlightRoom) -> None:
    a = room.lane()
    room.ask(a, "dict", "set", "d", "k", "old", 5.0)
    token = room.ask(a, "dict", "refresh", "d", "k", 60.0)
    assert room.ask(a, "dict", "refresh", "d", "k", 60.0) is None
    room.at(6.0)
    assert room.computed(a, token, "new") is True
    assert room.service.store.get("d", "k") == "new"


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("compute", [":d", "k", 60.0, 0.0]),
        ("compute", ["d", True, 60.0, 0.0]),
        ("compute", ["d", "k", 0, 0.0]),
        ("compute", ["d", "k", 60.0, -1.0]),
        ("refresh", ["d", 1.5, 60.0]),
        ("computed", ["d", "k", "1", "v"]),
        ("computed", ["d", "k", 1, ["v"]]),
        ("computed", ["d", "k", 1, "v", 0]),
        ("failed", ["d", "k", 1, 2]),
        ("give_up", ["d", "k", None]),
    ],
    ids=repr,
)
def test_bad_arguments(room: FlightRoom, command: str, args: list[Any]) -> None:
    assert room.ask(room.lane(), "dict", command, *args)[0] in ("ValueError", "TypeError")
    assert {name for name in room.service.store.spaces if name != ":sessions"} == set()


def test_who_has_no_lane_computes_nothing(room: FlightRoom) -> None:
    with pytest.raises(TypeError, match="lanes"):
        room.service.call_unattached("dict", "compute", ["d", "k", 60.0, 0.0])
    room.ask(room.lane(), "dict", "set", "d", "k", 1)
    assert room.service.call_unattached("dict", "compute", ["d", "k", 60.0, 0.0]) is True


# -- transactions ------------------------------------------------------------------------------------------------------


def commit(room: Room, who: int, reads: Any, writes: Any) -> Any:
    return room.ask(who, "transaction", "commit", reads, writes)


def test_a_commit_is_one_frame_and_a_repeat_of_it_counts_once(room: FlightRoom) -> None:
    a = room.lane()
    version = room.service.store.version("d", "n")
    writes = [["d", "n", SET, 1, None], ["e", 7, SET, "x", 60.0], [COUNTERS, "c", SET, 5, None]]
    frames = len(room.log.frames)
    assert commit(room, a, [["d", "n", version, inf]], writes) is None
    assert len(room.log.frames) == frames + 1
    assert room.service.store.get("e", 7) == Entry("x", 1_060.0)
    again = room.ask(a, "transaction", "commit", [["d", "n", version, inf]], writes, number=room.lanes[a].number)
    assert again is None
    assert commit(room, a, [["d", "n", version, inf]], writes)[0] == "Conflict"
    assert len(room.log.frames) == frames + 1


def test_a_commit_that_cannot_be_logged_leaves_nothing(room: FlightRoom) -> None:
    a = room.lane()
    room.ask(a, "dict", "set", "d", "k", 1)
    room.log.fails = True
    room.handle(a, "transaction", "commit", [], [["d", None, CLEAR, None, None], ["e", "x", SET, 1, None]])
    with pytest.raises(Exception, match="disk is full"):
        room.service.commit()
    room.service.undo()
    assert room.service.store.get("d", "k") == 1
    assert "e" not in room.service.store.spaces


def test_what_a_commit_wakes(room: FlightRoom) -> None:
    a, b = room.lane(), room.lane()
    room.compute(a)
    room.compute(b)
    commit(room, a, [], [["d", "k", DELETE, None, None]])
    assert len(room.answers[b]) == 1


def test_keep_keeps_the_deadline(room: FlightRoom) -> None:
    a = room.lane()
    room.ask(a, "dict", "set", "d", "k", 1, 60.0)
    commit(room, a, [], [["d", "k", KEEP, 2, None], ["d", "new", KEEP, 3, None]])
    assert room.service.store.get("d", "k") == Entry(2, 1_060.0)
    assert room.service.store.get("d", "new") == 3


@pytest.mark.parametrize(
    ("reads", "writes"),
    [
        ({}, []),
        ([], {}),
        ([["d"]], []),
        ([["d", "k", 1]], []),
        ([["d", "k", "1", inf]], []),
        ([["d", "k", 1, None]], []),
        ([["d", True, 1, inf]], []),
        ([[":sessions", "k", 1, inf]], []),
        ([[":secrets", "k", 1, inf]], []),
        ([], [["d", "k", SET]]),
        ([], [["d", "k", SET, [1], None]]),
        ([], [["d", "k", SET, 1, -1]]),
        ([], [["d", None, SET, 1, None]]),
        ([], [[":sessions", 1, DELETE, None, None]]),
        ([], [[COUNTERS, "c", SET, "x", None]]),
        ([], [["d", "k", 7, 1, None]]),
        ([], [[COUNTERS, 7, SET, 1, None]]),
        ([], [[COUNTERS, None, CLEAR, None, None]]),
        ([], [["d", "k", SET, 1, None]] * 100_001),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_commit(room: FlightRoom, reads: Any, writes: Any) -> None:
    before = room.service.store.entries
    assert commit(room, room.lane(), reads, writes)[0] in ("ValueError", "TypeError", "TooLarge")
    assert room.service.store.entries <= before + 1  # its session
