"""One space as a process reads and writes it: from its own copies while they are current, else from the manager.

Every read here begins with a look at the copies and ends with keeping what the manager said; every write that changes
one key keeps what it wrote. Without a near cache, as over ``memory://``, nothing is kept and the rest is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, Final

from ..caller import Caller
from ..checks import Key, check_key
from ..clock import boot_time
from ..codec import Stored, decode
from ..frozen import freeze, is_immutable
from ..nearcache import ABSENT, MUTABLE, PRESENT, UNKNOWN, Copies, Copy
from ..versions import number_of
from .unsaved import watched

MISSING: Final[Any] = object()
"""What an absent key gives where None would be a value."""


def _alive(copy: Copy) -> bool:
    return copy.deadline == inf or boot_time() < copy.deadline


class Near:
    """The entries of one space."""

    def __init__(self, caller: Caller, name: str) -> None:
        self.caller = caller
        self.name = name
        self._lasting = caller.lasting_copies(name)

    def _copies(self) -> Copies | None:
        """Return the copies to read from."""
        if self._lasting is None:
            return self.caller.copies(self.name)
        self.caller.look()
        return self._lasting

    # -- one key ---------------------------------------------------------------------------------------------------

    def get(self, key: Key, default: Any = None) -> Any:
        """Return the value, which is the reader's own, or ``default``."""
        copies = self._copies()
        if copies is not None:
            if type(key) is str and (found := copies.quick.get(key)) is not None and found[0][found[1]] == found[2]:
                return found[3]  # whoever has lasting copies has looked there already
            copy = self._copy(copies, key)
            if copy is not None and copy.value is not PRESENT:
                return self._absent(key, default) if copy.value is ABSENT else self._read(copies, key, copy)
        _, stored = self._fetch(key)
        if type(stored) is bytes:
            return self.decoded(key, stored)
        return self._absent(key, default) if stored is ABSENT else stored

    def versioned(self, key: Key) -> tuple[int, Any]:
        """Return the version of the key's slot and the value, MISSING for none: what ``put`` compares."""
        copies = self._copies()
        copy = None if copies is None else self._copy(copies, key)
        if copy is not None and copy.value is not PRESENT:
            return number_of(copy.version), MISSING if copy.value is ABSENT else copy.read()
        version, stored = self._fetch(key)
        return version, MISSING if stored is ABSENT else decode(stored)

    def holds(self, key: Key) -> bool:
        """Return whether the key is there."""
        copies = self._copies()
        if copies is not None:
            if copies.has_quick(key):
                return True
            copy = self._copy(copies, key)
            if copy is not None:
                return copy.value is not ABSENT
        return self._fetch(key, "contains")[1] is not ABSENT

    def seconds_left(self, key: Key) -> float:
        """Return how long a key that was just read will be there, infinite without a deadline."""
        copies = self._copies()
        copy = None if copies is None else copies.find(key)
        if copy is not None:
            return copy.deadline - boot_time()
        left: list[float | None] = self.caller.call("dict", "ttl", (self.name, key), False)
        return inf if not left or left[0] is None else left[0]

    def frozen(self, key: Key, default: Any) -> Any:
        """Return the value in a read-only form that all readers of this process share."""
        copies = self._copies()
        copy = None if copies is None else self._copy(copies, key)
        if copies is None or copy is None or copy.value is PRESENT:
            _, stored = self._fetch(key)
            if stored is ABSENT:
                return default
            copy = None if copies is None else self._copy(copies, key)
            if copy is None or copy.value is PRESENT:
                return freeze(decode(stored))
        if copy.value is ABSENT:
            return default
        if copies is not None and copy.frozen is UNKNOWN:
            copies.charge(copy)
        return copy.read_frozen()

    def _copy(self, copies: Copies, key: Key) -> Copy | None:
        if type(key) is not str:
            check_key(key)  # True, 1 and 1.0 are one key to a Python dict
        copy = copies.find(key)
        return copy if copy is not None and _alive(copy) else None

    def _read(self, copies: Copies, key: Key, copy: Copy) -> Any:
        value = copy.read()
        if copy.value is not MUTABLE:
            copies.promote(key, copy)
        elif unsaved := watched():
            unsaved.note(self.name, key, value, copy.stored)
        return value

    def _absent(self, key: Key, default: Any) -> Any:
        """Return the default, which a reader may take for the entry: ``get(key, {})["n"] = 1``."""
        if unsaved := watched():
            unsaved.note_default(self.name, key, default)
        return default

    def _fetch(self, key: Key, command: str = "get") -> tuple[int, Any]:
        """Ask the manager; return the version and the stored form, or ABSENT."""
        if type(key) is not str or not key.isascii():
            check_key(key)
        reply, page = self.caller.exchange("dict", command, (self.name, key), False)
        found = reply[1]
        stored = found[1] if len(found) > 1 else ABSENT
        if command == "contains" and stored is not ABSENT:
            stored = PRESENT
        copies = self._lasting or self.caller.copies(self.name)
        if page is not None and copies is not None:
            copies.keep(key, page, found[0], stored, *found[2:])
        return found[0], stored

    def decoded(self, key: Key, stored: Stored) -> Any:
        """Return the value of a stored form, which is the reader's own."""
        value = decode(stored)
        if (unsaved := watched()) and type(stored) is bytes and not is_immutable(value):
            unsaved.note(self.name, key, value, stored)
        return value

    def values_of(self, page: list[Any]) -> Iterable[Any]:
        """Return the values of a page of keys and stored forms, each the reader's own."""
        if watched() is None:
            return map(decode, page[1::2])
        return (self.decoded(key, stored) for key, stored in zip(page[::2], page[1::2], strict=True))

    def write(self, kind: str, command: str, key: Key, args: Sequence[Any], stored: Any = MISSING) -> Any:
        """Run a command that may change one key; return its result.

        If it did, the key now has this stored form (ABSENT: it is gone; MISSING: the result itself, an int).
        """
        reply, page = self.caller.exchange(kind, command, args, True)
        copies = self._lasting or self.caller.copies(self.name)
        if page is not None and copies is not None and len(reply) > 3:
            copies.keep(key, page, reply[3], reply[1] if stored is MISSING else stored, *reply[4:])
        if unsaved := watched():
            unsaved.forget(self.name, key)
        return reply[1]

    # -- many keys -------------------------------------------------------------------------------------------------

    def get_many(self, keys: list[Key]) -> dict[Key, Any]:
        """Return those of these keys that are there, as they were at one moment."""
        copies = self._copies()
        if copies is not None and (held := self._held(copies, keys)) is not None:
            return held
        (_, found, *_), page = self.caller.exchange("dict", "get_many", (self.name, keys), False)
        values: dict[Key, Any] = {}
        read = (lambda key, stored: decode(stored)) if watched() is None else self.decoded
        for key, answer in zip(keys, found, strict=True):
            stored: Any = answer[1] if len(answer) > 1 else ABSENT
            if page is not None and copies is not None:
                copies.keep(key, page, answer[0], stored, *answer[2:])
            if stored is not ABSENT:
                values[key] = read(key, stored)
        return values

    def _held(self, copies: Copies, keys: list[Key]) -> dict[Key, Any] | None:
        """Return the values of all these keys from their copies, None unless every one of them has one.

        Each was current when it was found, and is so again after the last one was: so they were so together.
        """
        quick, others, fresh = copies.quick, copies.others, copies.fresh
        values: dict[Key, Any] = {}
        seen: list[tuple[Any, int, float]] = []
        first = inf
        for key in keys:
            if key in fresh:
                copies.take(key)
            if (found := quick.get(key)) is not None:  # type: ignore[arg-type]  # an int is not there
                words, slot, version, value = found
            elif (copy := others.get(key)) is not None and copy.value is not PRESENT:
                words, slot, version, value = copy.words, copy.slot, copy.version, copy
                first = min(first, copy.deadline)
            else:
                return None
            if words[slot] != version:
                return None
            seen.append((words, slot, version))
            values[key] = value
        if any(words[slot] != version for words, slot, version in seen) or (first < inf and boot_time() >= first):
            return None
        for key, value in list(values.items()):
            if type(value) is Copy:
                if value.value is ABSENT:
                    del values[key]
                else:
                    values[key] = self._read(copies, key, value)
        return values

    def first_page(self) -> tuple[dict[Key, Any], list[int] | None]:
        """Return the first entries, all of one moment, and the cursor of the rest, None if that is all."""
        copies = self._copies()
        if copies is not None and (whole := copies.whole) is not None and whole.current and _alive(whole):
            return {key: decode(stored) for key, stored in whole.stored}, None
        reply, page = self.caller.exchange("dict", "scan", (self.name, None, True), False)
        following, items, version, deadline = reply[1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if following is None and page is not None and copies is not None:
            copies.keep_whole(page, version, pairs, deadline)
        return {key: decode(stored) for key, stored in pairs}, following
