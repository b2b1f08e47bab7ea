"""A file of one MiB that is given up when the disk is full, so that deletes still have room."""

from __future__ import annotations

import logging
import os
from typing import Final

from ..errors import StateError
from .files import Files, unlink, write_all

log = logging.getLogger("state_manager")

NAME: Final = "journal.reserve"
RESERVE: Final = 2**20
"""Bytes. Random ones, so that no file system makes less of them."""


class Reserve:
    """``there`` is whether it can still be given up."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.there = False

    def release(self) -> bool:
        """Free the space; return whether that has made room."""
        if not self.there:
            return False
        try:
            self._files.unlink(NAME)
        except OSError:
            return False
        self.there = False
        log.warning("the disk of %s is full: only deletes are written until there is room", self._files.path)
        return True

    def find(self) -> None:
        """Look for the file that an earlier manager left, and make one if there is none."""
        try:
            descriptor = self._files.open(NAME)
            try:
                self.there = self._files.size(descriptor) == RESERVE
            finally:
                self._files.close(descriptor)
        except (OSError, StateError):
            pass  # none, or none of ours
        self.restore()

    def restore(self) -> bool:
        """Make the file again if that leaves as much room once more; return whether there are both."""
        try:
            free = self._files.free()
            if not self.there and free >= 2 * RESERVE:
                self._make()
                free -= RESERVE
        except OSError:
            return False
        return self.there and free >= RESERVE

    def _make(self) -> None:
        unlink(self._files, NAME)
        descriptor = self._files.open(NAME, create=True)
        try:
            write_all(self._files, descriptor, os.urandom(RESERVE), 0)
        except OSError:
            unlink(self._files, NAME)
            raise
        finally:
            self._files.close(descriptor)
        self.there = True
