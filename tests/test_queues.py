"""Queues as the manager runs them: whose process ends, what is undone, what is given up. Payloads in, payloads out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from state_manager.checks import QUEUE, TAKEN
from state_manager.errors import StoreFull
from state_manager.service import Service
from state_manager.store import Store
from tests.test_parking import NOW, Room


class QueueRoom(Room):
    def put(
        self,
        who: int,
        value: Any,
        delay: float = 0.0,
        maxsize: int = 0,
        wait: float = 20.0,
        most: int | None = None,
    ) -> Any:
        return self.ask(who, "queue", "put", "q", value, delay, maxsize, most, wait)

    def get(self, who: int, wait: float = 20.0, lease: float | None = None, most: int | None = None) -> Any:
        return self.ask(who, "queue", "get", "q", lease, most, wait)

    def end(self, who: int) -> None:
        while not self.service.end(self.lanes[who].session):
            pass
        self.commit()

    def fails(self) -> None:
        self.log.fails = True
        with pytest.raises(StoreFull):
            self.service.commit()
        self.service.undo()
        self.log.fails = False

    def values(self, space: str = QUEUE + "q") -> list[Any]:
        found = self.service.store.spaces.get(space)
        return [found.entries[key][0] for key in sorted(found.entries)] if found else []


@pytest.fixture
def room() -> QueueRoom:
    return QueueRoom()


def test_an_item_comes_back_to_its_place_when_its_takers_process_ends(room: QueueRoom) -> None:
    producer, dead, other = room.lane(), room.lane(), room.lane()
    for value in "abcd":
        room.put(producer, value)
    assert [room.get(dead)[1] for _ in "ab"] == ["a", "b"]
    assert room.get(other)[1] == "c"
    room.end(dead)
    assert room.values() == ["a", "b", "d"]
    assert [room.get(other)[1:] for _ in "abd"] == [["a", 2], ["b", 2], ["d", 1]]
    assert room.service.store.spaces.keys() >= {TAKEN + "q"}
    room.service.store.check()


def test_it_goes_straight_to_who_waits(room: QueueRoom) -> None:
    producer, dead, other = room.lane(), room.lane(), room.lane()
    room.put(producer, "a")
    assert room.get(dead)[1] == "a"
    assert room.get(other) is None
    room.end(dead)
    [[_, value, deliveries]] = room.answers[other]
    assert (value, deliveries) == ("a", 2)


def test_with_its_last_delivery_it_goes_to_the_undeliverable(room: QueueRoom) -> None:
    producer, dead, other = room.lane(), room.lane(), room.lane()
    room.put(producer, "poison")
    room.get(dead, most=1)
    room.get(other)
    room.end(dead)
    assert room.values(QUEUE + "q:dead") == ["poison"]
    assert room.answers[other] == []


def test_who_puts_an_item_bounds_its_deliveries_and_who_takes_it_may_do_so_otherwise(room: QueueRoom) -> None:
    producer, first, second = room.lane(), room.lane(), room.lane()
    room.put(producer, "a", most=1)
    room.get(first)
    room.end(first)
    assert room.values(QUEUE + "q:dead") == ["a"]
    room.put(producer, "b", most=1)
    room.get(second, most=2)
    room.end(second)
    assert room.values() == ["b"]


def test_those_that_become_undeliverable_at_one_moment_do_not_displace_one_another(room: QueueRoom) -> None:
    who = room.lane()
    for value in range(3):
        room.put(who, value, most=1)
    for _ in range(3):
        room.ask(who, "queue", "nack", "q", room.get(who)[0], 0.0)
    assert sorted(room.values(QUEUE + "q:dead")) == [0, 1, 2]


def test_the_undeliverable_are_tried_again_in_their_order(room: QueueRoom) -> None:
    who, dead = room.lane(), room.lane()
    for value in range(5):
        room.put(who, value, most=1)
    for _ in range(5):
        room.get(dead)
    room.end(dead)
    assert room.get(who) is None
    assert room.ask(room.lane(), "queue", "retry", "q") == 5
    assert room.ask(room.lane(), "queue", "retry", "q") == 0
    [[_, value, deliveries]] = room.answers[who]
    assert (value, deliveries) == (0, 1)
    assert room.values() == [1, 2, 3, 4]
    assert room.values(QUEUE + "q:dead") == []


def test_who_waits_waits_for_the_end_of_a_lease_too(room: QueueRoom) -> None:
    producer, late, other = room.lane(), room.lane(), room.lane()
    room.put(producer, "a")
    room.get(late, lease=5.0)
    room.get(other)
    assert room.service.next_wake() == NOW + 5.0
    room.at(5.0)
    assert [value for _, value, _ in room.answers[other]] == ["a"]


def test_an_item_may_be_had_at_the_very_moment_that_it_was_put(room: QueueRoom) -> None:
    who = room.lane()
    for step in range(300):
        room.service.begin(NOW + step / 7)
        room.put(who, step)
        assert room.get(who, wait=0.0)[1] == step


def test_an_item_whose_lease_ends_comes_back_by_the_sweep_and_by_a_look(room: QueueRoom) -> None:
    producer, late = room.lane(), room.lane()
    room.put(producer, "a")
    room.put(producer, "b")
    receipt, _, _ = room.get(late, lease=5.0)
    room.get(late, lease=5.0)
    room.service.begin(NOW + 7.0)
    assert room.ask(late, "queue", "ack", "q", receipt)[0] == "NotOwner"
    assert room.values() == ["a"]
    room.service.tidy()
    assert room.values() == ["a", "b"]
    assert room.values(TAKEN + "q") == []
    room.service.store.check()


def test_who_gives_up_gives_back_what_he_was_given_and_it_was_not_delivered(room: QueueRoom) -> None:
    producer, gone, other = room.lane(), room.lane(), room.lane()
    second = room.lane(session=gone)
    room.get(gone)
    room.put(producer, "a")
    assert len(room.answers[gone]) == 1
    arguments = (gone, room.lanes[gone].number, "queue", "get", ["q", None, None, 20.0])
    assert room.ask(second, "manager", "abandon", *arguments) is True
    assert room.get(other)[1:] == ["a", 1]
    assert room.ask(second, "manager", "abandon", *arguments) is False, "once"


def test_who_gives_up_after_acknowledging_gives_back_nothing(room: QueueRoom) -> None:
    producer, gone = room.lane(), room.lane()
    second = room.lane(session=gone)
    room.put(producer, "a")
    receipt, _, _ = room.get(gone)
    assert room.ask(second, "queue", "ack", "q", receipt) is None
    arguments = (gone, room.lanes[gone].number, "queue", "get", ["q", None, None, 20.0])
    assert room.ask(second, "manager", "abandon", *arguments) is False
    assert room.values() == []


def test_a_repeat_is_given_the_same_item(room: QueueRoom) -> None:
    producer, consumer = room.lane(), room.lane()
    room.put(producer, "a")
    room.put(producer, "b")
    first = room.get(consumer)
    assert room.ask(consumer, "queue", "get", "q", None, None, 20.0, number=room.lanes[consumer].number) == first
    assert room.values() == ["b"]


def test_a_tick_that_is_undone(room: QueueRoom) -> None:
    """A put that wakes a getter, and cannot be logged: the getter is back in line, and nothing was taken."""
    producer, consumer = room.lane(), room.lane()
    room.get(consumer)
    room.handle(producer, "queue", "put", "q", "a", 0.0, 0, None, 20.0)
    room.fails()
    room.commit()
    assert (room.values(), room.values(TAKEN + "q"), room.answers[consumer]) == ([], [], [])
    room.put(producer, "b")
    assert [value for _, value, _ in room.answers[consumer]] == ["b"]


def test_an_undone_clear_brings_back_all_in_order(room: QueueRoom) -> None:
    who = room.lane()
    for value in "abc":
        room.put(who, value)
    room.get(who)
    room.handle(who, "queue", "clear", "q")
    room.fails()
    assert [room.get(who)[1] for _ in "bc"] == ["b", "c"]
    room.service.store.check()


def test_room_goes_to_who_waited_first(room: QueueRoom) -> None:
    a, b, c, consumer = (room.lane() for _ in range(4))
    room.put(a, 1, maxsize=1)
    assert room.put(b, 2, maxsize=1) is None
    assert room.put(c, 3, maxsize=1) is None
    assert room.get(consumer)[1] == 1
    assert (len(room.answers[b]), room.answers[c]) == (1, [])
    assert room.get(consumer)[1] == 2
    assert len(room.answers[c]) == 1
    assert room.get(consumer)[1] == 3


def test_a_newcomer_does_not_overtake_who_waits_for_room(room: QueueRoom) -> None:
    a, b, newcomer, consumer = (room.lane() for _ in range(4))
    room.put(a, 1, maxsize=1)
    room.put(b, 2, maxsize=1)
    with room.service.holding():
        room.handle(consumer, "queue", "get", "q", None, None, 20.0)
        assert room.handle(newcomer, "queue", "put", "q", 3, 0.0, 1, None, 20.0) is None
    room.commit()
    assert room.values() == [2]


def test_numbers_grow_whatever_comes_back(room: QueueRoom) -> None:
    who = room.lane()
    numbers = []
    for value in range(50):
        numbers.append(room.put(who, value))
        receipt, _, _ = room.get(who)
        command = ("nack", "q", receipt, 0.0) if value % 3 else ("ack", "q", receipt)
        room.ask(who, "queue", *command)
    assert numbers == sorted(set(numbers))


def test_a_delayed_item_is_looked_at_when_it_is_due_and_not_before(room: QueueRoom) -> None:
    producer, consumer = room.lane(), room.lane()
    room.put(producer, "late", delay=5.0)
    room.get(consumer)
    assert room.service.next_wake() == NOW + 5.0
    room.put(producer, "sooner", delay=2.0)
    assert room.service.next_wake() == NOW + 2.0
    room.at(1.99999)
    assert room.answers[consumer] == []
    room.at(2.0)
    assert [value for _, value, _ in room.answers[consumer]] == ["sooner"]


def test_the_manager_says_when_time_is_up(room: QueueRoom) -> None:
    who = room.lane()
    room.get(who, wait=5.0)
    room.at(5.0)
    assert room.answers[who] == [None]


def fill(reason: str, add: Callable[[], object]) -> None:
    def go_on() -> None:
        for _ in range(1_000):
            add()

    with pytest.raises(StoreFull, match=reason):
        go_on()


def test_memory_is_a_bound_for_items_too_and_giving_back_needs_no_room() -> None:
    service = Service(Store(1), token=lambda: "", max_memory=20_000)
    service.begin(NOW)
    lane, _ = service.attach(b"s" * 16, 0, 42, 7)
    call = service.call_unattached
    fill(r"no room in ':queue:q'", lambda: call("queue", "put", ["q", "x" * 100, 0.0, 0, None, 0.0], lane))
    receipt, _, _ = call("queue", "get", ["q", None, None, 0.0], lane)
    call("queue", "nack", ["q", receipt, 0.0], lane)
    receipt, _, _ = call("queue", "get", ["q", None, None, 0.0], lane)
    call("queue", "ack", ["q", receipt], lane)
    fill(r"no room in ':channel:c'", lambda: call("channel", "publish", ["c", "x" * 100, 1000], lane))


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("put", ["", 1, 0.0, 0, None, 0.0]),
        ("put", ["q", [1], 0.0, 0, None, 0.0]),
        ("put", ["q", 1, -1.0, 0, None, 0.0]),
        ("put", ["q", 1, 1e10, 0, None, 0.0]),
        ("put", ["q", 1, 0.0, "1", None, 0.0]),
        ("put", ["q", 1, 0.0, 0, 0, 0.0]),
        ("put", ["q", 1, 0.0, 0, "1", 0.0]),
        ("put", ["q", 1, 0.0, 0, None, None]),
        ("get", ["q", 0, None, 0.0]),
        ("get", ["q", None, 0, 0.0]),
        ("get", ["q", None, True, 0.0]),
        ("get", [":q", None, None, 0.0]),
        ("ack", ["q", None]),
        ("nack", ["q", b"1", -1.0]),
        ("retry", [":q"]),
        ("peek", [7]),
        ("size", [":q"]),
        ("clear", [""]),
    ],
    ids=repr,
)
def test_bad_arguments(room: QueueRoom, command: str, args: list[Any]) -> None:
    assert room.ask(room.lane(), "queue", command, *args)[0] in ("ValueError", "TypeError")
    assert {name for name in room.service.store.spaces if name[:2] in (":q", ":t")} == set()


def test_who_has_no_lane_takes_nothing(room: QueueRoom) -> None:
    room.put(room.lane(), "a")
    with pytest.raises(TypeError, match="lanes"):
        room.service.call_unattached("queue", "get", ["q", None, None, 0.0])
    with pytest.raises(RuntimeError, match="not this process's"):
        room.service.call_unattached("queue", "ack", ["q", b"1"])
    assert room.values() == ["a"]
