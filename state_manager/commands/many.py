"""Commands on many entries, or on a whole dict: each is atomic and one round trip, but for pages of an iteration."""

from __future__ import annotations

from sys import getsizeof
from typing import Any, Final

from ..checks import SHORT, Key, check_key, check_name, check_stored
from ..errors import TooLarge
from ..store import ABSENT, NEVER, Change, Entry
from .base import Done, View, check_readable, check_size, entry, row, shown, shown_value
from .flights import deleted, emptied

ANSWER_COST: Final = 24
"""What an answer of many takes beside its value."""
MANY: Final = 100_000
"""Entries that one command may write: they take the manager about a quarter of a second."""


def get_many(view: View, now: float, space: str, keys: list[Key]) -> Done:
    """Return for each key what ``get`` returns."""
    check_readable(space)
    answers: list[tuple[Any, ...]] = []
    total = 0
    for key in _list(keys):
        if type(key) is not str or len(key) > SHORT or not key.isascii():
            check_key(key)
        answer = shown(view, space, key)
        if len(answer) > 1:
            total += getsizeof(answer[1])
        answers.append(answer)
    check_size(total + ANSWER_COST * len(answers))
    return answers, ()


def set_many(view: View, now: float, space: str, pairs: list[Any], ttl: float | None = None) -> Done:
    """Store all of these: key, value, key, value, ..."""
    check_name(space)
    if len(_list(pairs)) % 2:
        raise ValueError("set_many takes as many values as keys")
    if len(pairs) > 2 * MANY:
        raise TooLarge(f"{len(pairs) // 2:,} entries at once are over the limit of {MANY:,}: everybody else would wait")
    changes: list[Change] = []
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        check_key(key)
        check_stored(value)
        changes.append((space, key, entry(value, ttl, now)))
    return None, changes


def delete_many(view: View, now: float, space: str, keys: list[Key]) -> Done:
    """Delete these keys; return how many were there."""
    check_name(space)
    for key in _list(keys):
        check_key(key)
    count = 0
    changes: list[Change] = []
    for key in dict.fromkeys(keys):
        found = view.get(space, key)
        count += found is not ABSENT
        changes += deleted(view, space, key, found)
    return count, changes


def size(view: View, now: float, space: str) -> Done:
    """Return the number of entries; those that have expired and were not yet swept may be counted."""
    check_readable(space)
    return view.size(space), ()


def clear(view: View, now: float, space: str) -> Done:
    """Delete every entry; return how many there were."""
    check_name(space)
    count = view.size(space)
    return count, emptied(view, space)


def scan(view: View, now: float, space: str, cursor: list[int] | None = None, values: bool = False) -> Done:
    """Return ``[next cursor or None, [key, ...], version, deadline]``; with values the list has each after its key.

    A key that is there from the first page to the last is given exactly once. ``version`` is that of the dict itself:
    pages with the same one are of one moment. ``deadline`` is the first of the page, infinite if there is none.
    """
    check_readable(space)
    page, following = view.page(space, cursor)
    deadline = min([found.deadline for _, found in page if type(found) is Entry], default=NEVER)
    items = [item for key, found in page for item in (key, shown_value(found))] if values else [key for key, _ in page]
    return [following, items, view.space_version(space), deadline], ()


def _list(items: object) -> list[Any]:
    if type(items) is not list:
        raise TypeError(f"a list is expected here, not {type(items).__name__}")
    return items


COMMANDS = (
    row("dict", "get_many", get_many, writes=False),
    row("dict", "size", size, writes=False),
    row("dict", "scan", scan, writes=False),
    row("dict", "set_many", set_many, writes=True),
    row("dict", "delete_many", delete_many, writes=True),
    row("dict", "clear", clear, writes=True),
)
