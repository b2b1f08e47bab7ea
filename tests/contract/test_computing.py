"""``get_or_compute``, for every way to reach a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from state_manager import ComputeFailed, NotStorable, SharedDict, StateManager, TimedOut


@pytest.fixture
def cache(manager: StateManager) -> SharedDict:
    return manager.dict("cache")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Slow:
    """A function that says when it runs, and goes on when it is told to."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.calls = 0
        self.began = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        assert self.go_on.wait(20)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def waiting(manager: StateManager) -> int:
    return sum(what == "value of cache" for worker in manager.workers() for what in worker.waits)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("value", [None, 0, "text", [1, {"a": 2}], (1, 2)])
def test_computed_once(cache: SharedDict, value: Any) -> None:
    calls = []
    for _ in range(3):
        found = cache.get_or_compute("k", lambda: (calls.append(1), value)[1])  # type: ignore[func-returns-value]
        assert found == value
        assert type(found) is type(value)
    assert calls == [1]
    assert cache["k"] == value
    assert cache.ttl("k") is None


def test_a_ttl(cache: SharedDict) -> None:
    cache.get_or_compute("k", lambda: 1, ttl=timedelta(seconds=60))
    assert cache.ttl("k") == pytest.approx(60, abs=5)


def test_many_miss_and_one_computes(manager: StateManager, cache: SharedDict, threads: ThreadPoolExecutor) -> None:
    slow = Slow({"a": 1})
    futures = [threads.submit(cache.get_or_compute, "k", slow) for _ in range(6)]
    wait_for(lambda: waiting(manager) == 5)
    slow.go_on.set()
    assert [future.result(10) for future in futures] == [{"a": 1}] * 6
    assert slow.calls == 1
    assert len({id(future.result()) for future in futures}) == 6, "each has his own"


def test_a_failure_is_told_to_those_who_wait_and_to_nobody_else(
    manager: StateManager, cache: SharedDict, threads: ThreadPoolExecutor
) -> None:
    slow = Slow(LookupError("no such user"))
    first = threads.submit(cache.get_or_compute, "k", slow)
    slow.began.wait(20)
    others = [threads.submit(cache.get_or_compute, "k", slow) for _ in range(3)]
    wait_for(lambda: waiting(manager) == 3)
    slow.go_on.set()
    with pytest.raises(LookupError, match="no such user"):
        first.result(10)
    for other in others:
        with pytest.raises(ComputeFailed, match="LookupError: no such user"):
            other.result(10)
    assert slow.calls == 1
    assert cache.get_or_compute("k", lambda: "fine") == "fine", "who comes afterwards tries again"


def test_what_cannot_be_stored_is_a_failure_too(cache: SharedDict) -> None:
    with pytest.raises(NotStorable):
        cache.get_or_compute("k", object)
    assert cache.get_or_compute("k", lambda: 1) == 1


def test_one_who_is_ended_says_nothing_about_the_value(
    manager: StateManager, cache: SharedDict, threads: ThreadPoolExecutor
) -> None:
    slow = Slow(SystemExit())
    first = threads.submit(cache.get_or_compute, "k", slow)
    slow.began.wait(20)
    other = threads.submit(cache.get_or_compute, "k", lambda: "the next one's")
    wait_for(lambda: waiting(manager) == 1)
    slow.go_on.set()
    with pytest.raises(SystemExit):
        first.result(10)
    assert other.result(10) == "the next one's"


def test_waiting_takes_no_longer_than_its_timeout(cache: SharedDict, threads: ThreadPoolExecutor) -> None:
    slow = Slow(1)
    first = threads.submit(cache.get_or_compute, "k", slow)
    slow.began.wait(20)
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"cache\['k'\] was being computed by somebody else for 0\.2 s"):
        cache.get_or_compute("k", slow, timeout=0.2)
    assert 0.19 < time.monotonic() - began < 2
    slow.go_on.set()
    assert first.result(10) == 1


def test_after_the_lease_the_next_computes(cache: SharedDict, threads: ThreadPoolExecutor) -> None:
    slow = Slow("late")
    first = threads.submit(cache.get_or_compute, "k", slow, lease=0.2)
    slow.began.wait(20)
    assert cache.get_or_compute("k", lambda: "quick") == "quick"
    slow.go_on.set()
    assert first.result(10) == "late"
    assert cache["k"] == "quick", "his lease had ended"


INVALIDATIONS: dict[str, Callable[[StateManager, SharedDict], object]] = {
    "delete": lambda manager, cache: cache.delete("k"),
    "pop": lambda manager, cache: cache.pop("k", None),
    "delete_many": lambda manager, cache: cache.delete_many(["k", "other"]),
    "clear": lambda manager, cache: cache.clear(),
    "drop": lambda manager, cache: manager.drop("cache"),
}


@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
def test_what_was_deleted_meanwhile_is_not_stored(
    manager: StateManager,
    cache: SharedDict,
    threads: ThreadPoolExecutor,
    invalidate: Callable[[StateManager, SharedDict], object],
) -> None:
    """Who deletes a key has just changed what it was computed from; who computes may have read it before."""
    slow = Slow("from before")
    first = threads.submit(cache.get_or_compute, "k", slow)
    slow.began.wait(20)
    other = threads.submit(cache.get_or_compute, "k", lambda: "from after")
    wait_for(lambda: waiting(manager) == 1)
    assert cache.get("k") is None  # a copy of its absence
    invalidate(manager, cache)
    assert other.result(10) == "from after"
    slow.go_on.set()
    assert first.result(10) == "from before"
    assert cache["k"] == "from after"


def test_what_was_deleted_in_a_transaction_is_not_stored(
    manager: StateManager, cache: SharedDict, threads: ThreadPoolExecutor
) -> None:
    for how in ("delete", "clear"):
        slow = Slow("from before")
        first = threads.submit(cache.get_or_compute, "k", slow)
        slow.began.wait(20)
        with manager.transaction() as tx:
            if how == "delete":
                tx.dict("cache").delete("k")
            else:
                tx.dict("cache").clear()
        slow.go_on.set()
        assert first.result(10) == "from before"
        assert "k" not in cache


def test_what_was_written_meanwhile_stays(cache: SharedDict, threads: ThreadPoolExecutor) -> None:
    slow = Slow("computed")
    first = threads.submit(cache.get_or_compute, "k", slow)
    slow.began.wait(20)
    cache["k"] = "written"
    slow.go_on.set()
    assert first.result(10) == "computed"
    assert cache["k"] == "written"
    assert cache.get_or_compute("k", slow) == "written"


def test_early_refresh(cache: SharedDict, threads: ThreadPoolExecutor) -> None:
    assert cache.get_or_compute("k", lambda: "old", ttl=60, early=5) == "old"
    assert cache.get_or_compute("k", lambda: "new", ttl=60, early=5) == "old", "there is time"
    cache.expire("k", 4)
    slow = Slow("new")
    first = threads.submit(cache.get_or_compute, "k", slow, 60, early=5)
    slow.began.wait(20)
    for _ in range(3):
        assert cache.get_or_compute("k", slow, ttl=60, early=5) == "old", "nobody waits"
    slow.go_on.set()
    assert first.result(10) == "new"
    assert cache["k"] == "new"
    assert slow.calls == 1
    assert cache.ttl("k") == pytest.approx(60, abs=5)


@pytest.mark.parametrize("change", ["write", "delete"])
def test_an_early_refresh_stores_nothing_over_a_change(
    cache: SharedDict, threads: ThreadPoolExecutor, change: str
) -> None:
    cache.set("k", "old", ttl=4)
    slow = Slow("computed")
    first = threads.submit(cache.get_or_compute, "k", slow, 60, early=5)
    slow.began.wait(20)
    if change == "write":
        cache["k"] = "written"
    else:
        del cache["k"]
    slow.go_on.set()
    assert first.result(10) == "computed"
    assert cache.get("k") == ("written" if change == "write" else None)


def test_a_failed_early_refresh_leaves_the_old_value(cache: SharedDict, caplog: pytest.LogCaptureFixture) -> None:
    cache.set("k", "old", ttl=4)

    def fail() -> None:
        raise LookupError

    assert cache.get_or_compute("k", fail, ttl=60, early=5) == "old"
    assert "could not be computed anew" in caplog.text
    wait_for(lambda: cache.get_or_compute("k", lambda: "new", ttl=60, early=5) == "new")  # not at once


def test_a_dict_with_options(manager: StateManager) -> None:
    cache = manager.dict("cache", durable=False)
    assert cache.get_or_compute("k", lambda: 1) == 1
    assert manager.system(":options")["cache"][0] is False


def test_what_is_refused(cache: SharedDict) -> None:
    for key in (True, 1.0, None):
        with pytest.raises(TypeError, match="a key is"):
            cache.get_or_compute(key, lambda: 1)  # type: ignore[arg-type]
    for ttl, early in ((None, 1), (10, 10), (10, 11)):
        with pytest.raises(ValueError, match="early"):
            cache.get_or_compute("k", lambda: 1, ttl, early=early)
    for bad in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="above zero"):
            cache.get_or_compute("k", lambda: 1, bad)
    with pytest.raises(ValueError, match="above zero"):
        cache.get_or_compute("k", lambda: 1, lease=0)
    with pytest.raises(ValueError, match="below zero"):
        cache.get_or_compute("k", lambda: 1, timeout=-1)
    assert "k" not in cache


def test_a_value_for_which_there_is_no_room_is_returned_and_the_next_computes(
    manager: StateManager, caplog: pytest.LogCaptureFixture
) -> None:
    cache = manager.dict("cache", max_bytes=2_000)
    assert cache.get_or_compute("k", lambda: "x" * 10_000) == "x" * 10_000
    assert "cannot be stored" in caplog.text
    assert "k" not in cache
    assert cache.get_or_compute("k", lambda: "small", timeout=1) == "small"
    assert cache["k"] == "small"


def test_a_timeout_may_be_a_timedelta(cache: SharedDict) -> None:
    assert cache.get_or_compute("k", lambda: 1, timeout=timedelta(seconds=1)) == 1  # type: ignore[arg-type]
