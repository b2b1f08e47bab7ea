"""Counters, secrets and the manager's own methods, for every way to reach a store."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from state_manager import Space, StateManager


def test_counter(manager: StateManager) -> None:
    visits = manager.counter("visits")
    visits.reset()
    assert visits.value == 0
    assert visits.increment() == 1
    assert visits.increment(10) == 11
    assert visits.decrement(2) == 9
    assert int(visits) == visits.value == 9
    assert visits.reset(5) == 9
    assert visits.value == 5
    assert "visits" in repr(visits)
    with pytest.raises(AttributeError):
        visits.value = 3  # type: ignore[misc]
    for bad in (1.5, "1", True):
        with pytest.raises(TypeError):
            visits.increment(bad)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="64 bits"):
        visits.increment(2**63 - 1)
    assert visits.value == 5


def test_kinds_have_separate_names(manager: StateManager) -> None:
    manager.dict("x")["a"] = 1
    manager.counter("x").reset(7)
    manager.secret("x").rotate()
    assert manager.dict("x") == {"a": 1}
    assert manager.counter("x").value == 7
    assert manager.drop("x")
    assert manager.counter("x").value == 7


def test_no_count_is_lost_or_given_twice(reach: Callable[[], StateManager]) -> None:
    with reach() as manager:
        manager.counter("c").reset()
    given: list[int] = []

    def work() -> None:
        with reach() as manager:
            counter = manager.counter("c")
            given.extend(counter.increment() for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 801))


def test_secret(manager: StateManager, reach: Callable[[], StateManager]) -> None:
    secret = manager.secret("session-test")
    secret.rotate(keep=0)
    first = secret.current
    assert len(first) == 64
    int(first, 16)
    assert not secret.previous
    assert reach().secret("session-test").current == first
    generation = secret.generation
    secret.rotate()
    second = secret.current
    assert second != first
    assert secret.previous == (first,)
    assert secret.keys() == (generation + 1, (second, first))
    secret.rotate()
    secret.rotate()
    assert len(secret.previous) == 2
    assert first not in secret.previous
    secret.rotate(keep=0)
    assert secret.previous == ()
    assert first not in repr(secret)
    assert secret.current not in repr(secret)
    for keep in (-1, 17):
        with pytest.raises(ValueError, match="keep"):
            secret.rotate(keep=keep)


def test_secrets_cannot_be_read_as_entries(manager: StateManager) -> None:
    manager.secret("hidden").rotate()
    hidden = manager.system(":secrets")
    for read in (lambda: hidden["hidden"], hidden.copy, lambda: list(hidden), lambda: hidden.get_many(["hidden"])):
        with pytest.raises(ValueError, match="secret"):
            read()


def test_system_spaces_are_read_only(manager: StateManager) -> None:
    manager.counter("sys").reset(3)
    counters = manager.system(":counters")
    assert counters["sys"] == 3
    with pytest.raises(ValueError, match=":counters"):
        counters["sys"] = 4
    with pytest.raises(ValueError, match=":"):
        counters.clear()
    with pytest.raises(ValueError, match="begin"):
        manager.system("carts")
    assert manager.counter("sys").value == 3


def test_once(manager: StateManager) -> None:
    manager.system(":once")
    key = "mail-42" + repr(manager)[-20:]
    assert manager.once(key, 60)
    assert not manager.once(key, 60)
    assert manager.once(key + "x", 60)
    with pytest.raises(TypeError):
        manager.once(key, None)  # type: ignore[arg-type]


def test_spaces_and_drop(manager: StateManager) -> None:
    assert not manager.drop("carts")
    manager.dict("carts").update(a=1, b=2)
    manager.counter("c").reset(1)
    spaces = {space.name: space for space in manager.spaces()}
    assert isinstance(spaces["carts"], Space)
    assert spaces["carts"][:3] == ("carts", "dict", 2)
    assert spaces["carts"].bytes > 0
    assert spaces[":counters"].kind == "counter"
    assert manager.drop("carts")
    assert "carts" not in {space.name for space in manager.spaces()}
    with pytest.raises(ValueError, match="name"):
        manager.drop(":counters")


def test_stats_add_up(manager: StateManager) -> None:
    before = manager.stats()
    manager.dict("carts").set_many(dict.fromkeys(range(100), "x" * 100))
    after = manager.stats()
    assert after["entries"] == before["entries"] + 100
    assert 15_000 < after["bytes"] - before["bytes"] < 40_000
    assert {"pid", "version", "protocol", "epoch", "uptime", "connections", "sessions", "commands"} <= set(after)


def test_ping(manager: StateManager) -> None:
    assert 0 < manager.ping() < 5


def test_fingerprints(manager: StateManager) -> None:
    name = "app" + repr(manager)[-20:]
    assert manager.fingerprints(name, 1, "aa") == [(1, "aa")]
    assert manager.fingerprints(name, 2, "bb") == [(1, "aa"), (2, "bb")]
    assert manager.fingerprints(name, 1, "cc") == [(2, "bb"), (1, "cc")]
    for pid in range(3, 100):
        known = manager.fingerprints(name, pid, "x")
    assert len(known) == 64
    assert known[-1] == (99, "x")


def test_closing_closes_connections_only(manager: StateManager) -> None:
    manager.dict("carts")["a"] = 1
    manager.close()
    assert manager.dict("carts")["a"] == 1
    with manager:
        pass
    assert manager.dict("carts")["a"] == 1
