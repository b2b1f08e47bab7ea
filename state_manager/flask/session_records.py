"""Sessions as the manager has them: each is one entry of one dict, under an id that is no secret.

The cookie holds this id and a token that the entry holds too. So a session keeps its place while its token changes, as
it does at login: changing what it holds and making the former cookie worthless is one atomic write, requests that are
under way find it again, and an iteration meets each session once. An id may be shown and logged; with it alone, nobody
is let in.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Final, TypedDict

from ..caller import Caller
from ..codec import decode, encode
from ..errors import TooLarge
from ..proxies.dicts import SharedDict
from ..proxies.near import MISSING

NAME: Final = "flask-sessions"


class Record(TypedDict):
    """What is stored. Times are seconds since 1970, by the workers' clocks."""

    token: str
    created: float
    seen: float
    data: dict[str, Any]


def new_id() -> str:
    """Return 128 random bits as hexadecimal text, which needs no quoting anywhere."""
    return secrets.token_hex(16)


class SessionRecords(SharedDict):
    """All sessions of a manager."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(caller, NAME)

    def look(self, sid: str) -> tuple[int, Record | None]:
        """Return the version that ``put`` compares, and a copy of the record, None if there is none."""
        version, found = self._near.versioned(sid)
        return version, None if found is MISSING else found

    def begin(self, sid: str, record: Record, ttl: float, max_bytes: int) -> None:
        """Store a new session. Raises TooLarge above ``max_bytes``."""
        stored = _encode(record, max_bytes)
        self._near.write("dict", "set", sid, (self.name, sid, stored, ttl), stored)

    def put(self, sid: str, version: int, record: Record, ttl: float | None, max_bytes: int) -> bool:
        """Store a session that is as it was at this version; return whether it was. Without a ttl its deadline stays.

        Raises TooLarge above ``max_bytes``.
        """
        stored = _encode(record, max_bytes)
        return bool(self._store("put", sid, stored, version, stored, *(() if ttl is None else (ttl,))))

    def all(self) -> Iterator[tuple[str, Record]]:
        """Yield ids and records, a page at a time; one that is there throughout comes exactly once."""
        for page in self._scan(True):
            yield from zip(page[::2], map(decode, page[1::2]), strict=True)


def _encode(record: Record, max_bytes: int) -> bytes:
    stored = encode(record)
    assert isinstance(stored, bytes)  # as of any dict
    if len(stored) > max_bytes:
        largest = max(record["data"], key=lambda key: _size(record["data"][key]), default=None)
        raise TooLarge(
            f"the session takes {len(stored):,} bytes, most of them under {largest!r}, and the limit is {max_bytes:,}: "
            "keep what is large in a shared dict, under session.sid, or raise STATE_MANAGER_SESSION_MAX_BYTES"
        )
    return stored


def _size(value: Any) -> int:
    stored = encode(value)
    return len(stored) if isinstance(stored, str | bytes) else 0
