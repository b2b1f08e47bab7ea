"""Queues, for every way to reach a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from state_manager import (
    Item,
    NotOwner,
    NotStorable,
    OutcomeUnknown,
    Queue,
    StateManager,
    TimedOut,
    Unavailable,
    patience,
)


@pytest.fixture
def queue(manager: StateManager, name: str) -> Queue:
    return manager.queue(name)


def take(queue: Queue) -> Item:
    item = queue.get(timeout=0)
    assert item is not None
    return item


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_first_in_first_out(queue: Queue) -> None:
    for value in ({"a": [1]}, (1, 2), None, "text", 2**70):
        queue.put(value)
    assert len(queue) == 5
    assert queue.peek() == {"a": [1]}
    taken = [take(queue) for _ in range(5)]
    assert [item.value for item in taken] == [{"a": [1]}, (1, 2), None, "text", 2**70]
    assert [item.deliveries for item in taken] == [1] * 5
    assert queue.get(timeout=0) is None
    assert queue.peek() is None
    assert queue.peek("nothing") == "nothing"
    assert queue.state() == (0, 5, 0, 0)
    for item in taken:
        item.ack()
    assert queue.state() == (0, 0, 0, 0)


def test_an_empty_queue_is_not_false(queue: Queue) -> None:
    assert len(queue) == 0
    assert queue


def test_an_item_is_acknowledged_once(queue: Queue) -> None:
    queue.put(1)
    item = take(queue)
    item.ack()
    for again in (item.ack, item.nack):
        with pytest.raises(NotOwner, match="acknowledged or given back"):
            again()


def test_with_acknowledges(queue: Queue) -> None:
    queue.put(1)
    with take(queue) as item:
        assert item.value == 1
        assert queue.state().taken == 1
    assert queue.state() == (0, 0, 0, 0)


def test_with_gives_back_after_an_exception(queue: Queue) -> None:
    queue.put(1)
    with pytest.raises(ZeroDivisionError), take(queue):
        _ = 1 / 0
    assert take(queue).deliveries == 2


def test_with_leaves_alone_what_was_settled_inside(queue: Queue) -> None:
    queue.put(1)
    queue.put(2)
    with take(queue) as item:
        item.ack()
    with pytest.raises(ZeroDivisionError), take(queue) as item:
        item.nack()
        _ = 1 / 0
    assert len(queue) == 1


def test_what_is_given_back_goes_to_the_end(queue: Queue) -> None:
    for value in "abc":
        queue.put(value)
    take(queue).nack()
    assert [(item.value, item.deliveries) for item in (take(queue), take(queue), take(queue))] == [
        ("b", 1),
        ("c", 1),
        ("a", 2),
    ]


def test_a_delay(queue: Queue) -> None:
    began = time.monotonic()
    queue.put("late", delay=timedelta(seconds=0.3))
    queue.put("now")
    assert len(queue) == 2
    assert take(queue).value == "now"
    assert queue.get(timeout=0) is None
    assert queue.peek() is None
    item = queue.get(timeout=5)
    assert item is not None
    assert item.value == "late"
    assert 0.29 < time.monotonic() - began < 3
    item.nack(delay=0.2)
    assert queue.get(timeout=0.01) is None
    item = queue.get(timeout=5)
    assert item is not None
    assert (item.value, item.deliveries) == ("late", 2)


def test_who_waits_is_given_it_at_once(queue: Queue) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(queue.get, 20)
        wait_for(lambda: queue.state().getters == 1)
        queue.put("it")
        item = future.result(5)
    assert item is not None
    assert item.value == "it"


def test_who_came_first_is_given_the_first(queue: Queue) -> None:
    with ThreadPoolExecutor(3) as pool:
        futures = []
        for number in range(3):
            futures.append(pool.submit(queue.get, 20))
            wait_for(lambda number=number: queue.state().getters == number + 1)  # type: ignore[misc]
        for number in range(3):
            queue.put(number)
        items = [future.result(5) for future in futures]
    assert [item and item.value for item in items] == [0, 1, 2]


def test_a_full_queue_waits_for_room(manager: StateManager, name: str) -> None:
    queue = manager.queue(name, maxsize=2)
    queue.put(1)
    queue.put(2)
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"full, with 2 items or more, for 0\.2 s"):
        queue.put(3, timeout=0.2)
    assert 0.19 < time.monotonic() - began < 3
    with pytest.raises(TimedOut):
        queue.put(3, timeout=0)
    with ThreadPoolExecutor(2) as pool:
        futures = []
        for number in (3, 4):
            futures.append(pool.submit(queue.put, number))
            wait_for(lambda number=number: queue.state().putters == number - 2)  # type: ignore[misc]
        assert take(queue).value == 1
        futures[0].result(5)
        assert queue.state().putters == 1
        queue.clear()
        futures[1].result(5)
    assert take(queue).value == 4
    manager.queue(name).put("no bound here")


def test_getters_and_putters_do_not_stand_in_each_others_way(manager: StateManager, name: str) -> None:
    """A queue that is full of delayed items: both wait, and neither for the other."""
    queue = manager.queue(name, maxsize=1)
    queue.put("late", delay=60)
    with ThreadPoolExecutor(2) as pool:
        getter = pool.submit(queue.get, 20)
        wait_for(lambda: queue.state().getters == 1)
        putter = pool.submit(queue.put, "now")
        wait_for(lambda: queue.state().putters == 1)
        assert queue.clear() == 1
        putter.result(5)
        item = getter.result(5)
    assert item is not None
    assert item.value == "now"


def test_undeliverable_items(manager: StateManager, name: str) -> None:
    queue = manager.queue(name, max_deliveries=2)
    queue.put("poison")
    take(queue).nack()
    take(queue).nack(delay=0.0)
    assert queue.get(timeout=0) is None
    dead = manager.queue(f"{name}:dead")
    assert len(dead) == 1
    item = take(dead)
    assert (item.value, item.deliveries) == ("poison", 3)
    item.ack()
    queue.put("good")
    take(queue).ack()
    assert len(dead) == 0


def test_a_bound_of_deliveries_holds_whoever_takes_it(manager: StateManager, name: str) -> None:
    manager.queue(name, max_deliveries=1).put("poison")
    queue = manager.queue(name)
    take(queue).nack()
    assert queue.get(timeout=0) is None
    assert queue.retry() == 1
    take(queue).ack()
    assert queue.retry() == 0


def test_a_worker_consumes_until_its_process_is_stopped(
    manager: StateManager, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = manager.queue(name)
    for value in range(3):
        queue.put(value)
    get = queue.get
    errors = [Unavailable("down"), None, OutcomeUnknown("down"), None, None, TimedOut("being stopped")]

    def failing(timeout: float = 20.0) -> Item | None:
        error = errors.pop(0)
        if error is not None:
            raise error
        return get(timeout)

    monkeypatch.setattr(queue, "get", failing)
    monkeypatch.setattr(patience, "PAUSES", (0.001, 0.002))
    done = []
    for item in queue.consume():
        with item:
            done.append(item.value)
    assert done == [0, 1, 2]
    assert errors == []


def test_a_lease(manager: StateManager, name: str) -> None:
    queue = manager.queue(name, lease=0.2)
    queue.put("it")
    late = take(queue)
    again = manager.queue(name).get(timeout=10)
    assert again is not None
    assert (again.value, again.deliveries) == ("it", 2)
    with pytest.raises(NotOwner, match="lease"):
        late.ack()
    with pytest.raises(ZeroDivisionError), late:  # it gives back nothing, and does not hide what happened
        _ = 1 / 0
    again.ack()


def test_clear(queue: Queue) -> None:
    for value in range(5):
        queue.put(value)
    item = take(queue)
    assert queue.clear() == 4
    assert queue.clear() == 0
    assert queue.state() == (0, 1, 0, 0)
    item.nack()
    assert take(queue).value == 0


def test_many_take_each_item_once(reach: Callable[[], StateManager], name: str) -> None:
    taken: list[int] = []
    number = 300

    def work() -> None:
        with reach() as manager:
            queue = manager.queue(name)
            while (item := queue.get(timeout=5)) is not None:
                with item:
                    if item.value is None:
                        return
                    taken.append(item.value)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with reach() as manager:
        queue = manager.queue(name, maxsize=20)
        for value in range(number):
            queue.put(value)
        for _ in threads:
            queue.put(None)
        for thread in threads:
            thread.join(20)
        assert sorted(taken) == list(range(number))
        assert queue.state() == (0, 0, 0, 0)


def test_queues_are_listed(manager: StateManager, queue: Queue, name: str) -> None:
    queue.put(1)
    assert name in [found.name for found in manager.queues()]
    assert (f":queue:{name}", "queue", 1) in [space[:3] for space in manager.spaces()]
    assert name in repr(queue)
    item = take(queue)
    assert name in repr(item)
    assert f"item of queue {name}" in [thing for worker in manager.workers() for thing in worker.holds]
    item.ack()


def test_what_is_refused(manager: StateManager, queue: Queue) -> None:
    for bad in ("", ":x"):
        with pytest.raises(ValueError, match="no name"):
            manager.queue(bad)
    with pytest.raises(ValueError, match="maxsize"):
        manager.queue("q", maxsize=-1)
    with pytest.raises(TypeError, match="maxsize"):
        manager.queue("q", maxsize=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_deliveries"):
        manager.queue("q", max_deliveries=0)
    with pytest.raises(ValueError, match="over the limit"):
        manager.queue("q" * 1022, max_deliveries=1)
    with pytest.raises(ValueError, match="a lease is finite and above zero"):
        manager.queue("q", lease=0)
    for delay in (-1, float("nan"), float("inf"), 1e10):
        with pytest.raises(ValueError, match="a delay is finite and not below zero"):
            queue.put(1, delay=delay)
    with pytest.raises(ValueError, match="below zero"):
        queue.put(1, timeout=-1)
    with pytest.raises(TypeError):
        queue.get(timeout="1")  # type: ignore[arg-type]
    with pytest.raises(NotStorable):
        queue.put(object())
    assert len(queue) == 0


def test_an_item_that_this_process_cannot_read_is_given_back(manager: StateManager, name: str) -> None:
    queue = manager.queue(name, max_deliveries=2)
    stored = b"\x93\xc7\x01\x05\x00\xa3pkg\x90"  # of a class that nobody here has allowed
    manager._caller.call("queue", "put", (name, stored, 0.0, 0, 2, 0.0), True)
    for _ in range(2):
        with pytest.raises((NotStorable, ValueError)), take(queue) as item:
            assert item.value
    assert queue.get(timeout=0) is None
    assert len(manager.queue(f"{name}:dead")) == 1
    manager.queue(f"{name}:dead").clear()


def test_what_the_manager_cannot_be_told_is_told_later(
    manager: StateManager, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = manager.queue(name)
    call = manager._caller.call
    for fails in (False, True):
        queue.put(fails)

        def down(kind: str, command: str, *args: object) -> object:
            if command in ("ack", "nack"):
                monkeypatch.setattr(manager._caller, "call", call)
                raise OutcomeUnknown("down")
            return call(kind, command, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(manager._caller, "call", down)
        if fails:
            with pytest.raises(ZeroDivisionError), take(queue):
                _ = 1 / 0
        else:
            with take(queue):
                pass
        wait_for(lambda fails=fails: manager.ping() and queue.state()[:2] == (int(fails), 0))  # type: ignore[misc]
