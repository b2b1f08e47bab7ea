"""The manager's clock: seconds since 1970 that never go back while it runs, nor from one manager to the next."""

from __future__ import annotations

import time


class Clock:
    """The boot-time clock, which goes on while the machine sleeps, with an offset that is fixed at the start.

    ``not_before``: what an earlier manager's clock has shown, should the machine's have been put back since.
    """

    def __init__(self, not_before: float = 0.0) -> None:
        self._id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        self._offset = max(time.time(), not_before) - time.clock_gettime(self._id)

    def __call__(self) -> float:
        return time.clock_gettime(self._id) + self._offset
