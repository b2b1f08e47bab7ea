"""JSON lines: what goes out comes back the same, or is refused by name."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import state_manager
from state_manager.codec import encode
from state_manager.exports import NotJson, items_of, line_of, load, unsayable

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
KEYS = st.text(max_size=30) | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=30)


@pytest.fixture
def manager() -> state_manager.StateManager:
    return state_manager.connect("memory://")


def exported(manager: state_manager.StateManager) -> list[str]:
    return [line_of(item) for item in items_of(manager)]


def imported(manager: state_manager.StateManager, lines: list[str]) -> None:
    for _ in load(manager, map(str.encode, lines)):
        pass


@given(st.dictionaries(KEYS.filter(lambda key: key != ""), JSON, max_size=5))
def test_what_goes_out_comes_back(entries: dict[Any, Any]) -> None:
    first, second = state_manager.connect("memory://"), state_manager.connect("memory://")
    for name in ("carts", "é\u2028"):
        first.dict(name).update(entries)
    lines = exported(first)
    assert not [line for line in lines if len(line.splitlines()) != 1]
    imported(second, [line + "\n" for line in lines])
    for name in ("carts", "é\u2028"):
        found = second.dict(name).copy()
        assert found == entries
        assert {key: repr(value) for key, value in found.items()} == {
            key: repr(value) for key, value in entries.items()
        }
        assert set(map(type, found)) == set(map(type, entries))


def test_the_format(manager: state_manager.StateManager) -> None:
    manager.dict("carts").update({"alice": {"n": 1}, 7: "é", b"\x00\xff": None})
    manager.counter("visits").increment(41)
    assert exported(manager) == [
        '{"counter": "visits", "value": 41}',
        '{"dict": "carts", "key": "alice", "value": {"n": 1}}',
        '{"dict": "carts", "key": 7, "value": "é"}',
        '{"dict": "carts", "key": {"hex": "00ff"}, "value": null}',
    ]


def test_deadlines_go_along(manager: state_manager.StateManager) -> None:
    manager.dict("carts").set("a", 1, ttl=100)
    [line] = exported(manager)
    assert 99 < json.loads(line)["ttl"] <= 100
    other = state_manager.connect("memory://")
    imported(other, [line, '{"dict": "carts", "key": "b", "value": 2, "ttl": 50}'])
    for key, most in (("a", 100), ("b", 50)):
        left = other.dict("carts").ttl(key)
        assert left is not None
        assert most - 1 < left <= most


def test_bookkeeping_and_what_belongs_to_a_process_stay_here(manager: state_manager.StateManager) -> None:
    secret = manager.secret("session").current
    manager.once("mail", ttl=60)
    manager.fingerprints("key", 1, "digest")
    manager.dict("mine", ephemeral=True)["a"] = 1
    manager.dict("cache", durable=False)["a"] = 1
    assert exported(manager) == ['{"dict": "cache", "key": "a", "value": 1}']
    assert secret not in "".join(exported(manager))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ((1, 2), "tuple"),
        ({"a": [1, {2}]}, "set"),
        (b"x", "bytes"),
        ([math.nan], "nan"),
        ({"a": {1: 2}}, "the key int 1"),
        ({"a": [None, True, math.inf]}, "inf"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(value: Any, named: str) -> None:
    with pytest.raises(NotJson, match=rf"carts\['alice'\] cannot be written as JSON: .*{named}"):
        line_of(("carts", "alice", encode(value), None))


def test_a_class_that_this_process_does_not_know_is_refused_by_name() -> None:
    stored = b"\x93\xd4\x05\x00\xa4Cart\x90"  # as codec writes an instance of a class named Cart
    with pytest.raises(NotJson, match=r"carts\['alice'\].*Cart"):
        line_of(("carts", "alice", stored, None))


@given(JSON)
def test_json_is_sayable(value: Any) -> None:
    assert unsayable(value) == ""
    assert repr(json.loads(json.dumps(value))) == repr(value)


GOOD = '{"dict": "carts", "key": "a", "value": 1}'


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("hello", "not JSON"),
        (GOOD[:-5], "not JSON"),
        ("[1]", "not an object"),
        ('{"dict": "carts", "key": "b"}', "'value'"),
        ('{"dict": "carts", "value": 1}', "'key'"),
        ('{"key": "b", "value": 1}', "'dict'"),
        ('{"dict": "carts", "key": "b", "value": 1, "tll": 5}', "'tll'"),
        ('{"dict": "carts", "key": "b", "value": NaN}', "NaN"),
        ('{"dict": "carts", "key": true, "value": 1}', "bool"),
        ('{"dict": "carts", "key": 1.0, "value": 1}', "float"),
        ('{"dict": "carts", "key": null, "value": 1}', "NoneType"),
        ('{"dict": "carts", "key": {"hex": "0g"}, "value": 1}', "hex"),
        ('{"dict": "carts", "key": {"text": "a"}, "value": 1}', "hex"),
        ('{"dict": "carts", "key": 9223372036854775808, "value": 1}', "64 bits"),
        ('{"dict": ":secrets", "key": "session", "value": 1}', ":secrets"),
        ('{"dict": 5, "key": "b", "value": 1}', "name"),
        ('{"dict": "carts", "key": "b", "value": 1, "ttl": 0}', "ttl"),
        ('{"dict": "carts", "key": "b", "value": 1, "ttl": null}', "ttl"),
        ('{"counter": "visits", "value": 1.5}', "counter"),
        ('{"counter": "visits", "value": 1, "dict": "carts"}', "'dict'"),
        ("[" * 100_000, "line 3"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(manager: state_manager.StateManager, line: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"^line 3: .*{re.escape(named)}" if named != "line 3" else "^line 3: "):
        imported(manager, [GOOD, "\n", line, GOOD.replace('"a"', '"c"')])
    assert manager.dict("carts") == {"a": 1}
    assert manager.counter("visits").value == 0


def test_what_is_not_utf_8_is_refused_by_its_line(manager: state_manager.StateManager) -> None:
    bad = GOOD.replace("a", "é").encode("latin-1")
    with pytest.raises(ValueError, match=r"^line 2: .*utf-8.*0xe9"):
        list(load(manager, [GOOD.encode("utf-8-sig"), bad]))
    assert manager.dict("carts") == {"a": 1}


def test_what_is_there_is_overwritten(manager: state_manager.StateManager) -> None:
    manager.dict("carts").set("a", 0, ttl=60)
    manager.dict("carts")["b"] = 2
    manager.counter("visits").increment(5)
    imported(manager, [GOOD, '{"counter": "visits", "value": 3}'])
    assert manager.dict("carts") == {"a": 1, "b": 2}
    assert manager.dict("carts").ttl("a") is None
    assert manager.counter("visits").value == 3


def test_lines_are_stored_together(manager: state_manager.StateManager) -> None:
    lines = [json.dumps({"dict": "d", "key": number % 1100, "value": number}) for number in range(1200)]
    lines.insert(700, '{"counter": "c", "value": 1}')
    before = manager.stats()["commands"]
    assert list(load(manager, map(str.encode, lines))) == [500, 700, 701, 1201]
    assert manager.stats()["commands"] - before < 12
    assert len(manager.dict("d")) == 1100
    assert manager.dict("d")[99] == 1199  # in order: the last line wins
    assert manager.counter("c").value == 1


def test_what_the_manager_refuses_names_the_lines(manager: state_manager.StateManager) -> None:
    manager.dict("small", max_bytes=500)["x"] = 1
    lines = [GOOD, *(f'{{"dict": "small", "key": {number}, "value": "{"x" * 100}"}}' for number in range(4))]
    with pytest.raises(state_manager.StoreFull, match=r"lines 2 to 5: .*small"):
        imported(manager, lines)
    assert manager.dict("carts") == {"a": 1}
    assert manager.dict("small") == {"x": 1}


def test_an_entry_that_goes_while_it_is_read_is_left_out(
    manager: state_manager.StateManager,
) -> None:
    manager.dict("carts").update({"a": 1, "b": 2})
    found = items_of(manager)
    assert next(found)[1] == "a"
    manager.dict("carts").delete("b")
    assert not list(found)
