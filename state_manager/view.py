"""What commands see of a store in this process (``commands.base.View``), and what a tick has changed through it.

An iteration holds the keys that were there when it began. Its cursor says which page comes next and a page is not used
up by being read, so that a tick that is undone can run its reads again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from .checks import Key
from .commands import ended
from .errors import StateError
from .parking import LineKey, Lines
from .sessions import Lane, Session
from .store import ABSENT, Change, Entry, Store, cost

PAGE_KEYS: Final = 512
PAGE_BYTES: Final = 2**20
"""A page of an iteration ends at either bound, so that no client waits long for another's."""
CURSOR_KEYS: Final = 8_000_000
"""Keys that all open iterations together may hold; beyond that the one least recently used is given up."""
CURSOR_REST: Final = 60.0
"""Seconds after which an iteration that nobody goes on with is given up."""


class Iteration:
    """The keys of a space when the iteration began, whose it is, and when it was used last."""

    __slots__ = ("keys", "owner", "space", "used")

    def __init__(self, space: str, keys: list[Key], owner: Session | None, used: float) -> None:
        self.space = space
        self.keys = keys
        self.owner = owner
        self.used = used


class StoreView:
    """A store at one moment, for one lane. ``changes`` and ``undo`` collect what was applied since ``settle``."""

    def __init__(self, store: Store, token: Callable[[], str], lines: Lines) -> None:
        self.store = store
        self._lines = lines
        self._line_names = lines.by_name
        self._spaces = store.spaces
        self.token = token
        self.now = 0.0
        self.lane: Lane | None = None
        self.changes: list[Change] = []
        self.undo: list[list[Change]] = []
        self.frozen = False  # nothing may change now: what has expired is absent, and stays where it is
        self._iterations: OrderedDict[int, Iteration] = OrderedDict()
        self._keys_held = 0
        self._last_iteration = store.epoch << 32  # an earlier manager's cursors must mean nothing here
        self.ended: list[int] = []

    @property
    def session(self) -> Session | None:
        return self.lane.session if self.lane else None

    # -- a tick ----------------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Make changes, which ``settle`` will make final or ``take_back`` undo."""
        self.undo.append(self.store.apply(changes))
        self.changes += changes
        if self._line_names:
            self._lines.touch(changes)

    def settle(self) -> None:
        """What was changed is final."""
        if self.changes:
            if self.store.emptied:
                self.store.discard(self.undo)
            self.changes, self.undo = [], []
        if self.ended:
            for number in self.ended:
                self._give_up(number)
            self.ended = []

    def take_back(self) -> None:
        """Undo what was changed; versions alone go on growing."""
        for undo in reversed(self.undo):
            self.store.apply(undo)
        self.changes, self.undo, self.ended = [], [], []

    # -- entries ---------------------------------------------------------------------------------------------------

    def get(self, space: str, key: Key) -> Any:
        found = self._spaces.get(space)
        if found is None:
            return ABSENT
        entry = found.entries.get(key, ABSENT)
        if type(entry) is Entry and entry.deadline <= self.now:
            if not self.frozen:
                self.apply(ended(space, key, entry, self.now))
            return ABSENT
        return entry

    def version(self, space: str, key: Key) -> int:
        return self.store.version(space, key)

    def look(self, space: str, key: Key) -> tuple[Any, int]:
        found = self._spaces.get(space)
        if found is None:
            return ABSENT, self.store.version(space, key)
        entry = found.entries.get(key, ABSENT)
        if type(entry) is Entry and entry.deadline <= self.now:
            entry = self.get(space, key)
        return entry, self.store.versions[found.slot(key)]

    def space_version(self, space: str) -> int:
        return self.store.space_version(space)

    def size(self, space: str) -> int:
        found = self._spaces.get(space)
        return len(found.entries) if found else 0

    def first(self, space: str) -> Key | None:
        return self.store.first(space)

    def last(self, space: str) -> Key | None:
        found = self._spaces.get(space)
        expired: list[Key] = []
        last: Key | None = None
        for key in reversed(found.entries) if found else ():
            entry = found.entries[key] if found else ABSENT
            if type(entry) is not Entry or entry.deadline > self.now:
                last = key
                break
            expired.append(key)
        for key in expired:
            self.get(space, key)  # deletes it
        return last

    def spaces(self) -> list[tuple[str, int, int]]:
        return [(space.name, len(space.entries), space.bytes) for space in self._spaces.values()]

    # -- who waits -------------------------------------------------------------------------------------------------

    @property
    def parked(self) -> bool:
        return self._lines.current is not None

    def ahead(self, space: str, key: LineKey) -> int:
        return self._lines.ahead((space, key))

    def waiting(self, space: str, key: LineKey) -> int:
        return len(self._line_names.get((space, key), ()))

    # -- iterations ------------------------------------------------------------------------------------------------

    def page(self, space: str, cursor: list[int] | None) -> tuple[list[tuple[Key, Any]], list[int] | None]:
        number, at, keys = self._continue(space, cursor)
        page: list[tuple[Key, Any]] = []
        size = 0
        while at < len(keys) and len(page) < PAGE_KEYS and size < PAGE_BYTES:
            entry = self.get(space, keys[at])
            if entry is not ABSENT:
                page.append((keys[at], entry))
                size += cost(keys[at], entry)
            at += 1
        if at == len(keys):
            self.ended.append(number)
            return page, None
        if cursor is None:
            self._begin(number, Iteration(space, keys, self.session, self.now))
        return page, [number, at]

    def _continue(self, space: str, cursor: list[int] | None) -> tuple[int, int, list[Key]]:
        """Return the number of an iteration, where it goes on, and its keys."""
        if cursor is None:
            found = self._spaces.get(space)
            self._last_iteration += 1
            return self._last_iteration, 0, list(found.entries) if found else []
        if type(cursor) is not list or len(cursor) != 2 or type(cursor[0]) is not int or type(cursor[1]) is not int:
            raise TypeError("a cursor is what the page before gave")
        number, at = cursor
        found_here = self._iterations.get(number)
        if found_here is None or found_here.space != space or found_here.owner is not self.session or at < 0:
            raise StateError(
                f"the iteration over {space!r} cannot go on, because it rested for too long or the manager was started "
                "anew: begin it again"
            )
        found_here.used = self.now
        self._iterations.move_to_end(number)
        return number, at, found_here.keys

    def _begin(self, number: int, iteration: Iteration) -> None:
        self._iterations[number] = iteration
        self._keys_held += len(iteration.keys)
        while self._keys_held > CURSOR_KEYS and len(self._iterations) > 1:
            self._give_up(next(iter(self._iterations)))

    def _give_up(self, number: int) -> None:
        if iteration := self._iterations.pop(number, None):
            self._keys_held -= len(iteration.keys)

    def give_up_iterations(self, session: Session | None = None) -> None:
        """Give up those of a session that has ended, or those that rested for too long."""
        for number, iteration in list(self._iterations.items()):
            if iteration.owner is session if session else iteration.used < self.now - CURSOR_REST:
                self._give_up(number)
