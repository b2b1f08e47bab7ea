"""Options of a dict: bounds, eviction, and who sets what; for every way to reach a store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from state_manager import SharedDict, StateManager, StoreFull

VALUE = "x" * 1_000


def fits(bounded: SharedDict, key: int) -> bool:
    try:
        bounded[key] = VALUE
    except StoreFull:
        return False
    return True


def names(manager: StateManager) -> set[str]:
    return {space.name for space in manager.spaces()}


def test_nothing_is_asked_before_the_first_use(manager: StateManager) -> None:
    manager.dict("bounded", max_bytes=5_000)
    assert manager.system(":options").get("bounded") is None
    manager.dict("bounded", max_bytes=5_000).get("a")
    assert manager.system(":options")["bounded"] == [True, 5_000, "refuse", False]


def test_a_full_dict_refuses_and_goes_on_with_the_rest(manager: StateManager) -> None:
    bounded = manager.dict("bounded", max_bytes=5_000)
    count = 0
    while count < 10 and fits(bounded, count):
        count += 1
    assert 3 <= count <= 4
    assert len(bounded) == count
    with pytest.raises(StoreFull):
        bounded.set_many({"a": VALUE, "b": VALUE})
    assert len(bounded) == count
    bounded[0] = "small"
    del bounded[1]
    bounded["new"] = "small"
    manager.dict("other").set_many(dict.fromkeys(range(20), VALUE))


def test_a_dict_that_evicts_gives_up_its_own_oldest(manager: StateManager) -> None:
    manager.dict("other")["precious"] = VALUE
    cache = manager.dict("cache", max_bytes=5_000, on_full="evict")
    for i in range(50):
        cache[i] = VALUE
        assert cache[i] == VALUE
    kept = list(cache)
    assert kept == list(range(50 - len(kept), 50))
    assert 3 <= len(kept) <= 4
    assert manager.dict("other") == {"precious": VALUE}
    with pytest.raises(StoreFull):
        cache["huge"] = "x" * 10_000
    assert list(cache) == kept


def test_the_last_one_wins_and_the_log_says_so(
    reach: Callable[[], StateManager], manager: StateManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.dict("d", max_bytes=5_000).get("a")
    with reach() as other, caplog.at_level(logging.WARNING, "state_manager"):
        other.dict("d", max_bytes=5_000).get("a")
        assert caplog.records == []
        other.dict("d", max_bytes=100_000, on_full="evict").get("a")
    assert "max_bytes was 5000 and is 100000" in caplog.text
    manager.dict("d").get("a")
    assert manager.system(":options")["d"] == [True, 100_000, "evict", False]
    manager.dict("d", max_bytes=None).get("a")
    assert manager.system(":options")["d"] == [True, None, "evict", False]
    assert manager.drop("d")
    assert ":options" not in names(manager) or "d" not in manager.system(":options")


@pytest.mark.parametrize(
    "options",
    [
        {"durable": 1},
        {"max_bytes": 0},
        {"max_bytes": -1},
        {"max_bytes": "1"},
        {"on_full": "explode"},
        {"ephemeral": None},
    ],
)
def test_a_bad_option_is_refused_by_name(manager: StateManager, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        manager.dict("d", **options).get("a")
    assert "d" not in manager.system(":options")
