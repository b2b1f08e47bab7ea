"""What a transaction has read and will write. Nothing of it is anybody else's business before ``commit``.

It notes the version of all that it reads, and sends it along with the writes: the manager makes them if none of the
versions has moved on, and raises Conflict otherwise. That is optimistic concurrency control, after Kung and Robinson
(1981): nothing is locked, and of those who collide at least one gets through.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final, NamedTuple, NoReturn

from ..caller import Caller
from ..checks import Key
from ..codec import Stored
from ..errors import Conflict

DELETE, SET, KEEP, CLEAR, PUT = range(5)
"""What a write is, as the manager's ``commands.transactions`` has it."""


class Written(NamedTuple):
    """What becomes of a key: DELETE, SET with a ttl in seconds or None, or KEEP, which leaves the deadline as it is."""

    what: int
    stored: Stored = None
    ttl: float | None = None


DELETED: Final = Written(DELETE)


class Writes:
    """What is written to one space. ``cleared``: nothing that was there before stays."""

    __slots__ = ("cleared", "entries")

    def __init__(self) -> None:
        self.cleared = False
        self.entries: dict[Key, Written] = {}


class Ledger:
    """The reads and writes of one transaction, by space and key; key None is the whole space."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.over = False
        self._reads: dict[tuple[str, Key | None], tuple[int, float]] = {}
        self._writes: dict[str, Writes] = {}
        self._items: list[tuple[str, int | None, int, Stored, float]] = []

    def __repr__(self) -> str:
        written = sum(len(writes.entries) for writes in self._writes.values())
        return f"<Ledger {len(self._reads)} reads, {written} writes{', over' if self.over else ''}>"

    def check(self) -> None:
        """Raise RuntimeError once the transaction is over."""
        if self.over:
            raise RuntimeError("this transaction is over: begin another one with manager.transaction()")

    def writes(self, space: str) -> Writes:
        """Return what is written to a space so far."""
        self.check()
        return self._writes.setdefault(space, Writes())

    def note(self, space: str, key: Key | None, version: int, deadline: float = inf) -> None:
        """Note that something was read in this version, which holds until ``deadline``, in the manager's seconds.

        Raises Conflict if it was read in another version before.
        """
        noted, until = self._reads.get((space, key), (version, deadline))
        self._reads[space, key] = noted, min(until, deadline)
        if noted != version:
            self.conflict(space, key)

    def conflict(self, space: str, key: Key | None = None) -> NoReturn:
        """Raise Conflict: this has changed."""
        what = f"the dict {space!r}" if key is None else f"{space}[{key!r}]"
        raise Conflict(f"{what} has changed since this transaction read it, so nothing was applied: run it again")

    def put(self, queue: str, value: Stored, delay: float, most: int | None) -> None:
        """Note an item for a queue."""
        self.check()
        self._items.append((queue, most, PUT, value, delay))

    def commit(self) -> None:
        """Send it to the manager. Raises Conflict if something that was read has changed."""
        reads = [[space, key, *seen] for (space, key), seen in self._reads.items()]
        writes: list[Any] = [*self._items]
        for space, written in self._writes.items():
            if written.cleared:
                writes.append([space, None, CLEAR, None, None])
            writes += ([space, key, *write] for key, write in written.entries.items())
        if writes or len(reads) > 1:  # a single thing that was read is of one moment anyhow
            self.caller.call("transaction", "commit", (reads, writes), bool(writes))
