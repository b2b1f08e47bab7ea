"""Queues, channels, single flight and transactions: what reviews have found, each with the moment that shows it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import time_machine

import state_manager
from state_manager import Conflict, NotOwner, StateManager
from tests.test_parking import Room


@pytest.fixture
def manager() -> StateManager:
    return state_manager.connect("memory://")


@pytest.fixture
def room() -> Room:
    return Room()


# -- queues ------------------------------------------------------------------------------------------------------------


def test_an_item_comes_back_the_moment_its_lease_ends_to_whoever_waits(manager: StateManager) -> None:
    """And not when the manager next sweeps what has expired."""
    queue = manager.queue("jobs", lease=0.2)
    queue.put("work")
    assert queue.get(timeout=0)
    again = queue.get(timeout=1.0)
    assert again is not None
    assert (again.value, again.deliveries) == ("work", 2)


def test_who_lost_an_item_to_another_thread_of_his_process_has_no_say_in_it(room: Room) -> None:
    a = room.lane()
    room.ask(a, "queue", "put", "jobs", "work", 0, 0, None, 0)
    first = room.ask(a, "queue", "get", "jobs", 1.0, None, 0)
    room.at(2.0)
    second = room.ask(a, "queue", "get", "jobs", 1.0, None, 0)
    assert (second[1:], second[0] != first[0]) == (["work", 2], True)
    assert room.ask(a, "queue", "ack", "jobs", first[0])[0] == "NotOwner"
    assert room.ask(a, "queue", "nack", "jobs", first[0], 0)[0] == "NotOwner"
    assert room.ask(a, "queue", "ack", "jobs", second[0]) is None


def test_an_item_that_is_settled_twice_is_refused_the_second_time(manager: StateManager) -> None:
    queue = manager.queue("jobs")
    queue.put("work")
    item = queue.get(timeout=0)
    assert item is not None
    item.nack()
    assert queue.get(timeout=0)
    with pytest.raises(NotOwner):
        item.ack()


def test_what_was_refused_goes_behind_what_came_at_the_same_moment(room: Room) -> None:
    """As all does while a clock stands."""
    a = room.lane()
    for value in ("first", "second"):
        room.ask(a, "queue", "put", "jobs", value, 0, 0, None, 0)
    receipt, value, _ = room.ask(a, "queue", "get", "jobs", None, None, 0)
    assert value == "first"
    room.ask(a, "queue", "nack", "jobs", receipt, 0)
    assert room.ask(a, "queue", "get", "jobs", None, None, 0)[1] == "second"


# -- single flight -----------------------------------------------------------------------------------------------------

DELETIONS: dict[str, Any] = {
    "delete": lambda manager: manager.dict("d").delete("k"),
    "del": lambda manager: manager.dict("d").__delitem__("k"),
    "pop": lambda manager: manager.dict("d").pop("k"),
    "popitem": lambda manager: manager.dict("d").popitem(),
    "delete_many": lambda manager: manager.dict("d").delete_many(["k", "other"]),
    "clear": lambda manager: manager.dict("d").clear(),
    "drop": lambda manager: manager.drop("d"),
    "transaction": lambda manager: manager.run_transaction(lambda tx: tx.dict("d").delete("k")),
}


@pytest.mark.parametrize("deletion", DELETIONS)
def test_what_is_computed_anew_is_not_stored_once_the_key_was_deleted(manager: StateManager, deletion: str) -> None:
    carts = manager.dict("d")
    carts.set("k", "old", ttl=1000.0)

    def compute() -> str:
        DELETIONS[deletion](manager)
        return "of before the deletion"

    assert carts.get_or_compute("k", compute, ttl=1001.0, early=1000.5) == "of before the deletion"
    assert "k" not in carts
    assert carts.get_or_compute("k", lambda: "new") == "new", "and nobody waits for what was being computed"


@pytest.mark.parametrize("deletion", DELETIONS)
def test_what_is_computed_is_not_stored_once_the_key_was_written_and_deleted(
    manager: StateManager, deletion: str
) -> None:
    carts = manager.dict("d")

    def compute() -> str:
        carts["k"] = "written"
        DELETIONS[deletion](manager)
        return "of before the deletion"

    assert carts.get_or_compute("k", compute) == "of before the deletion"
    assert "k" not in carts


# -- transactions ------------------------------------------------------------------------------------------------------


def test_a_dict_of_many_pages_is_of_one_moment_in_a_transaction(manager: StateManager) -> None:
    """It is the only thing that the transaction reads, and somebody writes between two pages of it."""
    big = manager.dict("big")
    big.update({f"key {number}": 0 for number in range(2_000)})
    stop = threading.Event()

    def write() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            big.set_many(dict.fromkeys(["key 0", "key 1999"], count))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            try:
                with manager.transaction() as tx:
                    found = tx.dict("big").copy()
            except Conflict:
                continue
            assert found["key 0"] == found["key 1999"]
    finally:
        stop.set()
        writer.join()


def test_a_value_and_its_ttl_are_of_one_moment(manager: StateManager, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = manager.dict("notes")
    notes.set("a", "short", ttl=10.0)
    call = manager._caller.call

    def interrupted(kind: str, name: str, args: Any, numbered: bool) -> Any:
        if name == "ttl":
            call("dict", "set", ("notes", "a", "long", 1000.0), True)
        return call(kind, name, args, numbered)

    monkeypatch.setattr(manager._caller, "call", interrupted)
    with pytest.raises(Conflict), manager.transaction() as tx:
        tx.dict("notes").ttl("a")


def test_what_had_expired_before_is_no_conflict(manager: StateManager) -> None:
    """The look at the whole dict deletes it, which is no change to anybody."""
    notes = manager.dict("notes")
    notes["a"] = 1
    notes.set("gone", 1, ttl=10.0)
    with time_machine.travel(time.time() + 10.1), manager.transaction() as tx:
        assert tx.dict("notes").copy() == {"a": 1}
        tx.dict("notes")["a"] = 2


# -- channels ----------------------------------------------------------------------------------------------------------
