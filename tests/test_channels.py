"""Channels as the manager runs them: ids across managers, who waits. Payloads in, payloads out."""

from __future__ import annotations

from typing import Any

import pytest

from state_manager.checks import CHANNEL, CHANNELS
from state_manager.commands import channels
from state_manager.service import Service
from state_manager.store import ABSENT, EPOCH_SHIFT, Store
from tests.test_parking import NOW, Room


class Managers:
    """A manager, and those that come after it with what it has kept."""

    def __init__(self) -> None:
        self.epoch = 10
        self.store = Store(self.epoch)
        self._begin()

    def _begin(self) -> None:
        self.service = Service(self.store, token=lambda: "")
        self.service.begin(NOW)

    def next(self, *, without: int = 0) -> None:
        """Begin anew, as after a power failure that took the last messages."""
        kept = self.store
        self.epoch += 1
        self.store = Store(self.epoch)
        counts = self.counts(kept)
        lost = counts[len(counts) - without :]
        for name, space in kept.spaces.items():
            self.store.apply([(name, key, entry) for key, entry in space.entries.items() if key not in lost])
        if without:
            last, *rest = kept.get(CHANNELS, "c")
            self.store.apply([(CHANNELS, "c", [last - without, *rest])])
        self._begin()

    def counts(self, store: Store | None = None) -> list[Any]:
        space = (store or self.store).spaces.get(CHANNEL + "c")
        return sorted(space.entries) if space else []

    def publish(self, value: Any, history: int = 1000) -> Any:
        return self.service.call_unattached("channel", "publish", ["c", value, history])

    def read(self, after: int) -> Any:
        return self.service.call_unattached("channel", "read", ["c", after, 0.0])


@pytest.fixture
def managers() -> Managers:
    return Managers()


def test_an_id_is_an_epoch_and_a_count_that_goes_on(managers: Managers) -> None:
    first = [managers.publish(value) for value in "ab"]
    managers.next()
    second = [managers.publish(value) for value in "cd"]
    assert [id_ >> EPOCH_SHIFT for id_ in first + second] == [10, 10, 11, 11]
    assert [id_ & 0xFFFF_FFFF for id_ in first + second] == [1, 2, 3, 4]
    assert managers.read(0) == [0, first[0], "a", first[1], "b", second[0], "c", second[1], "d"]
    assert managers.read(first[1]) == [0, second[0], "c", second[1], "d"]


def test_missed_is_right_across_managers(managers: Managers) -> None:
    first = [managers.publish(value, 2) for value in "abc"]
    managers.next()
    second = [managers.publish(value, 2) for value in "def"]
    assert managers.read(first[0]) == [3, second[1], "e", second[2], "f"]
    assert managers.read(first[2])[0] == 1
    assert managers.read(0)[0] == 4


def test_after_a_power_failure_no_id_comes_twice(managers: Managers) -> None:
    """A reader has messages that the manager has lost; he gets the new ones, and not the lost ones' ids again."""
    ids = [managers.publish(value) for value in "abcd"]
    managers.next(without=2)
    assert managers.counts() == [1, 2]
    again = [managers.publish(value) for value in "efg"]
    assert again[0] > ids[3]
    assert [id_ & 0xFFFF_FFFF for id_ in again] == [3, 4, 5]
    expected = [0, again[0], "e", again[1], "f", again[2], "g"]
    assert managers.read(ids[1]) == expected
    assert managers.read(ids[2]) == managers.read(ids[3]) == expected, "others have their counts now"
    assert managers.read(again[0]) == [0, again[1], "f", again[2], "g"]


def test_a_count_that_is_used_up_goes_on_in_the_epoch(managers: Managers) -> None:
    last = (3 << EPOCH_SHIFT) + 0xFFFF_FFFF
    managers.store.apply([(CHANNEL + "c", last, ["z", 10]), (CHANNELS, "c", [last, 1000, last, 10])])
    assert managers.read(0)[1:] == [(10 << EPOCH_SHIFT) + 0xFFFF_FFFF, "z"]
    ids = [managers.publish(value) for value in "bc"]
    assert ids == [11 << EPOCH_SHIFT, (11 << EPOCH_SHIFT) + 1], "and so grow"
    assert managers.read((10 << EPOCH_SHIFT) + 0xFFFF_FFFF) == [0, ids[0], "b", ids[1], "c"]
    assert managers.read(ids[0]) == [0, ids[1], "c"]


def test_many_epochs_leave_no_gap(managers: Managers) -> None:
    """Each manager and each emptied large dict takes one."""
    ids = []
    for value in range(200):
        ids.append(managers.publish(value))
        managers.next()
    assert managers.read(0) == [0, *(part for pair in zip(ids, range(200), strict=True) for part in pair)]
    assert managers.read(ids[150])[:3] == [0, ids[151], 151]
    assert len(managers.store.get(CHANNELS, "c")) == 4


def test_a_channel_that_was_dropped_leaves_nothing_but_its_last_id(managers: Managers) -> None:
    ids = [managers.publish(value) for value in "abc"]
    assert managers.service.call_unattached("channel", "drop", ["c"]) is True
    assert managers.store.spaces.keys() == {CHANNELS}
    assert list(managers.store.spaces[CHANNELS].entries.items()) == [(channels.FLOOR, 3)]
    assert managers.service.call_unattached("channel", "last", ["other"]) == 3
    managers.next()
    id_ = managers.publish("d")
    assert id_ > ids[-1]
    assert managers.read(ids[0]) == [0, id_, "d"], "it is another channel, of which nothing was missed"


def test_publishing_deletes_a_bounded_number(managers: Managers) -> None:
    for value in range(500):
        managers.publish(value)
    managers.publish("x", 10)
    assert len(managers.counts()) == 501 - channels.TRIM
    for _ in range(5):
        managers.publish("x", 10)
    assert managers.counts() == list(range(497, 507))


def test_all_who_wait_are_answered_by_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    readers = [room.lane() for _ in range(5)]
    publisher = room.lane()
    for who in readers:
        room.ask(who, "channel", "read", "c", 0, 10.0 + who)
    id_ = room.ask(publisher, "channel", "publish", "c", "x", 1000)
    assert [room.answers[who] for who in readers] == [[[0, id_, "x"]]] * 5


def test_each_who_waits_has_a_time_of_his_own_and_disturbs_nobody() -> None:
    room = Room()
    readers = [room.lane() for _ in range(50)]
    for who in readers:
        room.ask(who, "channel", "read", "c", 0, 1.0 + who)
    before = room.service.commands
    room.at(1.0)
    assert room.answers[readers[0]] == [[]]
    assert room.service.commands == before + 1, "nobody else was looked at"
    assert room.service.next_wake() == NOW + 2.0


def test_readers_need_no_journal() -> None:
    room = Room()
    reader, publisher = room.lane(), room.lane()
    frames = len(room.log.frames)
    lane = room.lanes[reader]
    import msgpack

    assert room.service.handle(lane, msgpack.packb(["channel", "read", ["c", 0, 20.0], {}])) is None
    room.ask(publisher, "channel", "publish", "c", "x", 1000)
    assert len(room.answers[reader]) == 1
    [(changes, lanes)] = room.log.frames[frames:]
    assert [key for key, *_ in lanes] == [room.lanes[publisher].key]
    assert {space for space, _, _ in changes} == {CHANNELS, CHANNEL + "c"}


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("publish", ["", 1, 10]),
        ("publish", ["c", [1], 10]),
        ("publish", ["c", 1, 0]),
        ("publish", ["c", 1, channels.HISTORY_LIMIT + 1]),
        ("publish", ["c", 1, "10"]),
        ("read", ["c", "0", 0.0]),
        ("read", ["c", 2**63, 0.0]),
        ("read", ["c", 0, -1.0]),
        ("read", [":c", 0, 0.0]),
        ("last", [7]),
        ("state", [""]),
        ("drop", [":c"]),
    ],
    ids=repr,
)
def test_bad_arguments(command: str, args: list[Any]) -> None:
    room = Room()
    assert room.ask(room.lane(), "channel", command, *args)[0] in ("ValueError", "TypeError", "OverflowError")
    assert room.service.store.get(CHANNELS, "c") is ABSENT
