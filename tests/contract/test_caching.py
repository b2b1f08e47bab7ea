"""What ``StateCache`` promises beside cachelib's contract (``test_cachelib``), for every way to reach a manager."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any

import pytest
from cachelib.serializers import JSONSerializer

from state_manager import NotStorable, StateManager
from state_manager.flask.caching import StateCache


def test_caches_of_one_name_are_one(manager: StateManager) -> None:
    one, same, other = StateCache(manager), StateCache(manager), StateCache(manager, "other")
    one.set("a", 1)
    assert same.get("a") == 1
    other.set("a", 2)
    assert same.clear()
    assert (one.get("a"), other.get("a")) == (None, 2)


def test_an_int_that_is_counted_keeps_its_time(manager: StateManager) -> None:
    cache = StateCache(manager, default_timeout=100)
    shared = manager.dict("cache")
    cache.inc("new")
    cache.set("old", 1, timeout=1_000)
    cache.inc("old")
    cache.set("always", 1, timeout=0)
    cache.dec("always")
    assert 90 < (shared.ttl("new") or 0) <= 100
    assert 900 < (shared.ttl("old") or 0) <= 1_000
    assert shared.ttl("always") is None


def test_only_integers_are_counted(manager: StateManager) -> None:
    cache = StateCache(manager)
    cache.set("a", "text")
    with pytest.raises(TypeError, match="not a 64-bit integer"):
        cache.inc("a")
    cache.set("b", 2**63 - 1)
    with pytest.raises(OverflowError):
        cache.inc("b")


class Keys(StrEnum):
    USERS = "users"


def test_any_text_is_a_key(manager: StateManager) -> None:
    cache = StateCache(manager)
    paths = ["view/" + "a" * 5_000, "view/" + "a" * 5_001, "é" * 600, "", "é", "a" * 1_024, "a" * 1_025]
    assert cache.set_many({path: path for path in paths}) == paths
    assert cache.get_many(*paths) == paths
    assert all(cache.get(path) == path and cache.has(path) for path in paths)
    assert cache.delete_many(*paths) == paths
    assert not any(cache.has(path) for path in paths)
    cache.set(Keys.USERS, 1)
    assert cache.get("users") == cache.get(Keys.USERS) == 1
    with pytest.raises(TypeError, match="a key is a str"):
        cache.set(None, 1)  # type: ignore[arg-type]


class Model:
    """What cannot be stored as it is."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_an_object_needs_a_serializer_and_the_error_says_which(manager: StateManager) -> None:
    cache = StateCache(manager)
    for store in (
        lambda: cache.set("a", Model(1)),
        lambda: cache.add("a", [Model(1)]),
        lambda: cache.set_many({"a": 1, "b": Model(1)}),
    ):
        with pytest.raises(NotStorable, match=r'type .*Model cannot be stored.* serializer="pickle"'):
            store()
    assert cache.get_many("a", "b") == [None, None]


def test_pickle_is_used_by_those_who_ask_for_it(manager: StateManager) -> None:
    cache = StateCache(manager, serializer="pickle")
    assert cache.set("a", Model(1)) is True
    assert cache.get("a").number == 1
    assert cache.add("b", Model(2)) is True
    assert cache.set_many({"c": Model(3)}) == ["c"]
    assert [found.number for found in cache.get_many("b", "c")] == [2, 3]
    cache.set("n", 1)
    assert cache.inc("n") == 2
    shared = manager.dict("cache")
    assert shared["n"] == 2
    assert type(shared["a"]) is bytes
    assert StateCache(manager).get("a") == shared["a"]  # who has not asked gets bytes, unpickled by nobody
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError), match="lambda"):
        cache.set("a", lambda: None)


def test_what_cannot_be_read_is_absent(manager: StateManager, caplog: pytest.LogCaptureFixture) -> None:
    cache = StateCache(manager, serializer="pickle")
    manager.dict("cache").set_many({"bytes": b"no pickle", "native": [1]})
    assert cache.get("bytes") is None
    assert cache.get_many("native") == [None]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the cache 'cache' cannot read what it holds under 'bytes': UnpicklingError" in caplog.text


class Failing(JSONSerializer):
    """cachelib's own answer None for what they cannot dump, and log why."""

    def _warn(self, e: Exception) -> None:
        pass


def test_what_a_serializer_cannot_dump_is_no_none(manager: StateManager) -> None:
    cache = StateCache(manager, serializer=Failing())
    with pytest.raises(NotStorable, match=r"Failing.* makes NoneType None of Model .*, and not bytes or a str"):
        cache.set("a", Model(1))
    assert not cache.has("a")


@pytest.mark.parametrize("serializer", ["json", 1, object(), pickle.Pickler])
def test_a_serializer_is_one(serializer: Any) -> None:
    with pytest.raises(TypeError, match="a serializer is None, 'pickle' or an object with dumps and loads, not"):
        StateCache("memory://", serializer=serializer)


def test_a_subclass_may_have_its_own() -> None:
    class Own(StateCache):
        serializer = json

    cache = Own("memory://")
    cache.set("a", (1, 2))
    assert cache.get("a") == [1, 2]
    assert Own("memory://", serializer="pickle").serializer is pickle


def test_a_cache_forgets_and_a_durable_one_keeps(manager: StateManager) -> None:
    options = manager.system(":options")
    StateCache(manager).get("a")
    assert options["cache"] == [False, 64 * 2**20, "evict", False]
    StateCache(manager, "sessions", durable=True).get("a")
    assert options.get("sessions", [True, None, "refuse", False]) == [True, None, "refuse", False]
    StateCache(manager, "own", durable=True, max_bytes=10_000, on_full="evict").get("a")
    assert options["own"] == [True, 10_000, "evict", False]


def test_a_full_cache_gives_up_its_oldest(manager: StateManager) -> None:
    precious = manager.dict("precious")
    precious["a"] = "x" * 1_000
    cache = StateCache(manager, max_bytes=10_000)
    for number in range(50):
        assert cache.set(str(number), "x" * 1_000)
        assert cache.get(str(number)) == "x" * 1_000
    assert cache.get("0") is None
    assert 5 < len(manager.dict("cache")) < 10
    assert precious["a"] == "x" * 1_000


def test_a_bad_name_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="is no name"):
        StateCache("memory://", "")
    with pytest.raises(ValueError, match="redis://"):
        StateCache("redis://localhost")


def test_its_repr_says_which_it_is() -> None:
    assert repr(StateCache("memory://", durable=True)) == (
        "<StateCache 'cache' {'durable': True, 'max_bytes': None, 'on_full': 'refuse'}>"
    )


def test_no_client_reads_what_is_no_longer_so(reach: Callable[[], StateManager]) -> None:
    with reach() as one, reach() as other:
        writer, reader = StateCache(one), StateCache(other)
        for number in range(100):
            writer.set("a", [number])
            assert reader.get("a") == [number]


def test_of_all_who_miss_one_computes(manager: StateManager) -> None:
    cache = StateCache(manager, default_timeout=100, serializer="pickle")
    calls: list[int] = []
    go_on = threading.Event()

    def compute() -> Model:
        calls.append(1)
        assert go_on.wait(20)
        return Model(7)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(cache.get_or_compute, "a", compute) for _ in range(4)]
        go_on.set()
        assert [future.result(20).number for future in futures] == [7] * 4
    assert calls == [1]
    assert 90 < (manager.dict("cache").ttl("a") or 0) <= 100
    assert cache.get_or_compute("b", lambda: "not stored", timeout=-1) == "not stored"
    assert not cache.has("b")
    with pytest.raises(NotStorable, match="serializer"):
        StateCache(manager, "plain").get_or_compute("a", lambda: Model(1))
