"""The manager's clock, seconds since 1970 that never go back while it runs, nor from one manager to the next; and the
clock that all processes of a machine share, in which deadlines are compared.
"""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> float:
    """Return the seconds since the machine was started, which go on while it sleeps: the same in every process."""
    return time.clock_gettime(_CLOCK)


class Clock:
    """The boot-time clock with an ``offset`` that is fixed at the start.

    ``not_before``: what an earlier manager's clock has shown, should the machine's have been put back since.
    """

    def __init__(self, not_before: float = 0.0) -> None:
        self.offset = max(time.time(), not_before) - boot_time()

    def __call__(self) -> float:
        return time.clock_gettime(_CLOCK) + self.offset
