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
    """The sessions whose end is awaited. ``register(fd, call)`` and ``unregister(fd)`` are the loop's.

    ``ended`` is called with a session whose process has ended, also from within ``add``.
    """

    def __init__(
        self,
        register: Callable[[int, Callable[[], object]], None],
        unregister: Callable[[int], None],
        ended: Callable[[Session], None],
    ) -> None:
        self._register = register
        self._unregister = unregister
        self._ended = ended
        # By process: one that connects again and again is many sessions and one descriptor.
        self._seen: dict[tuple[int, int | None], tuple[int, set[Session]]] = {}
        self._unseen: dict[Session, float] = {}

    def add(self, session: Session) -> None:
        """Watch a session."""
        process = (session.pid or 0, session.started)
        if process in self._seen:
            self._seen[process][1].add(session)
            return
        if session in self._unseen:
            return
        try:
            descriptor = os.pidfd_open(process[0])
        except ProcessLookupError:
            self._ended(session)
        except (AttributeError, OSError, ValueError):
            self._unseen[session] = time.monotonic()
        else:
            if start_time(process[0]) != session.started:  # its pid is another process's now
                os.close(descriptor)
                self._ended(session)
                return
            self._seen[process] = descriptor, {session}
            self._register(descriptor, lambda: self._process_ended(process))

    def look(self, connected: set[Session]) -> None:
        """End what cannot be seen and has been without a connection for too long."""
        now = time.monotonic()
        for session, seen in list(self._unseen.items()):
            if session in connected:
                self._unseen[session] = now
            elif now - seen > GRACE:
                del self._unseen[session]
                self._ended(session)

    def _process_ended(self, process: tuple[int, int | None]) -> None:
        descriptor, sessions = self._seen.pop(process)
        self._unregister(descriptor)
        os.close(descriptor)
        for session in sessions:
            self._ended(session)

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor, _ in self._seen.values():
            os.close(descriptor)
        self._seen.clear()
