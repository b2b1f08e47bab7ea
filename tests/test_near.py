"""Reads from copies, and writes that leave some, over a manager without a process: who asks, and what he gets.

The commands are the real ones; the page is an array, and the clock stands still.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest

from state_manager.nearcache import Copies, NearCache
from state_manager.proxies import near
from state_manager.proxies.counters import Counter
from state_manager.proxies.dicts import SharedDict
from state_manager.proxies.secrets import Secret
from state_manager.service import Service
from state_manager.store import Store
from state_manager.versions import Page
from tests.test_nearcache import OFFSET, FakePage


class Shown:
    """The manager's side of a page in this process's memory. ``before_read`` is called before a version is read."""

    def __init__(self) -> None:
        self.page = FakePage()
        self.before_read: Callable[[], object] = lambda: None
        self._words = self.page.words
        self.page.words = self  # type: ignore[assignment]

    def __getitem__(self, slot: int) -> float:
        self.before_read()
        return self._words[slot]

    def publish(self, versions: array[int], slots: Sequence[int]) -> None:
        for slot in slots:
            self.page.numbers[slot] = versions[slot]

    def publish_all(self, versions: array[int]) -> None:
        self.page.numbers[:] = versions


class FakeCaller:
    """A process of its own: asks the service directly and counts how often. ``stored``: as if each reply were one that
    was kept for a retry.
    """

    def __init__(self, service: Service, page: Page, session: bytes, *, lasting: bool = True) -> None:
        self.service = service
        self.near = NearCache()
        self.near.turn_to(page)
        self.lane, _ = service.attach(session, 0, 1, None)
        self.asked = 0
        self.stored = False
        self._lasting = lasting

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        return self.exchange(kind, name, args, numbered)[0][1]

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], Page | None]:
        self.asked += 1
        message = [kind, name, args, {}, *([self.lane.number + 1] if numbered else [])]
        self.service.begin(near.boot_time() + OFFSET)  # type: ignore[attr-defined]
        reply = msgpack.unpackb(self.service.handle(self.lane, msgpack.packb(message)) or b"")
        self.service.commit()
        assert reply[0] == "#RETURN", reply
        return reply, None if self.stored else self.near.page

    def wait(self, kind: str, name: str, args: Sequence[Any], timeout: float, numbered: bool = True) -> Any:
        return self.call(kind, name, [*args, timeout], numbered)

    def copies(self, space: str) -> Copies | None:
        return self.near.copies(space)

    def lasting_copies(self, space: str) -> Copies | None:
        return self.near.copies(space) if self._lasting else None

    def look(self) -> None: ...

    def tell_later(self, kind: str, name: str, args: Sequence[Any]) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The boot-time clock: ``now[0]``."""
    now = [1_000.0]
    monkeypatch.setattr(near, "boot_time", lambda: now[0])
    return now


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def service(shown: Shown, now: list[float]) -> Service:
    service = Service(Store(1_800_000_000), token=iter("abcdefgh").__next__)
    service.page = shown
    return service


@pytest.fixture(params=[True, False], ids=["lasting", "looked up"])
def caller(request: pytest.FixtureRequest, service: Service, shown: Shown) -> FakeCaller:
    return FakeCaller(service, shown.page, b"m" * 16, lasting=request.param)


@pytest.fixture
def ours(caller: FakeCaller) -> SharedDict:
    return SharedDict(caller, "d")


@pytest.fixture
def theirs(service: Service, shown: Shown) -> SharedDict:
    """The same dict in another process."""
    return SharedDict(FakeCaller(service, shown.page, b"t" * 16), "d")


def asks(caller: FakeCaller, function: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and how often it asked the manager."""
    before = caller.asked
    return function(), caller.asked - before


# -- reads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", b"bytes", (1, "x"), [1], {"n": [1]}], ids=repr)
@pytest.mark.parametrize("key", ["x", "\xe9", 1, b"x"], ids=repr)
def test_a_value_is_fetched_once(
    ours: SharedDict, theirs: SharedDict, caller: FakeCaller, key: Any, value: Any
) -> None:
    theirs[key] = value
    assert asks(caller, lambda: ours[key]) == (value, 1)
    for _ in range(3):
        assert asks(caller, lambda: ours[key]) == (value, 0)
        assert asks(caller, lambda: ours.get(key, "default")) == (value, 0)
        assert asks(caller, lambda: key in ours) == (True, 0)
        assert asks(caller, lambda: ours.get_many([key])) == ({key: value}, 0)
    theirs[key] = "new"
    assert asks(caller, lambda: ours[key]) == ("new", 1)


def test_an_absent_key_is_asked_for_once(ours: SharedDict, theirs: SharedDict, caller: FakeCaller) -> None:
    assert asks(caller, lambda: ours.get("x", 5)) == (5, 1)
    assert asks(caller, lambda: ours.get("x", 6)) == (6, 0)
    assert asks(caller, lambda: "x" in ours) == (False, 0)
    assert asks(caller, lambda: ours.get_many(["x"])) == ({}, 0)
    assert asks(caller, lambda: ours.frozen("x", 7)) == (7, 0)
    with pytest.raises(KeyError):
        ours["x"]
    assert caller.asked == 1
    theirs["x"] = None
    assert asks(caller, lambda: ours.get("x", 5)) == (None, 1)
    del theirs["x"]
    assert asks(caller, lambda: ours.get("x", 5)) == (5, 1)


def test_whether_a_key_is_there_is_asked_once(ours: SharedDict, theirs: SharedDict, caller: FakeCaller) -> None:
    theirs["x"] = 1
    assert asks(caller, lambda: "x" in ours) == (True, 1)
    assert asks(caller, lambda: "x" in ours) == (True, 0)
    assert asks(caller, lambda: "y" in ours) == (False, 1)
    assert asks(caller, lambda: "y" in ours) == (False, 0)
    assert asks(caller, lambda: ours.get("y", 5)) == (5, 0)
    assert asks(caller, lambda: ours.get("x")) == (1, 1), "its value was not sent"
    assert asks(caller, lambda: ours.get("x")) == (1, 0)


@pytest.mark.parametrize("read", ["get_many", "frozen", "compare_and_set"])
def test_nobody_takes_presence_for_a_value(ours: SharedDict, theirs: SharedDict, caller: FakeCaller, read: str) -> None:
    theirs["x"] = [1]
    assert "x" in ours
    if read == "get_many":
        assert asks(caller, lambda: ours.get_many(["x"])) == ({"x": [1]}, 1)
    elif read == "frozen":
        assert asks(caller, lambda: ours.frozen("x")) == ((1,), 1)
    else:
        assert ours.compare_and_set("x", [1], [2])
        assert theirs["x"] == [2]


@pytest.mark.parametrize("key", [True, 1.0], ids=repr)
def test_a_key_of_a_wrong_type_is_refused_though_its_equal_has_a_copy(ours: SharedDict, key: Any) -> None:
    ours[1] = "one"
    reads: list[Callable[[], Any]] = [
        lambda: ours[key],
        lambda: ours.get(key),
        lambda: key in ours,
        lambda: ours.frozen(key),
        lambda: ours.get_many([key]),
        lambda: ours.compare_and_set(key, "one", 2),
        lambda: ours.transform(key, lambda value: value),
    ]
    for read in reads:
        with pytest.raises(TypeError, match="key"):
            read()
    assert ours[1] == "one"


def test_readers_do_not_share_what_can_be_changed(ours: SharedDict) -> None:
    ours["x"] = {"n": [1]}
    ours["x"]["n"].append(2)
    ours.get_many(["x"])["x"]["n"].append(2)
    ours.copy()["x"]["n"].append(2)
    ours.copy()["x"]["n"].append(2)
    assert ours["x"] == {"n": [1]}
    with pytest.raises(AttributeError):
        ours.frozen("x")["n"].append(2)


def test_a_frozen_value_is_one_object_until_it_changes(ours: SharedDict, theirs: SharedDict) -> None:
    theirs["x"] = [1]
    first = ours.frozen("x")
    assert ours.frozen("x") is first
    theirs["x"] = [2]
    assert ours.frozen("x") == (2,)


def test_the_frozen_form_of_what_is_too_large_to_keep(
    ours: SharedDict, theirs: SharedDict, monkeypatch: pytest.MonkeyPatch, caller: FakeCaller
) -> None:
    monkeypatch.setattr(caller.near, "_limit", 1_000)
    theirs["x"] = ["x" * 1_000]
    for _ in range(2):
        assert asks(caller, lambda: ours.frozen("x")) == (("x" * 1_000,), 1)


def test_a_counter(caller: FakeCaller, service: Service, shown: Shown) -> None:
    counter, theirs = Counter(caller, "c"), Counter(FakeCaller(service, shown.page, b"t" * 16), "c")
    assert asks(caller, lambda: counter.value) == (0, 1)
    assert asks(caller, lambda: counter.value) == (0, 0)
    theirs.increment()
    assert asks(caller, lambda: counter.value) == (1, 1)
    assert counter.increment(5) == 6
    assert asks(caller, lambda: counter.value) == (6, 0)
    assert counter.reset(2) == 6
    assert asks(caller, lambda: counter.value) == (2, 0)
    theirs.reset()
    assert asks(caller, lambda: counter.value) == (0, 1)


def test_a_secret(caller: FakeCaller, service: Service, shown: Shown) -> None:
    secret, theirs = Secret(caller, "s"), Secret(FakeCaller(service, shown.page, b"t" * 16), "s")
    assert secret.current == "a"
    assert asks(caller, lambda: secret.current) == ("a", 1), "the reply that made it has no version"
    assert asks(caller, lambda: secret.keys()) == ((1, ("a",)), 0)
    theirs.rotate()
    assert asks(caller, lambda: secret.keys()) == ((2, ("b", "a")), 1)
    assert asks(caller, lambda: secret.previous) == (("a",), 0)


# -- writes ------------------------------------------------------------------------------------------------------------

WRITES: dict[str, tuple[Callable[[SharedDict], Any], Any]] = {
    "set": (lambda d: d.set("x", 1), 1),
    "set a list": (lambda d: d.set("x", [1]), [1]),
    "set with ttl": (lambda d: d.set("x", 1, ttl=5), 1),
    "add": (lambda d: d.add("new", 1), 1),
    "replace": (lambda d: d.replace("x", 1), 1),
    "setdefault": (lambda d: d.setdefault("new", 1), 1),
    "increment": (lambda d: d.increment("n"), 8),
    "increment with ttl": (lambda d: d.increment("new", 5, ttl=5), 5),
    "compare_and_set": (lambda d: d.compare_and_set("x", "old", 1), 1),
    "transform": (lambda d: d.transform("x", lambda value: [value]), ["old"]),
    "delete": (lambda d: d.delete("x"), None),
    "pop": (lambda d: d.pop("x"), None),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_writer_has_a_copy_of_what_it_wrote(
    ours: SharedDict, theirs: SharedDict, caller: FakeCaller, name: str
) -> None:
    theirs.update({"x": "old", "n": 7})
    write, value = WRITES[name]
    key = "new" if "new" in (write.__code__.co_consts) else "n" if name == "increment" else "x"
    write(ours)
    assert asks(caller, lambda: ours.get(key)) == (value, 0)
    assert theirs.get(key) == value
    theirs[key] = "theirs"
    assert asks(caller, lambda: ours.get(key)) == ("theirs", 1)


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (lambda d: d.add("x", 1), "old"),
        (lambda d: d.setdefault("x", 1), "old"),
        (lambda d: d.compare_and_set("x", "other", 1), "old"),
        (lambda d: d.update(x=1), 1),
        (lambda d: d.delete_many(["x"]), None),
        (lambda d: d.clear(), None),
        (lambda d: d.popitem(), None),
    ],
)
def test_a_write_that_says_nothing_about_one_key_leaves_nothing_wrong(
    ours: SharedDict, theirs: SharedDict, write: Callable[[SharedDict], Any], value: Any
) -> None:
    theirs["x"] = "old"
    assert ours["x"] == "old"
    write(ours)
    assert ours.get("x") == value == theirs.get("x")


def test_a_stored_reply_is_never_kept(ours: SharedDict, caller: FakeCaller, shown: Shown) -> None:
    """It is of another moment. Here each could be kept, since nothing else was written: so it would be seen."""
    caller.stored = True
    ours["x"] = 1
    ours.increment("n")
    ours.get("x")
    assert "y" not in ours
    ours.get_many(["x", "n"])
    ours.copy()
    Secret(caller, "s").keys()
    Secret(caller, "s").keys()
    assert repr(caller.near) == "<NearCache 0 copies>"
    assert ours._near.caller.copies("d").fresh == {}  # type: ignore[union-attr]
    caller.stored = False
    for read in (lambda: ours["x"], lambda: ours["n"], lambda: "y" in ours, ours.copy, Secret(caller, "s").keys):
        assert asks(caller, read)[1] == 1


def test_a_copy_saves_the_read_of_a_compare_and_set_and_can_only_fail_it(
    ours: SharedDict, theirs: SharedDict, caller: FakeCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours["x"] = 1
    assert asks(caller, lambda: ours.compare_and_set("x", 1, 2)) == (True, 1)
    assert asks(caller, lambda: ours.transform("x", lambda value: value + 1)) == (3, 1)

    def interrupted(value: int) -> int:
        if value == 3:
            theirs["x"] = 10
        return value + 1

    assert ours.transform("x", interrupted) == 11
    assert theirs["x"] == 11


# -- many keys ---------------------------------------------------------------------------------------------------------


def test_many_keys_come_from_copies_only_if_all_do(ours: SharedDict, theirs: SharedDict, caller: FakeCaller) -> None:
    theirs.update({"x": 1, "y": [2], 3: (4,)})
    keys: list[Any] = ["x", "y", 3, "absent"]
    expected = {"x": 1, "y": [2], 3: (4,)}
    assert asks(caller, lambda: ours.get_many(keys)) == (expected, 1)
    assert asks(caller, lambda: ours.get_many(keys)) == (expected, 0)
    assert asks(caller, lambda: ours.get_many([*keys, "other"])) == (expected, 1)
    for key in keys:
        theirs[key] = "new"
        assert asks(caller, lambda: ours.get_many(keys)[key]) == ("new", 1)  # noqa: B023
    assert asks(caller, lambda: list(ours.get_many(keys))) == (keys, 0)


@pytest.mark.parametrize("values", [(1, 1), ([1], [1]), (1, [1])], ids=repr)
def test_many_keys_are_as_they_were_at_one_moment(
    ours: SharedDict, theirs: SharedDict, shown: Shown, values: tuple[Any, Any]
) -> None:
    """Both are changed at once, after the first was looked at and before the second, or after both."""
    for reads in range(1, 5):
        theirs.update(x=values[0], y=values[1])
        ours.get_many(["x", "y"])
        left = reads

        def change() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                theirs.update(x="new", y="new")

        shown.before_read = change
        found = ours.get_many(["x", "y"])
        shown.before_read = lambda: None
        assert left <= 0, "it looks at each of them twice"
        assert tuple(found.values()) in (values, ("new", "new"))
        assert reads > 3 or tuple(found.values()) == ("new", "new")


def test_a_key_whose_value_became_another_kind_still_has_a_copy(
    ours: SharedDict, theirs: SharedDict, caller: FakeCaller
) -> None:
    ours["x"] = 1
    assert ours["x"] == 1
    for value in ([1], 2, (3,), b"4"):
        theirs["x"] = value
        assert asks(caller, lambda: ours["x"]) == (value, 1)
        assert asks(caller, lambda: ours["x"]) == (value, 0)
        assert asks(caller, lambda: ours.get_many(["x"])) == ({"x": value}, 0)
        assert asks(caller, lambda: "x" in ours) == (True, 0)


def test_a_copy_of_a_whole_dict(ours: SharedDict, theirs: SharedDict, caller: FakeCaller) -> None:
    theirs.update({"x": 1, 2: [3]})
    assert asks(caller, ours.copy) == ({"x": 1, 2: [3]}, 1)
    assert asks(caller, ours.copy) == ({"x": 1, 2: [3]}, 0)
    assert asks(caller, lambda: ours == {"x": 1, 2: [3]}) == (True, 0)
    theirs["y"] = 1
    assert asks(caller, ours.copy) == ({"x": 1, 2: [3], "y": 1}, 1)
    theirs.clear()
    assert asks(caller, ours.copy) == ({}, 1)
    assert asks(caller, ours.copy) == ({}, 0)
    ours["z"] = 1
    assert asks(caller, ours.copy) == ({"z": 1}, 1)


def test_a_dict_of_more_than_a_page_is_not_kept_whole(ours: SharedDict, theirs: SharedDict, caller: FakeCaller) -> None:
    theirs.update({number: number for number in range(600)})
    for _ in range(2):
        found, asked = asks(caller, ours.copy)
        assert found == {number: number for number in range(600)}
        assert asked > 1


# -- deadlines ---------------------------------------------------------------------------------------------------------


READS: dict[str, Callable[[SharedDict], Any]] = {
    "get": lambda d: d.get("x"),
    "get_many": lambda d: d.get_many(["x"]).get("x"),
    "copy": lambda d: d.copy().get("x"),
    "in": lambda d: ("x" in d) or None,
    "frozen": lambda d: d.frozen("x"),
}


@pytest.mark.parametrize("value", [1, [1]], ids=repr)
@pytest.mark.parametrize("name", READS)
def test_a_copy_past_its_deadline_is_a_miss(
    ours: SharedDict, theirs: SharedDict, caller: FakeCaller, now: list[float], name: str, value: Any
) -> None:
    theirs.set("x", value, ttl=5)
    found, asked = asks(caller, lambda: READS[name](ours))
    assert found is not None
    assert asked == 1
    now[0] += 4.999
    assert asks(caller, lambda: READS[name](ours)) == (found, 0)
    now[0] += 0.001
    assert asks(caller, lambda: READS[name](ours)) == (None, 1), "the manager's word alone says that it is absent"
    assert asks(caller, lambda: READS[name](ours)) == (None, 0)
    theirs.set("x", value, ttl=5)
    assert asks(caller, lambda: READS[name](ours)) == (found, 1)


def test_a_writer_knows_the_deadline_of_what_it_wrote(ours: SharedDict, caller: FakeCaller, now: list[float]) -> None:
    ours.set("x", 1, ttl=5)
    ours.increment("n", ttl=5)
    ours.increment("n")
    assert asks(caller, lambda: ours.get_many(["x", "n"])) == ({"x": 1, "n": 2}, 0)
    now[0] += 5
    assert asks(caller, lambda: (ours.get("x"), ours.get("n"))) == ((None, None), 2)
