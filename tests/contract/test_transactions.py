"""Transactions, for every way to reach a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from state_manager import Conflict, NotStorable, SharedDict, StateManager, Transaction


@pytest.fixture
def a(manager: StateManager) -> SharedDict:
    return manager.dict("a")


@pytest.fixture
def b(manager: StateManager) -> SharedDict:
    return manager.dict("b")


def test_all_at_the_end(manager: StateManager, a: SharedDict, b: SharedDict, name: str) -> None:
    a["x"] = 1
    with manager.transaction() as tx:
        tx.dict("a")["x"] = 2
        tx.dict("b")[7] = [1]
        tx.counter(name).increment(5)
        assert tx.dict("a")["x"] == 2, "it reads what it has written"
        assert a["x"] == 1, "nobody else does"
        assert 7 not in b
    assert (a["x"], b[7], manager.counter(name).value) == (2, [1], 5)


def test_an_exception_discards_it(manager: StateManager, a: SharedDict) -> None:
    with pytest.raises(ZeroDivisionError), manager.transaction() as tx:
        tx.dict("a")["x"] = 1
        _ = 1 / 0
    assert "x" not in a


READS: dict[str, Callable[[Transaction], Any]] = {
    "[]": lambda tx: tx.dict("a")["x"],
    "get": lambda tx: tx.dict("a").get("absent"),
    "in": lambda tx: "absent" in tx.dict("a"),
    "get_many": lambda tx: tx.dict("a").get_many(["x", "absent"]),
    "len": lambda tx: len(tx.dict("a")),
    "iteration": lambda tx: list(tx.dict("a")),
    "copy": lambda tx: tx.dict("a").copy(),
    "items": lambda tx: list(tx.dict("a").items()),
    "==": lambda tx: tx.dict("a") == {},
    "add": lambda tx: tx.dict("a").add("absent", 1),
    "ttl": lambda tx: tx.dict("a").ttl("x"),
    "increment": lambda tx: tx.dict("a").increment("x"),
    "frozen": lambda tx: tx.dict("a").frozen("absent"),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("change", ["absent", "x"])
def test_what_was_read_and_has_changed_is_a_conflict(
    manager: StateManager, a: SharedDict, b: SharedDict, read: Callable[[Transaction], Any], change: str, request: Any
) -> None:
    a["x"] = 1
    keys = {"[]": ["x"], "get": ["absent"], "in": ["absent"], "add": ["absent"], "ttl": ["x"], "increment": ["x"]}
    keys["frozen"] = ["absent"]
    concerned = keys.get(request.node.callspec.id.split("-")[-1], ["x", "absent"])

    def run() -> None:
        with manager.transaction() as tx:
            read(tx)
            a[change] = 100
            tx.dict("b")["y"] = 1

    if change in concerned:
        with pytest.raises(Conflict, match="has changed"):
            run()
        assert "y" not in b
    else:
        run()
        assert b["y"] == 1


def test_a_snapshot_is_a_transaction_that_only_reads(manager: StateManager, a: SharedDict, b: SharedDict) -> None:
    a["x"], b["x"] = 1, 1
    with manager.transaction() as tx:
        assert tx.dict("a")["x"] == tx.dict("b")["x"]
    with pytest.raises(Conflict), manager.transaction() as tx:
        assert tx.dict("a")["x"] == 1
        with manager.transaction() as other:
            other.dict("a")["x"] = other.dict("b")["x"] = 2
        assert tx.dict("b")["x"] == 2, "of another moment, so the end does not let it pass"


def test_reading_a_thing_twice_never_gives_two_answers(manager: StateManager, a: SharedDict) -> None:
    a["x"] = 1
    with pytest.raises(Conflict), manager.transaction() as tx:
        assert tx.dict("a")["x"] == 1
        a["x"] = 2
        assert tx.dict("a")["x"] == 1
    with pytest.raises(Conflict), manager.transaction() as tx:
        assert len(tx.dict("a")) == 1
        a["y"] = 2
        assert len(tx.dict("a")) == 1


def test_blind_writes_never_conflict(manager: StateManager, a: SharedDict) -> None:
    with manager.transaction() as tx:
        tx.dict("a").set("x", 1)
        tx.dict("a").set_many({"y": 2})
        a["x"] = 3
    assert a.copy() == {"x": 1, "y": 2}


def test_what_expires_meanwhile_is_a_conflict(manager: StateManager, a: SharedDict, b: SharedDict) -> None:
    a.set("x", 1, ttl=0.05)
    with pytest.raises(Conflict), manager.transaction() as tx:
        tx.dict("a").get("x")
        while "x" in a:
            pass
        tx.dict("b")["y"] = 1
    assert "y" not in b


def test_the_names_of_a_dict(manager: StateManager, a: SharedDict) -> None:
    a.update({"n": 1, "list": [1], "gone": 0})
    with manager.transaction() as tx:
        d = tx.dict("a")
        assert d.name == "a"
        assert d.increment("n") == 2
        assert d.decrement("m", 2, initial=10) == 8
        assert d.transform("list", lambda found: [*found, 2]) == [1, 2]
        assert d.transform("new", lambda found: [*found, 1], default=[]) == [1]
        assert d.compare_and_set("n", 2, 3)
        assert not d.compare_and_set("n", 2, 4)
        assert not d.compare_and_set("absent", None, 4)
        assert d.replace("n", 5)
        assert not d.replace("absent", 5)
        assert not d.add("n", 6)
        assert d.add("added", 6)
        assert d.setdefault("added", 7) == 6
        assert d.setdefault("default", 7) == 7
        assert d.pop("gone") == 0
        assert d.pop("gone", None) is None
        assert not d.delete("gone")
        assert d.delete_many(["default", "absent"]) == 1
        assert d.get_many(["n", "gone"]) == {"n": 5}
        assert d.frozen("list") == (1, 2)
        assert d.frozen("gone", 3) == 3
        with pytest.raises(KeyError):
            d["gone"]
        with pytest.raises(KeyError):
            del d["gone"]
        del d["m"]
        d.update(z=1)
        expected = {"n": 5, "list": [1, 2], "new": [1], "added": 6, "z": 1}
        assert d.copy() == dict(d.items()) == expected
        assert list(d.values()) == list(expected.values())
        assert d == expected
        assert d != {}
        assert d != 1
        assert (len(d), list(d), "z" in d) == (5, list(expected), True)
        assert d.popitem() == ("z", 1)
        assert "a" in repr(d)
        assert "written" not in repr(tx)
    del expected["z"]
    assert a.copy() == expected


def test_clear(manager: StateManager, a: SharedDict) -> None:
    a.set("n", 1, ttl=60)
    a["y"] = 1
    with manager.transaction() as tx:
        d = tx.dict("a")
        d.clear()
        assert len(d) == 0
        with pytest.raises(KeyError, match="empty"):
            d.popitem()
        assert d.increment("n") == 1
        d["n"] = 2
        d.increment("n")
        assert d.copy() == {"n": 3}
        a["z"] = 1
    assert a.copy() == {"n": 3}
    assert a.ttl("n") is None
    with manager.transaction() as tx:
        tx.dict("a").clear()
        tx.dict("a")["n"] = 0
        tx.dict("a").transform("n", lambda n: n + 1)
    assert a.copy() == {"n": 1}


def test_deadlines(manager: StateManager, a: SharedDict) -> None:
    a.set("kept", 1, ttl=60)
    a.set("removed", 1, ttl=60)
    a.set("persisted", 1, ttl=60)
    a["given"] = 1
    with manager.transaction() as tx:
        d = tx.dict("a")
        d.increment("kept")
        d["removed"] = 2
        d.set("new", 1, ttl=timedelta(seconds=30))
        d.increment("new")
        d.increment("made", ttl=20)
        assert d.persist("persisted")
        assert not d.persist("given")
        assert not d.persist("absent")
        assert d.expire("given", 10)
        assert not d.expire("absent", 10)
        assert d.ttl("new") == 30
        assert d.ttl("removed") is None
        assert d.ttl("kept") == pytest.approx(60, abs=5)
        with pytest.raises(KeyError):
            d.ttl("absent")
    assert a.copy() == {"kept": 2, "removed": 2, "persisted": 1, "given": 1, "new": 2, "made": 1}
    ttls = {key: a.ttl(key) for key in a}
    assert {key: ttl and round(ttl, -1) for key, ttl in ttls.items()} == {
        "kept": 60,
        "removed": None,
        "persisted": None,
        "given": 10,
        "new": 30,
        "made": 20,
    }


def test_counters(manager: StateManager, name: str) -> None:
    counter = manager.counter(name)
    counter.increment(5)
    with manager.transaction() as tx:
        inside = tx.counter(name)
        assert int(inside) == inside.value == 5
        assert inside.increment() == 6
        assert inside.decrement(2) == 4
        assert inside.reset(10) == 4
        assert tx.counter(name).value == 10
        assert name in repr(inside)
    assert counter.value == 10
    with pytest.raises(Conflict), manager.transaction() as tx:
        tx.counter(name).increment()
        counter.increment()
    assert counter.value == 11


def test_an_item_of_a_queue_is_there_if_all_else_is(manager: StateManager, a: SharedDict, name: str) -> None:
    queue = manager.queue(name)
    with manager.transaction() as tx:
        tx.dict("a")["order"] = 1
        for number in range(3):
            tx.queue(name, max_deliveries=1).put({"order": number})
        tx.queue(name).put("late", delay=60)
        assert len(queue) == 0
        assert name in repr(tx.queue(name))
    assert [item and item.value for item in (queue.get(0), queue.get(0), queue.get(0), queue.get(0))] == [
        {"order": 0},
        {"order": 1},
        {"order": 2},
        None,
    ]
    assert len(queue) == 1
    with pytest.raises(Conflict), manager.transaction() as tx:
        tx.dict("a").increment("order")
        tx.queue(name).put("not to be")
        a["order"] = 7
    assert len(queue) == 1
    with pytest.raises(RuntimeError, match="over"):
        tx.queue(name).put(1)
    with pytest.raises(ValueError, match="a delay"):
        manager.transaction().queue(name).put(1, delay=-1)
    with pytest.raises(ValueError, match="max_deliveries"), manager.transaction() as tx:
        tx.queue(name, max_deliveries=0).put(1)


def test_a_whole_dict_of_many_pages_is_of_one_moment(
    manager: StateManager, a: SharedDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    a.set_many({f"k{number}": 1 for number in range(1_500)})
    with manager.transaction() as tx:
        assert len(tx.dict("a").copy()) == len(tx.dict("a")) == 1_500
    pages = 0
    call = manager._caller.call

    def writing(kind: str, command: str, *args: Any) -> Any:
        nonlocal pages
        found = call(kind, command, *args)
        if command == "scan":
            pages += 1
            call("dict", "set", ("a", "k0", pages), True)
        return found

    monkeypatch.setattr(manager._caller, "call", writing)
    with pytest.raises(Conflict), manager.transaction() as tx:
        tx.dict("a").copy()
    assert pages == 9, "it was tried three times"


def test_what_expires_in_a_whole_dict_is_a_conflict_too(manager: StateManager, a: SharedDict, b: SharedDict) -> None:
    a.set("x", 1, ttl=0.05)
    with pytest.raises(Conflict), manager.transaction() as tx:
        assert tx.dict("a").copy() == {"x": 1}
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            pass
        tx.dict("b")["y"] = 1
    assert "y" not in b


def test_an_emptied_dict_has_room(manager: StateManager) -> None:
    full = manager.dict("full", max_bytes=3_000)
    full["old"] = "x" * 2_000
    with manager.transaction() as tx:
        tx.dict("full").clear()
        tx.dict("full")["old"] = "y" * 2_000
    assert full.copy() == {"old": "y" * 2_000}


def test_who_never_gets_through_is_told(manager: StateManager, a: SharedDict) -> None:
    def against_itself(tx: Transaction) -> None:
        tx.dict("a").increment("n")
        a.increment("n")

    began = time.monotonic()
    with pytest.raises(Conflict):
        manager.run_transaction(against_itself, timeout=0.2)
    assert time.monotonic() - began < 5


def test_many_transfer_and_nothing_is_lost(reach: Callable[[], StateManager]) -> None:
    with reach() as manager:
        manager.dict("a")["money"] = 1000

    def transfer(tx: Transaction) -> None:
        tx.dict("a").decrement("money", 3)
        tx.dict("b").increment("money", 3)

    def total(tx: Transaction) -> int:
        return int(tx.dict("a").get("money") + tx.dict("b").get("money", 0))

    def work(_: int) -> set[int]:
        with reach() as manager:
            totals = set()
            for _ in range(15):
                manager.run_transaction(transfer)
                totals.add(manager.run_transaction(total))
            return totals

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(work, range(4))) == {1000}
    with reach() as manager:
        assert manager.dict("a").copy() == {"money": 1000 - 3 * 60}
        assert manager.dict("b").copy() == {"money": 3 * 60}


def test_run_again_on_a_conflict(manager: StateManager, a: SharedDict) -> None:
    tries = []

    def function(tx: Transaction) -> str:
        found = tx.dict("a").get("x", 0)
        tries.append(found)
        if len(tries) <= 6:
            a["x"] = len(tries)
        tx.dict("a")["y"] = found
        return "done"

    assert manager.run_transaction(function) == "done"
    assert tries == [0, 1, 2, 3, 4, 5, 6]
    assert a["y"] == 6


def test_once_over_it_is_over(manager: StateManager) -> None:
    with manager.transaction() as tx:
        d = tx.dict("a")
    for use in (lambda: d.get("x"), lambda: d.set("x", 1), lambda: tx.counter("c").value, tx.__enter__):
        with pytest.raises(RuntimeError, match="over"):
            use()


def test_what_is_refused(manager: StateManager, a: SharedDict) -> None:
    with pytest.raises(ValueError, match="no name"):
        manager.transaction().dict(":counters")
    with pytest.raises(ValueError, match="no name"):
        manager.transaction().counter("")
    d = manager.transaction().dict("a")
    for bad in (True, 1.0, None):
        with pytest.raises(TypeError, match="a key is"):
            d[bad] = 1  # type: ignore[index]
        with pytest.raises(TypeError, match="a key is"):
            d.get(bad)  # type: ignore[arg-type]
    with pytest.raises(NotStorable):
        d["x"] = object()
    with pytest.raises(ValueError, match="above zero"):
        d.set("x", 1, ttl=0)
    with pytest.raises(TypeError, match="returned None"):
        d.transform("x", lambda found: None)
    a["text"] = "x"
    with pytest.raises(TypeError, match="cannot be incremented"):
        d.increment("text")
    with pytest.raises(OverflowError):
        d.increment("big", 1, initial=2**63 - 1)
    with pytest.raises(TypeError, match="hashable"):
        hash(d)
