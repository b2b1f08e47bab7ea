from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import pytest

from state_manager import cli_output as out
from state_manager.checks import Key


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "é\n", [], [1, ["x"]], {}, {"a": {"b": [None]}}])
def test_what_json_can_say_is_json(value: Any) -> None:
    assert out.is_json(value)
    assert json.loads(out.value_text(value)) == value
    assert out.to_json(value) == value


@pytest.mark.parametrize(
    "value", [(1, 2), {1, 2}, b"x", {1: 2}, {"a": (1,)}, [b"x"], math.nan, math.inf, date(2026, 1, 2), {"a": {2: 3}}]
)
def test_what_json_cannot_say_is_python(value: Any) -> None:
    assert not out.is_json(value)
    assert out.value_text(value) == repr(value)
    assert json.loads(json.dumps(out.to_json(value))) != value  # it says so, instead of turning (1, 2) into [1, 2]


def test_json_keeps_what_it_can_say_around_what_it_cannot() -> None:
    assert out.to_json({"a": [1, (2,)], "b": 3}) == {"a": [1, {"python": "(2,)"}], "b": 3}
    assert out.to_json({1: "x"}) == {"python": "{1: 'x'}"}


def test_a_wide_value_is_laid_out_for_a_terminal_only() -> None:
    value = {"name": "x" * 40, "more": "y" * 40}
    assert "\n" not in out.value_text(value)
    assert "\n" not in out.value_text(value, width=200)
    assert out.value_text(value, width=50).count("\n") == 3
    assert json.loads(out.value_text(value, width=50)) == value
    assert out.value_text(tuple(value.values()), width=50).count("\n") == 1
    assert "\n" not in out.value_text("z" * 100, width=50)


@pytest.mark.parametrize("text", ["\x1b[31m", "\x9b31m", "a\u2028b", "\udcff", "a\x7f"])
def test_nothing_unprintable_gets_out(text: str) -> None:
    for shown in (out.value_text(text), out.value_text([text], width=1), out.key_text(text), out.value_text((text,))):
        assert shown.replace("\n", "").isprintable()
    assert json.loads(out.value_text(text)) == text


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("alice", "alice"),
        ("two words", "two words"),
        ("é", "é"),
        ("", '""'),
        (" x", '" x"'),
        ("a\nb", '"a\\nb"'),
        ("--int 5", '"--int 5"'),
        ('"x"', '"\\"x\\""'),
        ("5", "5"),
        (5, "--int 5"),
        (-5, "--int -5"),
        (b"\x00\xff", "--hex 00ff"),
    ],
)
def test_no_two_keys_look_alike(key: Key, shown: str) -> None:
    assert out.key_text(key) == shown


def test_columns_are_aligned() -> None:
    rows = [("carts", "dict", 9), ("x", "counter", 1000)]
    assert out.table(rows, header=("NAME", "KIND", "N")).splitlines() == [
        "NAME   KIND        N",
        "carts  dict        9",
        "x      counter  1000",
    ]
    assert out.table([], header=("NAME", "N")) == "NAME  N"


@pytest.mark.parametrize(("seconds", "text"), [(0.000183, "183 us"), (0.0123, "12.3 ms"), (1.5, "1500.0 ms")])
def test_short_times_have_a_fitting_unit(seconds: float, text: str) -> None:
    assert out.seconds_text(seconds) == text
