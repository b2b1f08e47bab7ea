"""What is noted of a read, when it is forgotten, and which values count as changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from state_manager import allow
from state_manager.codec import decode, encode
from state_manager.proxies import unsaved as module
from state_manager.proxies.dicts import SharedDict
from state_manager.proxies.unsaved import LIMIT, NOTE_COST, Unsaved, look_with, watched
from state_manager.service import Service
from state_manager.store import Store
from tests.test_near import FakeCaller, Shown


@allow
@dataclasses.dataclass
class Cart:
    items: list[int]


@pytest.fixture
def callers() -> list[FakeCaller]:
    """Two processes."""
    service, shown = Service(Store(1_800_000_000), token=str), Shown()
    service.page = shown
    return [FakeCaller(service, shown.page, session * 16) for session in (b"m", b"t")]


@pytest.fixture
def ours(callers: list[FakeCaller]) -> SharedDict:
    return SharedDict(callers[0], "d")


@pytest.fixture
def theirs(callers: list[FakeCaller]) -> SharedDict:
    return SharedDict(callers[1], "d")


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Unsaved:
    """What is noted of this test's reads."""
    monkeypatch.setattr(module, "_find", None)
    assert watched() is None
    unsaved = Unsaved()
    look_with(lambda: unsaved)
    assert watched() is unsaved
    return unsaved


READS: dict[str, Callable[[SharedDict], Any]] = {
    "[]": lambda d: d["x"],
    "get": lambda d: d.get("x"),
    "get_many": lambda d: d.get_many(["x"])["x"],
    "setdefault": lambda d: d.setdefault("x", 5),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", READS)
def test_a_value_that_was_changed_and_not_stored(
    noted: Unsaved,
    ours: SharedDict,
    theirs: SharedDict,
    name: str,
    cached: bool,
) -> None:
    theirs["x"] = {"n": [1]}
    if cached:
        READS[name](ours)
    value = READS[name](ours)
    assert noted.take_changed() == []
    value["n"].append(2)
    assert noted.take_changed() == [("d", "x")]
    assert noted.take_changed() == [], "it is said once"


@pytest.mark.parametrize(
    "write",
    [
        lambda d: d.set("x", 1),
        lambda d: d.delete("x"),
        lambda d: d.pop("x"),
        lambda d: d.update(x=1),
        lambda d: d.clear(),
        lambda d: d.delete_many(["x"]),
    ],
)
def test_a_value_whose_key_was_written_is_forgotten(
    noted: Unsaved,
    ours: SharedDict,
    theirs: SharedDict,
    write: Callable[[SharedDict], Any],
) -> None:
    theirs.update(x=[1], y=[1])
    for key in ("x", "y"):
        ours[key].append(2)
    write(ours)
    assert ("d", "x") not in noted.take_changed()


def test_a_write_of_another_key_forgets_nothing(noted: Unsaved, ours: SharedDict, theirs: SharedDict) -> None:
    theirs.update(x=[1], y=[1])
    ours["x"].append(2)
    ours["y"] = 5
    assert noted.take_changed() == [("d", "x")]


@pytest.mark.parametrize("value", [{3, 1, 2}, {"n": {1, 2}}, [1.5, None], bytearray(b"x"), Cart([1])], ids=repr)
def test_what_nobody_changed_is_not_reported(value: Any) -> None:
    unsaved = Unsaved()
    unsaved.note("d", "x", decode(encode(value)), encode(value))  # type: ignore[arg-type]
    assert unsaved.take_changed() == []


@pytest.mark.parametrize("change", [lambda value: value.append(object()), lambda value: value.append(value)])
def test_what_cannot_be_stored_any_more_was_changed(change: Callable[[list[Any]], None]) -> None:
    unsaved = Unsaved()
    value: list[Any] = [1]
    unsaved.note("d", "x", value, encode(value))  # type: ignore[arg-type]
    change(value)
    assert unsaved.take_changed() == [("d", "x")]


def test_an_object_of_the_apps_own_class() -> None:
    unsaved = Unsaved()
    cart = Cart([1])
    unsaved.note("d", "x", cart, encode(Cart([1])))  # type: ignore[arg-type]
    cart.items.append(2)
    assert unsaved.take_changed() == [("d", "x")]


def test_what_cannot_be_changed_is_not_noted(noted: Unsaved, ours: SharedDict, theirs: SharedDict) -> None:
    theirs.update(x=(1, 2), y="text", z=b"bytes")
    for _ in range(2):
        ours.get_many(["x", "y", "z"])
        for key in ("x", "y", "z"):
            ours.get(key)
    assert noted._read == {}


def test_notes_are_bounded() -> None:
    unsaved = Unsaved()
    stored = encode(["x" * 10_000])
    assert type(stored) is bytes
    for number in range(2 * LIMIT // len(stored)):
        unsaved.note("d", number, [], stored)
    assert len(unsaved._read) == LIMIT // (len(stored) + NOTE_COST)
