"""What the journal is to the service: the log of its ticks, compacted between them, and read again at a start."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .checks import Key
from .commands.base import Done, View, row
from .errors import StateError
from .journal.failures import JournalFull
from .journal.frames import SLICE, Frame
from .journal.log import Journal, Pin
from .service import Service
from .sessions import LaneRecord, Session
from .store import ABSENT, Change

logger = logging.getLogger("state_manager")

SLICE_BYTES: Final = 16_384
"""Bytes that a compaction writes between two ticks: a request waits for one slice at the most."""
BREATH: Final = 0.05
"""Seconds of reading a journal after which those who wait are told that it goes on."""


class JournalLog:
    """A ``service.Log``. On a full disk what only deletes may use the journal's reserve."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def append(self, now: float, changes: Sequence[Change], lanes: Sequence[LaneRecord]) -> None:
        try:
            self._journal.append(now, changes, lanes)
        except JournalFull:
            if not all(entry is ABSENT for _, _, entry in changes):
                raise
            self._journal.append(now, changes, lanes, deletes_only=True)


class Compaction:
    """Writes all entries into a new segment, a slice between two ticks, so that the older segments can go."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self._service = service
        self._journal = journal
        self._slices: Iterator[tuple[list[Change], list[LaneRecord]]] | None = None
        self._syncing = False
        self._next_look = 0.0

    def step(self, now: float) -> bool:
        """Do a bounded part of what there is to do; return whether there is more to do at once."""
        try:
            if self._slices is not None:
                return self._write_slice(now)
            if now >= self._next_look:
                self._next_look = now + 1.0
                return self._look()
        except StateError as error:
            logger.warning("the journal could not be compacted: %s", error)
            self._journal.give_up()
            self._slices, self._syncing = None, False
        return False

    def _write_slice(self, now: float) -> bool:
        assert self._slices is not None
        for changes, lanes in self._slices:
            self._journal.append_slice(now, changes, lanes)
            return True
        self._slices = None
        self._journal.complete(now)
        self._syncing = True
        return False

    def _look(self) -> bool:
        if self._syncing:
            self._syncing = not self._journal.completed()
            return False
        self._journal.restore_reserve()
        if not self._journal.wants_compaction(self._service.store.bytes):
            return False
        self._journal.begin_compaction()
        self._slices = self._service.snapshot(SLICE_BYTES)
        return True


class Pins:
    """Which backups are being copied: the files of the journal that they need stay until then."""

    def __init__(self, service: Service, journal: Journal) -> None:
        self._service = service
        self._journal = journal
        self._pins: dict[int, tuple[Pin, Session | None]] = {}
        service.add(
            row("manager", "pin", self._pin, writes=False),
            row("manager", "unpin", self._unpin, writes=False),
        )

    def _pin(self, view: View, now: float) -> Done:
        """Keep the files that hold the state of this moment; return ``[token, name, length, name, length, ...]``."""
        pin = self._journal.pin()
        self._pins[pin.token] = pin, view.session
        return [pin.token, *(part for file in pin.files for part in file)], ()

    def _unpin(self, view: View, now: float, token: int) -> Done:
        """Let the files go; return whether they were still kept."""
        found = self._pins.pop(token, None)
        if found is not None:
            self._journal.unpin(found[0])
        return found is not None, ()

    def step(self, now: float) -> bool:
        """Let go what processes that have ended had pinned."""
        for token, (pin, session) in list(self._pins.items()):
            if session is not None and session.id not in self._service.sessions:
                del self._pins[token]
                self._journal.unpin(pin)
        return False


def _note_order(order: dict[str, dict[Key, None]], frame: Frame) -> None:
    """Keep the order in which a compaction found its keys: one written anew meanwhile is in an earlier frame."""
    for space, key, entry in frame.changes:
        if key is None:
            order.pop(space, None)
        elif entry is ABSENT:
            order.get(space, {}).pop(key, None)
        elif frame.kind == SLICE:
            order.setdefault(space, {})[key] = None


def load(service: Service, journal: Journal, breathe: Callable[[str], None]) -> None:
    """Read the journal into an empty service. ``breathe`` is called now and then with how far it is."""
    start = last = time.monotonic()
    lanes: dict[int, tuple[int, bytes]] = {}
    frames = 0

    def progress(read: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > BREATH:
            breathe(f"{read / max(total, 1):.0%}")
            last = time.monotonic()

    order: dict[str, dict[Key, None]] = {}  # of the keys that a compaction wrote, among which others may be
    for frame in journal.replay(progress):
        service.store.discard([service.store.apply(frame.changes)])
        service.store.collect(10_000)
        service.store.changed.clear()  # nobody reads yet
        if frame.kind == SLICE or order:
            _note_order(order, frame)
        for record in frame.lanes:
            if len(record) == 3:
                lanes[record[0]] = (record[1], record[2])
            else:
                lanes.pop(record[0], None)
        frames += 1
    for space, keys in order.items():
        service.store.reorder(space, keys)
    service.log = JournalLog(journal)
    service.restore(lanes)
    if journal.report:
        logger.warning("%s", journal.report)
    if frames:
        took = time.monotonic() - start
        logger.info("read %d entries from %d frames in %.2f s", service.store.entries, frames, took)
