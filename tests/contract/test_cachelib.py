"""What cachelib promises of a cache: asked of its own ``SimpleCache`` first, then of ``StateCache`` in either place.

So what is expected here is what cachelib does, and not what we think it does. ``test_caching`` has the rest.
"""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from cachelib import BaseCache, SimpleCache
from cachelib.serializers import JSONSerializer

from state_manager.flask.caching import StateCache
from tests.processes.harness import wait_for

PAIRS = {
    "false": False,
    "true": True,
    "int": 2048,
    "large": 2**70,
    "float": 1.5,
    "str": "eggs",
    "bytes": b"\x00raw",
    "list": [{}, "fried eggs", [512]],
    "dict": {"sauce": [], 256: "truffle", "nested": {"a": (1, 2)}},
    "tuple": ("text", 404, {"X-Header": "1"}),
    "empty": {},
}
"""Values of all kinds."""

Make = Callable[..., BaseCache]


def maker(kind: str, request: pytest.FixtureRequest) -> Make:
    """Return a function of options that gives a cache; two caches of one test are one, if they can be."""
    if kind == "cachelib's own":
        return SimpleCache
    name = request.node.nodeid
    address = f"memory://{name}" if kind == "memory" else request.getfixturevalue("served")
    return lambda **options: StateCache(address, name, **options)


@pytest.fixture(params=["cachelib's own", "memory", "process"])
def make(request: pytest.FixtureRequest) -> Make:
    return maker(request.param, request)


@pytest.fixture(params=["cachelib's own", "memory"])
def make_in_test_time(request: pytest.FixtureRequest) -> Make:
    """A maker of caches whose clock a test may move."""
    return maker(request.param, request)


@pytest.fixture
def cache(make: Make) -> BaseCache:
    return make()


def test_a_value_comes_back_as_it_was(cache: BaseCache) -> None:
    for key, value in PAIRS.items():
        assert cache.set(key, value) is True
        found = cache.get(key)
        assert (found, type(found)) == (value, type(value))
    assert cache.set("int", "other") is True
    assert cache.get("int") == "other"


def test_what_is_absent_is_none(cache: BaseCache) -> None:
    assert cache.get("a") is None
    assert cache.get_many("a", "b") == [None, None]
    assert cache.get_dict("a") == {"a": None}
    assert cache.has("a") is False


def test_none_is_a_value_that_only_has_can_tell(cache: BaseCache) -> None:
    cache.set("a", None)
    assert cache.get("a") is None
    assert cache.has("a") is True
    assert cache.add("a", 1) is False


def test_what_a_reader_gets_is_his_own(cache: BaseCache) -> None:
    cache.set("a", [1])
    cache.get("a").append(2)
    cache.get_many("a")[0].append(2)
    assert cache.get("a") == [1]


def test_many_at_once(cache: BaseCache) -> None:
    assert cache.set_many(PAIRS) == list(PAIRS)
    assert cache.get_many(*PAIRS) == list(PAIRS.values())
    assert cache.get_many("str", "absent", "int", "str") == ["eggs", None, 2048, "eggs"]
    assert cache.get_dict(*PAIRS) == PAIRS
    assert cache.delete_many("str", "absent", "int") == ["str", "absent", "int"]
    assert cache.get_many("str", "int", "float") == [None, None, 1.5]


def test_many_may_be_none(cache: BaseCache) -> None:
    assert cache.set_many({}) == []
    assert cache.get_many() == []
    assert cache.get_dict() == {}
    assert cache.delete_many() == []


def test_add_stores_only_what_is_absent(cache: BaseCache) -> None:
    assert cache.add("a", [1]) is True
    assert cache.add("a", [2]) is False
    assert cache.get("a") == [1]


def test_delete_tells_whether_it_was_there(cache: BaseCache) -> None:
    cache.set("a", 1)
    assert cache.delete("a") is True
    assert cache.delete("a") is False
    assert cache.get("a") is None


def test_clear(cache: BaseCache) -> None:
    cache.set_many(PAIRS)
    assert cache.clear() is True
    assert not any(cache.has(key) for key in PAIRS)
    assert cache.clear() is True


def test_inc_and_dec(cache: BaseCache) -> None:
    assert cache.inc("up") == 1
    assert cache.inc("up", 10) == 11
    assert cache.get("up") == 11
    assert cache.dec("up") == 10
    assert cache.dec("down", 5) == -5
    cache.set("count", 10)
    assert cache.inc("count", delta=5) == cache.get("count") == 15
    assert cache.dec("count", delta=3) == cache.get("count") == 12


def test_threads_lose_no_inc(cache: BaseCache) -> None:
    threads = [threading.Thread(target=lambda: [cache.inc("n") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("n") == 400


def test_of_all_who_add_one_is_told_so(cache: BaseCache) -> None:
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(cache.add("a", 1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False] * 7 + [True]


@pytest.mark.parametrize("default", [0, 1, timedelta(milliseconds=10), timedelta(0)])
def test_timeouts_are_normalized_as_cachelib_does(make: Make, default: int | timedelta) -> None:
    cache, base = make(default_timeout=default), BaseCache(default_timeout=default)
    assert cache.default_timeout == base.default_timeout
    assert cache.ignore_delete_many_errors is base.ignore_delete_many_errors is True


@pytest.mark.parametrize("way", ["set", "set_many", "add"])
def test_what_is_stored_with_a_timeout_below_zero_is_over(cache: BaseCache, way: str) -> None:
    def store(key: str, timeout: int) -> Any:
        return cache.set_many({key: 2}, timeout) if way == "set_many" else getattr(cache, way)(key, 2, timeout)

    assert store("new", -1) == (["new"] if way == "set_many" else True)
    assert cache.get("new") is None
    assert cache.has("new") is False
    cache.set("old", 1)
    if way == "add":
        assert store("old", -1) is False
        assert cache.get("old") == 1
    else:
        assert store("old", -1)
        assert cache.get("old") is None


def test_a_default_below_zero_keeps_nothing(make: Make) -> None:
    cache = make(default_timeout=-1)
    assert cache.set("a", 1) is True
    assert cache.add("a", 1) is True
    assert cache.inc("a", 5) == 5
    assert cache.dec("a", 5) == -5
    assert cache.get("a") is None
    cache.set("b", 1, timeout=0)
    assert cache.get("b") == 1


@pytest.mark.parametrize("timeout", ["60", [60]])
def test_a_timeout_is_a_number_or_a_timedelta(cache: BaseCache, timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be an int"):
        cache.set("a", 1, timeout)


def test_a_float_is_warned_about(cache: BaseCache) -> None:
    with pytest.warns(DeprecationWarning, match="Float timeouts"):
        cache.set("a", 1, 0.5)  # type: ignore[arg-type]
    assert cache.get("a") == 1


def test_entries_end_with_their_time_and_not_before(make_in_test_time: Make) -> None:
    with time_machine.travel(1_000_000, tick=False) as traveller:
        cache = make_in_test_time(default_timeout=60)
        cache.set("default", 1)
        cache.set("none", 1, timeout=None)
        cache.set("zero", 1, timeout=0)
        cache.set("short", 1, timeout=5)
        cache.set_many({"delta": 1}, timeout=timedelta(seconds=5))
        cache.add("added", 1, timeout=5)
        traveller.shift(4.9)
        assert all(cache.get_many("default", "none", "zero", "short", "delta", "added"))
        traveller.shift(0.1)
        assert cache.get_many("default", "none", "zero", "short", "delta", "added") == [1, 1, 1, None, None, None]
        assert cache.has("short") is False
        assert cache.add("short", 2) is True
        traveller.shift(54.9)
        assert cache.get_many("default", "none") == [1, 1]
        traveller.shift(0.1)
        assert cache.get_many("default", "none", "zero") == [None, None, 1]
        traveller.shift(10**9)
        assert cache.get("zero") == 1


def test_entries_end_by_the_managers_clock_too(request: pytest.FixtureRequest) -> None:
    cache = maker("process", request)()
    cache.set("a", 1, timeout=1)
    cache.set("b", 1)
    wait_for(lambda: cache.get("a") is None, "the entry's end")
    assert cache.get("b") == 1


class Silly:
    """One of the kind that cachelib's own tests use: it is neither pickle nor JSON."""

    def dumps(self, value: Any) -> bytes:
        return repr(value).encode()

    def loads(self, dumped: bytes) -> Any:
        return eval(dumped.decode())


@pytest.mark.parametrize(
    "serializer", [JSONSerializer(), Silly(), json, pickle], ids=["cachelib", "own", "json", "pickle"]
)
def test_a_serializer_may_be_injected(make: Make, serializer: Any) -> None:
    cache = make()
    cache.serializer = serializer  # type: ignore[attr-defined]  # as Flask-Caching does
    pairs = {"a": "hello", "b": 42, "c": [True, None, 1.5], "d": {"a": 1}, "e": None, "f": False}
    assert cache.set_many(pairs) == list(pairs)
    assert cache.get_many(*pairs) == list(pairs.values())
    assert cache.get_dict(*pairs) == pairs
    assert cache.add("a", "other") is False
    assert cache.add("new", [1]) is True
    assert cache.get("new") == [1]
    assert cache.set("a", [2])
    assert cache.get("a") == [2]
    assert cache.inc("b") == 43
