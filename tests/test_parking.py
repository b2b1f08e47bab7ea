"""Requests that wait: lines, undo, broken connections, requests that are given up. Payloads in, payloads out."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from state_manager import parking, service
from state_manager.checks import LOCKS
from state_manager.errors import StoreFull
from state_manager.service import RETRY, Service
from state_manager.sessions import Lane
from state_manager.store import ABSENT, NEVER, Store
from tests.test_undo import FakeLog

NOW = 1_000.0


class Room:
    """A service, clients that each have a lane, and what they were answered."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.service = Service(Store(1), token=lambda: "", log=self.log)
        self.service.begin(NOW)
        self.lanes: list[Lane] = []
        self.answers: dict[int, list[Any]] = {}

    def lane(self, session: int | None = None) -> int:
        """Return the number of a new client, or of another lane of one."""
        id_ = b"%016d" % (len(self.lanes) if session is None else session)
        lane, _ = self.service.attach(id_, len(self.lanes), 42, 7)
        self.service.commit()
        self.lanes.append(lane)
        self.answers[len(self.lanes) - 1] = []
        return len(self.lanes) - 1

    def handle(self, who: int, kind: str, name: str, *args: Any, number: int | None = None) -> Any:
        """Run a request without a commit; return the answer, None if there is none yet."""
        lane = self.lanes[who]
        number = lane.number + 1 if number is None else number
        reply = self.service.handle(lane, msgpack.packb([kind, name, list(args), {}, number]))
        return None if reply is None else msgpack.unpackb(reply)[1]

    def ask(self, who: int, kind: str, name: str, *args: Any, number: int | None = None) -> Any:
        answer = self.handle(who, kind, name, *args, number=number)
        self.commit()
        return answer

    def acquire(self, who: int, name: str = "m", wait: float = 20.0, lease: float | None = None, held: int = 0) -> Any:
        return self.ask(who, "lock", "acquire", name, 5, lease, held, wait)

    def release(self, who: int, token: int, name: str = "m") -> Any:
        return self.ask(who, "lock", "release", name, token)

    def commit(self) -> None:
        """Commit, and note what those who waited were answered, as the server does it."""
        self.service.commit()
        if self.service.next_wake() <= self.service._view.now:
            self.service.wake()
        for lane, reply in self.service.woken:
            self.answers[self.lanes.index(lane)].append(msgpack.unpackb(reply)[1])
        self.service.woken.clear()

    def at(self, now: float) -> None:
        self.service.begin(NOW + now)
        self.service.wake()
        self.commit()

    def holder(self, name: str = "m") -> int | None:
        """Return the token of who holds the lock."""
        found = self.service.store.get(LOCKS, name)
        return found.value[0] if found else None

    def waiting(self, name: str = "m") -> list[int]:
        return [self.lanes.index(parked.lane) for parked in self.service.lines.by_name.get((LOCKS, name), ())]


@pytest.fixture
def room() -> Room:
    return Room()


def test_first_come_first_served(room: Room) -> None:
    a, b, c, d = (room.lane() for _ in range(4))
    token = room.acquire(a)
    assert room.acquire(b) is None
    assert room.acquire(c) is None
    assert room.waiting() == [b, c]
    assert room.release(a, token) == 0
    assert room.waiting() == [c]
    [second] = room.answers[b]
    assert second == room.holder() > token
    assert room.acquire(d) is None
    room.release(b, second)
    room.release(c, *room.answers[c])
    assert room.waiting() == []
    assert room.answers[d] == [room.holder()]


def test_a_line_runs_before_the_next_request_of_the_tick(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b)
    room.handle(a, "lock", "release", "m", token)
    assert room.handle(c, "lock", "acquire", "m", 5, None, 0, 20.0) is None
    room.commit()
    assert room.answers[b] == [room.holder()]
    assert room.waiting() == [c]


def test_a_newcomer_joins_the_end_of_a_line_that_waits_for_the_log(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b)
    with room.service.holding():
        room.handle(a, "lock", "release", "m", token)
        assert room.holder() is None
        assert room.handle(c, "lock", "acquire", "m", 5, None, 0, 20.0) is None, "nobody overtakes"
    room.commit()
    assert room.answers[b] == [room.holder()]


def test_a_request_that_is_sent_again_is_not_parked_twice(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    assert room.acquire(b) is None, "the same number once more"
    assert room.waiting() == [c, b]
    room.release(a, token)
    assert (len(room.answers[c]), room.answers[b]) == (1, [])


def test_who_asks_for_something_else_waits_no_longer(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b, wait=5.0)
    room.acquire(c)
    assert room.ask(b, "dict", "set", "d", "x", 1, number=7) is None
    assert room.waiting() == [c]
    room.at(6.0)
    assert (room.lanes[b].number, room.answers[b]) == (7, []), "its number never goes back"
    room.release(a, token)
    assert len(room.answers[c]) == 1


def test_attaching_unparks_and_the_request_that_is_sent_again_joins_the_end(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    assert room.service.attach(b"%016d" % b, b, 42, 7) == (room.lanes[b], True)
    assert room.waiting() == [c]
    room.acquire(b)
    room.release(a, token)
    assert room.waiting() == [b]


def test_one_who_was_woken_and_attaches_before_the_answer_was_sent_asks_for_it_again(room: Room) -> None:
    a, b = room.lane(), room.lane()
    token = room.acquire(a)
    room.acquire(b)
    room.handle(a, "lock", "release", "m", token)
    room.service.attach(b"%016d" % b, b, 42, 7)
    room.commit()
    assert room.answers[b] == [], "it would be taken for the answer to the next request"
    assert room.acquire(b, wait=0.0, held=0) is None
    assert room.ask(b, "lock", "acquire", "m", 5, None, 0, 20.0, number=room.lanes[b].number - 1) is None


def test_a_stored_grant_answers_the_repeat(room: Room) -> None:
    a, b = room.lane(), room.lane()
    token = room.acquire(a)
    room.acquire(b)
    room.release(a, token)
    number = room.lanes[b].number
    assert [room.ask(b, "lock", "acquire", "m", 5, None, 0, 20.0, number=number)] == room.answers[b]


def test_a_connection_that_ends_leaves_the_line_and_reverses_nothing(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    room.service.unpark(room.lanes[b])
    room.service.unpark(room.lanes[a])
    room.commit()
    assert (room.holder(), room.waiting()) == (token, [c])
    room.release(a, token)
    assert room.answers[c] == [room.holder()]


# -- a tick that cannot be logged --------------------------------------------------------------------------------------


def fail(room: Room) -> None:
    room.log.fails = True
    with pytest.raises(StoreFull):
        room.service.commit()
    room.service.undo()
    room.log.fails = False


def test_undo_puts_the_woken_back_into_their_old_places(room: Room) -> None:
    a, b, c, d = (room.lane() for _ in range(4))
    token = room.acquire(a)
    for who in (b, c, d):
        room.acquire(who)
    before = [room.lanes[who].number for who in (b, c, d)]
    room.handle(a, "lock", "release", "m", token)
    assert room.waiting() == [c, d]
    fail(room)
    assert room.holder() == token
    assert room.waiting() == [b, c, d]
    assert room.service.woken == []
    assert [room.lanes[who].number for who in (b, c, d)] == before
    room.commit()
    assert room.waiting() == [b, c, d]
    room.release(a, token)
    assert (len(room.answers[b]), room.waiting()) == (1, [c, d])


def test_undo_unparks_who_came_in_that_tick(room: Room) -> None:
    a, b = room.lane(), room.lane()
    token = room.acquire(a)
    room.handle(a, "dict", "set", "d", "x", 1)
    assert room.handle(b, "lock", "acquire", "m", 5, None, 0, 20.0) is None
    fail(room)
    assert room.waiting() == [], "it is run again with the rest of its tick"
    assert room.acquire(b) is None
    room.release(a, token)
    assert room.answers[b] == [room.holder()]


def test_one_who_came_and_was_woken_in_a_tick_that_is_undone_is_neither(room: Room) -> None:
    a, b = room.lane(), room.lane()
    token = room.acquire(a)
    room.handle(b, "lock", "acquire", "m", 5, None, 0, 20.0)
    room.handle(a, "lock", "release", "m", token)
    assert room.holder() not in (token, None)
    fail(room)
    assert (room.holder(), room.waiting()) == (token, [])


def test_undo_does_not_bring_back_who_has_gone(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    room.handle(a, "lock", "release", "m", token)
    room.service.unpark(room.lanes[b])
    fail(room)
    assert room.waiting() == [c]


def test_a_grant_that_cannot_be_logged_waits_until_it_can_and_the_release_is_not_lost(room: Room) -> None:
    a, b = room.lane(), room.lane()
    token = room.acquire(a)
    room.acquire(b)
    with room.service.holding():
        room.handle(a, "lock", "release", "m", token)
        room.service.commit()
    room.log.fails = True
    room.service.wake()
    assert (room.holder(), room.waiting(), room.service.woken) == (None, [b], [])
    assert room.service.next_wake() == NOW + RETRY, "not at once, or the manager would spin"
    room.log.fails = False
    room.at(RETRY)
    assert room.answers[b] == [room.holder()]


def test_a_timeout_is_kept_while_nothing_can_be_logged(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    token = room.acquire(a)
    room.acquire(b, wait=5.0)
    room.acquire(c, wait=50.0)
    with room.service.holding():
        room.handle(a, "lock", "release", "m", token)
        room.service.commit()
    room.log.fails = True
    room.at(6.0)
    assert (room.answers[b], room.answers[c], room.waiting()) == ([None], [], [c])
    room.log.fails = False
    room.at(6.0 + RETRY)
    assert room.answers[c] == [room.holder()]


def test_while_refusing_a_request_may_still_wait(room: Room) -> None:
    a, b = room.lane(), room.lane()
    token = room.acquire(a)
    with room.service.refusing(StoreFull("full")):
        assert room.handle(b, "lock", "acquire", "m", 5, None, 0, 20.0) is None
    room.service.commit()
    room.release(a, token)
    assert room.answers[b] == [room.holder()]


# -- abandon -----------------------------------------------------------------------------------------------------------


def abandon(room: Room, who: int, by: int, number: int, name: str = "m") -> Any:
    return room.ask(by, "manager", "abandon", who, number, "lock", "acquire", [name, 5, None, 0, 20.0])


def test_abandoning_what_waits(room: Room) -> None:
    a, b, c = room.lane(), room.lane(), room.lane()
    other = room.lane(session=b)
    token = room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    assert abandon(room, b, other, room.lanes[b].number + 1) is False
    assert room.waiting() == [c]
    room.release(a, token)
    assert (room.answers[b], len(room.answers[c])) == ([], 1)


def test_abandoning_what_has_not_arrived(room: Room) -> None:
    b = room.lane()
    other = room.lane(session=b)
    assert abandon(room, b, other, 1) is False
    assert room.ask(b, "lock", "acquire", "m", 5, None, 0, 20.0, number=1)[0] == "StateError"
    assert room.holder() is None
    assert room.acquire(b) == room.holder()


@pytest.mark.parametrize("in_the_same_tick", [False, True])
def test_abandoning_what_was_granted(room: Room, in_the_same_tick: bool) -> None:
    a, b, c = room.lane(), room.lane(), room.lane()
    other = room.lane(session=b)
    token = room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    number = room.lanes[b].number + 1
    if in_the_same_tick:
        room.handle(a, "lock", "release", "m", token)
    else:
        room.release(a, token)
    assert abandon(room, b, other, number) is True
    assert room.answers[c] == [room.holder()]
    assert abandon(room, b, other, number) is False, "once"
    assert room.answers[c] == [room.holder()]


def test_abandoning_a_grant_that_was_undone(room: Room) -> None:
    a, b = room.lane(), room.lane()
    other = room.lane(session=b)
    token = room.acquire(a)
    room.acquire(b)
    number = room.lanes[b].number + 1
    room.handle(a, "lock", "release", "m", token)
    arguments = (b, number, "lock", "acquire", ["m", 5, None, 0, 20.0])
    assert room.handle(other, "manager", "abandon", *arguments) is True
    fail(room)
    assert room.ask(other, "manager", "abandon", *arguments) is False
    room.release(a, token)
    assert (room.holder(), room.waiting()) == (None, [])


def test_abandoning_what_timed_out_or_is_long_past(room: Room) -> None:
    a, b = room.lane(), room.lane()
    other = room.lane(session=b)
    token = room.acquire(a)
    assert room.acquire(b, wait=0.0) is None
    assert abandon(room, b, other, room.lanes[b].number) is False
    room.release(a, token)
    mine = room.acquire(b)
    assert abandon(room, b, other, room.lanes[b].number - 1) is False
    assert room.holder() == mine


def test_nobody_abandons_for_another_session(room: Room) -> None:
    a, b = room.lane(), room.lane()
    room.acquire(a)
    assert abandon(room, a, b, room.lanes[a].number) is False
    assert room.holder() is not None


# -- time --------------------------------------------------------------------------------------------------------------


def test_timeouts(room: Room) -> None:
    a, b, c, d = (room.lane() for _ in range(4))
    token = room.acquire(a)
    assert room.service.next_wake() == NEVER
    room.acquire(b, wait=30.0)
    room.acquire(c, wait=10.0)
    room.acquire(d, wait=10.0)
    assert room.service.next_wake() == NOW + 10.0
    room.at(9.9)
    assert room.waiting() == [b, c, d]
    room.at(10.0)
    assert (room.waiting(), room.answers[c], room.answers[d]) == ([b], [None], [None])
    assert room.service.next_wake() == NOW + 30.0
    room.release(a, token)
    assert room.answers[b] == [room.holder()]
    assert room.service.next_wake() == NEVER


def test_one_that_is_run_again_keeps_its_timeout(room: Room) -> None:
    a, b = room.lane(), room.lane()
    room.acquire(a, lease=5.0)
    room.acquire(b, wait=8.0)
    room.at(4.0)
    room.acquire(a, lease=10.0, held=room.holder() or 0)  # until 14
    assert room.waiting() == [b]
    room.at(8.0)
    assert room.answers[b] == [None]


def test_a_lease_frees_and_only_the_head_is_looked_at_for_it(room: Room) -> None:
    lanes = [room.lane() for _ in range(5)]
    token = room.acquire(lanes[0], lease=5.0)
    for who in lanes[1:]:
        room.acquire(who, lease=5.0)
    assert room.service.next_wake() == NOW + 5.0
    commands = room.service.commands
    room.at(5.0)
    assert room.service.commands - commands == 2
    assert room.answers[lanes[1]] == [room.holder()]
    assert room.ask(lanes[0], "lock", "release", "m", token)[0] == "NotOwner"
    assert room.service.next_wake() == NOW + 10.0


def test_when_the_head_goes_the_next_one_takes_over_its_watch(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    room.acquire(a, lease=50.0)
    room.acquire(b, wait=10.0)
    room.acquire(c, wait=100.0)
    room.at(10.0)
    assert room.answers[b] == [None]
    assert room.service.next_wake() == NOW + 50.0
    room.at(50.0)
    assert room.answers[c] == [room.holder()]


def test_when_the_connection_of_the_head_ends_too(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    room.acquire(a, lease=50.0)
    room.acquire(b, wait=100.0)
    room.acquire(c, wait=100.0)
    room.service.unpark(room.lanes[b])
    room.commit()
    assert room.service.next_wake() == NOW + 50.0
    room.at(50.0)
    assert room.answers[c] == [room.holder()]


def test_a_swept_lease_wakes_the_line_too(room: Room) -> None:
    a, b = room.lane(), room.lane()
    room.acquire(a, lease=5.0)
    room.acquire(b)
    room.service.begin(NOW + 7.0)
    room.service.tidy()
    room.commit()
    assert room.answers[b] == [room.holder()]


def test_the_end_of_a_session_frees_what_it_held_and_unparks_what_it_waited_for(room: Room) -> None:
    a, b, c = (room.lane() for _ in range(3))
    room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    room.service.end(room.lanes[b].session)
    assert room.waiting() == [c]
    while not room.service.end(room.lanes[a].session):
        pass
    room.commit()
    assert room.answers[c] == [room.holder()]


def test_the_bound(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "PARKED_LIMIT", 2)
    a, b, c, d = (room.lane() for _ in range(4))
    room.acquire(a)
    room.acquire(b)
    room.acquire(c)
    name, text = room.acquire(d)
    assert name == "StateError"
    assert "2 requests wait already" in text


def test_the_times_of_those_who_have_gone_are_not_kept(room: Room) -> None:
    a, b, first = room.lane(), room.lane(), room.lane()
    room.acquire(a, "n")
    room.acquire(first, "n", wait=1.0)
    token = room.acquire(a)
    for _ in range(300):
        room.acquire(b)
        room.release(a, token)
        token = room.answers[b].pop()
        room.acquire(a)
        room.release(b, token)
        token = room.answers[a].pop()
    assert len(room.service.lines._timers) < 200


def test_who_has_no_lane_cannot_wait(room: Room) -> None:
    with pytest.raises(TypeError, match="lanes"):
        room.service.call_unattached("lock", "acquire", ["m", 5, None, 0, 20.0])


@pytest.mark.parametrize(
    "args",
    [
        ["", 1, None, 0, 1.0],
        [":x", 1, None, 0, 1.0],
        ["m", "1", None, 0, 1.0],
        ["m", 1, 0, 0, 1.0],
        ["m", 1, float("nan"), 0, 1.0],
        ["m", 1, None, 0, -1.0],
        ["m", 1, None, 0, float("inf")],
        ["m", 1, None, 0, None],
    ],
    ids=repr,
)
def test_bad_arguments(room: Room, args: list[Any]) -> None:
    answer = room.ask(room.lane(), "lock", "acquire", *args)
    assert answer[0] in ("ValueError", "TypeError")
    assert LOCKS not in room.service.store.spaces


# -- semaphores --------------------------------------------------------------------------------------------------------


def test_a_semaphore_has_so_many_places(room: Room) -> None:
    lanes = [room.lane() for _ in range(5)]

    def take(who: int, lease: float | None = None) -> Any:
        return room.ask(who, "semaphore", "acquire", "s", 2, 5, lease, 20.0)

    first, second = take(lanes[0]), take(lanes[1], 5.0)
    assert second > first
    assert [take(who) for who in lanes[2:]] == [None] * 3
    assert room.service.next_wake() == NOW + 5.0
    room.at(5.0)
    assert len(room.answers[lanes[2]]) == 1
    assert room.ask(lanes[1], "semaphore", "release", "s", second)[0] == "NotOwner"
    assert room.ask(lanes[1], "semaphore", "release", "s", first)[0] == "NotOwner", "it is another one's"
    other = room.lane(session=lanes[2])
    arguments = ["s", 2, 5, None, 20.0]
    number = room.lanes[lanes[2]].number
    assert room.ask(other, "manager", "abandon", lanes[2], number, "semaphore", "acquire", arguments) is True
    assert len(room.answers[lanes[3]]) == 1
    while not room.service.end(room.lanes[lanes[0]].session):
        pass
    room.commit()
    assert len(room.answers[lanes[4]]) == 1
    waiting, *holders = room.ask(other, "semaphore", "holders", "s")
    assert (waiting, len(holders)) == (0, 2)


# -- queues ------------------------------------------------------------------------------------------------------------


def test_an_item_may_be_had_at_the_very_moment_that_it_is_put(room: Room) -> None:
    """At one time in two hundred the time in an item's key was, in seconds again, a little later than it had been."""
    putter, getter = room.lane(), room.lane()
    for moment in range(2_000):
        room.at(1.7e9 + moment * 0.000_137_317)
        room.ask(putter, "queue", "put", "q", moment, 0.0, 0, None, 0.0)
        assert room.ask(putter, "queue", "peek", "q") == [moment]
        number, value, _ = room.ask(getter, "queue", "get", "q", None, None, 0.0)
        assert value == moment
        room.ask(getter, "queue", "ack", "q", number)


def test_a_delayed_item_is_had_when_its_time_has_come(room: Room) -> None:
    getter, putter = room.lane(), room.lane()
    for moment in range(500):
        room.at(1.7e9 + moment * 0.010_137_317)
        assert room.ask(getter, "queue", "get", "q", None, None, 1.0) is None
        room.ask(putter, "queue", "put", "q", moment, 0.005, 0, None, 0.0)
        assert room.answers[getter][moment:] == []
        due = room.service.next_wake() - NOW
        assert due == pytest.approx(1.7e9 + moment * 0.010_137_317 + 0.005, abs=3e-6, rel=0)
        room.at(due)
        assert room.answers[getter][moment][1] == moment


def test_what_one_tick_tells_those_who_wait_is_bounded(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WOKEN_BYTES", 2_500)
    readers = [room.lane() for _ in range(10)]
    for who in readers:
        room.ask(who, "channel", "read", "c", 0, 20.0)
    publisher = room.lane()
    room.handle(publisher, "channel", "publish", "c", "x" * 1_000, 100)
    room.service.commit()
    assert len(room.service.woken) == 3
    assert room.service.next_wake() == 0.0, "the others come next"
    for _ in range(4):
        room.commit()
    assert all(len(room.answers[who]) == 1 for who in readers)


def test_a_failing_log_starves_nobody_of_his_timeout(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are to be tried again come first, again and again, and leave room for the others."""
    monkeypatch.setattr(service, "WAKE_LIMIT", 2)
    producer, late = room.lane(), room.lane()
    for name in ("a", "b", "c"):
        room.ask(producer, "queue", "put", name, 1, 1.0, 0, None, 0.0)
        room.ask(room.lane(), "queue", "get", name, None, None, 100.0)
    room.ask(late, "queue", "get", "other", None, None, 3.0)
    room.log.fails = True
    answered = []
    for moment in range(2, 10):
        room.service.begin(NOW + moment)
        room.service.wake()
        answered += [lane for lane, _ in room.service.woken]
        room.service.woken.clear()
    assert answered == [room.lanes[late]]
    room.log.fails = False


def test_on_a_full_disk_what_only_goes_goes(room: Room) -> None:
    """An item that goes back has to be written, a lock that is freed has not."""
    holder, producer = room.lane(), room.lane()
    room.acquire(holder)
    room.ask(producer, "queue", "put", "q", 1, 0.0, 0, None, 0.0)
    room.ask(holder, "queue", "get", "q", None, None, 0.0)
    append = room.log.append

    def only_deletions(now: float, changes: Any, lanes: Any) -> None:
        if any(entry is not ABSENT for _, _, entry in changes):
            raise StoreFull("the disk is full")
        append(now, changes, lanes)

    room.log.append = only_deletions  # type: ignore[method-assign]
    with pytest.raises(StoreFull):
        room.service.end(room.lanes[holder].session)
    assert room.holder() is None
    room.log.append = append  # type: ignore[method-assign]
    while not room.service.end(room.lanes[holder].session):
        pass
    assert room.ask(producer, "queue", "size", "q")[:2] == [1, 0]
