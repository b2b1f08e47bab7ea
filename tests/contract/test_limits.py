"""The storage of limits, for every way to reach a store, through the strategies that use it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import storage_from_string
from limits.strategies import (
    STRATEGIES,
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from state_manager import StateManager
from state_manager.flask.limits import StateStorage

AGES = 1_000_000
"""Hours of a window that began in 1970 and does not end during a test."""
LONG = "x" * 5_000
"""A key that a visitor may choose, as long as he likes."""


@pytest.fixture
def storage(manager: StateManager, monkeypatch: pytest.MonkeyPatch) -> StateStorage:
    monkeypatch.setenv("STATE_MANAGER_ADDRESS", str(manager.address))
    storage = cast(StateStorage, storage_from_string("statemanager://"))
    storage.reset()
    return storage


@pytest.fixture(params=STRATEGIES)
def limiter(storage: StateStorage, request: pytest.FixtureRequest) -> RateLimiter:
    return STRATEGIES[request.param](storage)


def test_every_strategy(limiter: RateLimiter) -> None:
    item = RateLimitItemPerHour(10, AGES)
    assert limiter.test(item, "a", cost=10)
    assert not limiter.test(item, "a", cost=11)
    assert [limiter.hit(item, "a") for _ in range(8)] == [True] * 8
    assert limiter.get_window_stats(item, "a").remaining == 2
    assert not limiter.test(item, "a", cost=3)
    assert limiter.hit(item, "a", cost=2)
    assert not limiter.hit(item, "a")
    assert not limiter.test(item, "a")
    assert limiter.get_window_stats(item, "a").remaining == 0
    assert limiter.hit(item, "b"), "another one"
    limiter.clear(item, "a")
    assert limiter.test(item, "a", cost=10)
    assert limiter.get_window_stats(item, "b").remaining == 9


def test_when_a_window_ends_is_told_in_this_machines_time(storage: StateStorage) -> None:
    item = RateLimitItemPerMinute(10)
    for limiter in (FixedWindowRateLimiter(storage), MovingWindowRateLimiter(storage)):
        before = time.time()
        assert limiter.get_window_stats(item, "a").reset_time >= before
        limiter.hit(item, "a")
        assert before + 59 < limiter.get_window_stats(item, "a").reset_time < time.time() + 61
    sliding = SlidingWindowCounterRateLimiter(storage)
    assert abs(sliding.get_window_stats(item, "a").reset_time - time.time()) < 1
    sliding.hit(item, "a")
    assert 0 <= sliding.get_window_stats(item, "a").reset_time - before < 61


@pytest.mark.parametrize("strategy", ["fixed", "moving", "sliding"])
def test_places_come_free_again(storage: StateStorage, strategy: str) -> None:
    def hit() -> bool:
        if strategy == "fixed":
            return storage.incr("k", cast(int, 0.2)) <= 3
        if strategy == "moving":
            return storage.acquire_entry("k", 3, cast(int, 0.2))
        return storage.acquire_sliding_window_entry("k", 3, cast(int, 0.2))

    passed: list[float] = []
    deadline = time.monotonic() + 20
    while len(passed) < 7:
        assert time.monotonic() < deadline
        began = time.monotonic()
        if hit():
            passed.append(began)
    assert passed[6] - passed[0] >= (0.2 if strategy == "sliding" else 0.35)


def test_counts_of_one_kind_are_not_those_of_another(storage: StateStorage) -> None:
    item = RateLimitItemPerHour(3, AGES)
    for strategy in STRATEGIES.values():
        limiter = strategy(storage)
        assert [limiter.hit(item, "a") for _ in range(4)] == [True, True, True, False]
    assert storage.reset() == 3
    for strategy in STRATEGIES.values():
        assert strategy(storage).hit(item, "a")


def test_any_key_will_do(limiter: RateLimiter) -> None:
    item = RateLimitItemPerHour(1, AGES)
    for key in ("", " ", "é" * 900, "\0\n", "\ud800", LONG, LONG + "y", LONG + "\ud800"):
        assert limiter.hit(item, key), key
        assert not limiter.hit(item, key), key
        limiter.clear(item, key)
        assert limiter.test(item, key), key


def test_of_many_at_once_as_many_pass_as_may(limiter: RateLimiter) -> None:
    item = RateLimitItemPerHour(40, AGES)
    start = threading.Barrier(8)

    def work(_: int) -> int:
        start.wait(20)
        return sum(limiter.hit(item, "a") for _ in range(15))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 40


def test_it_is_well(storage: StateStorage) -> None:
    assert storage.check() is True
    assert "StateStorage" in repr(storage)
