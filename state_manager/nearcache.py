"""A process's own copies of what it read: exact, because each is used only while the shared page shows its version.

    copies.quick[key]  ->  (words, slot, version, value)      use value if words[slot] == version

Pure: a page is any buffer of doubles, deadlines are compared by the caller. Rules
- A copy came with its version from the manager. It is right for as long as the page shows that very version, because
  every change of its key, or of another key in the same slot, moves it on, and nothing moves it back.
- A copy holds the page that it belongs to, so one that was made under another manager is never used.
- A copy with a deadline is a miss from then on, and not "absent": somebody may have written since.
- What is there is bounded by what was put in: at ``limit`` bytes all copies are dropped, and those in use come back one
  round trip each. So nothing needs to be noted when a copy is used, which is why using one is cheap.
- What came is only put down (``fresh``); its slot is computed when it is looked up, and then it is a copy. So a counter
  that is only added to, or a key that is read once, pays nearly nothing for the cache.
- Dicts are emptied in place, never replaced: proxies hold them. Threads need no lock, since each step is one call of a
  dict's, and a copy is checked whenever it is used.
"""

from __future__ import annotations

from math import inf
from sys import getsizeof
from typing import Any, Final
from zlib import crc32

from .checks import Key, key_bytes
from .codec import SCALARS, decode
from .frozen import freeze, is_immutable
from .settings import SLOTS
from .versions import Page, word_of

LIMIT: Final = 32 * 2**20
"""Bytes that the copies of a process may take. A value over an eighth of it is not kept."""
DECODED: Final = 16
"""How many times the size of its encoding a list of small things takes as objects."""
COPY_COST: Final = 300
"""Bytes that a copy takes beside its key and value."""


class Mark:
    """Stands where a copy has no value to share."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


ABSENT: Final = Mark("ABSENT")
"""The key is known not to be there."""
PRESENT: Final = Mark("PRESENT")
"""The key is known to be there, and its value is not."""
MUTABLE: Final = Mark("MUTABLE")
"""The value could be changed by a reader, so each reader decodes its own."""
UNKNOWN: Final = Mark("UNKNOWN")
"""Nobody has decoded the value yet."""


class Copy:
    """One entry as the manager sent it. ``deadline`` is in seconds of the boot-time clock, infinite for none."""

    __slots__ = ("deadline", "frozen", "slot", "stored", "value", "version", "words")

    def __init__(self, words: Any, slot: int, version: float, stored: Any, value: Any, deadline: float) -> None:
        self.words = words
        self.slot = slot
        self.version = version
        self.stored = stored
        self.value = value
        self.deadline = deadline
        self.frozen: Any = UNKNOWN

    @property
    def current(self) -> bool:
        """Whether nothing has changed this entry, deadlines apart."""
        return bool(self.words[self.slot] == self.version)

    def read(self) -> Any:
        """Return the value, which is the reader's own if it can be changed."""
        if self.value is UNKNOWN:
            value = decode(self.stored)
            self.value = value if is_immutable(value) else MUTABLE
            return value
        return decode(self.stored) if self.value is MUTABLE else self.value

    def read_frozen(self) -> Any:
        """Return the value in a form that all readers can share."""
        if self.frozen is UNKNOWN:
            self.frozen = freeze(self.read())
        return self.frozen


class Copies:
    """The copies of one space. ``quick`` has those under a str that need neither a clock nor the codec: no deadline, an
    immutable value, and a page that its readers need not look after.
    """

    __slots__ = ("_cache", "fresh", "others", "quick", "seed", "whole")

    def __init__(self, cache: NearCache, name: str) -> None:
        self._cache = cache
        self.seed = crc32(name.encode())
        self.quick: dict[str, tuple[Any, int, float, Any]] = {}
        self.others: dict[Key, Copy] = {}
        self.fresh: dict[Key, tuple[Page, int, Any, float | None]] = {}
        self.whole: Copy | None = None

    def find(self, key: Key) -> Copy | None:
        """Return a copy that is current, deadlines apart."""
        if key in self.fresh:
            self.take(key)
        copy = self.others.get(key)
        if copy is None:
            found = self.quick.get(key)  # type: ignore[arg-type]  # an int is not there
            if found is None:
                return None
            words, slot, version, value = found
            copy = Copy(words, slot, version, value, value, inf)
        return copy if copy.words[copy.slot] == copy.version else None

    def has_quick(self, key: Key) -> bool:
        """Whether a quick copy of exactly this key is current."""
        if type(key) is str and key in self.fresh:
            self.take(key)
        found = self.quick.get(key) if type(key) is str else None
        return found is not None and bool(found[0][found[1]] == found[2])

    def keep(self, key: Key, page: Page, version: int, stored: Any, deadline: float | None = None) -> None:
        """Keep an entry. ``stored`` is a stored form, a tuple of them, ABSENT or PRESENT; ``deadline`` is in seconds of
        the manager's clock.
        """
        cache = self._cache
        if not cache.make_room(COPY_COST + getsizeof(key) + getsizeof(stored)):
            return
        self.fresh[key] = page, version, stored, deadline
        if cache.page is not page:
            cache.drop()  # another thread has turned away from this page meanwhile

    def take(self, key: Key) -> None:
        """Make what was put down for a key a copy."""
        found = self.fresh.pop(key, None)
        if found is None:
            return  # another thread was first
        page, version, stored, deadline = found
        slot = crc32(key_bytes(key), self.seed) % SLOTS
        scalar = type(stored) in SCALARS
        if scalar and deadline is None and type(key) is str and page.lasting:
            self.quick[key] = (page.words, slot, word_of(version), stored)
            self.others.pop(key, None)
        else:
            self.quick.pop(key, None)  # type: ignore[arg-type]  # an int is not there
            value = UNKNOWN if type(stored) is bytes else stored
            ends = inf if deadline is None else deadline - page.offset
            self.others[key] = Copy(page.words, slot, word_of(version), stored, value, ends)
        if self._cache.page is not page:
            self._cache.drop()

    def promote(self, key: Key, copy: Copy) -> None:
        """Move a copy to ``quick``, now that its value was found to be immutable."""
        page = self._cache.page
        lasting = page is not None and page.lasting and page.words is copy.words
        if lasting and copy.deadline == inf and type(key) is str and type(copy.value) is not Mark:
            self.quick[key] = (copy.words, copy.slot, copy.version, copy.value)
            self.others.pop(key, None)
            self.charge(copy)
            if self._cache.page is not page:
                self._cache.drop()

    def charge(self, copy: Copy) -> None:
        """Count what a decoded form takes, now that it is kept: about so many times what the encoded one does."""
        if type(copy.stored) is bytes:
            self._cache.add(DECODED * len(copy.stored))

    def keep_whole(self, page: Page, version: int, pairs: list[tuple[Key, Any]], deadline: float) -> None:
        """Keep all entries of a small dict, under the version of the dict itself."""
        if self._cache.make_room(sum(getsizeof(key) + getsizeof(stored) + COPY_COST // 2 for key, stored in pairs)):
            ends = deadline - page.offset
            self.whole = Copy(page.words, self.seed % SLOTS, word_of(version), pairs, MUTABLE, ends)
            if self._cache.page is not page:
                self._cache.drop()

    def clear(self) -> None:
        self.fresh.clear()
        self.quick.clear()
        self.others.clear()
        self.whole = None


class NearCache:
    """All copies of a process, under one page. ``filled`` counts the bytes put in since it was empty."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.page: Page | None = None
        self._limit = limit
        self._spaces: dict[str, Copies] = {}
        self.filled = 0

    def __repr__(self) -> str:
        kept = sum(len(copies.quick) + len(copies.others) for copies in list(self._spaces.values()))
        return f"<NearCache {kept} copies>"

    def copies(self, name: str) -> Copies:
        """Return the copies of a space."""
        found = self._spaces.get(name)
        return self._spaces.setdefault(name, Copies(self, name)) if found is None else found

    def make_room(self, size: int) -> bool:
        """Return whether a value of this size is to be kept; drop the others if it is one too many."""
        if size > self._limit // 8:
            return False
        self.add(size)
        return True

    def add(self, size: int) -> None:
        """Count what was put in, and begin anew when it is too much."""
        self.filled += size
        if self.filled > self._limit:
            self.drop()
            self.filled = size

    def turn_to(self, page: Page | None) -> None:
        """From now on keep copies under this page, or none."""
        self.page = page
        self.drop()

    def drop(self) -> None:
        """Drop all copies."""
        self.filled = 0
        for copies in list(self._spaces.values()):
            copies.clear()
