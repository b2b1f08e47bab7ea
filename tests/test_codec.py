"""The codec: every type comes back as it went in, or is refused by name; damaged bytes do no harm."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, auto
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state_manager import classes, codec, leaves
from state_manager import settings as limits
from state_manager.codec import DEPTH, allow, decode, encode
from state_manager.errors import NotStorable, TooLarge


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test allows is forgotten after it."""
    for name in ("BY_NAME", "BY_CLASS"):
        monkeypatch.setattr(classes, name, {})
        monkeypatch.setattr(codec, name, getattr(classes, name))


def canon(value: Any) -> Any:
    """Return what is equal for two values only if they are the same in type, content and order."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [canon(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(canon(item)) for item in value)
    if kind is dict:
        return kind, [(canon(key), canon(item)) for key, item in value.items()]
    return kind, repr(value)  # 1, 1.0 and True, 0.0 and -0.0, folds and zones differ; nan is nan


def returned(value: Any) -> Any:
    """Return the value after a round trip, which has not changed it."""
    again = decode(encode(value))
    assert canon(again) == canon(value)
    return again


def refusal(value: object) -> str:
    with pytest.raises(NotStorable) as caught:
        encode(value)
    return str(caught.value)


# What comes back

zones = st.none() | st.timezones() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
leaf_values = (
    scalars
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 600).map(lambda bits: -(1 << bits))
    | st.binary()
    | st.complex_numbers()
    | st.datetimes(timezones=zones)
    | st.times(timezones=st.none() | st.just(UTC))
    | st.dates()
    | st.timedeltas()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.ip_addresses()
    | st.ip_addresses(v=4).map(IPv4Network)
    | st.ip_addresses(v=6).map(IPv6Network)
)
hashables = st.recursive(
    leaf_values.filter(lambda leaf: not (isinstance(leaf, Decimal) and leaf.is_snan())),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
values = st.recursive(
    leaf_values | st.binary().map(bytearray) | st.sets(hashables, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(values)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    stored = encode(value)
    assert type(stored) in codec.SCALARS or type(stored) is bytes
    returned(value)


@pytest.mark.parametrize("value", [None, True, False, 0, 1, 2**63 - 1, -(2**63), 1.0, -0.0, "", "text", "é😀"])
def test_scalars_are_stored_as_they_are(value: Any) -> None:
    assert encode(value) is value
    assert decode(value) is value


@pytest.mark.parametrize("value", [b"", b"\xd4\x01\x00", 2**63, -(2**63) - 1, [], {}, (), 1j])
def test_all_else_is_stored_as_bytes(value: Any) -> None:
    assert type(encode(value)) is bytes
    returned(value)


@pytest.mark.parametrize(
    "value",
    [
        [1, 1.0, True, 0, False, 0.0, -0.0],
        {1: "int", "1": "str", b"1": "bytes", (1,): "tuple"},
        {(): {(): ()}, frozenset(): frozenset([frozenset()])},
        {"z": 1, "a": 2, Decimal(0): 3},
        [(), [], set(), frozenset(), {}, b"", bytearray(), "", None],
        [b"x", bytearray(b"x"), {"deep": [bytearray(b"")]}],
        [2**64 - 1, 2**64, -(2**63) - 1, 1 << 4000],
        [Decimal("1.10"), Decimal("-0"), Decimal("1E+999999"), Decimal("sNaN12"), Decimal("-Infinity")],
        [time(1, 2, 3, 4, tzinfo=timezone(timedelta(hours=1), "CET"), fold=1), time(1)],
        [datetime.max, datetime.min, date.min, timedelta.max, timedelta.min, timedelta(microseconds=-1)],
        [ip_address("fe80::1%eth0"), IPv6Address("::"), IPv4Network("10.0.0.0/8")],
        [UUID(int=1), Fraction(-1, 3), complex("nan-0j")],
    ],
)
def test_values_that_are_easily_mixed_up(value: Any) -> None:
    returned(value)


def test_an_encoding_is_the_same_wherever_it_stands() -> None:
    """Messages are built of stored values without decoding them."""
    assert decode(b"\x92" + encode((1, {2})) + encode([{(): 3}])) == [(1, {2}), [{(): 3}]]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"a": [1, b"b", None]}, "81a1619301c40162c0"),
        ((1,), "92d4010001"),
        ({1}, "92d4020001"),
        (frozenset(), "91d40300"),
        ({(): 2}, "93d4040091d4010002"),
    ],
)
def test_the_format_does_not_change(value: Any, stored: str) -> None:
    """It is on disk, and in the processes of the release before. (tests/test_leaves.py has the rest.)"""
    assert encode(value) == bytes.fromhex(stored)
    assert canon(decode(bytes.fromhex(stored))) == canon(value)


def test_a_class_is_its_name_and_its_state() -> None:
    @allow(name="point")
    @dataclass
    class Point3:
        x: int

    assert encode(Point3(1)) == b"\x93\xd4\x05\0\xa5point\x81\xa1x\x01"


# What is refused


class Text(str):
    """As Markup is: it would come back as a str."""


class Colour(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Right(Flag):
    READ = auto()
    WRITE = auto()
    BOTH = READ | WRITE
    RUN = auto()


class Bits(IntFlag):
    ONE = 1


@dataclass
class Cart:
    owner: str
    items: list[Any] = field(default_factory=list)
    total: int = 0


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "type_name", "way_out"),
    [
        (OrderedDict(a=1), "collections.OrderedDict", "store a plain dict"),
        (defaultdict(int), "collections.defaultdict", "store a plain dict"),
        (Counter("a"), "collections.Counter", "store a plain dict"),
        (Point(1, 2), "Point", "store a plain tuple"),
        (Text("a"), "Text", "store a plain str"),
        (Level.LOW, "Level", "state_manager.allow(Level)"),
        (Colour.RED, "Colour", "state_manager.allow(Colour)"),
        (Cart("a"), "Cart", "state_manager.allow(Cart)"),
        (object(), "object", "state_manager.allow(object, encode=..., decode=...)"),
        ((i for i in "ab"), "generator", "make a list of it"),
        (memoryview(b"ab"), "memoryview", "store bytes(value)"),
        (range(3), "range", "store plain data"),
        (print, "builtin_function_or_method", "store plain data"),
        (Cart, "type", "store plain data"),
        (ip_interface("10.0.0.1/8"), "ipaddress.IPv4Interface", "store a plain ipaddress.IPv4Address"),
        (msgpack.ExtType(1, b"\0"), "msgpack.ext.ExtType", "store a plain tuple"),
        (msgpack.Timestamp(1, 2), "msgpack.ext.Timestamp", "store plain data"),
    ],
)
def test_other_types_are_refused_by_name(value: object, type_name: str, way_out: str) -> None:
    for text in (refusal(value), refusal({"a": [value]}), refusal((value,))):
        assert type_name in text
        assert way_out in text


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "value: "),
        ({"user": [1, 2, object()]}, "value['user'][2]: "),
        ({1: ({"a": object()},)}, "value[1][0]['a']: "),
        ({(1, memoryview(b"")): 1}, f"value key (1, {memoryview(b'')!r}"[:14]),
        ([{object()}], "value[0] item: "),
    ],
)
def test_a_refusal_says_where(value: object, path: str) -> None:
    assert refusal(value).startswith(path)


def test_a_long_path_is_cut() -> None:
    value: Any = object()
    for _ in range(100):
        value = {"key": value}
    assert refusal(value).startswith("value['key']")
    assert len(refusal(value)) < 400


@pytest.mark.parametrize("value", ["\ud800", ["a\udfff"], {"\ud800": 1}, ("\ud800",), {"a": {1: {"\ud800"}}}])
def test_a_lone_surrogate_is_refused(value: object) -> None:
    assert "lone surrogate '\\ud" in refusal(value)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}])
def test_the_limit_of_nesting(wrap: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(DEPTH):
        value = wrap(value)
    returned(value)
    assert f"nested more than {DEPTH} deep" in refusal(wrap(value))


def test_a_value_inside_itself_is_refused() -> None:
    inside: list[Any] = []
    inside.append({"again": [inside, inside]})
    assert "inside itself" in refusal(inside)


def test_a_value_too_deep_for_the_stack_is_refused_when_it_is_written_never_when_it_is_read() -> None:
    value: Any = []
    for _ in range(DEPTH - 1):
        value = [value]
    stored = encode(value)
    refused = 0

    def descend() -> None:
        nonlocal refused
        assert type(decode(stored)) is list
        try:
            encode(value)
        except NotStorable:
            refused += 1
        if refused < 10:
            descend()

    descend()


@pytest.mark.parametrize("text", ["x", "é"])
def test_the_limit_of_a_value_is_in_bytes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(limits, "VALUE_LIMIT", 1000)
    length = len(text.encode())
    returned(text * (1000 // length))
    returned([text * ((1000 - 4) // length)])
    with pytest.raises(TooLarge, match=r"takes 1002 bytes.* limit is 1000"):
        encode(text * (1002 // length))
    with pytest.raises(TooLarge, match=r"takes 10\d\d bytes.* limit is 1000"):
        encode([text * (1002 // length)])


# Damaged bytes


def decode_or_refuse(stored: bytes) -> None:
    """Whatever the bytes are: a value that could have been stored, or one of two errors."""
    try:
        value = decode(stored)
    except (ValueError, NotStorable):
        return
    returned(value)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(stored: bytes) -> None:
    decode_or_refuse(stored)


@settings(deadline=None, max_examples=300)
@given(
    values.map(lambda value: encode([value])),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_encodings(stored: Any, damages: list[tuple[int, int, int]]) -> None:
    data = bytearray(stored)
    for place, action, byte in damages:
        at = place % (len(data) + 1)
        data[at : at + (action < 2)] = b"" if action == 0 else bytes([byte])
    decode_or_refuse(bytes(data))


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(sorted(leaves.CONSTRUCTORS) + list(range(8))), st.binary(max_size=40))
def test_extensions_with_arbitrary_payloads(code: int, payload: bytes) -> None:
    decode_or_refuse(msgpack.packb([msgpack.ExtType(code, payload)]))


@settings(deadline=None)
@given(values)
def test_a_cut_encoding_is_damaged(value: Any) -> None:
    stored = encode([value])
    assert type(stored) is bytes
    for cut in {0, 1, len(stored) // 2, len(stored) - 1}:
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode(stored[:cut])


def marked(code: int, *items: object) -> bytes:
    return bytes(msgpack.packb([msgpack.ExtType(code, b"\0"), *items]))


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(marked(9, 1), id="unknown code"),
        pytest.param(msgpack.packb(msgpack.ExtType(1, b"\0")), id="marker alone"),
        pytest.param(msgpack.packb([1, msgpack.ExtType(1, b"\0")]), id="marker in second place"),
        pytest.param(msgpack.packb({"a": msgpack.ExtType(1, b"\0")}), id="marker in a dict"),
        pytest.param(msgpack.packb({msgpack.ExtType(1, b"\0"): 1}), id="marker as a key"),
        pytest.param(marked(1, msgpack.ExtType(1, b"\0")), id="two markers"),
        pytest.param(marked(2, []), id="a set of lists"),
        pytest.param(marked(4, 1), id="a key without an item"),
        pytest.param(marked(4, [], 1), id="a list as a key"),
        pytest.param(marked(5, "a"), id="a class without state"),
        pytest.param(marked(5, [], 1), id="a class whose name is a list"),
        pytest.param(b"\x81\x90\x01", id="a list as a key of a plain dict"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of four thousand million"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(b"\x01\x01", id="two values"),
        pytest.param(b"\xa1\xff", id="no UTF-8"),
        pytest.param(b"\x91" * 5000 + b"\x01", id="too deep"),
    ],
)
def test_bytes_of_the_wrong_shape(stored: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(stored)


@pytest.mark.parametrize("beside", [None, ()])
def test_what_is_never_written_is_read_as_a_type_that_can_be_written(beside: object) -> None:
    stored = b"\x92" + msgpack.packb(msgpack.Timestamp(1, 2)) + bytes(encode([beside]))  # type: ignore[arg-type]
    assert returned(decode(stored)) == [1_000_000_002, [beside]]


def test_no_memory_is_no_damage() -> None:
    def no_memory(state: object) -> None:
        raise MemoryError

    allow(Text, encode=lambda text: 1, decode=no_memory)
    with pytest.raises(MemoryError):
        decode(encode(Text()))


# Several at once


def test_many_threads() -> None:
    """No call leaves anything where another call finds it: neither a packer's bytes nor a count of markers."""

    @dataclass
    class Box:
        inside: Any

    allow(Box, encode=lambda box: encode(box.inside), decode=lambda stored: Box(decode(stored)))
    wrong: list[int] = []
    start = threading.Barrier(8)

    def work(n: int) -> None:
        value = [{"n": n, "t": ("x" * n, n)}, Box({n, (n,)}), list(range(n))] * 3
        start.wait()
        wrong.extend(n for _ in range(100) if decode(encode(value)) != value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
