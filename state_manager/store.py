"""The state itself: named spaces of entries, their versions and their deadlines. Pure: no clock, no socket, no file.

Rules
- ``Store.apply`` is the only code in the project that changes state. It takes absolute changes and returns the changes
  that undo them, so one record serves undo, journal and cache invalidation.
- Every change advances the version of its key's slot and of its space's slot. Nothing ever lowers a version, undo
  included: a reader that saw version v may trust what it holds for as long as it still sees v. ``changed`` says which
  slots moved since somebody who shows them to readers last cleared it.
- An entry without a deadline is its bare value; only the others pay for an ``Entry``.
- What an entry costs is counted when it comes and given back when it goes, so ``bytes`` always adds up (``check``).
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from sys import getsizeof
from typing import Any, Final, Literal, TypeAlias
from zlib import crc32

from .checks import Key, key_bytes
from .settings import SLOTS

MASK: Final = SLOTS - 1
FEW: Final = 1_000
"""Keys of an emptied space whose versions are advanced one by one; more of them take a new epoch."""
EPOCH_SHIFT: Final = 32
"""A version is an epoch in the high bits and a count of changes in the low ones."""

Stored: TypeAlias = Any
"""None, bool, a 64-bit int, float, str, bytes (made by ``codec``) or, in the manager's own spaces, a list."""


class Absent:
    """The type of ``ABSENT``: no entry, where None would be a value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> Literal[False]:
        return False


ABSENT: Final = Absent()


NEVER: Final = inf
"""The deadline of an entry that has an owner and no deadline."""


class Entry:
    """A value that ends at ``deadline``, in seconds of the clock that the caller passes as ``now``, or with its owner.

    ``owner`` is the number of a session, None for nobody's.
    """

    __slots__ = ("deadline", "owner", "value")

    def __init__(self, value: Stored, deadline: float, owner: int | None = None) -> None:
        self.value = value
        self.deadline = deadline
        self.owner = owner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and (self.value, self.deadline, self.owner) == (
            other.value,
            other.deadline,
            other.owner,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entry({self.value!r}, deadline={self.deadline!r}, owner={self.owner!r})"


Change: TypeAlias = tuple[str, Key | None, Any]
"""``(space, key, entry)``; entry ABSENT deletes the key. Key None speaks of the whole space: ABSENT empties it, a dict
(in undo only) puts all of its entries back."""

ENTRY_COST: Final = 96
"""Bytes that a dict spends on one item beside key and value, on the average of its growth steps."""
BYTES_COST: Final = getsizeof(b"")
TEXT_COST: Final = getsizeof("")
LIST_COST: Final = getsizeof([])
WIDE_COST: Final = 76
"""What a text that is not ASCII takes beside its characters: with the UTF-8 that Python keeps of it."""
NUMBER_COST: Final = 32
POINTER_COST: Final = 8
DEADLINE_COST: Final = getsizeof(Entry(None, 0.0)) + 24 + 160
"""What a deadline or an owner adds: the Entry, its float and where it is listed."""


def cost(key: Key, entry: Any) -> int:
    """Return the bytes of memory that an entry takes, closely enough to add up to what the process grows by."""
    return ENTRY_COST + _size(key) + _weight(entry)


def _weight(entry: Any) -> int:
    """Return what an entry takes without its key."""
    return DEADLINE_COST + _size(entry.value) if type(entry) is Entry else _size(entry)


def _size(value: Any) -> int:
    """Return what a key or a value takes, the same whenever it is asked: what ``getsizeof`` says of a text grows.

    It also takes twice as long, and every change asks for a few of these.
    """
    kind = type(value)
    if kind is bytes:
        return BYTES_COST + len(value)
    if kind is str:
        return TEXT_COST + len(value) if value.isascii() else WIDE_COST + 4 * len(value)
    if kind is not list:
        return NUMBER_COST
    total = LIST_COST
    for part in value:
        total += POINTER_COST + _size(part)
    return total


class Space:
    """The entries of one name, what they cost, and where their versions are.

    ``order``: a heap of the keys, kept from the first time on that somebody asks for the smallest; it may hold keys
    that have gone.
    """

    __slots__ = ("bytes", "entries", "name", "order", "seed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[Key, Any] = {}
        self.bytes = 0
        self.order: list[Any] | None = None
        self.seed = crc32(name.encode())

    def slot(self, key: Key) -> int:
        return crc32(key.encode() if type(key) is str else key_bytes(key), self.seed) & MASK


class Store:
    """Spaces by name.

    ``epoch`` must be larger than that of any store whose versions a reader may still hold. Up to ``last_epoch`` the
    store may take further ones; its owner makes sure that no later store begins with one of them.
    """

    def __init__(self, epoch: int = 1, last_epoch: int | None = None) -> None:
        self.epoch = epoch
        self.last_epoch = epoch if last_epoch is None else last_epoch
        self.spaces: dict[str, Space] = {}
        self.entries = 0
        self.bytes = 0
        self._deadlines = Deadlines()
        self._owned: dict[int, dict[tuple[str, Key], None]] = {}
        self._rubbish: list[tuple[str, dict[Key, Any]]] = []
        self.emptied = False
        self.versions = array("Q", [epoch << EPOCH_SHIFT]) * SLOTS
        self.changed: list[int] = []
        self.all_changed = False

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, name: str, key: Key) -> Any:
        """Return the entry, expired or not, or ABSENT."""
        space = self.spaces.get(name)
        return ABSENT if space is None else space.entries.get(key, ABSENT)

    def version(self, name: str, key: Key) -> int:
        """Return the version of the slot that this key has or would have."""
        space = self.spaces.get(name)
        seed = crc32(name.encode()) if space is None else space.seed
        return self.versions[crc32(key.encode() if type(key) is str else key_bytes(key), seed) & MASK]

    def space_version(self, name: str) -> int:
        """Return the version of the space itself, which every change in it advances."""
        return self.versions[crc32(name.encode()) & MASK]

    def first(self, name: str) -> Key | None:
        """Return the smallest key of a space, all of whose keys are of one type; None if it is empty."""
        space = self.spaces.get(name)
        if space is None:
            return None
        entries, order = space.entries, space.order
        if order is None or len(order) > 2 * len(entries) + 64:
            order = space.order = sorted(entries)  # which is a heap
        while order[0] not in entries:
            heapq.heappop(order)
        key: Key = order[0]
        return key

    def last_version(self) -> int:
        """Return the version of the key that was changed last, which was not a whole space."""
        return self.versions[self.changed[-2]]

    # -- changing ------------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change]) -> list[Change]:
        """Make these changes, in order, and return those that undo them, last first."""
        undo: list[Change] = []
        spaces, versions, changed = self.spaces, self.versions, self.changed
        for name, key, entry in changes:
            space = spaces.get(name)
            if space is None:
                space = spaces[name] = Space(name)
            if key is None:
                undo.append((name, None, self._replace(space, entry)))
                versions = self.versions
                continue
            seed = space.seed
            slot = crc32(key.encode() if type(key) is str else key_bytes(key), seed) & MASK
            entries = space.entries
            old = entries.get(key, ABSENT)
            undo.append((name, key, old))
            if type(old) is Entry:
                self._unlist(name, key, old)
            if type(entry) is Entry:
                self._list(name, key, entry)
            if entry is not ABSENT:
                entries[key] = entry
                if old is not ABSENT:
                    growth = _weight(entry) - _weight(old)
                else:
                    growth = cost(key, entry)
                    self.entries += 1
                    if space.order is not None:
                        heapq.heappush(space.order, key)
            else:
                growth = 0
                if old is not ABSENT:
                    growth = -cost(key, old)
                    del entries[key]
                    self.entries -= 1
                if not entries:
                    del spaces[name]
            if growth:
                space.bytes += growth
                self.bytes += growth
            versions[slot] += 1
            versions[seed & MASK] += 1
            changed += (slot, seed & MASK)
        undo.reverse()
        return undo

    def _list(self, name: str, key: Key, entry: Entry) -> None:
        """Note when an entry ends."""
        if entry.deadline < NEVER:
            self._deadlines.add(entry.deadline, name, key)
        if entry.owner is not None:
            self._owned.setdefault(entry.owner, {})[name, key] = None

    def _unlist(self, name: str, key: Key, entry: Entry) -> None:
        if entry.deadline < NEVER:
            self._deadlines.discard(entry.deadline, name, key)
        if entry.owner is not None:
            owned = self._owned.get(entry.owner, {})
            owned.pop((name, key), None)
            if not owned:
                self._owned.pop(entry.owner, None)

    def _replace(self, space: Space, entries: Absent | dict[Key, Any]) -> dict[Key, Any]:
        """Swap all entries of a space for others (none, if ABSENT) and return the former ones."""
        self.emptied = True
        former = space.entries
        space.entries = {} if isinstance(entries, Absent) else entries
        space.order = None
        total = sum(cost(key, entry) for key, entry in space.entries.items())
        for key, entry in space.entries.items():
            if type(entry) is Entry:
                self._list(space.name, key, entry)
        self.entries += len(space.entries) - len(former)
        self.bytes += total - space.bytes
        space.bytes = total
        if not space.entries:
            self.spaces.pop(space.name, None)
        self._advance(space, former, space.entries)
        return former

    def _advance(self, space: Space, *changed: dict[Key, Any]) -> None:
        """Advance the versions of all these keys. No reader can tell which of the three ways it was."""
        if sum(map(len, changed)) <= FEW:
            slots = [space.slot(key) for entries in changed for key in entries]
            slots.append(space.seed & MASK)
            for slot in slots:
                self.versions[slot] += 1
            self.changed += slots
            return
        self.all_changed = True
        highest = max(self.versions) >> EPOCH_SHIFT  # 2**32 changes of a slot have taken it into the next epoch
        if highest < self.last_epoch:
            self.epoch = highest + 1
            self.versions = array("Q", [self.epoch << EPOCH_SHIFT]) * SLOTS
        else:
            self.versions = array("Q", [version + 1 for version in self.versions])

    def owned(self, owner: int, limit: int) -> list[tuple[str, Key]]:
        """Return space and key of up to ``limit`` entries of this owner."""
        owned = (
            (name, key)
            for name, key in self._owned.get(owner, ())
            if type(found := self.get(name, key)) is Entry and found.owner == owner
        )
        return list(islice(owned, limit))

    def reorder(self, name: str, first: Iterable[Key]) -> None:
        """Let these keys of a space come before its others, in this order. No value changes."""
        if space := self.spaces.get(name):
            entries = space.entries
            space.entries = {key: entries[key] for key in first if key in entries} | entries

    # -- what nobody waits for -----------------------------------------------------------------------------------

    def due(self, now: float, limit: int) -> list[tuple[str, Key]]:
        """Return space and key of up to ``limit`` entries whose deadline has passed."""
        return [(name, key) for name, key in self._deadlines.due(now, limit) if self._expired(name, key, now)]

    def _expired(self, name: str, key: Key, now: float) -> bool:
        entry = self.get(name, key)
        return type(entry) is Entry and entry.deadline <= now

    def discard(self, undone: Iterable[Iterable[Change]]) -> None:
        """Take the undo of changes that are now final: ``collect`` frees the whole spaces in it, slice by slice."""
        if self.emptied:
            self.emptied = False
            self._rubbish += [(name, old) for undo in undone for name, key, old in undo if key is None and old]

    def collect(self, limit: int) -> bool:
        """Free up to ``limit`` entries of emptied spaces; return whether there are more. A million take long."""
        while self._rubbish and limit > 0:
            name, entries = self._rubbish[-1]
            while entries and limit > 0:
                key, entry = entries.popitem()
                limit -= 1
                if type(entry) is Entry:
                    live = self.get(name, key)
                    self._unlist(name, key, entry)
                    if type(live) is Entry:
                        self._list(name, key, live)  # it may be listed where the old one was
            if not entries:
                self._rubbish.pop()
        return bool(self._rubbish)

    def check(self) -> None:
        """Raise AssertionError unless the books agree with the entries. Tests call this at their end."""
        total = 0
        for name, space in self.spaces.items():
            assert name == space.name
            assert space.entries, f"{name!r} is empty and still here"
            size = sum(cost(key, entry) for key, entry in space.entries.items())
            assert size == space.bytes, f"{name!r} counts {space.bytes} bytes and has {size}"
            total += size
            for key, entry in space.entries.items():
                if type(entry) is Entry:
                    assert entry.deadline == NEVER or (name, key) in self._deadlines, f"{name!r} {key!r} never expires"
                    assert entry.owner is None or (name, key) in self._owned[entry.owner]
        assert total == self.bytes
        assert self.entries == sum(len(space.entries) for space in self.spaces.values())
        assert min(self.versions) >= self.epoch << EPOCH_SHIFT


class Deadlines:
    """Which keys end when, by whole seconds: a write with a new deadline leaves nothing of the old one behind."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[tuple[str, Key], None]] = {}
        self._order: list[int] = []  # a heap of the buckets' seconds; may name buckets that have gone

    def __contains__(self, item: tuple[str, Key]) -> bool:
        return any(item in bucket for bucket in self._buckets.values())

    def __iter__(self) -> Iterator[tuple[str, Key]]:
        for bucket in self._buckets.values():
            yield from bucket

    def add(self, deadline: float, name: str, key: Key) -> None:
        second = int(deadline)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
            heapq.heappush(self._order, second)
        bucket[name, key] = None

    def discard(self, deadline: float, name: str, key: Key) -> None:
        second = int(deadline)
        bucket = self._buckets.get(second)
        if bucket is None:
            return
        bucket.pop((name, key), None)
        if not bucket:
            del self._buckets[second]
            if len(self._order) > 2 * len(self._buckets) + 1024:
                self._order = sorted(self._buckets)

    def due(self, now: float, limit: int) -> list[tuple[str, Key]]:
        """Return up to ``limit`` keys of seconds that are wholly past, and forget them."""
        found: list[tuple[str, Key]] = []
        while self._order and self._order[0] < int(now) and len(found) < limit:
            bucket = self._buckets.get(self._order[0])
            while bucket and len(found) < limit:
                found.append(bucket.popitem()[0])
            if not bucket:
                self._buckets.pop(heapq.heappop(self._order), None)
        return found
