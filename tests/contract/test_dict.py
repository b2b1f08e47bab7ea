"""What ``SharedDict`` promises, for every way to reach one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from state_manager import NotStorable, SharedDict, StateManager, TooLarge


@pytest.fixture
def carts(manager: StateManager) -> SharedDict:
    return manager.dict("carts")


def test_a_dict_is_what_it_looks_like(carts: SharedDict) -> None:
    carts["a"] = {"n": 1}
    carts["b"] = [1, (2, 3)]
    assert carts["a"] == {"n": 1}
    assert carts.get("b") == [1, (2, 3)]
    assert carts.get("c") is None
    assert carts.get("c", 7) == 7
    assert "a" in carts
    assert "c" not in carts
    assert len(carts) == 2
    assert list(carts) == ["a", "b"]
    assert carts == {"a": {"n": 1}, "b": [1, (2, 3)]}
    assert carts != {"a": 1}
    assert carts.copy() == dict(carts.items())
    assert list(carts.values()) == [{"n": 1}, [1, (2, 3)]]
    del carts["a"]
    with pytest.raises(KeyError, match="a"):
        carts["a"]
    with pytest.raises(KeyError, match="a"):
        del carts["a"]


def test_an_empty_dict(carts: SharedDict) -> None:
    assert len(carts) == 0
    assert not carts
    assert list(carts) == []
    assert carts == {}
    with pytest.raises(KeyError, match="carts"):
        carts.popitem()


def test_none_is_a_value_and_not_an_absence(carts: SharedDict) -> None:
    carts["a"] = None
    assert "a" in carts
    assert carts["a"] is None
    assert carts.get("a", 1) is None
    assert not carts.add("a", 2)
    assert carts.setdefault("a", 3) is None
    assert carts.pop("a", 4) is None
    assert carts.pop("a", 4) == 4


@pytest.mark.parametrize(
    "value", [None, True, False, 0, -(2**63), 2**63, 2**200, 1.5, "", "ä", b"", b"\xc4", [], {}, ()]
)
def test_values_come_back_as_they_were(carts: SharedDict, value: Any) -> None:
    carts["a"] = value
    assert carts["a"] == value
    assert type(carts["a"]) is type(value)


def test_keys_of_different_types_are_different_keys(carts: SharedDict) -> None:
    carts["1"], carts[1], carts[b"1"] = "str", "int", "bytes"
    assert [carts["1"], carts[1], carts[b"1"]] == ["str", "int", "bytes"]
    assert len(carts) == 3
    assert {type(key) for key in carts} == {str, int, bytes}


@pytest.mark.parametrize("key", [True, 1.0, None, (1,), ["a"], 2**63, -(2**63) - 1, "x" * 1025, b"x" * 1025, "é" * 600])
def test_a_bad_key_is_refused_and_nothing_changes(carts: SharedDict, key: Any) -> None:
    carts[1] = "one"
    calls: list[Callable[[], Any]] = [
        lambda: carts.set(key, 1),
        lambda: carts.get(key),
        lambda: key in carts,
        lambda: carts.add(key, 1),
        lambda: carts.replace(key, 1),
        lambda: carts.delete(key),
        lambda: carts.pop(key, None),
        lambda: carts.increment(key),
        lambda: carts.transform(key, lambda value: 1),
        lambda: carts.compare_and_set(key, 1, 2),
        lambda: carts.get_many([1, key]),
        lambda: carts.delete_many([1, key]),
        lambda: carts.ttl(key),
        lambda: carts.expire(key, 1),
        lambda: carts.persist(key),
        lambda: carts.setdefault(key, 1),
    ]
    for call in calls:
        with pytest.raises((TypeError, OverflowError, TooLarge), match="a key"):
            call()
    assert carts == {1: "one"}


@pytest.mark.parametrize("value", [object(), iter([]), open, {"a": [object()]}])
def test_a_value_that_cannot_be_stored_is_refused(carts: SharedDict, value: Any) -> None:
    carts["a"] = 1
    with pytest.raises(NotStorable):
        carts["a"] = value
    with pytest.raises(NotStorable):
        carts.set_many({"b": 1, "c": value})
    assert carts == {"a": 1}


@pytest.mark.parametrize("name", ["", ":counters", 1, None, b"x", "x" * 1025])
def test_a_bad_name_is_refused(manager: StateManager, name: Any) -> None:
    for kind in (manager.dict, manager.counter, manager.secret):
        with pytest.raises((TypeError, ValueError), match="name"):
            kind(name)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), timedelta(0), timedelta(seconds=-1)])
def test_a_ttl_is_finite_and_above_zero(carts: SharedDict, manager: StateManager, ttl: Any) -> None:
    carts["a"] = 1
    calls: list[Callable[[], Any]] = [
        lambda: carts.set("a", 2, ttl=ttl),
        lambda: carts.add("b", 2, ttl=ttl),
        lambda: carts.replace("a", 2, ttl=ttl),
        lambda: carts.set_many({"a": 2}, ttl=ttl),
        lambda: carts.increment("a", ttl=ttl),
        lambda: carts.increment("b", ttl=ttl),
        lambda: carts.expire("a", ttl),
        lambda: manager.once("a", ttl),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="ttl"):
            call()
    with pytest.raises(TypeError, match="ttl"):
        carts.set("a", 2, ttl="1")  # type: ignore[arg-type]
    assert carts == {"a": 1}
    assert carts.ttl("a") is None


def test_add_and_replace(carts: SharedDict) -> None:
    assert not carts.replace("a", 1)
    assert "a" not in carts
    assert carts.add("a", 2)
    assert not carts.add("a", 3)
    assert carts["a"] == 2
    assert carts.replace("a", 4)
    assert carts["a"] == 4
    assert carts.delete("a")
    assert not carts.delete("a")


def test_setdefault_and_popitem(carts: SharedDict) -> None:
    assert carts.setdefault("a", [1]) == [1]
    assert carts.setdefault("a", [2]) == [1]
    carts["b"] = 2
    assert carts.popitem() == ("b", 2)
    assert carts.popitem() == ("a", [1])


def test_increment(carts: SharedDict) -> None:
    assert carts.increment("a") == 1
    assert carts.increment("a", 5) == 6
    assert carts.decrement("a", 2) == 4
    assert carts.increment("b", 2, initial=10) == 12
    assert carts.increment("b", 2, initial=10) == 14
    carts["t"] = "text"
    for bad in ("text", True, 1.5, None, [1], 2**64):
        carts["t"] = bad
        with pytest.raises(TypeError, match="t"):
            carts.increment("t")
        assert carts["t"] == bad
    carts["m"] = 2**63 - 1
    with pytest.raises(OverflowError, match="64 bits"):
        carts.increment("m")
    assert carts["m"] == 2**63 - 1
    for by in (1.5, "1", True, None):
        with pytest.raises(TypeError):
            carts.increment("a", by)  # type: ignore[arg-type]
    assert carts["a"] == 4


def test_compare_and_set(carts: SharedDict) -> None:
    assert not carts.compare_and_set("a", None, 1)
    assert "a" not in carts
    carts.set("a", {"n": 1}, ttl=100)
    assert not carts.compare_and_set("a", {"n": 2}, 3)
    assert carts.compare_and_set("a", {"n": 1}, {"n": 2})
    assert carts["a"] == {"n": 2}
    assert carts.ttl("a") is not None


def test_transform(carts: SharedDict) -> None:
    assert carts.transform("a", lambda items: [*items, 1], default=[]) == [1]
    assert carts.transform("a", lambda items: [*items, 2]) == [1, 2]
    with pytest.raises(TypeError, match="returned None"):
        carts.transform("a", lambda items: items.append(3))
    with pytest.raises(ZeroDivisionError):
        carts.transform("a", lambda items: 1 / 0)
    assert carts["a"] == [1, 2]
    default: list[int] = []
    carts.transform("b", lambda items: (items.append(1), items)[1], default=default)
    assert default == []
    carts.expire("a", 100)
    carts.transform("a", lambda items: [*items, 3])
    assert carts.ttl("a") is not None


def test_transform_loses_nothing_under_contention(reach: Callable[[], StateManager]) -> None:
    def work() -> None:
        with reach() as manager:
            for _ in range(50):
                manager.dict("carts").transform("n", lambda n: n + 1, default=0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reach() as manager:
        assert manager.dict("carts")["n"] == 200


def test_one_of_many_pops_an_item(reach: Callable[[], StateManager]) -> None:
    won: list[int] = []
    with reach() as manager:
        carts = manager.dict("carts")
        carts.set_many({i: i for i in range(100)})

        def work() -> None:
            won.extend(i for i in range(100) if carts.pop(i, None) is not None)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == list(range(100))


def test_many(carts: SharedDict) -> None:
    carts.set_many({"a": 1, "b": [2], 3: None})
    assert carts.get_many(["b", "x", 3]) == {"b": [2], 3: None}
    assert carts.get_many([]) == {}
    carts.update({"a": 10}, c=3)
    carts.update([("d", 4)])
    carts.update()
    carts.set_many({})
    assert carts == {"a": 10, "b": [2], 3: None, "c": 3, "d": 4}
    assert carts.delete_many(["a", "a", "x", 3]) == 2
    carts.clear()
    carts.clear()
    assert carts == {}
    for call in (carts.get_many, carts.delete_many):
        with pytest.raises(TypeError, match="single"):
            call("abc")


def test_a_write_sets_the_deadline_or_removes_it(carts: SharedDict) -> None:
    carts.set("a", 1, ttl=100)
    left = carts.ttl("a")
    assert left is not None
    assert 99 < left <= 100
    carts["a"] = 2
    assert carts.ttl("a") is None
    for write in (
        lambda: carts.update(a=3),
        lambda: carts.replace("a", 3),
        lambda: carts.set_many({"a": 3}),
        lambda: carts.set("a", 3),
    ):
        assert carts.expire("a", timedelta(seconds=50))
        write()
        assert carts.ttl("a") is None
    carts.set("a", 1, ttl=100)
    carts.increment("a", ttl=5)
    assert (carts.ttl("a") or 0) > 90
    assert carts.persist("a")
    assert not carts.persist("a")
    assert carts.increment("n", ttl=50) == 1
    assert (carts.ttl("n") or 0) > 40
    assert not carts.expire("x", 1)
    assert not carts.persist("x")
    with pytest.raises(KeyError, match="x"):
        carts.ttl("x")


def test_nothing_is_seen_after_its_deadline(carts: SharedDict) -> None:
    before = time.time()
    carts.set("a", 1, ttl=0.3)
    set_at = time.time()
    carts.set_many({"b": 1, "c": 1}, ttl=0.3)
    last_seen = before
    while time.time() - set_at < 5:
        asked = time.time()
        if carts.get("a") is None:
            break
        last_seen = asked
    assert last_seen - set_at <= 0.3
    assert time.time() - before >= 0.3
    while "b" in carts:
        assert time.time() - set_at < 5
    assert "a" not in carts
    assert carts.add("b", 2)
    assert carts.get_many(["a", "b", "c"]) == {"b": 2}
    assert list(carts) == ["b"]
    assert carts == {"b": 2}
    assert carts.pop("c", None) is None


def test_memory_comes_back_without_anyone_asking(manager: StateManager, carts: SharedDict) -> None:
    before = manager.stats()["entries"]
    carts.set_many(dict.fromkeys(range(2000), "x" * 100), ttl=0.2)
    assert manager.stats()["entries"] == before + 2000
    deadline = time.monotonic() + 10
    while manager.stats()["entries"] > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert manager.stats()["entries"] == before


def test_iterating_gives_each_key_that_stays_once(carts: SharedDict) -> None:
    carts.set_many({i: str(i) for i in range(2500)})
    seen = []
    for key in carts:
        seen.append(key)
        if key == 5:
            carts.delete_many(range(1000, 1500))
            carts.set_many({f"new{i}": 1 for i in range(100)})
    stayed = [key for key in seen if type(key) is int]
    assert stayed == sorted(set(stayed))
    assert set(range(1000)) | set(range(1500, 2500)) <= set(stayed)
    assert dict(carts.items()) == carts.copy()
    assert len(carts) == 2100


def test_iterations_that_are_left_or_nested_do_no_harm(carts: SharedDict) -> None:
    carts.set_many({i: i for i in range(1200)})
    for _ in range(50):
        next(iter(carts))
    assert sum(1 for a in carts for b in [1]) == 1200
    pairs = zip(carts, carts.items(), strict=True)
    assert all(key == item[0] == item[1] for key, item in pairs)


def test_what_was_read_is_a_copy(carts: SharedDict) -> None:
    carts["a"] = {"n": 1}
    carts["a"]["n"] = 2
    assert carts["a"] == {"n": 1}


def test_a_dict_says_where_it_is(carts: SharedDict) -> None:
    assert "carts" in repr(carts)
    assert carts.name == "carts"
    with pytest.raises(TypeError):
        hash(carts)
