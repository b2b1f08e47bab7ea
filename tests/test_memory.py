"""``memory://`` beyond the contract: whose store it is, and whose clock."""

from __future__ import annotations

import datetime
import os
import threading

import freezegun
import pytest
import time_machine

from state_manager import connect


def test_without_a_name_each_is_new_and_with_one_it_is_shared() -> None:
    one, other = connect("memory://"), connect("memory://")
    one.dict("d")["a"] = 1
    assert other.dict("d") == {}
    named, same = connect("memory://shared"), connect("memory://shared")
    named.dict("d")["a"] = 1
    assert same.dict("d") == {"a": 1}
    same.shutdown()
    assert connect("memory://shared").dict("d") == {}


def test_expiry_follows_time_machine() -> None:
    carts = connect("memory://").dict("carts")
    with time_machine.travel(1_000_000, tick=False) as traveller:
        carts.set("a", 1, ttl=60)
        traveller.shift(59.9)
        assert carts.get("a") == 1
        assert carts.ttl("a") == pytest.approx(0.1, abs=1e-3)
        traveller.shift(0.1)
        assert carts.get("a") is None


def test_expiry_follows_freezegun_and_time_may_go_back() -> None:
    carts = connect("memory://").dict("carts")
    with freezegun.freeze_time("2030-01-01") as frozen:
        carts.set("a", 1, ttl=60)
        frozen.tick(datetime.timedelta(seconds=61))
        assert "a" not in carts
        carts.set("b", 1, ttl=60)
    assert "b" in carts
    carts.set("c", 1, ttl=60)
    assert carts.ttl("c") == pytest.approx(60, abs=1)


def test_threads_share_it() -> None:
    counter = connect("memory://").counter("c")
    threads = [threading.Thread(target=lambda: [counter.increment() for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 2_000


def test_a_fork_while_a_thread_is_inside_does_not_hang_the_child() -> None:
    manager = connect("memory://")
    lock = manager._caller._lock  # type: ignore[attr-defined]
    with lock:
        pid = os.fork()
        if pid == 0:
            manager.counter("c").increment()
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_it_says_what_it_is() -> None:
    manager = connect("memory://one")
    assert "memory://one" in repr(manager)
    assert manager.stats()["directory"] is None
    manager.shutdown()
