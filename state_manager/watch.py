"""When the process of a session ends: told at once by its pidfd, else by its staying without a connection."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from .processes import start_time
from .sessions import Session

GRACE: Final = 60.0
"""Seconds that a session may be without a connection before its process, which cannot be seen, counts as ended."""


class Watch:
    """The sessions whose end is awaited. ``register(fd, call)`` and ``unregister(fd)`` are the loop's."""

    def __init__(
        self,
        register: Callable[[int, Callable[[], object]], None],
        unregister: Callable[[int], None],
        end: Callable[[Session], bool],
    ) -> None:
        self._register = register
        self._unregister = unregister
        self._end = end  # returns False if it could not be done now
        self._seen: dict[Session, int] = {}
        self._unseen: dict[Session, float] = {}
        self._overdue: set[Session] = set()

    def add(self, session: Session) -> None:
        """Watch a session. One whose process has ended already ends now."""
        if session in self._seen or session in self._unseen:
            return
        try:
            descriptor = os.pidfd_open(session.pid or 0)
        except ProcessLookupError:
            self._over(session)
        except (AttributeError, OSError, ValueError):
            self._unseen[session] = time.monotonic()
        else:
            if start_time(session.pid or 0) != session.started:  # its pid is another process's now
                os.close(descriptor)
                self._over(session)
                return
            self._seen[session] = descriptor
            self._register(descriptor, lambda: self._over(session))

    def look(self, connected: set[Session]) -> None:
        """End what has been without a connection for too long, and what could not be ended before."""
        now = time.monotonic()
        for session, seen in list(self._unseen.items()):
            if session in connected:
                self._unseen[session] = now
            elif now - seen > GRACE:
                self._over(session)
        for session in list(self._overdue):
            self._over(session)

    def _over(self, session: Session) -> None:
        descriptor = self._seen.pop(session, None)
        if descriptor is not None:
            self._unregister(descriptor)
            os.close(descriptor)
        self._unseen.pop(session, None)
        if self._end(session):
            self._overdue.discard(session)
        else:
            self._overdue.add(session)

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in self._seen.values():
            os.close(descriptor)
        self._seen.clear()
