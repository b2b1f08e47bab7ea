"""What a name, a key, a stored value and a ttl may be. Pure; client and manager ask the same functions.

The manager checks everything, because anything may come through a socket. The client checks what it would otherwise get
wrong before it asks: True, 1 and 1.0 are one key to a Python dict and must not be one here.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final, TypeAlias

from .errors import TooLarge
from .settings import KEY_LIMIT, VALUE_LIMIT

Key: TypeAlias = str | int | bytes

COUNTERS: Final = ":counters"
SECRETS: Final = ":secrets"
OPTIONS: Final = ":options"
LOCKS: Final = ":locks"
LEADERS: Final = ":leaders"
CHANNELS: Final = ":channels"
SEMAPHORE: Final = ":semaphore:"
QUEUE: Final = ":queue:"
TAKEN: Final = ":taken:"
CHANNEL: Final = ":channel:"
FLIGHT: Final = ":flight:"
"""Spaces of the manager's own that clients know of. Each semaphore, queue and channel has one of this name and its own;
a queue has another for what was taken and not acknowledged, and a dict one for what is being computed for it."""

DEAD: Final = ":dead"
"""What the name of a queue for undeliverable items ends in."""

SHORT: Final = KEY_LIMIT // 4
"""Characters that a str may have to be within the limit however they are encoded."""
INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1


def check_name(name: object) -> None:
    """Refuse anything but a name that an application may use."""
    if type(name) is not str:
        raise TypeError(f"a name is a str, not {shown(name)}")
    if not name or name[0] == ":":
        raise ValueError(f"{name!r} is no name: one is not empty, and those that begin with ':' are the manager's")
    if len(name) > SHORT or not name.isascii():
        _check_size("a name", len(_utf8(name, "a name")), KEY_LIMIT)


def check_key(key: object) -> None:
    """Refuse a key that is not a str, a 64-bit int or bytes, or is over-long. bool is not int here."""
    if type(key) is str:
        if len(key) > SHORT or not key.isascii():
            _check_size("a key", len(_utf8(key, "a key")), KEY_LIMIT)
    elif type(key) is bytes:
        _check_size("a key", len(key), KEY_LIMIT)
    elif type(key) is int:
        check_int(key, "a key")
    else:
        raise TypeError(f"a key is a str, an int or bytes, not {shown(key)}")


def key_bytes(key: Key) -> bytes:
    """Return what a key's slot is computed from, in the manager and in workers alike."""
    if isinstance(key, str):
        return key.encode()
    return key if isinstance(key, bytes) else b"%d" % key


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} with a lone surrogate, {text!r}, is no text: encode it to bytes") from None


def check_stored(value: object) -> None:
    """Refuse what is not a stored form: a scalar, or the bytes that ``codec.encode`` made of anything else."""
    if type(value) is str or type(value) is bytes:
        _check_size("a value", len(value), VALUE_LIMIT)
    elif type(value) is int:
        check_int(value, "a value")
    elif value is not None and type(value) is not bool and type(value) is not float:
        raise TypeError(f"a value on the wire is a scalar or encoded bytes, not {shown(value)}")


def check_int(number: object, what: str) -> int:
    """Return a 64-bit integer, or refuse."""
    if type(number) is not int:
        raise TypeError(f"{what} is an int, not {shown(number)}")
    if not INT_MIN <= number <= INT_MAX:
        raise OverflowError(f"{what} fits 64 bits, and {number} does not")
    return number


def seconds(value: object, what: str = "a ttl") -> float:
    """Return a span of time (seconds or a timedelta) in seconds. Raises ValueError unless it is finite and above 0."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"{what} is a number of seconds or a timedelta, not {shown(value)}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} is finite and above zero, not {value!r}; leave it out for none")
    return float(value)


def timeout(value: object, what: str = "a timeout") -> float:
    """Return how many seconds to wait for something. Raises ValueError unless it is finite and not below zero."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"{what} is a number of seconds, not {shown(value)}")
    if not 0 <= value < 1e9:
        raise ValueError(f"{what} is finite and not below zero, not {value!r}")
    return float(value)


def shown(value: object) -> str:
    """Return a value's type and a short text of it, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"{what} of {size:,} bytes is over the limit of {limit:,}")
