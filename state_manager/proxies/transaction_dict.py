"""A dict inside a transaction: what the manager holds, under what the transaction has written.

It has the names of ``SharedDict``. Whoever looks at the whole of it (``len``, iteration, ``copy``, ``==``) has read the
whole: any change in it is a conflict then.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from datetime import timedelta
from math import inf
from typing import Any, Final

from ..checks import Key, check_int, check_key, seconds
from ..codec import decode, encode
from ..frozen import freeze
from .dicts import TTL, SharedDict
from .ledger import DELETE, DELETED, KEEP, SET, Ledger, Written
from .near import MISSING, Near

TRIES: Final = 3
"""How often the whole of a dict is read that others are writing to, before it is a conflict."""


class TransactionDict(MutableMapping[Key, Any]):
    """A dict as its transaction sees it. Values are copies, as everywhere."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name
        self._near = Near(ledger.caller, name)

    def __repr__(self) -> str:
        return f"<TransactionDict {self._name!r} in {self._ledger!r}>"

    @property
    def name(self) -> str:
        """The name that the dict has in the manager."""
        return self._name

    # -- what all else is made of ------------------------------------------------------------------------------------

    def _find(self, key: Key) -> Any:
        """Return the value, MISSING if there is none."""
        check_key(key)
        writes = self._ledger.writes(self._name)
        written = writes.entries.get(key)
        if written is not None:
            return MISSING if written.what == DELETE else decode(written.stored)
        return MISSING if writes.cleared else self._base(key)

    def _base(self, key: Key) -> Any:
        version, found = self._near.versioned(key)
        self._ledger.note(self._name, key, version)
        return found

    def _write(self, key: Key, written: Written) -> None:
        check_key(key)
        self._ledger.writes(self._name).entries[key] = written

    def _keep(self, key: Key, value: Any) -> None:
        """Write a value and leave the key's deadline as it is."""
        writes = self._ledger.writes(self._name)
        written = writes.entries.get(key)
        if written is None:
            what, ttl = (SET if writes.cleared else KEEP), None
        else:
            what, ttl = (SET if written.what == DELETE else written.what), written.ttl
        self._write(key, Written(what, encode(value), ttl))

    def _all(self, values: bool) -> dict[Key, Any]:
        """Return all entries, or all keys; the values are what they are only if they were asked for."""
        writes = self._ledger.writes(self._name)
        found: dict[Key, Any] = {}
        if not writes.cleared:
            found = self._whole(values)
        for key, written in writes.entries.items():
            if written.what == DELETE:
                found.pop(key, None)
            else:
                found[key] = decode(written.stored)
        return found

    def _whole(self, values: bool) -> dict[Key, Any]:
        """Return what the manager holds, all of one moment: between two pages of it somebody may write."""
        for _ in range(TRIES):
            found, versions, deadline = self._pages(values)
            if len(versions) == 1:
                break
        else:
            self._ledger.conflict(self._name)
        self._ledger.note(self._name, None, versions.pop(), deadline)
        return found

    def _pages(self, values: bool) -> tuple[dict[Key, Any], set[int], float]:
        """Return all entries, the versions that the dict had meanwhile, and when the first entry ends."""
        found: dict[Key, Any] = {}
        versions, first, cursor = set(), inf, None
        while True:
            args = (self._name, cursor, values)
            cursor, page, version, deadline = self._ledger.caller.call("dict", "scan", args, False)
            found |= zip(page[::2], map(decode, page[1::2]), strict=True) if values else dict.fromkeys(page)
            versions.add(version)
            first = min(first, deadline)
            if cursor is None:
                return found, versions, first

    # -- one key -----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> Any:
        found = self._find(key)
        if found is MISSING:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not MISSING  # type: ignore[arg-type]  # which checks it

    def __setitem__(self, key: Key, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Key) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def frozen(self, key: Key, default: Any = None) -> Any:
        """Return the value in a read-only form."""
        found = self._find(key)
        return default if found is MISSING else freeze(found)

    def set(self, key: Key, value: Any, ttl: TTL = None) -> None:
        """Store a value. The ttl counts from the end of the transaction."""
        self._write(key, Written(SET, encode(value), None if ttl is None else seconds(ttl)))

    def delete(self, key: Key) -> bool:
        """Delete a key; return whether it was there."""
        there = self._find(key) is not MISSING
        self._write(key, DELETED)
        return there

    def add(self, key: Key, value: Any, ttl: TTL = None) -> bool:
        """Store a value only if the key is absent; return whether it was."""
        absent = self._find(key) is MISSING
        if absent:
            self.set(key, value, ttl)
        return absent

    def replace(self, key: Key, value: Any, ttl: TTL = None) -> bool:
        """Store a value only if the key is present; return whether it was."""
        there = self._find(key) is not MISSING
        if there:
            self.set(key, value, ttl)
        return there

    def increment(self, key: Key, by: int = 1, initial: int = 0, ttl: TTL = None) -> int:
        """Add ``by`` and return the sum. An absent key counts as ``initial``, and only then takes the ttl."""
        found = self._find(key)
        if found is MISSING:
            total = check_int(check_int(initial, "initial") + check_int(by, "by"), "the sum")
            self.set(key, total, ttl)
            return total
        if type(found) is not int:
            raise TypeError(f"{self._name}[{key!r}] is not a 64-bit integer, so it cannot be incremented")
        total = check_int(found + check_int(by, "by"), f"the sum for {self._name}[{key!r}]")
        self._keep(key, total)
        return total

    def decrement(self, key: Key, by: int = 1, initial: int = 0, ttl: TTL = None) -> int:
        """Subtract ``by`` and return the difference; otherwise like ``increment``."""
        return self.increment(key, -by, initial, ttl)

    def compare_and_set(self, key: Key, expected: Any, value: Any) -> bool:
        """Store a value if the one that is there equals ``expected``; return whether it did."""
        found = self._find(key)
        if found is MISSING or found != expected:
            return False
        self._keep(key, value)
        return True

    def transform(self, key: Key, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by ``function(copy of it)`` and return the new value."""
        found = self._find(key)
        value = function(decode(encode(default)) if found is MISSING else found)
        if value is None:
            raise TypeError("the function given to transform returned None: it must return the new value")
        self._keep(key, value)
        return value

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def ttl(self, key: Key) -> float | None:
        """Return the seconds that the key has left, None without a deadline. Raises KeyError when it is absent."""
        if self._find(key) is MISSING:
            raise KeyError(key)
        written = self._ledger.writes(self._name).entries.get(key)
        if written is not None and written.what == SET:
            return written.ttl
        left: list[float | None] = self._ledger.caller.call("dict", "ttl", (self._name, key), False)
        self._base(key)  # a conflict, if it is not what was found before
        return left[0] if left else None

    def expire(self, key: Key, ttl: float | timedelta) -> bool:
        """Give a key a new deadline; return whether it was there."""
        wanted = seconds(ttl)
        return self.replace(key, self._find(key), wanted) if key in self else False

    def persist(self, key: Key) -> bool:
        """Remove a key's deadline; return whether it had one."""
        if key not in self or self.ttl(key) is None:
            return False
        return self.replace(key, self._find(key))

    # -- many keys ---------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Return those of these keys that are there."""
        return {key: found for key in keys if (found := self._find(key)) is not MISSING}

    def set_many(self, mapping: Mapping[Key, Any], ttl: TTL = None) -> None:
        """Store all of these."""
        for key, value in mapping.items():
            self.set(key, value, ttl)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Delete these keys; return how many were there."""
        return sum([self.delete(key) for key in dict.fromkeys(keys)])

    def clear(self) -> None:
        """Delete every entry, whatever there is at the end of the transaction."""
        writes = self._ledger.writes(self._name)
        writes.cleared = True
        writes.entries.clear()

    def __len__(self) -> int:
        return len(self._all(values=False))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._all(values=False))

    def items(self) -> ItemsView[Key, Any]:
        """Return the entries as they are now."""
        return self.copy().items()

    def values(self) -> ValuesView[Any]:
        """Return the values as they are now."""
        return self.copy().values()

    def popitem(self) -> tuple[Key, Any]:
        """Delete the entry whose key was added last and return it. Raises KeyError when the dict is empty."""
        found = self.copy()
        if not found:
            raise KeyError(f"popitem(): {self._name!r} is empty")
        key, value = found.popitem()
        self._write(key, DELETED)
        return key, value

    def copy(self) -> dict[Key, Any]:
        """Return a plain dict of all entries."""
        return self._all(values=True)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TransactionDict | SharedDict):
            return self.copy() == other.copy()
        return self.copy() == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]
