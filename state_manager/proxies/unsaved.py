"""Finds values that were read, changed and not written back: what you get from a shared dict is a copy.

    look_with(find)                         ``find()`` gives the Unsaved of whoever reads, None if nobody watches him
    for name, key in unsaved.take_changed(): ...

Only mutable values are noted, and only while somebody watches, which Flask's debug mode does for each request. Who
watches is asked at each read, and not kept in a variable of this module's own: a request may go on in other threads and
greenlets, and end in another one than it began in, and Flask knows which one is meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from ..checks import Key
from ..codec import decode, encode

LIMIT: Final = 4 * 2**20
"""Bytes of stored values that are noted in all: a response that streams for hours keeps no more of what it reads."""
NOTE_COST: Final = 500
"""Bytes that a note takes beside the value."""


class Unsaved:
    """What was read, by dict and key: each value that a reader got, and the bytes that it was made from."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, Key], list[tuple[Any, bytes]]] = {}
        self._room = LIMIT

    def note(self, name: str, key: Key, value: Any, stored: bytes) -> None:
        """Note that somebody got this value."""
        self._room -= len(stored) + NOTE_COST
        if self._room >= 0:
            self._read.setdefault((name, key), []).append((value, stored))

    def note_default(self, name: str, key: Key, default: Any) -> None:
        """Note that somebody got his own default for an absent key, which he may take for the entry."""
        if type(default) in (dict, list, set):
            with contextlib.suppress(Exception):
                self.note(name, key, default, encode(default))  # type: ignore[arg-type]  # containers become bytes

    def forget(self, name: str, key: Key) -> None:
        """Note that the key was written: what was read of it has been dealt with."""
        self._read.pop((name, key), None)

    def forget_all(self, name: str) -> None:
        """Note that many keys of this dict were written."""
        for where in [where for where in list(self._read) if where[0] == name]:
            self._read.pop(where, None)

    def take_changed(self) -> list[tuple[str, Key]]:
        """Return dict and key of the values that are not what they were, and forget these."""
        read = list(self._read.items())
        changed = [where for where, notes in read if any(_differs(value, stored) for value, stored in list(notes))]
        for where in changed:
            self.forget(*where)
        return changed


def _differs(value: Any, stored: bytes) -> bool:
    try:
        return encode(value) != stored and bool(value != decode(stored))  # an equal set may have another order
    except Exception:
        return True  # it could be stored when it was read


_find: Callable[[], Unsaved | None] | None = None


def look_with(find: Callable[[], Unsaved | None]) -> None:
    """From now on ask ``find`` who watches; before that, nothing is asked and a read costs nothing more."""
    global _find
    _find = find


def watched() -> Unsaved | None:
    """Return what notes the reads of this moment, None if nobody watches."""
    return None if _find is None else _find()
