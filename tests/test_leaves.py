"""The leaves: their limits, their zones, and payloads of the wrong shape."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from freezegun import freeze_time

from state_manager import leaves
from state_manager.codec import decode, encode
from state_manager.errors import NotStorable

BERLIN = ZoneInfo("Europe/Berlin")
TWICE = datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN)
"""The half past two that Berlin has twice that night."""


def returned(value: Any) -> Any:
    """Return the value after a round trip, which has changed neither it nor its type."""
    again = decode(encode(value))
    assert type(again) is type(value)
    assert repr(again) == repr(value)
    return again


def refusal(value: object) -> str:
    with pytest.raises(NotStorable) as caught:
        encode(value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (2**64, "c70920010000000000000000"),
        (1j, "d82100000000000000003ff0000000000000"),
        (bytearray(b"b"), "d42262"),
        (date(2024, 2, 29), "d62307e8021d"),
        (time(1, 2, 3, 4), "d7240102030000000004"),
        (datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC), "c7192507e8021d01020300000000046f000000000000000000000000"),
        (time(1, tzinfo=ZoneInfo("UTC"), fold=1), "c70c2401000001000000007a555443"),
        (time(1, tzinfo=timezone(timedelta(0), "n")), "c7162401000000000000006e0000000000000000000000006e"),
        (timedelta(1, 2, 3), "c70c26000000010000000200000003"),
        (Decimal("1.50"), "d627312e3530"),
        (Fraction(-1, 16), "c705282d312f3130"),
        (UUID(int=1), "d82900000000000000000000000000000001"),
        (IPv4Address("10.0.0.1"), "d72a31302e302e302e31"),
        (IPv6Address("::1"), "c7032b3a3a31"),
        (IPv4Network("10.0.0.0/8"), "c70a2c31302e302e302e302f38"),
        (IPv6Network("::/8"), "d62d3a3a2f38"),
    ],
)
def test_the_format_does_not_change(value: Any, stored: str) -> None:
    """It is on disk, and in the processes of the release before."""
    assert encode(value) == bytes.fromhex(stored)
    assert repr(decode(bytes.fromhex(stored))) == repr(value)


@pytest.mark.parametrize("fold", [0, 1])
def test_a_zone_stays_a_zone_and_an_hour_that_comes_twice_stays_the_same_one(fold: int) -> None:
    when = returned(TWICE.replace(fold=fold))
    assert when.tzinfo is BERLIN
    assert when.utcoffset() == timedelta(hours=2 - fold)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(minutes=-90)), timezone(timedelta(0), ""), timezone.max])
def test_a_fixed_offset_keeps_its_name(zone: timezone) -> None:
    when = returned(datetime(2024, 1, 1, tzinfo=zone))
    assert when.tzname() == zone.tzname(None)


def test_a_frozen_clock_does_not_change_what_a_date_is() -> None:
    stored = encode([TWICE, TWICE.date()])
    with freeze_time("2024-01-01"):
        again = decode(stored)
        assert encode(again) == stored
    assert [type(item) for item in again] == [type(TWICE), type(TWICE.date())]


class NoZone(tzinfo):
    utcoffset = dst = tzname = lambda *_: None


@pytest.mark.parametrize("zone", [NoZone(), timezone(timedelta(0), "\ud800")])
def test_a_zone_that_cannot_be_found_again_is_refused(zone: tzinfo) -> None:
    refusal(datetime(2024, 1, 1, tzinfo=zone))


@pytest.mark.parametrize(
    ("largest", "too_large"),
    [
        (2 ** (8 * 2**20 - 1) - 1, 2 ** (8 * 2**20 - 1)),
        (-(2 ** (8 * 2**20 - 1)) + 1, -(2 ** (8 * 2**20 - 1)) - 1),
        (Decimal("1" * 2**20), Decimal("1" * (2**20 + 1))),
        (Fraction(16**2045, 3), Fraction(16**2046, 3)),
    ],
    ids=["int", "negative int", "Decimal", "Fraction"],
)
def test_the_limits_of_numbers(largest: Any, too_large: Any) -> None:
    assert decode(encode(largest)) == largest
    assert "the limit is" in refusal([too_large])


@pytest.mark.parametrize(
    ("code", "payload"),
    [
        (leaves.INT, b"\x01"),
        (leaves.INT, b"\x01" * (leaves.NUMBER_LIMIT + 1)),
        (leaves.DECIMAL, b"one"),
        (leaves.DECIMAL, b"1E+99999999999999999999"),
        (leaves.DECIMAL, b"1" * (leaves.NUMBER_LIMIT + 1)),
        (leaves.FRACTION, b"1/0"),
        (leaves.FRACTION, b"1_0/3"),
        (leaves.FRACTION, b"1/" + b"1" * leaves.FRACTION_LIMIT),
        (leaves.COMPLEX, b"1+2j"),
        (leaves.UUID_, b"short"),
        (leaves.DATE, b"\0\0\0\0"),
        (leaves.DATE, b"\x07\xe8\x01\x01\0"),
        (leaves.TIME, b"\x18\0\0\0\0\0\0\0"),
        (leaves.TIME, b"\0\0\0\x02\0\0\0\0"),
        (leaves.TIME, b"\0\0\0\0\0\0\0\0q"),
        (leaves.TIME, b"\0\0\0\0\0\0\0\0o" + b"\x7f" * 12),
        (leaves.TIMEDELTA, b"\x7f" * 12),
        (leaves.IPV4_ADDRESS, b"1.2.3"),
        (leaves.IPV6_NETWORK, b"::1/64"),
        (leaves.IPV6_ADDRESS, b"fe80::1%" + b"e" * leaves.TEXT_LIMIT),
        (77, b"1234"),
    ],
)
def test_extensions_of_the_wrong_shape(code: int, payload: bytes) -> None:
    with localcontext() as context:
        context.traps[InvalidOperation] = False  # an application's context does not decide what is damaged
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode(msgpack.packb(msgpack.ExtType(code, payload)))


@pytest.mark.parametrize("key", ["/etc/passwd", "../../etc/passwd", "Europe/../Berlin", "a.b/c", "", "Europe/Berlin\n"])
def test_a_zone_is_no_path(key: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        decode(msgpack.packb(msgpack.ExtType(leaves.TIME, b"\0" * 8 + b"z" + key.encode())))


def test_a_zone_that_this_machine_lacks_is_named() -> None:
    with pytest.raises(NotStorable, match=r"'Mars/Olympus'.*tzdata"):
        decode(msgpack.packb(msgpack.ExtType(leaves.TIME, b"\0" * 8 + b"zMars/Olympus")))
