"""Sessions and lanes: who asks, and what became of his last write. Pure.

A session is a client process; it is an entry of the space ":sessions", so it is kept and restored like any other. A
lane is one connection of it, with one request outstanding. Its last number and reply are kept beside the changes of
the same write, so that a retry after a crash gets the answer instead of a second effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .parking import Parked

SESSIONS: Final = ":sessions"
LANE_BITS: Final = 16
"""A lane's key, which is in every frame of the journal, is its session's number and its own in these low bits."""

LaneRecord = tuple[int, int, bytes] | tuple[int]
"""``(key, number, reply)``, or ``(key,)`` of a lane that was forgotten."""


class Lane:
    """One connection's place: the number of its last write and the reply to it, and the request that waits on it."""

    __slots__ = ("id", "key", "number", "parked", "reply", "session")

    def __init__(self, session: Session, id_: int, number: int = 0, reply: bytes = b"") -> None:
        self.session = session
        self.id = id_
        self.key = session.number << LANE_BITS | id_
        self.number = number
        self.reply = reply
        self.parked: Parked | None = None

    def __repr__(self) -> str:
        return f"<Lane of {self.session.pid} at {self.number}>"

    @property
    def record(self) -> LaneRecord:
        return self.key, self.number, self.reply


class Session:
    """A client process: its number here, its pid and when that began (both None where they cannot be seen).

    ``name`` is what it calls itself, ``since`` when it came, in seconds since 1970.
    """

    __slots__ = ("id", "lanes", "name", "number", "pid", "since", "started", "stored")

    def __init__(
        self, number: int, id_: bytes, pid: int | None, started: int | None, name: str = "", since: float = 0.0
    ) -> None:
        self.number = number
        self.id = id_
        self.pid = pid
        self.started = started
        self.name = name
        self.since = since
        self.lanes: dict[int, Lane] = {}
        self.stored = False

    def __repr__(self) -> str:
        return f"<Session {self.number} pid={self.pid} lanes={len(self.lanes)}>"

    @property
    def entry(self) -> list[Any]:
        """What is stored of it."""
        return [self.id, self.pid, self.started, self.name, self.since]
