"""Requests that wait: who stands where in which line, and when each is to be looked at again. Pure.

A line is named by what its requests wait for: ``(space, key)``, ``(space, None)`` for any change in the space, or
``(space, GONE)`` for an entry's going from it. It is in the order of arrival. Who may proceed is the commands' affair;
here is only the order, and its way back: a request that was woken, or came, in a tick that is undone is put back to
where it was, or taken out again.

Only the head of a line has a time to be tried again at (``retry_at``); the others wait for it. So whenever the head
goes, for whatever reason, the line is touched: the next one says what it waits for now. In a line without an order,
such as the readers of a channel, nobody stands before anybody, and each has a time of his own.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, TypeAlias

from .checks import Key
from .errors import StateError
from .sessions import Lane
from .store import ABSENT, NEVER, Change

PARKED_LIMIT: Final = 10_000
"""Requests that may wait at a time, in all lines."""


class Gone:
    """The type of ``GONE``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "GONE"


GONE: Final = Gone()
"""Stands where a line has a key: some entry of the space is no longer there."""

LineKey: TypeAlias = Key | Gone | None
LineName: TypeAlias = tuple[str, LineKey]


class Parked:
    """A request that waits. ``due``: when it is looked at again, ``until`` at the latest."""

    __slots__ = (
        "args",
        "due",
        "in_line",
        "in_order",
        "kind",
        "lane",
        "line",
        "name",
        "number",
        "place",
        "timed_out",
        "until",
    )

    def __init__(self, lane: Lane, number: int | None, kind: str, name: str, args: Sequence[Any]) -> None:
        self.lane = lane
        self.number = number
        self.kind = kind
        self.name = name
        self.args = args
        self.line: LineName = ("", None)
        self.place = 0
        self.until = self.due = NEVER
        self.timed_out: Any = None
        self.in_line = False
        self.in_order = True

    def __repr__(self) -> str:
        return f"<Parked {self.kind}.{self.name} of {self.lane!r} in {self.line} at {self.place}>"


_place = attrgetter("place")


class Lines:
    """All lines. ``touched``: those that are to be run; ``current``: the request of a line that runs just now."""

    def __init__(self) -> None:
        self.by_name: dict[LineName, list[Parked]] = {}
        self.touched: dict[LineName, None] = {}
        self.current: Parked | None = None
        self.count = 0
        self.moved: list[Parked] = []  # who came or went since the last ``settle``
        self._last_place = 0
        self._timers: list[tuple[float, int, Parked]] = []  # a heap; may name requests that have gone or other times
        self._came: list[Parked] = []
        self._went: list[Parked] = []
        self._ran: dict[LineName, None] = {}

    def __repr__(self) -> str:
        return f"<Lines {len(self.by_name)}, {self.count} requests>"

    # -- what commands and the loop ask ------------------------------------------------------------------------------

    def ahead(self, name: LineName) -> int:
        """Return how many stand before the request that runs now: all, if it is not one of the line."""
        line = self.by_name.get(name, ())
        current = self.current
        if not line or current is line[0]:
            return 0
        return self.ahead_of(current) if current is not None and current.line == name else len(line)

    def ahead_of(self, parked: Parked) -> int:
        """Return how many stand before a request in its line."""
        return bisect_left(self.by_name[parked.line], parked.place, key=_place)

    def next_due(self) -> float:
        """Return when the next request is to be looked at, infinite if none is."""
        timers = self._timers
        while timers and not self._holds(timers[0]):
            heapq.heappop(timers)
        return timers[0][0] if timers else NEVER

    # -- coming and going ------------------------------------------------------------------------------------------

    def park(self, parked: Parked, line: LineName, due: float) -> None:
        """Let a request join the end of a line. Raises StateError if there are too many."""
        if self.count >= PARKED_LIMIT:
            raise StateError(f"{PARKED_LIMIT:,} requests wait already, and no more may: use shorter timeouts")
        self._last_place += 1
        parked.place = self._last_place
        parked.line = line
        parked.lane.parked = parked
        self._insert(parked)
        self.set_due(parked, due)
        self._came.append(parked)
        self.moved.append(parked)

    def set_due(self, parked: Parked, due: float) -> None:
        """Note when a request is to be looked at again."""
        parked.due = due
        heapq.heappush(self._timers, (due, parked.place, parked))
        if len(self._timers) > 2 * self.count + 64:
            self._timers = [item for item in self._timers if self._holds(item)]
            heapq.heapify(self._timers)

    def wake(self, parked: Parked) -> None:
        """Let a request that was answered leave its line; it is back if the tick is undone."""
        self._remove(parked)
        self._went.append(parked)
        self.moved.append(parked)

    def unpark(self, lane: Lane) -> None:
        """Forget the request that waits on a lane, if there is one: nobody will read its answer."""
        parked, lane.parked = lane.parked, None
        if parked is not None and parked.in_line:
            self._remove(parked)

    def due(self, now: float, limit: int) -> list[Parked]:
        """Take up to ``limit`` requests that are to be looked at; who stays in line is given a new time."""
        found: list[Parked] = []
        while len(found) < limit and self.next_due() <= now:
            found.append(heapq.heappop(self._timers)[2])
        return found

    def touch(self, changes: Sequence[Change]) -> None:
        """Note which lines these changes concern."""
        by_name, touched = self.by_name, self.touched
        emptied: set[str] = set()
        for space, key, entry in changes:
            if key is None:
                emptied.add(space)
                continue
            names: tuple[LineName, ...] = ((space, key), (space, None))
            if entry is ABSENT:
                names = (*names, (space, GONE))
            for name in names:
                if name in by_name:
                    touched[name] = None
        if emptied:
            touched |= dict.fromkeys(name for name in by_name if name[0] in emptied)

    def head(self, name: LineName) -> Parked | None:
        """Return the head of a line that is run now."""
        self._ran[name] = None
        line = self.by_name.get(name)
        return line[0] if line else None

    def all(self, name: LineName) -> list[Parked]:
        """Return everybody in a line, as they are now."""
        return list(self.by_name.get(name, ()))

    def settle(self) -> None:
        """Who went has gone, and who came is here."""
        for parked in self._went:
            if parked.lane.parked is parked:
                parked.lane.parked = None
        self._came, self._went, self._ran = [], [], {}
        self.moved.clear()

    def take_back(self) -> None:
        """Put everybody back to where he was at the last ``settle``, but for those whose connection has ended.

        What was run in between is to be run again.
        """
        for parked in self._went:
            if parked.lane.parked is parked:
                self._insert(parked)
                self.set_due(parked, parked.due)
        for parked in self._came:
            if parked.lane.parked is parked:
                self.unpark(parked.lane)
        self.touched |= self._ran
        self._came, self._went, self._ran = [], [], {}
        self.moved.clear()

    def _insert(self, parked: Parked) -> None:
        insort(self.by_name.setdefault(parked.line, []), parked, key=_place)
        parked.in_line = True
        self.count += 1

    def _remove(self, parked: Parked) -> None:
        line = self.by_name[parked.line]
        at = bisect_left(line, parked.place, key=_place)
        del line[at]
        parked.in_line = False
        self.count -= 1
        if not line:
            del self.by_name[parked.line]
        elif at == 0 and parked.in_order:
            self.touched[parked.line] = None

    def _holds(self, item: tuple[float, int, Parked]) -> bool:
        return item[2].in_line and item[2].due == item[0]
