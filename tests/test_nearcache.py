"""A process's copies against a plain model: a copy is used if its page shows its version, and then it is right."""

from __future__ import annotations

from array import array
from math import inf
from typing import Any
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from state_manager.codec import decode, encode
from state_manager.nearcache import ABSENT, COPY_COST, MUTABLE, PRESENT, Copies, NearCache
from state_manager.settings import SLOTS
from state_manager.versions import Page, number_of, word_of

OFFSET = 1_000.0


class FakePage(Page):
    """A page in this process's memory."""

    def __init__(self, epoch: int = 1_800_000_000) -> None:
        self.numbers = array("Q", [epoch << 32]) * SLOTS
        words = memoryview(self.numbers).cast("B").cast("d")
        super().__init__("/nowhere", b"b" * 16, OFFSET, words, (0, 0))
        self.lasting = True

    def version(self, key: Any, space: str = "a") -> int:
        return self.numbers[slot_of(key, space)]

    def advance(self, key: Any, space: str = "a") -> None:
        self.numbers[slot_of(key, space)] += 1


def slot_of(key: Any, space: str = "a") -> int:
    data = key.encode() if type(key) is str else key if type(key) is bytes else str(key).encode()
    return crc32(data, crc32(space.encode())) % SLOTS


@pytest.fixture
def page() -> FakePage:
    return FakePage()


@pytest.fixture
def cache(page: FakePage) -> NearCache:
    cache = NearCache()
    cache.turn_to(page)
    return cache


@pytest.fixture
def copies(cache: NearCache) -> Copies:
    return cache.copies("a")


def quickly(copies: Copies, key: str) -> Any:
    """What the quick path returns, None where it has nothing that is current."""
    words, slot, version, value = copies.quick.get(key, ((0.0,), 0, 1.0, None))
    return value if words[slot] == version else None


# -- against a model ---------------------------------------------------------------------------------------------------

KEYS: list[Any] = ["x", "y", "1", 1, b"1", -1]  # "1", 1 and b"1" share a slot
STORED: list[Any] = [None, True, 0, 1, 1.0, "text", *map(encode, ([1], (1, "x"), b"bytes", {"n": {1}}))]


class Replies(RuleBasedStateMachine):
    """Entries change, are asked for, and the replies arrive whenever they like, of a manager that has ended, too."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 1_800_000_000
        self.page = FakePage(self.epoch)
        self.cache = NearCache()
        self.cache.turn_to(self.page)
        self.copies = self.cache.copies("a")
        self.entries: dict[Any, tuple[Any, float | None]] = {}
        self.pending: list[tuple[Any, FakePage, int, Any, float | None]] = []
        self.arrived: dict[Any, tuple[int, Any, float | None]] = {}

    @rule(key=st.sampled_from(KEYS), stored=st.sampled_from(STORED), ends=st.none() | st.floats(2_000, 3_000))
    def write(self, key: Any, stored: Any, ends: float | None) -> None:
        self.entries[key] = stored, ends
        self.page.advance(key)

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: Any) -> None:
        self.entries.pop(key, None)
        self.page.advance(key)

    @rule(key=st.sampled_from(KEYS), only_whether=st.booleans(), late=st.booleans())
    def ask(self, key: Any, only_whether: bool, late: bool) -> None:
        stored, ends = self.entries.get(key, (ABSENT, None))
        if only_whether and stored is not ABSENT:
            stored = PRESENT
        self.pending.append((key, self.page, self.page.version(key), stored, ends))
        if not late:
            self.arrive(-1)

    @precondition(lambda self: self.pending)
    @rule()
    def arrive_late(self) -> None:
        self.arrive(0)

    def arrive(self, place: int) -> None:
        key, page, version, stored, ends = self.pending.pop(place)
        self.copies.keep(key, page, version, stored, ends)
        if page is self.page:
            self.arrived[key] = version, stored, ends
        else:
            self.arrived.clear()

    @rule()
    def another_manager(self) -> None:
        self.epoch += 1
        self.page = FakePage(self.epoch)
        self.cache.turn_to(self.page)
        self.arrived.clear()

    @rule()
    def drop(self) -> None:
        self.cache.drop()
        self.arrived.clear()

    @invariant()
    def copies_are_right(self) -> None:
        for key in KEYS:
            self.look_quickly(key)
            self.look(key, reads=False)

    @rule()
    def read(self) -> None:
        for key in KEYS:
            self.look(key, reads=True)

    def look(self, key: Any, reads: bool) -> None:
        found = self.copies.find(key)
        version, stored, ends = self.arrived.get(key, (0, None, None))
        assert (found is not None) is (version == self.page.version(key))
        if found is None:
            return
        assert number_of(found.version) == version
        assert found.deadline == (inf if ends is None else ends - OFFSET)
        now, _ = self.entries.get(key, (ABSENT, None))
        if stored is PRESENT or stored is ABSENT:
            assert found.value is stored
            assert (now is ABSENT) is (stored is ABSENT)
        elif reads:
            value = found.read()
            assert value == decode(now)
            assert type(value) is type(decode(now))
            if found.value is not MUTABLE:
                self.copies.promote(key, found)

    def look_quickly(self, key: Any) -> None:
        if type(key) is str and (value := quickly(self.copies, key)) is not None:
            now, ends = self.entries[key]
            assert ends is None
            assert value == decode(now)
            assert type(value) is type(decode(now))
        assert self.copies.has_quick(key) is (type(key) is str and key in self.copies.quick and self._fits(key))

    def _fits(self, key: str) -> bool:
        words, slot, version, _ = self.copies.quick[key]
        return bool(words[slot] == version)


Replies.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestReplies = Replies.TestCase


# -- one by one --------------------------------------------------------------------------------------------------------


def test_keys_of_two_types_are_two_keys(copies: Copies, page: FakePage) -> None:
    for key in ("1", 1, b"1"):
        copies.keep(key, page, page.version(key), repr(key))
    for key in ("1", 1, b"1"):
        found = copies.find(key)
        assert found is not None
        assert found.read() == repr(key)
    assert not copies.has_quick(1)


def test_a_copy_of_one_key_says_nothing_about_another(copies: Copies, page: FakePage) -> None:
    copies.keep("x", page, page.version("x"), 1)
    assert copies.find("y") is None
    assert copies.find(b"x") is None


def test_spaces_are_apart(cache: NearCache, page: FakePage) -> None:
    cache.copies("a").keep("x", page, page.version("x"), 1)
    assert cache.copies("b").find("x") is None
    assert cache.copies("a") is cache.copies("a")


def test_what_one_reader_changes_no_other_sees(copies: Copies, page: FakePage) -> None:
    copies.keep("x", page, page.version("x"), encode({"n": [1]}))
    found = copies.find("x")
    assert found is not None
    found.read()["n"].append(2)
    assert found.read() == {"n": [1]}
    copies.promote("x", found)
    assert copies.quick == {}


def test_a_frozen_value_is_made_once(copies: Copies, page: FakePage) -> None:
    copies.keep("x", page, page.version("x"), encode([1, [2]]))
    found = copies.find("x")
    assert found is not None
    assert found.read_frozen() == (1, (2,))
    assert found.read_frozen() is found.read_frozen()
    assert found.read() == [1, [2]]


def test_a_value_with_a_deadline_never_takes_the_quick_path(copies: Copies, page: FakePage) -> None:
    copies.keep("x", page, page.version("x"), 1, 2_000.0)
    found = copies.find("x")
    assert found is not None
    assert found.deadline == 1_000.0
    copies.promote("x", found)
    assert copies.quick == {}


def test_a_whole_dict_is_under_the_version_of_the_dict(copies: Copies, page: FakePage) -> None:
    copies.keep_whole(page, page.version(""), [("x", 1)], inf)
    assert copies.whole is not None
    assert copies.whole.current
    page.advance("x")
    assert copies.whole.current
    page.advance("")
    assert not copies.whole.current


def test_all_are_dropped_at_the_limit(page: FakePage) -> None:
    limit = 200 * COPY_COST
    cache = NearCache(limit)
    cache.turn_to(page)
    copies = cache.copies("a")
    most = 0
    for number in range(1_000):
        copies.keep(number, page, page.version(number), "x" * 200)
        assert copies.find(number) is not None, "the last one is always there"
        most = max(most, len(copies.others) + len(copies.fresh))
        assert cache.filled <= limit
    assert 50 < most < 200
    for number in range(1_000):
        copies.keep_whole(page, page.version(""), [(number, "x" * 200)], inf)
        assert cache.filled <= limit


def test_what_is_large_is_not_kept_and_drops_nothing(page: FakePage) -> None:
    cache = NearCache(80_000)
    cache.turn_to(page)
    copies = cache.copies("a")
    copies.keep("x", page, page.version("x"), 1)
    copies.keep("large", page, page.version("large"), "x" * 10_000)
    copies.keep_whole(page, page.version(""), [(number, "x" * 1_000) for number in range(20)], inf)
    assert copies.find("large") is None
    assert copies.whole is None
    assert copies.find("x") is not None


def test_a_page_that_was_turned_away_from_leaves_nothing(cache: NearCache, copies: Copies, page: FakePage) -> None:
    def left() -> list[Any]:
        return [*copies.quick, *copies.others, *copies.fresh, *([] if copies.whole is None else ["whole"])]

    for key, stored in (("x", 1), (1, 1), ("fresh", 1)):
        copies.keep(key, page, page.version(key), stored)
        if key != "fresh":
            copies.find(key)
    copies.keep_whole(page, page.version(""), [], inf)
    assert left() == ["x", 1, "fresh", "whole"]
    cache.turn_to(None)
    assert left() == []
    copies.keep("x", page, page.version("x"), 1)  # by a thread that was on its way
    assert left() == []
    copies.keep_whole(page, page.version(""), [], inf)
    assert left() == []


def test_a_copy_that_is_taken_while_another_thread_turns_away_is_not_left(
    cache: NearCache, copies: Copies, page: FakePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turning(version: int) -> float:
        cache.turn_to(None)
        return word_of(version)

    copies.keep("x", page, page.version("x"), 1)
    monkeypatch.setattr("state_manager.nearcache.word_of", turning)
    assert copies.find("x") is None
    assert copies.quick == {}


def test_proxies_may_hold_the_quick_dict(cache: NearCache, copies: Copies, page: FakePage) -> None:
    quick = copies.quick
    copies.keep("x", page, page.version("x"), 1)
    copies.find("x")
    assert quickly(copies, "x") == 1
    cache.drop()
    assert copies.quick is quick
    assert quick == {}


def test_it_says_how_much_it_has(cache: NearCache, copies: Copies, page: FakePage) -> None:
    copies.keep("x", page, page.version("x"), 1)
    copies.find("x")
    assert repr(cache) == "<NearCache 1 copies>"
    assert repr(ABSENT) == "ABSENT"


def test_what_nobody_would_mark_is_never_quick(page: FakePage, cache: NearCache) -> None:
    """A page in the state directory goes with it, and then its readers have to look for themselves."""
    page.lasting = False
    copies = cache.copies("a")
    copies.keep("x", page, page.version("x"), 1)
    copies.keep("y", page, page.version("y"), encode((1, 2)))
    for key, value in {"x": 1, "y": (1, 2)}.items():
        copy = copies.find(key)
        assert copy is not None
        assert copy.read() == value
        copies.promote(key, copy)
    assert not copies.quick
