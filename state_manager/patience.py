"""How a loop that never ends goes on while something fails, such as a manager that is down: it rests, and tries again.

``time.sleep`` is looked up when it is used: gevent may replace it after this was imported.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

logger = logging.getLogger("state_manager")

PAUSES: Final = (1.0, 60.0)
"""Seconds of the first rest, and of the longest; each is twice as long as the one before."""


class Patience:
    """``what`` is tried, in words that follow "cannot"."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pause = PAUSES[0]

    def rest(self, error: Exception, until: threading.Event | None = None) -> None:
        """Log why it did not work, and rest before it is tried again, until the event at most."""
        logger.warning("cannot %s: %s; again in %g s", self._what, error, self._pause)
        if until is None:
            time.sleep(self._pause)
        else:
            until.wait(self._pause)
        self._pause = min(2 * self._pause, PAUSES[1])

    def reset(self) -> None:
        """Note that it works."""
        self._pause = PAUSES[0]
