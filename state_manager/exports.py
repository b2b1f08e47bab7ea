"""Dicts and counters as JSON lines, and back. One object a line:

    {"dict": "carts", "key": "alice", "value": {"n": 1}, "ttl": 3599.5}
    {"counter": "visits", "value": 41}

Rules
- A key is a text, an integer or {"hex": "00ff"} for bytes. ``ttl`` is the seconds that are left; without it there is
  no deadline.
- Each line stands for exactly what was stored: what JSON would turn into something else (a tuple into a list) is
  refused by name. Secrets, options of dicts and the manager's other bookkeeping are not written, nor what belongs to
  a process (ephemeral dicts).
- A line is read whole before any of it is stored, and a mistake names its line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeAlias

from .api import StateManager
from .checks import COUNTERS, OPTIONS, Key, check_int, check_key, check_name, seconds, shown
from .cli_output import json_text, key_json
from .codec import decode
from .errors import NotStorable, StateError

EPHEMERAL = 3
"""Its place among a dict's options."""
BATCH_LINES = 500
BATCH_BYTES = 2**20
"""Lines are stored together up to either bound."""

Item: TypeAlias = tuple[str, Key, Any, float | None]
"""Space, key, stored value, ttl."""


class NotJson(NotStorable):
    """JSON cannot hold this value; the message names dict, key and type."""


class Line(NamedTuple):
    """What a line says; ``name`` is a dict's, or a counter's with None as the key."""

    number: int
    name: str
    key: Key | None
    value: Any
    ttl: float | None


# -- out ---------------------------------------------------------------------------------------------------------------


def items_of(manager: StateManager) -> Iterator[Item]:
    """Yield what a running manager has. Not of one moment: what is there throughout is given exactly once."""
    options = manager.system(OPTIONS).copy()
    for space in sorted(manager.spaces()):
        ephemeral = space.name in options and options[space.name][EPHEMERAL]
        if space.kind not in ("dict", "counter") or ephemeral:
            continue
        found = manager.dict(space.name) if space.kind == "dict" else manager.system(space.name)
        for page in found._scan(True):
            for key, stored in zip(page[::2], page[1::2], strict=True):
                try:
                    yield space.name, key, stored, found.ttl(key)
                except KeyError:  # it has gone meanwhile
                    continue


def line_of(item: Item) -> str:
    """Return an item's line. Raises NotJson."""
    space, key, stored, ttl = item
    try:
        value = decode(stored)
        problem = unsayable(value)
    except NotStorable as error:  # a class that only the app knows
        problem = str(error)
    if problem:
        raise NotJson(f"{space}[{key!r}] cannot be written as JSON: {problem}")
    if space == COUNTERS:
        return json_text({"counter": key, "value": value})
    document = {"dict": space, "key": key_json(key), "value": value}
    return json_text(document if ttl is None else document | {"ttl": round(ttl, 3)})


def unsayable(value: object) -> str:
    """Return what in a value JSON would turn into something else, and why; empty if nothing."""
    kind = type(value)
    if kind is float:
        return "" if math.isfinite(value) else f"it has the number {value}"  # type: ignore[arg-type]
    if isinstance(value, list) and kind is list:
        return next(filter(None, map(unsayable, value)), "")
    if isinstance(value, dict) and kind is dict:
        for key in value:
            if type(key) is not str:
                return f"it has a dict with the key {shown(key)}"
        return next(filter(None, map(unsayable, value.values())), "")
    if value is None or kind in (bool, int, str):
        return ""
    return f"it has a value of type {kind.__name__}"


# -- in ----------------------------------------------------------------------------------------------------------------


def load(manager: StateManager, lines: Iterable[bytes]) -> Iterator[int]:
    """Store these lines, over what is there, and yield after each batch how many were read.

    Raises ValueError, TypeError or StateError, naming the line; those before it are stored.
    """
    batch: list[Line] = []
    size = 0
    number = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = parse(number, text)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            _store(manager, batch)
            raise ValueError(f"line {number}: {error}; the lines before it were imported") from None
        if batch and (not _alike(batch[0], line) or len(batch) == BATCH_LINES or size > BATCH_BYTES):
            _store(manager, batch)
            yield number - 1
            batch, size = [], 0
        batch.append(line)
        size += len(text)
    _store(manager, batch)
    yield number


def parse(number: int, text: bytes) -> Line:
    """Return what a line of UTF-8 says. Raises ValueError, TypeError or OverflowError."""
    try:
        document = json.loads(text.decode("utf-8-sig"), parse_constant=_not_json)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
    if type(document) is not dict:
        raise ValueError('it is not an object such as {"dict": "carts", "key": "alice", "value": 1}')
    fields = {"counter", "value"} if "counter" in document else {"dict", "key", "value"}
    allowed = fields if "counter" in document else fields | {"ttl"}
    if missing := sorted(fields - document.keys()):
        raise ValueError(f"it has no {missing[0]!r}")
    if unknown := sorted(document.keys() - allowed):
        raise ValueError(f"it has {unknown[0]!r}, which means nothing here")
    value = document["value"]
    if "counter" in document:
        check_name(document["counter"])
        return Line(number, document["counter"], None, check_int(value, "a counter"), None)
    check_name(document["dict"])
    ttl = seconds(document["ttl"]) if "ttl" in document else None
    return Line(number, document["dict"], _key(document["key"]), value, ttl)


def _key(document: Any) -> Key:
    key = document
    if type(document) is dict:
        if document.keys() != {"hex"} or type(document["hex"]) is not str:
            raise ValueError(f'a key of bytes is {{"hex": "00ff"}}, not {json_text(document)}')
        key = bytes.fromhex(document["hex"])
    check_key(key)
    checked: Key = key
    return checked


def _alike(one: Line, other: Line) -> bool:
    """Return whether two lines can be stored in one step."""
    return one.key is not None and other.key is not None and (one.name, one.ttl) == (other.name, other.ttl)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _store(manager: StateManager, batch: list[Line]) -> None:
    if not batch:
        return
    first, last = batch[0], batch[-1]
    try:
        if first.key is None:
            manager.counter(first.name).reset(first.value)
        else:
            manager.dict(first.name).set_many(
                {line.key: line.value for line in batch if line.key is not None}, first.ttl
            )
    except (StateError, ValueError, TypeError) as error:
        where = f"line {first.number}" if first is last else f"one of the lines {first.number} to {last.number}"
        raise type(error)(f"{where}: {error}; the lines before were imported") from error
