"""The commands of rate limits, one by one: pure, with a time that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest

from state_manager.commands import limits
from state_manager.commands.limits import FIXED, FULL, LIMITS, MOVING, RECORDS, SLIDING
from state_manager.service import Service
from state_manager.store import Store

NOW = 2.0**20
SPAN = 64
"""A power of two, like the beginning: so windows of the clock begin there, and all sums and products are exact."""


class Limits:
    """``at(seconds).hit_fixed("k", ...)`` runs a command that many seconds after the beginning."""

    def __init__(self) -> None:
        self.store = Store(1)
        self.service = Service(self.store, token=lambda: "")
        self.service.begin(NOW)

    def at(self, seconds: float) -> Limits:
        self.service.begin(NOW + seconds)
        return self

    def __getattr__(self, command: str) -> Any:
        def run(*args: Any) -> Any:
            result = self.service.call_unattached("limits", command, args)
            self.service.commit()
            return result

        return run

    def sizes(self) -> dict[str, int]:
        return {name: len(space.entries) for name, space in self.store.spaces.items()}


@pytest.fixture
def run() -> Iterator[Limits]:
    run = Limits()
    yield run
    run.store.check()


# -- fixed window ------------------------------------------------------------------------------------------------------


def test_a_fixed_window_begins_with_its_first_hit(run: Limits) -> None:
    assert run.fixed("k") == [0, 0.0]
    assert run.hit_fixed("k", SPAN) == 1
    assert run.at(63.5).hit_fixed("k", SPAN, 5) == 6
    assert run.fixed("k") == [6, 0.5]
    assert run.fixed("another") == [0, 0.0]
    assert run.at(64).fixed("k") == [0, 0.0]
    assert run.at(70).hit_fixed("k", SPAN, 2) == 2
    assert run.fixed("k") == [2, 64.0]


def test_hits_of_a_fixed_window_can_be_taken_back(run: Limits) -> None:
    assert run.hit_fixed("k", SPAN) == 1
    assert run.at(10).hit_fixed("k", SPAN, -1) == 0
    assert run.fixed("k") == [0, 54.0]
    assert run.at(20).hit_fixed("k", SPAN) == 1
    assert run.fixed("k") == [1, 64.0], "with nothing in it there was no window any more"


def test_no_hits_are_no_change(run: Limits) -> None:
    assert run.hit_fixed("k", SPAN, 0) == 0
    assert run.hit_sliding("k", 1, SPAN, 0) is True
    assert run.hit_moving("k", 1, SPAN, 0) is True
    assert run.sizes() == {}
    for space in ("fixed", "sliding", "moving"):
        getattr(run, f"hit_{space}")("k", *([] if space == "fixed" else [1]), SPAN)
    before = run.store.versions[:]
    assert run.hit_fixed("k", SPAN, 0) == 1
    assert run.hit_sliding("k", 1, SPAN, 0) is True
    assert run.hit_moving("k", 1, SPAN, 0) is True
    assert run.hit_sliding("k", 1, SPAN) is False
    assert run.hit_moving("k", 1, SPAN) is False
    assert run.store.versions == before, "nor is one that was refused"


# -- sliding window counter --------------------------------------------------------------------------------------------


def test_a_sliding_window_weights_the_one_before(run: Limits) -> None:
    assert [run.hit_sliding("k", 8, SPAN) for _ in range(9)] == [True] * 8 + [False]
    assert run.sliding("k", SPAN) == [0, 0.0, 8, 128.0]
    assert run.at(63).hit_sliding("k", 8, SPAN) is False
    assert run.at(64).sliding("k", SPAN) == [8, 64.0, 0, 128.0]
    assert run.hit_sliding("k", 8, SPAN) is False, "all of them count still"
    assert run.at(64.5).hit_sliding("k", 8, SPAN) is True, "8 * 63.5 / 64 is below 8"
    assert run.at(96).sliding("k", SPAN) == [8, 32.0, 1, 96.0]
    assert [run.hit_sliding("k", 8, SPAN) for _ in range(4)] == [True, True, True, False]
    assert run.hit_sliding("k", 10, SPAN, 3) is False
    assert run.hit_sliding("k", 10, SPAN, 2) is True
    assert run.at(128).sliding("k", SPAN) == [6, 64.0, 0, 128.0]
    assert run.at(192).sliding("k", SPAN) == [0, 0.0, 0, 128.0]


def test_sliding_windows_of_another_length_have_no_hits_of_these(run: Limits) -> None:
    run.hit_sliding("k", 8, SPAN, 5)
    assert run.sliding("k", SPAN / 2) == [0, 0.0, 0, 64.0]
    assert run.sliding("k", SPAN * 2) == [0, 0.0, 0, 256.0]


def test_a_sliding_window_is_forgotten_when_it_no_longer_counts(run: Limits) -> None:
    run.at(10).hit_sliding("k", 8, SPAN)
    run.at(127.9).sliding("k", SPAN)
    assert run.sizes() == {SLIDING: 1}
    run.at(128).sliding("k", SPAN)
    assert run.sizes() == {}


# -- moving window -----------------------------------------------------------------------------------------------------


def test_a_moving_window_counts_the_last_seconds(run: Limits) -> None:
    assert run.moving("k", 3, SPAN) == [0, 0.0]
    assert [run.at(second).hit_moving("k", 3, SPAN) for second in (0, 10, 20, 30)] == [True, True, True, False]
    assert run.moving("k", 3, SPAN) == [3, 30.0]
    assert run.at(63.5).hit_moving("k", 3, SPAN) is False
    assert run.at(64).moving("k", 3, SPAN) == [2, 54.0]
    assert run.hit_moving("k", 3, SPAN) is True
    assert run.hit_moving("k", 3, SPAN) is False
    assert run.at(84).moving("k", 3, SPAN) == [1, 20.0]
    assert run.hit_moving("k", 3, SPAN, 3) is False
    assert run.hit_moving("k", 3, SPAN, 2) is True
    assert run.hit_moving("k", 3, SPAN, 2) is False


def test_what_costs_more_than_the_limit_never_passes(run: Limits) -> None:
    assert run.hit_moving("k", 3, SPAN, 4) is False
    assert run.hit_sliding("k", 3, SPAN, 4) is False
    assert run.hit_moving("k", 0, SPAN) is False
    assert run.sizes() == {}


@pytest.mark.parametrize("limit", [1, RECORDS - 1, RECORDS, RECORDS + 1, 3 * RECORDS, 10 * RECORDS + 7])
def test_every_hit_of_a_moving_window_comes_free_at_its_own_moment(run: Limits, limit: int) -> None:
    """Hits a second apart: full entries are read, and those that are over."""
    span = limit
    for second in range(3 * limit):
        assert run.at(second).hit_moving("k", limit, span) is True
        count = min(second + 1, limit)
        assert run.moving("k", limit, span) == [count, float(count - 1)]
        if count == limit:
            assert run.hit_moving("k", limit, span) is False
    assert run.sizes()[MOVING] == 1
    for second in range(limit):
        assert run.at(3 * limit + second).moving("k", limit, span)[0] == limit - 1 - second
    assert run.at(5 * limit).moving("k", limit, span) == [0, 0.0]
    while run.service.tidy():
        pass
    assert run.sizes() == {}, "nothing is left of full entries"


def test_a_hit_writes_little_however_large_the_limit(run: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    apply = run.store.apply

    def noting(changes: Any) -> Any:
        written.append(changes)
        return apply(changes)

    monkeypatch.setattr(run.store, "apply", noting)
    for second in range(10 * RECORDS):
        run.at(second).hit_moving("k", 10_000, 86_400)
    assert len(written) == 10 * RECORDS
    assert max(sum(len(entry.value[2]) for _, _, entry in changes) for changes in written) <= (RECORDS + 1) * 16
    assert sum(len(changes) for changes in written) == 10 * RECORDS + 9


def test_a_hit_of_very_many_units_is_one_record(run: Limits) -> None:
    assert run.hit_moving("k", 10**18, SPAN, 10**17) is True
    assert run.at(1).hit_moving("k", 10**18, SPAN, 9 * 10**17) is True
    assert run.hit_moving("k", 10**18, SPAN) is False
    assert run.moving("k", 10**18, SPAN) == [10**18, 1.0]
    assert run.at(64).moving("k", 10**18, SPAN) == [9 * 10**17, 63.0]


def test_a_smaller_limit_sees_that_it_is_used_up(run: Limits) -> None:
    for second in range(20 * RECORDS):
        assert run.at(second).hit_moving("k", 10_000, 86_400) is True
    assert run.hit_moving("k", 5, 86_400) is False
    assert run.moving("k", 5, 86_400)[0] > 5
    assert run.moving("k", 10_000, 10) == [10, 9.0], "nor does another span read beyond what there is"
    assert run.at(20 * RECORDS + 100).moving("k", 10_000, 10) == [0, 0.0]


def test_after_a_clear_no_former_hit_counts(run: Limits) -> None:
    for rounds in range(1, 4):
        for _ in range(rounds * RECORDS + 5):
            assert run.hit_moving("k", 5 * RECORDS, SPAN) is True
        assert run.moving("k", 5 * RECORDS, SPAN)[0] == rounds * RECORDS + 5
        run.clear("k")
        assert run.moving("k", 5 * RECORDS, SPAN) == [0, 0.0]


# -- all of them -------------------------------------------------------------------------------------------------------


def hit_all(run: Limits, key: Any) -> None:
    run.hit_fixed(key, SPAN)
    run.hit_sliding(key, 100, SPAN)
    for _ in range(RECORDS + 1):
        run.hit_moving(key, 100, SPAN)


def test_clear_forgets_one_key(run: Limits) -> None:
    hit_all(run, "a")
    hit_all(run, b"a")
    run.clear("a")
    run.clear("absent")
    assert [run.fixed(key)[0] for key in ("a", b"a")] == [0, 1]
    assert [run.sliding(key, SPAN)[2] for key in ("a", b"a")] == [0, 1]
    assert [run.moving(key, 100, SPAN)[0] for key in ("a", b"a")] == [0, RECORDS + 1]


def test_reset_forgets_all(run: Limits) -> None:
    assert run.reset() == 0
    hit_all(run, "a")
    hit_all(run, "b")
    assert set(run.sizes()) == set(LIMITS)
    assert run.reset() == 6
    assert run.sizes() == {}


def test_the_spaces_are_limits(run: Limits) -> None:
    hit_all(run, "a")
    spaces = run.service.call_unattached("manager", "spaces", [])
    assert {(name, kind) for name, kind, *_ in spaces} == {(space, "limit") for space in LIMITS}
    assert run.service.call_unattached("dict", "get", [FIXED, "a"])[1] == 1
    assert isinstance(run.service.call_unattached("dict", "get", [MOVING, "a"])[1], bytes), "encoded, so it can be read"
    assert run.sizes()[FULL] == 1


HITS: dict[str, tuple[Any, ...]] = {
    "hit_fixed": ("k", 60, 1),
    "hit_sliding": ("k", 5, 60, 1),
    "hit_moving": ("k", 5, 60, 1),
    "sliding": ("k", 60),
    "moving": ("k", 5, 60),
    "fixed": ("k",),
    "clear": ("k",),
}
BAD: dict[str, list[Any]] = {
    "key": [None, 1, True, 1.5, ["k"], {}, "k" * 1025, b"k" * 1025, "\ud800"],
    "expiry": [None, "60", True, 0, -1, float("nan"), float("inf"), 1e-9, 1e300, [60]],
    "limit": [None, 1.0, True, "5", -1, 2**63],
    "amount": [None, 1.0, True, "1", -1, 2**63, [1]],
}


@pytest.mark.parametrize("command", HITS)
def test_bad_arguments_are_refused(run: Limits, command: str) -> None:
    parameters = list(signature(getattr(limits, command)).parameters)[2:]
    for at, parameter in enumerate(parameters):
        for bad in BAD[parameter]:
            if command == "hit_fixed" and (parameter, bad) == ("amount", -1):
                continue  # takes one back
            arguments = [*HITS[command][:at], bad, *HITS[command][at + 1 :]]
            with pytest.raises((TypeError, ValueError, OverflowError)):
                getattr(run, command)(*arguments)
    assert run.sizes() == {}


def test_sums_past_64_bits_are_refused(run: Limits) -> None:
    run.hit_fixed("k", SPAN, 2**63 - 1)
    with pytest.raises(OverflowError):
        run.hit_fixed("k", SPAN)
    for _ in range(2):
        assert run.hit_moving("k", 2**63 - 1, SPAN, 2**62 - 1) is True
    run.at(63).hit_moving("k", 2**63 - 1, SPAN)
    with pytest.raises(OverflowError):
        run.at(64).hit_moving("k", 2**63 - 1, SPAN, 2**62)
    assert run.moving("k", 2**63 - 1, SPAN)[0] == 1
