"""The types that hold no other values, as msgpack extensions: each with one code, one packer and one constructor.

A payload is damaged until its constructor has proved otherwise. Sizes and forms are checked first, so that none costs
more than time in proportion to its length. Any exception says "damaged", and ``codec`` makes it a ValueError.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from reprlib import repr as short
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType

from .errors import NotStorable

NUMBER_LIMIT = 2**20
"""Bytes of one int, characters of one Decimal; building them takes time in proportion."""
FRACTION_LIMIT = 2048
"""Characters of one Fraction; reducing it takes quadratic time."""
TEXT_LIMIT = 256
"""Characters of an address, a network or the key of a time zone."""

# The codes are the format of what is on disk: none may ever change its meaning. Those below 32 are codec.py's markers.
INT, COMPLEX, BYTEARRAY, DATE, TIME, DATETIME, TIMEDELTA, DECIMAL, FRACTION, UUID_ = range(32, 42)
IPV4_ADDRESS, IPV6_ADDRESS, IPV4_NETWORK, IPV6_NETWORK = range(42, 46)

_COMPLEX = struct.Struct(">dd")
_DATE = struct.Struct(">HBB")
_CLOCK = struct.Struct(">BBBBI")
_TIMEDELTA = struct.Struct(">iII")
_STRICT = Context(traps=[InvalidOperation])  # the caller's may have its traps off, and NaN would stand for damage
_FRACTION = re.compile(r"-?[0-9a-f]+/[0-9a-f]+")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


class Refused(Exception):
    """Why a value cannot be stored. The steps to it are added on the way up, so the last one comes first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.steps: list[str] = []

    def __str__(self) -> str:
        path = "value" + "".join(reversed(self.steps))
        if len(path) > 200:
            path = f"{path[:120]} ... {path[-60:]}"
        return f"{path}: {self.args[0]}"


def utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        lone = ascii(text[error.start])
        raise Refused(f"a str with the lone surrogate {lone} cannot be stored; store bytes") from None


def type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _limited(what: str, payload: bytes, limit: int) -> bytes:
    if len(payload) > limit:
        raise Refused(f"{what} of {len(payload)} bytes cannot be stored; the limit is {limit}")
    return payload


def _bounded(payload: bytes, limit: int) -> str:
    if len(payload) > limit:
        raise ValueError(f"a payload of {len(payload)} bytes, where {limit} is the limit")
    return payload.decode()


# Each packer stands beside its constructor.


def _pack_text(text: str) -> str:
    utf8(text)
    return text


def _pack_int(value: int) -> int | ExtType:
    if -(2**63) <= value < 2**63:
        return value
    size = value.bit_length() // 8 + 1
    if size > NUMBER_LIMIT:
        raise Refused(f"an int of {size} bytes cannot be stored; the limit is {NUMBER_LIMIT}")
    return ExtType(INT, value.to_bytes(size, "big", signed=True))


def _int(payload: bytes) -> int:
    if not 8 <= len(payload) <= NUMBER_LIMIT:
        raise ValueError(f"an int of {len(payload)} bytes")
    return int.from_bytes(payload, "big", signed=True)


def _complex(payload: bytes) -> complex:
    return complex(*_COMPLEX.unpack(payload))


def _pack_decimal(value: Decimal) -> ExtType:
    return ExtType(DECIMAL, _limited("a Decimal", str(value).encode(), NUMBER_LIMIT))


def _decimal(payload: bytes) -> Decimal:
    return Decimal(_bounded(payload, NUMBER_LIMIT), _STRICT)


def _pack_fraction(value: Fraction) -> ExtType:
    return ExtType(FRACTION, _limited("a Fraction", b"%x/%x" % (value.numerator, value.denominator), FRACTION_LIMIT))


def _fraction(payload: bytes) -> Fraction:
    text = _bounded(payload, FRACTION_LIMIT)
    if not _FRACTION.fullmatch(text):
        raise ValueError(f"no Fraction: {short(text)}")
    numerator, denominator = text.split("/")
    return Fraction(int(numerator, 16), int(denominator, 16))


def _day_bytes(value: date) -> bytes:
    return _DATE.pack(value.year, value.month, value.day)


def _clock_bytes(value: time | datetime) -> bytes:
    clock = _CLOCK.pack(value.hour, value.minute, value.second, value.fold, value.microsecond)
    return clock + _zone_bytes(value.tzinfo)


def _timedelta_bytes(value: timedelta) -> bytes:
    return _TIMEDELTA.pack(value.days, value.seconds, value.microseconds)


def _zone_bytes(zone: tzinfo | None) -> bytes:
    """Return nothing for no zone, "o" offset, "n" offset name, or "z" key in the time zone database."""
    if zone is None:
        return b""
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        return b"n" + _timedelta_bytes(offset) + utf8(name[0]) if name else b"o" + _timedelta_bytes(offset)
    if type(zone) is ZoneInfo and zone.key:
        return b"z" + utf8(zone.key)
    raise Refused(f"the time zone {short(zone)} cannot be stored; use datetime.timezone or zoneinfo.ZoneInfo(key)")


def _date(cls: type[date], payload: bytes) -> date:
    return cls(*_DATE.unpack(payload))


def _clock(payload: bytes) -> tuple[dict[str, int], tzinfo | None]:
    hour, minute, second, fold, microsecond = _CLOCK.unpack(payload[: _CLOCK.size])
    clock = {"hour": hour, "minute": minute, "second": second, "microsecond": microsecond, "fold": fold}
    return clock, _zone(payload[_CLOCK.size :])


def _time(payload: bytes) -> time:
    clock, zone = _clock(payload)
    return time(**clock, tzinfo=zone)


def _datetime(cls: type[datetime], payload: bytes) -> datetime:
    year, month, day = _DATE.unpack(payload[: _DATE.size])
    clock, zone = _clock(payload[_DATE.size :])
    return cls(year, month, day, **clock, tzinfo=zone)


def _timedelta(payload: bytes) -> timedelta:
    return timedelta(*_TIMEDELTA.unpack(payload))


def _zone(payload: bytes) -> tzinfo | None:
    if not payload:
        return None
    form, rest = payload[:1], payload[1:]
    if form == b"o":
        return timezone(_timedelta(rest))
    if form == b"n":
        return timezone(_timedelta(rest[: _TIMEDELTA.size]), rest[_TIMEDELTA.size :].decode())
    key = _bounded(rest, TEXT_LIMIT)
    if form != b"z" or not _ZONE_KEY.fullmatch(key):  # a key is looked up as a file name
        raise ValueError(f"no time zone: {short(payload)}")
    try:
        return ZoneInfo(key)
    except (LookupError, OSError, ValueError) as error:
        raise NotStorable(f"a stored value has the time zone {key!r}, unknown here: install tzdata") from error


def _from_text(cls: Callable[[str], Any], payload: bytes) -> Any:
    return cls(_bounded(payload, TEXT_LIMIT))


def _as_it_is(value: Any) -> Any:
    return value


def _pack_address(code: int, value: object) -> ExtType:
    return ExtType(code, _limited("an address", utf8(str(value)), TEXT_LIMIT))


PACKERS: dict[type, Callable[[Any], Any]] = {
    type(None): _as_it_is,
    bool: _as_it_is,
    float: _as_it_is,
    bytes: _as_it_is,
    str: _pack_text,
    int: _pack_int,
    complex: lambda value: ExtType(COMPLEX, _COMPLEX.pack(value.real, value.imag)),
    bytearray: lambda value: ExtType(BYTEARRAY, bytes(value)),
    datetime: lambda value: ExtType(DATETIME, _day_bytes(value) + _clock_bytes(value)),
    date: lambda value: ExtType(DATE, _day_bytes(value)),
    time: lambda value: ExtType(TIME, _clock_bytes(value)),
    timedelta: lambda value: ExtType(TIMEDELTA, _timedelta_bytes(value)),
    Decimal: _pack_decimal,
    Fraction: _pack_fraction,
    UUID: lambda value: ExtType(UUID_, value.bytes),
    IPv4Address: partial(_pack_address, IPV4_ADDRESS),
    IPv6Address: partial(_pack_address, IPV6_ADDRESS),
    IPv4Network: partial(_pack_address, IPV4_NETWORK),
    IPv6Network: partial(_pack_address, IPV6_NETWORK),
}
"""A value's exact type, to what makes a type of msgpack's of it."""

CONSTRUCTORS: dict[int, Callable[[bytes], Any]] = {
    INT: _int,
    COMPLEX: _complex,
    BYTEARRAY: bytearray,
    # Bound now: freezegun replaces these two names by subclasses, which would come back and could not be stored again.
    DATE: partial(_date, date),
    DATETIME: partial(_datetime, datetime),
    TIME: _time,
    TIMEDELTA: _timedelta,
    DECIMAL: _decimal,
    FRACTION: _fraction,
    UUID_: lambda payload: UUID(bytes=payload),
    IPV4_ADDRESS: partial(_from_text, IPv4Address),
    IPV6_ADDRESS: partial(_from_text, IPv6Address),
    IPV4_NETWORK: partial(_from_text, IPv4Network),
    IPV6_NETWORK: partial(_from_text, IPv6Network),
}


def construct(code: int, payload: bytes) -> Any:
    """Return the value of an extension. Any exception means that it is damaged or from a newer version."""
    constructor = CONSTRUCTORS.get(code)
    if constructor is None:
        raise ValueError(f"the extension {code} is unknown here")
    return constructor(payload)
