"""One manager after another: the new one asks the old one to end, waits for its lock, and reads what it left."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Final

from .client import Client
from .directory import StateDirectory
from .errors import StateError

logger = logging.getLogger("state_manager")

PATIENCE: Final = 15.0
"""Seconds that the old manager has to end its tick, sync its journal and leave."""


def take_over(directory: StateDirectory) -> int:
    """Return the directory's lock, after the manager that had it has ended. Raises StateError if it does not end."""
    client = Client(directory.path, timeout=PATIENCE, start=False)
    with contextlib.suppress(StateError), contextlib.closing(client):  # nobody there is as good
        client.call("manager", "shutdown", (), False)
        logger.info("asked the manager of %s to end", directory.path)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return directory.lock()  # waits a while by itself
        except StateError:
            if time.monotonic() > deadline:
                raise
