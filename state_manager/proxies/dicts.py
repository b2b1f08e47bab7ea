"""``SharedDict``: a dict that lives in the manager. Each method is one atomic command, or says what it is instead."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from datetime import timedelta
from typing import Any

from ..caller import Caller
from ..checks import Key, check_int, check_key, check_name, seconds
from ..codec import decode, encode
from ..nearcache import ABSENT
from .computing import LEASE, TIMEOUT, Computing
from .near import MISSING, Near
from .options import UNSET, Configuring
from .unsaved import watched

TTL = float | timedelta | None
"""Seconds or a timedelta, finite and above zero; None for no deadline."""


class SharedDict(MutableMapping[Key, Any]):
    """A dict shared by all processes that use the manager.

    Keys are str, int (64 bits) or bytes. What you get is a copy: change it and write it back, or use ``transform``.
    A write sets the entry's deadline from ``ttl`` or, without one, removes it; ``increment``, ``transform`` and
    ``compare_and_set`` keep it.
    """

    def __init__(self, caller: Caller, name: str) -> None:
        self._name = name
        self._use(caller)

    def _use(self, caller: Caller) -> None:
        self._caller = caller
        self._near = Near(caller, self._name)
        lasting = caller.lasting_copies(self._name)
        self._quick = {} if lasting is None else lasting.quick

    @property
    def name(self) -> str:
        """The name that the dict has in the manager."""
        return self._name

    def __repr__(self) -> str:
        return f"<SharedDict {self._name!r} in {self._caller!r}>"

    def _read(self, command: str, *args: Any) -> Any:
        return self._caller.call("dict", command, (self._name, *args), False)

    def _write(self, command: str, *args: Any) -> Any:
        return self._caller.call("dict", command, (self._name, *args), True)

    def _write_many(self, command: str, *args: Any) -> Any:
        if unsaved := watched():
            unsaved.forget_all(self._name)
        return self._write(command, *args)

    def _store(self, command: str, key: Key, stored: Any, *args: Any) -> Any:
        """Run a command that may give this key this stored form."""
        return self._near.write("dict", command, key, (self._name, key, *args), stored)

    # -- one key ---------------------------------------------------------------------------------------------------

    # ``get`` and ``[]`` begin with the same lines, which are the whole of most reads: a call would double their time.

    def get(self, key: Key, default: Any = None) -> Any:
        """Return a copy of the value, or ``default`` when the key is absent."""
        if type(key) is str:
            try:
                words, slot, version, value = self._quick[key]
                if words[slot] == version:
                    return value
            except KeyError:
                pass
        return self._near.get(key, default)

    def __getitem__(self, key: Key) -> Any:
        if type(key) is str:
            try:
                words, slot, version, value = self._quick[key]
                if words[slot] == version:
                    return value
            except KeyError:
                pass
        found = self._near.get(key, MISSING)
        if found is MISSING:
            raise KeyError(key)
        return found

    def frozen(self, key: Key, default: Any = None) -> Any:
        """Return the value in a read-only form, the same object to all who ask while it is unchanged.

        For large values that are read often: nothing is copied. A dict comes as a ``types.MappingProxyType``, a list as
        a tuple, a set as a frozenset. Raises TypeError for objects of your own classes.
        """
        return self._near.frozen(key, default)

    def __contains__(self, key: object) -> bool:
        check_key(key)
        return self._near.holds(key)  # type: ignore[arg-type]

    def set(self, key: Key, value: Any, ttl: TTL = None) -> None:
        """Store a value."""
        if type(key) is not str or not key.isascii():
            check_key(key)
        stored = encode(value)
        args = (self._name, key, stored) if ttl is None else (self._name, key, stored, seconds(ttl))
        self._near.write("dict", "set", key, args, stored)

    def __setitem__(self, key: Key, value: Any) -> None:
        self.set(key, value)

    def delete(self, key: Key) -> bool:
        """Delete a key; return whether it was there."""
        check_key(key)
        return bool(self._store("delete", key, ABSENT))

    def __delitem__(self, key: Key) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def add(self, key: Key, value: Any, ttl: TTL = None) -> bool:
        """Store a value only if the key is absent; return whether it was."""
        check_key(key)
        stored = encode(value)
        return bool(self._store("add", key, stored, stored, _ttl(ttl)))

    def replace(self, key: Key, value: Any, ttl: TTL = None) -> bool:
        """Store a value only if the key is present; return whether it was."""
        check_key(key)
        stored = encode(value)
        return bool(self._store("replace", key, stored, stored, _ttl(ttl)))

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """Return the value that is there, or store ``default`` and return a copy of it."""
        check_key(key)
        stored = encode(default)
        return self._near.decoded(key, self._store("setdefault", key, stored, stored))

    def pop(self, key: Key, default: Any = MISSING) -> Any:
        """Delete a key and return its value; of all who try at once, one gets it. Raises KeyError without a default."""
        check_key(key)
        found = self._store("pop", key, ABSENT)
        if found:
            return decode(found[0])
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Key, Any]:
        """Delete the entry whose key was added last and return it. Raises KeyError when the dict is empty."""
        found = self._write_many("popitem")
        if not found:
            raise KeyError(f"popitem(): {self._name!r} is empty")
        return found[0], decode(found[1])

    def increment(self, key: Key, by: int = 1, initial: int = 0, ttl: TTL = None) -> int:
        """Add ``by`` and return the sum. An absent key counts as ``initial``, and only then takes the ttl.

        Raises TypeError when the value is not an int, OverflowError when the sum does not fit 64 bits.
        """
        if type(key) is not str or not key.isascii():
            check_key(key)
        check_int(by, "by")
        args = (self._name, key, by) if ttl is None and initial == 0 else (self._name, key, by, initial, _ttl(ttl))
        total: int = self._near.write("dict", "increment", key, args)
        return total

    def decrement(self, key: Key, by: int = 1, initial: int = 0, ttl: TTL = None) -> int:
        """Subtract ``by`` and return the difference; otherwise like ``increment``."""
        return self.increment(key, -by, initial, ttl)

    def compare_and_set(self, key: Key, expected: Any, value: Any) -> bool:
        """Store a value if the one that is there equals ``expected`` (``==``, here); return whether it did.

        An absent key equals nothing: use ``add``.
        """
        check_key(key)
        stored = encode(value)
        while True:
            version, found = self._near.versioned(key)
            if found is MISSING or found != expected:
                return False
            if self._store("put", key, stored, version, stored):
                return True

    def transform(self, key: Key, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace a value by ``function(copy of it)``, atomically, and return the new value.

        ``function`` gets a copy of ``default`` when the key is absent, and runs again when somebody else wrote
        meanwhile. It must return the new value: None is a TypeError, because it changed its argument in place.
        """
        check_key(key)
        fallback = encode(default)
        while True:
            version, found = self._near.versioned(key)
            value = function(decode(fallback) if found is MISSING else found)
            if value is None:
                raise TypeError("the function given to transform returned None: it must return the new value")
            stored = encode(value)
            if self._store("put", key, stored, version, stored):
                return value

    def get_or_compute(
        self,
        key: Key,
        function: Callable[[], Any],
        ttl: TTL = None,
        *,
        early: float | timedelta | None = None,
        timeout: float = TIMEOUT,
        lease: float = LEASE,
    ) -> Any:
        """Return the value that is there, else what ``function()`` returns, which is stored.

        Of all who want it at once, in whichever process, one computes, and the others wait for him, ``timeout`` seconds
        at most (TimedOut). If he ends, the next one computes; if ``function`` raises, it raises here, and those who
        wait get ComputeFailed with its type and text. None is a value like any other. What was computed is not stored
        if the key was deleted or written meanwhile. ``early``: so many seconds before the value ends one reader
        computes it anew, while the others still get the old one; if that fails it is logged, and he gets it too.
        ``lease``: after so many seconds of one's computing the next does it as well.
        """
        value = self.get(key, MISSING)
        if value is not MISSING and early is None:
            return value
        computing = Computing(self._caller, self._near, lease)
        return computing.get(key, function, _ttl(ttl), timeout, None if early is None else seconds(early, "early"))

    # -- deadlines -------------------------------------------------------------------------------------------------

    def ttl(self, key: Key) -> float | None:
        """Return the seconds that the key has left, None without a deadline. Raises KeyError when it is absent."""
        check_key(key)
        left: list[float | None] = self._read("ttl", key)
        if not left:
            raise KeyError(key)
        return left[0]

    def expire(self, key: Key, ttl: float | timedelta) -> bool:
        """Give a key a new deadline; return whether it was there."""
        check_key(key)
        return bool(self._write("expire", key, seconds(ttl)))

    def persist(self, key: Key) -> bool:
        """Remove a key's deadline; return whether it had one."""
        check_key(key)
        return bool(self._write("persist", key))

    # -- many keys -------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """Return those of these keys that are there, as they were at one moment."""
        return self._near.get_many(_keys(keys))

    def set_many(self, mapping: Mapping[Key, Any], ttl: TTL = None) -> None:
        """Store all of these at once: nobody sees some of them only."""
        pairs: list[Any] = []
        for key, value in mapping.items():
            check_key(key)
            pairs += (key, encode(value))
        if pairs:
            self._write_many("set_many", pairs, _ttl(ttl))

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Delete these keys at once; return how many were there."""
        return int(self._write_many("delete_many", _keys(keys)))

    def update(self, other: Any = (), /, **named: Any) -> None:
        """Store all of a mapping's or an iterable of pairs' items at once."""
        self.set_many(dict(other, **named))

    def clear(self) -> None:
        """Delete every entry at once."""
        self._write_many("clear")

    def __len__(self) -> int:
        """Return the number of entries; expired ones that were not yet swept (a second at the most) may be counted."""
        return int(self._read("size"))

    # -- iterating: in pages, not atomic; a key that is there throughout is given exactly once -----------------------

    def _scan(self, values: bool, cursor: list[int] | None = None) -> Iterator[list[Any]]:
        while True:
            cursor, page, *_ = self._read("scan", cursor, values)
            yield page
            if cursor is None:
                return

    def __iter__(self) -> Iterator[Key]:
        for page in self._scan(False):
            yield from page

    def items(self) -> ItemsView[Key, Any]:
        """Return a view whose iteration fetches values a page at a time."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Return a view whose iteration fetches values a page at a time."""
        return _Values(self)

    def copy(self) -> dict[Key, Any]:
        """Return a plain dict of all entries. One of up to 512 entries, and about 1 MiB, is of one moment."""
        entries, cursor = self._near.first_page()
        for page in () if cursor is None else self._scan(True, cursor):
            entries.update(zip(page[::2], map(decode, page[1::2]), strict=True))
        return entries

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SharedDict):
            return self.copy() == other.copy()
        return self.copy() == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


class _Items(ItemsView[Key, Any]):
    _mapping: SharedDict

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        for page in self._mapping._scan(True):
            yield from zip(page[::2], self._mapping._near.values_of(page), strict=True)


class _Values(ValuesView[Any]):
    _mapping: SharedDict

    def __iter__(self) -> Iterator[Any]:
        for page in self._mapping._scan(True):
            yield from self._mapping._near.values_of(page)


def open_dict(caller: Caller, name: str, options: Mapping[str, Any]) -> SharedDict:
    """Return the dict of this name; names that begin with ":" are refused. ``options`` may have UNSET ones."""
    check_name(name)
    opened = SharedDict(caller, name)
    given = {option: value for option, value in options.items() if value is not UNSET}
    if given:
        opened._use(Configuring(caller, opened, given))
    return opened


def _ttl(ttl: TTL) -> float | None:
    return None if ttl is None else seconds(ttl)


def _keys(keys: Iterable[Key]) -> list[Key]:
    if isinstance(keys, str | bytes):
        raise TypeError(f"these are the keys, one after the other: write [{keys!r}] for a single one")
    wanted = list(keys)
    for key in wanted:
        if type(key) is not str or not key.isascii():
            check_key(key)
    return wanted
