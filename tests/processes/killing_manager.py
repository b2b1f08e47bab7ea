"""A manager that kills itself at a chosen point, or that leaves something out, to prove that the tests would notice.

    python killing_manager.py POINT COUNT WITHOUT --dir DIRECTORY --ready-fd DESCRIPTOR

It ends with SIGKILL when it comes to POINT for the COUNT-th time. WITHOUT is one of ``WITHOUT``. Either may be empty.
Unless it leaves something out, it compacts its journal all the time, in small slices.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from state_manager import durability, manager, server, versions
from state_manager.checks import COUNTERS, LOCKS, TAKEN
from state_manager.journal import log
from state_manager.journal.files import Buffer, DirectoryFiles
from state_manager.journal.frames import COMPLETE, LIVE, MARKER, SLICE
from state_manager.journal.recovery import ASIDE
from state_manager.service import Service
from state_manager.sessions import LaneRecord
from state_manager.store import NEVER, Change
from state_manager.versions import PageWriter

FRAMES: Final = {LIVE: "an append", SLICE: "a slice", COMPLETE: "completion"}
REPLY: Final = "between commit and reply"
GRANT: Final = "between a lock's grant and its reply"
ITEM: Final = "between an item and its reply"
COMPACTED_REPLY: Final = "between commit and reply, after a compaction"


class Killer:
    """Counts how often the manager comes to its point."""

    point = ""
    count = 0

    def at(self, point: str) -> None:
        if self.is_due(point):
            self.kill()

    def is_due(self, point: str) -> bool:
        if point != self.point:
            return False
        self.count -= 1
        return self.count <= 0

    def kill(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


killer = Killer()


def replace(where: object, name: str, value: object) -> None:
    assert hasattr(where, name)
    setattr(where, name, value)


class KillingFiles(DirectoryFiles):
    """The real files, with a point before and after what changes them."""

    def write(self, fd: int, data: Buffer, offset: int) -> int:
        what = FRAMES[data[2]] if bytes(data[:2]) == MARKER else "another write"
        killer.at(f"before {what}")
        if killer.is_due(f"in the middle of {what}"):
            os.pwrite(fd, data[: len(data) // 2], offset)
            killer.kill()
        written = os.pwrite(fd, data, offset)
        killer.at(f"after {what}")
        return written

    def truncate(self, fd: int, size: int) -> None:
        killer.at("before a cut")
        os.ftruncate(fd, size)
        killer.at("after a cut")

    def rename(self, old: str, new: str) -> None:
        killer.at("before a segment is begun")
        super().rename(old, new)
        killer.at("after a segment is begun")

    def unlink(self, name: str) -> None:
        is_segment = name != ASIDE
        if is_segment:
            killer.at("before an unlink")
        super().unlink(name)
        if is_segment:
            killer.at("after an unlink")


class BusyCompaction(durability.Compaction):
    """Begins as soon as the last one has ended."""

    def step(self, now: float) -> bool:
        self._next_look = 0.0
        return super().step(now)


class BusyJournal(log.Journal):
    def wants_compaction(self, live_bytes: int) -> bool:
        return not self._compacting


commit: Final = Service.commit


def commit_and_kill(service: Service) -> None:
    """Commit; after an increment of a counter is a point, and after the grant of a lock without a lease, or an item."""
    counted = any(space == COUNTERS for space, _, _ in service._view.changes)
    given = [(space, entry) for space, _, entry in service._view.changes if entry]
    commit(service)
    if any(space == LOCKS and entry.deadline == NEVER for space, entry in given):
        killer.at(GRANT)
    if any(space.startswith(TAKEN) for space, _ in given):
        killer.at(ITEM)
    if counted:
        killer.at(REPLY)
        if killer.is_due(COMPACTED_REPLY):
            compact(service)
            killer.kill()


def compact(service: Service) -> None:
    """Do a whole compaction at once."""
    assert isinstance(service.log, durability.JournalLog)
    journal, now = service.log._journal, service._view.now
    journal.begin_compaction()
    for changes, lanes in service.snapshot(durability.SLICE_BYTES):
        journal.append_slice(now, changes, lanes)
    journal.complete(now)
    while not journal.completed():
        time.sleep(0.001)


# -- what may be left out ----------------------------------------------------------------------------------------------


def without_stored_replies() -> None:
    """A restart knows the lanes, and not what they did last."""
    restore = Service.restore

    def forgetful(service: Service, lanes: Mapping[int, tuple[int, bytes]]) -> None:
        restore(service, dict.fromkeys(lanes, (0, b"")))

    replace(Service, "restore", forgetful)


def without_lane_slices() -> None:
    """A compaction writes entries only."""
    snapshot = Service.snapshot

    def careless(service: Service, limit: int) -> Iterator[tuple[list[Change], list[LaneRecord]]]:
        for changes, _ in snapshot(service, limit):
            yield changes, []

    replace(Service, "snapshot", careless)


def without_one_append_in_a_thousand() -> None:
    """About one frame in a thousand, the next one with an item, is not written."""
    append = log.Journal.append
    since = 0

    def lossy(
        journal: log.Journal,
        now: float,
        changes: Sequence[Change],
        lanes: Sequence[LaneRecord] = (),
        *,
        deletes_only: bool = False,
    ) -> None:
        nonlocal since
        since += 1
        if since >= 1000 and any(str(key).startswith("item ") for _, key, _ in changes):
            since = 0
        else:
            append(journal, now, changes, lanes, deletes_only=deletes_only)

    replace(log.Journal, "append", lossy)


def without_versions_at_start() -> None:
    """A start leaves the page of the manager before as it is, to those who map it."""
    replace(versions, "_retire", lambda name, folder=None: None)


def without_one_bump_in_a_thousand() -> None:
    """About one version in a thousand is not shown."""
    publish = PageWriter.publish
    since = 0

    def lossy(page: PageWriter, shown: array[int], slots: Iterable[int]) -> None:
        nonlocal since
        kept = []
        for slot in slots:
            since += 1
            if since % 1009:  # odd: else it would always be the slot of a space
                kept.append(slot)
        publish(page, shown, kept)

    replace(PageWriter, "publish", lossy)


def without_the_page_before_the_reply() -> None:
    """What a tick has changed is shown when the next one begins."""
    begin, publish = Service.begin, Service._publish

    def late(service: Service, now: float) -> None:
        publish(service)
        begin(service, now)

    replace(Service, "begin", late)
    replace(Service, "_publish", lambda service: None)


WITHOUT: Final[dict[str, Callable[[], None]]] = {
    "": lambda: None,
    "stored replies": without_stored_replies,
    "lane slices": without_lane_slices,
    "one append in a thousand": without_one_append_in_a_thousand,
    "versions at start": without_versions_at_start,
    "one bump in a thousand": without_one_bump_in_a_thousand,
    "the page before the reply": without_the_page_before_the_reply,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("point")
    parser.add_argument("count", type=int)
    parser.add_argument("without", choices=WITHOUT)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args()
    killer.point, killer.count = options.point, options.count
    WITHOUT[options.without]()
    replace(Service, "commit", commit_and_kill)
    replace(log, "DirectoryFiles", KillingFiles)
    if not options.without and options.point != COMPACTED_REPLY:
        replace(manager, "Journal", BusyJournal)
        replace(manager, "Compaction", BusyCompaction)
        replace(durability, "SLICE_BYTES", 512)
        replace(server, "HOUSEKEEPING", 0.02)
    return manager.serve(options.dir, ready_fd=options.ready_fd, durability="process")


if __name__ == "__main__":
    raise SystemExit(main())
