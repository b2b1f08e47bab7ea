"""The journal's second thread. It syncs, unlinks and closes: what may block for long and nobody waits for.

It syncs through a descriptor of its own, opened and not duplicated: the kernel reports an error of writing back once to
each of those, so neither thread can take the other's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from .files import Files, unlink

log = logging.getLogger("state_manager")

INTERVAL: Final = 1.0
"""Seconds between two syncs, and about what a power failure may cost in the mode ``process``."""


class Syncer:
    """``position`` returns the number of the last frame and then, read in this order, the descriptor to sync it by.

    ``synced`` is the number of the last frame known to be on disk. ``failed`` is why a sync failed: nobody knows then
    what is on disk, so nothing is synced any more. The journal may set both too.
    """

    def __init__(self, files: Files, position: Callable[[], tuple[int, int]]) -> None:
        self._files = files
        self._position = position
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.synced = 0
        self.failed: str | None = None
        self.complete = 0
        """The segment that ``sync_complete`` was last done for."""

    def start(self) -> None:
        self._thread.start()

    def sync_complete(self, segment: int) -> None:
        """Sync the newest segment and the directory, and then set ``complete``."""

        def job() -> None:
            self.sync()
            if self.failed is None:
                self._files.sync_directory()
                self.complete = segment

        self._jobs.put(job)

    def unlink(self, name: str) -> None:
        self._jobs.put(lambda: unlink(self._files, name))

    def close(self, descriptor: int) -> None:
        self._jobs.put(lambda: self._files.close(descriptor))

    def sync(self) -> None:
        """Sync what was written."""
        number, descriptor = self._position()
        if number > self.synced and self.failed is None:
            self._files.sync(descriptor)
            self.synced = max(number, self.synced)

    def fail(self, error: Exception) -> None:
        self.failed = f"a sync of the journal in {self._files.path} failed ({error}): read-only until the next start"
        log.error("%s", self.failed)

    def stop(self) -> None:
        """Return when everything asked for is done and the thread has ended."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while self.step(INTERVAL):
            pass

    def step(self, timeout: float) -> bool:
        """Do the next thing asked for, or sync if there is none in time (seconds); return False for the end."""
        try:
            job = self._jobs.get(timeout=timeout)
        except Empty:
            job = self.sync
        if job is None:
            return False
        try:
            job()
        except Exception as error:
            self.fail(error)
        return True
