"""``state.sessions``: who is logged in, and how to log somebody out.

A session that is revoked is gone for the next request, whichever worker answers it, and a request that is under way
does not bring it back. Looking for one user reads every session there is: with a hundred thousand it takes seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .session_records import SessionRecords

logger = logging.getLogger("state_manager")


class SessionInfo(NamedTuple):
    """One session: its id, whose it is (None: nobody has logged in), what is in it.

    ``created`` and ``seen``, when it was last used, are seconds since 1970. ``seen`` is late by up to a hundredth of
    PERMANENT_SESSION_LIFETIME.
    """

    sid: str
    user: Any
    created: float
    seen: float
    data: Mapping[str, Any]


class Sessions:
    """The sessions of the current app's manager, to list and to revoke. Iterating gives a SessionInfo for each.

    A user is what a session has under ``session_user_key``, and is looked for by its text: 7 and "7" are the same one.
    """

    def __init__(self, records: SessionRecords, user_keys: Callable[[], tuple[str, ...]]) -> None:
        self._records = records
        self._user_keys = user_keys

    def __repr__(self) -> str:
        return f"<Sessions in {self._records!r}>"

    def __len__(self) -> int:
        """Return the number of sessions; those that ended a moment ago may be counted."""
        return len(self._records)

    def __iter__(self) -> Iterator[SessionInfo]:
        keys = self._user_keys()
        for sid, record in self._records.all():
            if data := record["data"]:
                user = next((data[key] for key in keys if data.get(key) is not None), None)
                yield SessionInfo(sid, user, record["created"], record["seen"], data)

    def of(self, user: object) -> list[SessionInfo]:
        """Return the sessions of a user. Raises TypeError for None, which is nobody."""
        if user is None:
            raise TypeError("None is no user: a session without one is nobody's")
        found = list(self)
        if found and all(one.user is None for one in found):
            logger.warning(
                "none of %d sessions says whose it is, under %s: is it another key, session_user_key=...?",
                len(found),
                " or ".join(map(repr, self._user_keys())),
            )
        return [one for one in found if one.user is not None and str(one.user) == str(user)]

    def revoke(self, sid: str) -> bool:
        """End one session; return whether it was there."""
        self._user_keys()
        return self._records.delete(sid)

    def revoke_user(self, user: object, *, keep: str | None = None) -> int:
        """End all sessions of a user, but for the one with the id ``keep``; return how many there were.

        ``keep=session.sid``: all others but that of this request, as after a new password.
        """
        count = 0
        while sids := [found.sid for found in self.of(user) if found.sid != keep]:  # until none has come meanwhile
            count += self._records.delete_many(sids)
        return count

    def revoke_all(self) -> int:
        """End every session, at once; return how many there were."""
        self._user_keys()
        count = len(self._records)
        self._records.clear()
        return count
