"""What nobody can change, and what is made read-only: type by type, all the way down."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import uuid
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import pytest

from state_manager import allow
from state_manager.codec import decode, encode
from state_manager.errors import NotStorable
from state_manager.frozen import IMMUTABLE, freeze, is_immutable
from state_manager.leaves import PACKERS

DAY = datetime.date(2030, 1, 2)
LEAVES: list[Any] = [
    None,
    True,
    5,
    2**70,
    1.5,
    "text",
    b"bytes",
    1j,
    datetime.datetime(2030, 1, 2, 3, tzinfo=datetime.UTC),
    DAY,
    datetime.time(3, 4),
    datetime.timedelta(5),
    Decimal("1.5"),
    Fraction(1, 3),
    uuid.UUID(int=7),
    *map(ipaddress.ip_address, ("127.0.0.1", "::1")),
    *map(ipaddress.ip_network, ("10.0.0.0/8", "fe80::/10")),
]


@allow
class Colour(Enum):
    RED = "red"


@allow
@dataclasses.dataclass
class Cart:
    items: list[int]


@allow
@dataclasses.dataclass(frozen=True)
class Point:
    x: int


@pytest.mark.parametrize("value", [*LEAVES, Colour.RED], ids=repr)
def test_a_leaf_is_shared_as_it_is(value: Any) -> None:
    assert is_immutable(value)
    assert freeze(value) is value


def test_every_type_that_can_be_stored_is_tried_here() -> None:
    assert set(PACKERS) - {bytearray} == {type(value) for value in LEAVES} == IMMUTABLE


@pytest.mark.parametrize("value", [(), (1, ("x", frozenset({DAY}))), frozenset({1, (2,)}), (Colour.RED,)], ids=repr)
def test_a_container_of_such_alone_is_shared_as_it_is(value: Any) -> None:
    assert is_immutable(value)
    assert freeze(value) is value


@pytest.mark.parametrize(
    ("value", "frozen"),
    [
        ([1, [2]], (1, (2,))),
        (([1], 2), ((1,), 2)),
        ({1, 2}, frozenset({1, 2})),
        (bytearray(b"x"), b"x"),
        ((bytearray(b"x"),), (b"x",)),
        ({}, MappingProxyType({})),
        ({"a": [{"b": {1}}]}, MappingProxyType({"a": (MappingProxyType({"b": frozenset({1})}),)})),
        ({(1, 2): [3]}, MappingProxyType({(1, 2): (3,)})),
    ],
    ids=repr,
)
def test_what_can_be_changed_is_made_read_only_all_the_way_down(value: Any, frozen: Any) -> None:
    assert not is_immutable(value)
    made = freeze(decode(encode(value)))
    assert made == frozen
    assert kinds(made) == kinds(frozen)


def kinds(value: Any) -> Any:
    """The types of a value and of all in it."""
    items = value.values() if isinstance(value, MappingProxyType) else value if isinstance(value, tuple) else ()
    return [type(value), *map(kinds, items)]


def test_a_frozen_dict_cannot_be_changed() -> None:
    frozen = freeze({"a": {"b": 1}})
    for each in (frozen, frozen["a"]):
        with pytest.raises(TypeError):
            each["b"] = 2


@pytest.mark.parametrize("value", [Cart([1]), Point(1), [Cart([1])], {"cart": (Point(1),)}], ids=repr)
def test_objects_of_the_apps_own_classes_are_not(value: Any) -> None:
    assert not is_immutable(value)
    with pytest.raises(TypeError, match=r"(Cart|Point).* get\(\)"):
        freeze(value)


def test_a_frozen_dict_cannot_be_stored_and_the_error_says_why() -> None:
    with pytest.raises(NotStorable, match=r"frozen\(\) gives these.*get\(\)"):
        encode([freeze({"a": 1})])
