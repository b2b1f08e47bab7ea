"""The store against a plain model, and its rules one by one. The clock is a number."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from state_manager import store as store_module
from state_manager.commands import TABLE
from state_manager.service import Service
from state_manager.store import ABSENT, EPOCH_SHIFT, Entry, Store, cost

SPACES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["x", "y", 1, -5, b"x"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3), st.binary(max_size=3))
TTLS = st.one_of(st.none(), st.floats(0.25, 8))


class StoreAndCommands(RuleBasedStateMachine):
    """Every command does to the store what it would do to a dict of (value, deadline)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.service = Service(Store(3), token=lambda: "token")
        self.model: dict[str, dict[Any, tuple[Any, float | None]]] = {"a": {}, "b": {}}
        self.versions: dict[tuple[str, Any], int] = {}

    def call(self, name: str, *args: Any, kind: str = "dict") -> Any:
        self.service.begin(self.now)
        result = self.service.call(kind, name, args)
        self.service.commit()
        return result

    def live(self, space: str) -> dict[Any, tuple[Any, float | None]]:
        entries = self.model[space]
        for key in [key for key, (_, ends) in entries.items() if ends is not None and ends <= self.now]:
            del entries[key]
        return entries

    def ends(self, ttl: float | None) -> float | None:
        return None if ttl is None else self.now + ttl

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(space=SPACES, key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, space: str, key: Any, value: Any, ttl: float | None) -> None:
        self.call("set", space, key, value, ttl)
        self.live(space)[key] = (value, self.ends(ttl))

    @rule(space=SPACES, key=KEYS, value=VALUES, ttl=TTLS)
    def add(self, space: str, key: Any, value: Any, ttl: float | None) -> None:
        absent = key not in self.live(space)
        assert self.call("add", space, key, value, ttl) is absent
        if absent:
            self.model[space][key] = (value, self.ends(ttl))

    @rule(space=SPACES, key=KEYS, value=VALUES, ttl=TTLS)
    def replace(self, space: str, key: Any, value: Any, ttl: float | None) -> None:
        present = key in self.live(space)
        assert self.call("replace", space, key, value, ttl) is present
        if present:
            self.model[space][key] = (value, self.ends(ttl))

    @rule(space=SPACES, key=KEYS, value=VALUES)
    def setdefault(self, space: str, key: Any, value: Any) -> None:
        found = self.live(space).setdefault(key, (value, None))
        assert self.call("setdefault", space, key, value) == found[0]

    @rule(space=SPACES, key=KEYS)
    def delete(self, space: str, key: Any) -> None:
        assert self.call("delete", space, key) is (self.live(space).pop(key, None) is not None)

    @rule(space=SPACES, key=KEYS)
    def pop(self, space: str, key: Any) -> None:
        found = self.live(space).pop(key, None)
        assert self.call("pop", space, key) == ([] if found is None else [found[0]])

    @rule(space=SPACES)
    def popitem(self, space: str) -> None:
        entries = self.live(space)
        found = self.call("popitem", space)
        if entries:
            key, value = found
            assert entries.pop(key)[0] == value
        else:
            assert found == []

    @rule(space=SPACES, key=KEYS, by=st.integers(-5, 5), initial=st.integers(-5, 5), ttl=TTLS)
    def increment(self, space: str, key: Any, by: int, initial: int, ttl: float | None) -> None:
        entries = self.live(space)
        value, ends = entries.get(key, (initial, self.ends(ttl)))
        if type(value) is int:
            assert self.call("increment", space, key, by, initial, ttl) == value + by
            entries[key] = (value + by, ends)
        else:
            with pytest.raises(TypeError):
                self.call("increment", space, key, by, initial, ttl)

    @rule(space=SPACES, key=KEYS, value=VALUES)
    def put_with_the_version_that_was_read(self, space: str, key: Any, value: Any) -> None:
        entries = self.live(space)
        version, *_ = self.call("get", space, key)
        assert self.call("put", space, key, version, value)
        assert not self.call("put", space, key, version, value)
        entries[key] = (value, entries[key][1] if key in entries else None)

    @rule(space=SPACES, key=KEYS, ttl=st.floats(0.25, 8))
    def expire(self, space: str, key: Any, ttl: float) -> None:
        entries = self.live(space)
        assert self.call("expire", space, key, ttl) is (key in entries)
        if key in entries:
            entries[key] = (entries[key][0], self.now + ttl)

    @rule(space=SPACES, key=KEYS)
    def persist(self, space: str, key: Any) -> None:
        entries = self.live(space)
        had = key in entries and entries[key][1] is not None
        assert self.call("persist", space, key) is had
        if had:
            entries[key] = (entries[key][0], None)

    @rule(space=SPACES, items=st.dictionaries(KEYS, VALUES, max_size=4), ttl=TTLS)
    def set_many(self, space: str, items: dict[Any, Any], ttl: float | None) -> None:
        self.call("set_many", space, [part for item in items.items() for part in item], ttl)
        self.live(space).update({key: (value, self.ends(ttl)) for key, value in items.items()})

    @rule(space=SPACES, keys=st.lists(KEYS, max_size=4))
    def delete_many(self, space: str, keys: list[Any]) -> None:
        entries = self.live(space)
        assert self.call("delete_many", space, keys) == sum(entries.pop(key, None) is not None for key in set(keys))

    @rule(space=SPACES)
    def clear(self, space: str) -> None:
        self.call("clear", space)
        self.model[space].clear()

    @rule(space=SPACES)
    def drop(self, space: str) -> None:
        self.call("drop", space, kind="manager")
        self.model[space].clear()

    @rule()
    def tidy(self) -> None:
        self.service.begin(self.now)
        while self.service.tidy():
            pass

    @rule(space=SPACES)
    def undo(self, space: str) -> None:
        """Whatever is applied and undone leaves everything as it was, and no version lower."""
        store = self.service.store
        before = {name: dict(found.entries) for name, found in store.spaces.items()}
        undo = store.apply([(space, "x", Entry(1, self.now + 1)), (space, None, ABSENT), (space, "y", "z")])
        store.apply(undo)
        assert before == {name: dict(found.entries) for name, found in store.spaces.items()}

    @invariant()
    def reads_agree_with_the_model(self) -> None:
        for space in ("a", "b"):
            entries = self.live(space)
            keys: list[Any] = ["x", "y", 1, -5, b"x"]
            found = self.call("get_many", space, keys)
            replies = {key: (value,) if ends is None else (value, ends) for key, (value, ends) in entries.items()}
            assert [item[1:] for item in found] == [replies.get(key, ()) for key in keys]
            for key, item in zip(keys, found, strict=True):  # less if a key after it had expired: "x" and b"x" share
                assert item[0] <= self.service.store.version(space, key)
            _, flat, version, first = self.call("scan", space, None, True)
            assert version == self.service.store.space_version(space)
            assert first == min((ends for _, ends in entries.values() if ends is not None), default=math.inf)
            assert dict(zip(flat[::2], flat[1::2], strict=True)) == {key: value for key, (value, _) in entries.items()}
            for key in keys:
                left = self.call("ttl", space, key)
                ends = entries[key][1] if key in entries else None
                assert left == ([None if ends is None else pytest.approx(ends - self.now)] if key in entries else [])

    @invariant()
    def versions_only_grow_and_books_agree(self) -> None:
        store = self.service.store
        for space in ("a", "b"):
            for key in ("x", "y", 1, -5, b"x"):
                version = store.version(space, key)
                assert version >= self.versions.get((space, key), 0)
                self.versions[space, key] = version
        store.check()


StoreAndCommands.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStoreAndCommands = StoreAndCommands.TestCase


def test_every_change_advances_its_key_and_its_space() -> None:
    store = Store(1)
    seen = (store.version("a", "x"), store.space_version("a"))
    assert seen == (1 << EPOCH_SHIFT, 1 << EPOCH_SHIFT)
    changes: list[Any] = [("a", "x", 1), ("a", "x", 1), ("a", "x", ABSENT), ("a", "x", ABSENT), ("a", None, ABSENT)]
    for change in changes:
        store.apply([change])
        now = (store.version("a", "x"), store.space_version("a"))
        if change[1] is None:
            assert now[1] > seen[1]
        else:
            assert now[0] > seen[0]
            assert now[1] > seen[1]
        seen = now


def test_undo_never_lowers_a_version() -> None:
    store = Store(1)
    undo = store.apply([("a", "x", 1), ("a", "y", 2), ("a", None, ABSENT)])
    high = [store.version("a", key) for key in ("x", "y")]
    store.apply(undo)
    assert store.spaces == {}
    assert all(store.version("a", key) > before for key, before in zip(("x", "y"), high, strict=True))


@pytest.mark.parametrize("last_epoch", [5, 500])
@pytest.mark.parametrize("size", [3, 5000])
def test_emptying_advances_every_key_that_was_there(size: int, last_epoch: int) -> None:
    store = Store(5, last_epoch)
    store.apply([("a", i, i) for i in range(size)] + [("b", 1, 1)])
    before = {i: store.version("a", i) for i in range(size)}
    undo = store.apply([("a", None, ABSENT)])
    assert all(store.version("a", i) > version for i, version in before.items())
    assert store.epoch <= last_epoch
    assert store.get("b", 1) == 1
    between = {i: store.version("a", i) for i in range(size)}
    store.apply(undo)
    assert store.get("a", 2) == 2
    assert all(store.version("a", i) > version for i, version in between.items())
    store.check()


def test_an_emptied_space_is_freed_in_slices() -> None:
    store = Store(1)
    store.apply([("a", i, Entry(i, 2_000.0)) for i in range(1000)])
    undo = store.apply([("a", None, ABSENT), ("a", 1, Entry(1, 2_000.5)), ("a", 2, Entry(2, 9_000.0))])
    store.discard([undo])
    rounds = 0
    while store.collect(100):
        rounds += 1
    assert 8 <= rounds <= 10
    store.check()
    assert [change[1] for change in store.due(2_001.0, 10_000)] == [1]


def test_rewriting_a_deadline_leaves_nothing_behind() -> None:
    store = Store(1)
    for i in range(5000):
        store.apply([("sessions", "s", Entry(i, 1_000.0 + i))])
    assert len(list(store._deadlines)) == 1
    assert len(store._deadlines._order) < 2000
    assert store.due(5_000.0, 10) == []
    assert store.due(6_000.0, 10) == [("sessions", "s")]
    store.apply([("sessions", "s", ABSENT)])
    assert list(store._deadlines) == []


def test_sweeping_is_bounded() -> None:
    store = Store(1)
    store.apply([("a", i, Entry(i, 10.0)) for i in range(1000)])
    swept = 0
    while keys := store.due(11.0, 300):
        assert len(keys) <= 300
        swept += len(keys)
        store.apply([(name, key, ABSENT) for name, key in keys])
    assert swept == 1000
    assert store.spaces == {}


def test_keys_that_share_a_slot_share_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MASK", 0)
    store = Store(1)
    before = store.version("a", "x")
    store.apply([("b", "y", 1)])
    assert store.version("a", "x") > before


def test_a_text_costs_the_same_when_it_goes_as_when_it_came() -> None:
    """Python keeps the UTF-8 of a text once somebody has asked for it, and the text is larger from then on."""
    store = Store(1)
    key, value = "k\xe4" * 10, "\u4e2d" * 50
    store.apply([("a", key, value), ("a", "list", [value]), ("a", "entry", Entry(value, 5.0))])
    msgpack.packb([key, value])
    store.check()
    store.apply([("a", key, 1), ("a", "list", ABSENT), ("a", "entry", ABSENT), ("a", key, ABSENT)])
    assert store.bytes == 0


def test_check_finds_cooked_books() -> None:
    store = Store(1)
    store.apply([("a", "x", Entry(1, 5.0))])
    store.check()
    store.spaces["a"].bytes += 1
    with pytest.raises(AssertionError, match="counts"):
        store.check()


def test_an_entry_of_a_hundred_bytes_costs_at_most_three_hundred() -> None:
    assert cost("key:000001", "x" * 51) <= 300
    assert cost("key:000001", b"x" * 100) <= 300
    assert cost(1, None) >= sys.getsizeof(1)


def test_the_table_has_a_line_about_every_command() -> None:
    for (kind, name), command in TABLE.items():
        assert (command.kind, command.name) == (kind, name)
        assert command.doc.endswith((".", ";", "absent."))
        assert command.least <= command.most


def test_a_new_epoch_lowers_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that was changed 2**32 times within an epoch has run into the next one's numbers."""
    store = Store(5, last_epoch=9)
    store.apply([("a", key, 1) for key in range(store_module.FEW + 1)])
    store.versions[7] = (6 << EPOCH_SHIFT) + 3
    before = store.versions[:]
    store.apply([("a", None, ABSENT)])
    assert store.epoch == 7
    assert all(now > then for now, then in zip(store.versions, before, strict=True))
    store.versions[7] = (9 << EPOCH_SHIFT) + 1
    before = store.versions[:]
    store.apply([("a", key, 1) for key in range(store_module.FEW + 1)])
    store.apply([("a", None, ABSENT)])
    assert store.epoch == 7, "there is none left"
    assert all(now > then for now, then in zip(store.versions, before, strict=True))
