"""A tick: requests in, changes applied, replies out. No socket and no clock; ``now`` is set by whoever owns one.

    begin(now) -> handle(lane, payload) ... -> commit() -> the caller sends the replies

Rules
- Replies are sent after ``commit`` only, because a reply is a promise that the change is kept.
- A lane is one connection of one client process, with one request outstanding. A write carries a number; asked again
  with the same number, the stored reply is the answer and nothing runs. So a retry counts once.
- A lane is forgotten only when its process (the session) has ended: until then a retry may still come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .checks import Key
from .commands import TABLE, Command
from .errors import to_wire
from .store import ABSENT, Change, Entry, Store, cost
from .wire import ERROR, RETURN, packer, unpack

PAGE_KEYS: Final = 512
PAGE_BYTES: Final = 2**20
"""A page of an iteration ends at either bound, so that no client waits long for another's."""
CURSOR_KEYS: Final = 8_000_000
"""Keys that all open iterations together may hold; beyond that the one least recently used is given up."""
SWEEP_LIMIT: Final = 500
"""Expired entries that one tick deletes, and freed entries of emptied spaces."""


class Lane:
    """One connection's place in line: the number of its last write and the reply to it."""

    __slots__ = ("number", "reply", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.number = 0
        self.reply = b""

    def __repr__(self) -> str:
        return f"<Lane of {self.session.pid} at {self.number}>"


class Session:
    """A client process: its lanes by their ids."""

    __slots__ = ("id", "lanes", "pid")

    def __init__(self, id_: bytes, pid: int | None) -> None:
        self.id = id_
        self.pid = pid
        self.lanes: dict[int, Lane] = {}

    def __repr__(self) -> str:
        return f"<Session {self.id.hex()[:8]} pid={self.pid} lanes={len(self.lanes)}>"


class Cursor:
    """The keys that an iteration has still to give, last one first."""

    __slots__ = ("keys", "owner", "space")

    def __init__(self, space: str, keys: list[Key], owner: Session | None) -> None:
        self.space = space
        self.keys = keys
        self.owner = owner


class StoreView:
    """What commands see (``commands.base.View``), over a ``Store`` in this process."""

    def __init__(self, store: Store, token: Callable[[], str]) -> None:
        self.store = store
        self._spaces = store.spaces
        self.token = token
        self.now = 0.0
        self.lane: Lane | None = None
        self.changes: list[Change] = []
        self.undo: list[Change] = []
        self.cursors: OrderedDict[int, Cursor] = OrderedDict()
        self._cursor_keys = 0
        self._last_cursor = 0

    def apply(self, changes: Sequence[Change]) -> None:
        self.undo += self.store.apply(changes)
        self.changes += changes

    def get(self, space: str, key: Key) -> Any:
        found = self._spaces.get(space)
        if found is None:
            return ABSENT
        entry = found.entries.get(key, ABSENT)
        if type(entry) is Entry and entry.deadline <= self.now:
            self.apply(((space, key, ABSENT),))
            return ABSENT
        return entry

    def version(self, space: str, key: Key) -> int:
        return self.store.version(space, key)

    def size(self, space: str) -> int:
        found = self.store.spaces.get(space)
        return len(found.entries) if found else 0

    def last(self, space: str) -> Key | None:
        while found := self.store.spaces.get(space):
            key: Key = next(reversed(found.entries))
            if self.get(space, key) is not ABSENT:
                return key
        return None

    def spaces(self) -> list[tuple[str, int, int]]:
        return [(space.name, len(space.entries), space.bytes) for space in self.store.spaces.values()]

    def page(self, space: str, cursor: int | None) -> tuple[list[tuple[Key, Any]], int | None]:
        session = self.lane.session if self.lane else None
        if cursor is None:
            found = self.store.spaces.get(space)
            keys = list(found.entries) if found else []
            keys.reverse()  # so that the next one is the last one, which a list gives up at no cost
            cursor = self._last_cursor = self._last_cursor + 1
            self.cursors[cursor] = Cursor(space, keys, session)
            self._cursor_keys += len(keys)
        opened = self.cursors.get(cursor)
        if opened is None or opened.space != space or opened.owner is not session:
            raise ValueError(f"the iteration over {space!r} rested for too long and was given up: begin it again")
        page: list[tuple[Key, Any]] = []
        size, before, keys = 0, len(opened.keys), opened.keys
        while keys and len(page) < PAGE_KEYS and size < PAGE_BYTES:
            key = keys.pop()
            entry = self.get(space, key)
            if entry is not ABSENT:
                page.append((key, entry))
                size += cost(key, entry)
        self._cursor_keys -= before - len(keys)
        if not keys:
            del self.cursors[cursor]
            return page, None
        self.cursors.move_to_end(cursor)
        while self._cursor_keys > CURSOR_KEYS and len(self.cursors) > 1:
            self._cursor_keys -= len(self.cursors.popitem(last=False)[1].keys)
        return page, cursor

    def forget_cursors(self, session: Session) -> None:
        for number in [number for number, cursor in self.cursors.items() if cursor.owner is session]:
            self._cursor_keys -= len(self.cursors.pop(number).keys)


class Service:
    """Runs requests against a store, one at a time. ``table`` is the command table, with the owner's own rows in it."""

    def __init__(
        self,
        store: Store,
        *,
        token: Callable[[], str],
        table: Mapping[tuple[str, str], Command] = TABLE,
    ) -> None:
        self.store = store
        self.sessions: dict[bytes, Session] = {}
        self.commands = 0
        self._table = table
        self._view = StoreView(store, token)
        self._pack = packer().pack

    def __repr__(self) -> str:
        store = self.store
        return f"<Service {store.entries} entries, {store.bytes} bytes, {len(self.sessions)} sessions>"

    # -- the tick --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Begin a tick: everything in it happens at ``now``, in seconds, which never decreases."""
        self._view.now = now

    def handle(self, lane: Lane | None, payload: bytes) -> bytes | None:
        """Run the request in a payload and return the reply, None for one that is out of date."""
        number = None
        try:
            message = unpack(payload)
            if type(message) is not list or not 4 <= len(message) <= 5:
                raise ValueError("a request is [ident, method, arguments, {}], with a number if it writes")
            if len(message) == 5:
                if lane is None or type(message[4]) is not int:
                    raise ValueError("a number needs an attached lane, and is an int")
                number = message[4]
                if number <= lane.number:
                    return lane.reply if number == lane.number else None
            args = message[2]
            if type(args) is not list or message[3]:
                raise ValueError("a request's arguments are a list, and it has no keyword arguments")
            self._view.lane = lane
            result = self.call(message[0], message[1], args)
        except Exception as error:
            reply = self._pack((ERROR, to_wire(error)) if number is None else (ERROR, to_wire(error), number))
        else:
            reply = self._pack((RETURN, result) if number is None else (RETURN, result, number))
        if lane is not None and number is not None:
            lane.number = number
            lane.reply = reply
        return reply

    def call(self, kind: str, name: str, args: Sequence[Any]) -> Any:
        """Run one command and return its result; its changes are applied."""
        try:
            command = self._table[kind, name]
        except (KeyError, TypeError):
            raise ValueError(f"unknown command {kind!r}.{name!r}") from None
        if not command.least <= len(args) <= command.most:
            raise TypeError(f"{kind}.{name} takes {command.least} to {command.most} arguments, not {len(args)}")
        self.commands += 1
        view = self._view
        outcome = command.function(view, view.now, *args)
        assert type(outcome) is tuple, "parking comes with the first command that waits"
        result, changes = outcome
        if changes:
            view.apply(changes)
        return result

    def commit(self) -> None:
        """End the tick: what was applied is final, and the replies may go."""
        view = self._view
        if view.changes:
            self.store.discard(view.undo)
            view.changes, view.undo = [], []

    # -- between ticks ---------------------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Delete a bounded number of expired entries and free emptied spaces; return whether there is more to do."""
        expired = self.store.due(self._view.now, SWEEP_LIMIT)
        if expired:
            self._view.apply(expired)
            self.commit()
        return self.store.collect(SWEEP_LIMIT * 10) or len(expired) == SWEEP_LIMIT

    # -- sessions --------------------------------------------------------------------------------------------------

    def attach(self, session: bytes, lane: int, pid: int | None) -> tuple[Lane, bool]:
        """Return the lane and whether it was known: whether a request that was sent before can be answered."""
        known = self.sessions.get(session)
        if known is None:
            known = self.sessions[session] = Session(session, pid)
        found = known.lanes.get(lane)
        if found is not None:
            return found, True
        found = known.lanes[lane] = Lane(known)
        return found, False

    def end(self, session: Session) -> None:
        """Forget a session whose process has ended."""
        self.sessions.pop(session.id, None)
        session.lanes.clear()  # they point back, and the manager runs without a collector of cycles
        self._view.forget_cursors(session)
