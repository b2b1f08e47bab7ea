"""The journal of a state directory: every change of every tick, written before its replies leave.

    journal = Journal.open(directory, mode="process")
    for frame in journal.replay(): ...                 # once, to its end, before anything else
    journal.append(now, changes, lanes)                # raises, and the file is as it was
    journal.begin_compaction(); journal.append_slice(...) ...; journal.complete(now); journal.completed()

Rules
- Files are ``journal.00000001`` and so on (segments; the last one is written to), and ``journal.reserve``, space for
  deletes on a full disk.
- Mode ``power``: a frame is on disk when ``append`` returns. Mode ``process``: it is with the kernel, so it survives
  the end of any process, and on disk about a second later.
- What could not be written is cut off before anything else is written. After a failed sync nothing is written again.
- A segment is synced, and the next one with its name too, before the next one is written to. Older ones are unlinked
  when the newest holds everything and is synced.
- One thread calls this. Another one, ``Syncer``, syncs and unlinks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from ..checked import refusing
from ..directory import StateDirectory
from ..errors import StateError
from ..store import Change
from .failures import JournalFailed, JournalFull, JournalLost, JournalNotSynced
from .files import FULL, DirectoryFiles, Files, unlink, write_all
from .frames import COMPLETE, LIVE, SLICE, Encoder, Frame, Lane, segment_header
from .reading import Progress, Reading, Segment, segment_name
from .recovery import ASIDE, salvage
from .reserve import RESERVE, Reserve
from .syncing import Syncer

log = logging.getLogger("state_manager")

Mode: TypeAlias = Literal["process", "power"]

SLACK: Final = 16 * 2**20
"""Bytes that a log may have beside twice the live ones, and grows by before a compaction is tried again."""


class Pin(NamedTuple):
    """Segments that stay until they are unpinned, each with the length that it had."""

    token: int
    files: list[tuple[str, int]]


class Journal:
    """See the module. Before ``replay`` has ended, only ``close`` may be called."""

    def __init__(self, files: Files, *, mode: Mode, recover: bool = False) -> None:
        if mode not in ("process", "power"):
            raise ValueError(f"unknown mode {mode!r}: a journal is 'process' or 'power'")
        self._files = files
        self._power = mode == "power"
        self._recover = recover
        self._write = files.write
        self._syncer = Syncer(files, lambda: (self.number, self._sync_fd))
        self._reserve = Reserve(files)
        self._older: list[Segment] = []
        self._live = 0  # the number of the segment that is written to
        self._fd = self._sync_fd = -1
        self._offset = 0
        self._settled = 0  # the number of the last frame when this began
        self._uncut = False  # whether something may lie behind _offset
        self._full = False
        self._compacting: Literal["", "slices", "complete"] = ""
        self._from_reserve = False  # whether the last compaction was allowed the reserve
        self._live_bytes = 0
        self._mark = (-SLACK, 0)  # size and live bytes when the last compaction ended
        self._pins: dict[int, set[str]] = {}
        self._last_pin = 0
        self._unwanted: set[str] = set()  # segments that only pins keep
        self.number = 0
        """The number of the last frame."""
        self.last_now = 0.0
        """The largest ``now`` that was replayed."""
        self.report = ""
        """What replay left out, for the log; empty if nothing."""

    @classmethod
    def open(cls, directory: StateDirectory, *, mode: Mode, recover: bool = False) -> Journal:
        """Return the journal of a directory. ``recover``: step over damage, and keep the damaged file."""
        return cls(DirectoryFiles(directory.fd, directory.path), mode=mode, recover=recover)

    def __repr__(self) -> str:
        state = self.failed or ("full" if self._full else self._compacting or "ready")
        return f"<Journal {self._files.path} segment {self._live} frame {self.number} {self.size} bytes: {state}>"

    @property
    def size(self) -> int:
        """Bytes of all segments that count."""
        return sum(segment.size for segment in self._older) + self._offset

    @property
    def failed(self) -> str | None:
        """Why nothing can be written until the next start, None if something can."""
        return self._syncer.failed

    # -- start and end ---------------------------------------------------------------------------------------------

    def replay(self, progress: Progress | None = None) -> Iterator[Frame]:
        """Yield all frames, in the order in which they were written, then make the journal ready.

        Raises StateError if the journal is damaged, newer than this version, or cannot be used.
        """
        reading = Reading(self._files, recover=self._recover, progress=progress)
        yield from reading
        with refusing(self._files.path):
            self._start(reading)

    def _start(self, reading: Reading) -> None:
        files = self._files
        self.last_now, self.report = reading.now, reading.report
        self.number = self._settled = reading.number
        self._older = reading.segments
        unlink(files, ASIDE)
        if reading.lost:
            live, self.number, self.report = salvage(files, reading)
            self._settled, self._older = self.number, [live]
        if self._older:
            live = self._older.pop()
            self._use(live.number, files.open(live.name), files.open(live.name), live.size)
            if files.size(self._fd) > live.size:
                files.truncate(self._fd, live.size)
            files.sync(self._fd)
            files.sync_directory()
            for name in reading.stale:  # only now: a kill may have come before the newest segment was on disk
                unlink(files, name)
        else:
            self._create(1)
        if self.failed is not None:
            raise StateError(self.failed)
        self._syncer.synced = self.number
        self._reserve.find()
        self._syncer.start()

    def close(self) -> None:
        """Sync what there is and close the files. Raises JournalFailed if it cannot be synced; they are closed then."""
        if not self._live:
            return
        self._syncer.stop()
        try:
            if self.failed is None and self.number != self._settled:
                self._sync()
                # A frame that says that all before it are on disk: damage to them is never taken for a crash's.
                with contextlib.suppress(JournalFailed, JournalFull):
                    self._add(LIVE, self.last_now, (), (), reserve=False)
                    self._sync()
        finally:
            self._files.close(self._fd)
            self._files.close(self._sync_fd)
            self._live, self._syncer.failed = 0, "the journal is closed"

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(
        self, now: float, changes: Sequence[Change], lanes: Sequence[Lane] = (), *, deletes_only: bool = False
    ) -> None:
        """Write one tick. ``deletes_only``: it may use what is kept for a full disk.

        Raises JournalFull or JournalFailed, and then nothing has happened; JournalLost: the process must end at once.
        """
        self._add(LIVE, now, changes, lanes, reserve=deletes_only)

    def restore_reserve(self) -> bool:
        """Return whether there is room on the disk, after making the reserve anew if it was used. For housekeeping."""
        if self._full or not self._reserve.there:
            self._full = not self._reserve.restore()
        return not self._full

    def _add(self, kind: int, now: float, changes: Sequence[Change], lanes: Sequence[Lane], *, reserve: bool) -> None:
        syncer = self._syncer
        if self._uncut or syncer.failed is not None or not self._reserve.there:
            self._check(reserve)
        number = self.number + 1
        frame = self._encode(number, now, kind, syncer.synced, changes, lanes)
        try:
            written = self._write(self._fd, frame, self._offset)
            if written != len(frame):
                write_all(self._files, self._fd, memoryview(frame)[written:], self._offset + written)
        except OSError as error:
            cut = self._cut_off() is None
            if error.errno in FULL:
                self._full = True
            # No local name for the error to raise: it would hold its own frame, and nobody collects cycles here.
            if not (cut and reserve and error.errno in FULL and self._reserve.release()):
                raise self._refusal(error) from error
            self._add(kind, now, changes, lanes, reserve=True)
            return
        if self._power and kind == LIVE:
            self._sync_frame(number)
        self._offset += len(frame)
        self.last_now = now
        self.number = number  # last: from here on the other thread may sync up to it

    def _check(self, reserve: bool) -> None:
        """Raise unless it is worth trying to write."""
        if not self._live:
            raise RuntimeError("a journal is written after replay and before close")
        if self.failed is not None:
            raise JournalFailed(self.failed)
        if self._uncut and (error := self._cut_off()):
            raise self._refusal(error)
        if not (reserve or self._reserve.there):
            self._full = True
            raise JournalFull(
                f"the disk of {self._files.path} is full; deletes still work, and writes when there is room"
            )

    def _refusal(self, error: OSError) -> JournalFull | JournalFailed:
        where = f"the journal in {self._files.path}"
        if error.errno in FULL:
            self._full = True
            return JournalFull(f"no room for {where}: {error}; deletes still work, and writes when there is room")
        return JournalFailed(f"cannot write {where}: {error}")

    def _cut_off(self) -> OSError | None:
        """Cut off what lies behind the last frame; return why that is not possible."""
        self._uncut = True
        try:
            self._files.truncate(self._fd, self._offset)
        except OSError as error:
            return error
        self._uncut = False
        return None

    def _sync_frame(self, number: int) -> None:
        try:
            self._files.sync(self._fd)
        except OSError as error:
            self._syncer.fail(error)
            if self._cut_off():
                raise JournalLost(f"{self.failed}, and the last frame could not be cut off") from error
            raise JournalNotSynced(str(self.failed)) from error
        self._syncer.synced = number

    def _sync(self) -> None:
        try:
            self._files.sync(self._fd)
        except OSError as error:
            self._syncer.fail(error)
            raise JournalFailed(str(self.failed)) from error
        self._syncer.synced = self.number

    def _create(self, number: int) -> None:
        """Make a segment, whole before it has its name, and write to it from now on. Raises OSError."""
        files = self._files
        header = segment_header(number, self.number + 1)
        unlink(files, ASIDE)
        with contextlib.ExitStack() as undo:
            fd = files.open(ASIDE, create=True)
            undo.callback(unlink, files, ASIDE)
            undo.callback(files.close, fd)
            write_all(files, fd, header, 0)
            files.sync(fd)
            sync_fd = files.open(ASIDE)
            undo.callback(files.close, sync_fd)
            files.rename(ASIDE, segment_name(number))
            undo.pop_all()
        self._use(number, fd, sync_fd, len(header))
        try:
            files.sync_directory()
        except OSError as error:
            self._syncer.fail(error)  # the name may or may not last: nothing can be written to either segment

    def _use(self, number: int, fd: int, sync_fd: int, offset: int) -> None:
        self._live, self._fd, self._sync_fd, self._offset = number, fd, sync_fd, offset
        self._encode = Encoder(number).encode

    # -- compaction ------------------------------------------------------------------------------------------------

    def wants_compaction(self, live_bytes: int) -> bool:
        """Return whether the log is large for what lives, which takes at most ``live_bytes`` when it is written."""
        if self._compacting or self.failed is not None:
            return False
        self._live_bytes = live_bytes
        size, live = self._mark
        large = self.size > (live_bytes + RESERVE if self._full else 2 * live_bytes + SLACK)
        changed = self.size >= size + SLACK or live_bytes <= live // 2 or (self._full and not self._from_reserve)
        if not large or not changed:
            return False
        try:
            return live_bytes <= self._files.free() + (RESERVE if self._reserve.there else 0)
        except OSError:
            return False

    def begin_compaction(self) -> None:
        """Begin a segment; live ticks go to it from now on. Takes three syncs. Raises as ``append`` does."""
        if self._compacting:
            raise RuntimeError("a compaction is going on")
        self._check(reserve=True)
        self._sync()
        old, fd, sync_fd = Segment(self._live, segment_name(self._live), self._offset), self._fd, self._sync_fd
        try:
            self._create(self._live + 1)
        except OSError as error:
            if self._full and error.errno in FULL and self._reserve.release():
                self.begin_compaction()
                return
            raise self._refusal(error) from error
        self._older.append(old)
        self._files.close(fd)
        self._syncer.close(sync_fd)
        if self.failed is not None:
            raise JournalFailed(self.failed)
        self._compacting, self._from_reserve = "slices", self._full

    def append_slice(self, now: float, changes: Sequence[Change], lanes: Sequence[Lane] = ()) -> None:
        """Write a part of the current state. If that raises, as ``append`` does, the compaction is given up."""
        self._add_slice(SLICE, now, changes, lanes)

    def complete(self, now: float) -> None:
        """Say that all parts are written. If that raises, the compaction is given up; else poll ``completed``."""
        self._add_slice(COMPLETE, now, (), ())
        self._compacting = "complete"
        self._syncer.sync_complete(self._live)

    def completed(self) -> bool:
        """Return True once, when the new segment is on disk; the older ones go then."""
        if self._compacting != "complete" or self._syncer.complete != self._live:
            return False
        self._end_compaction()
        self._unwanted.update(segment.name for segment in self._older)
        self._older = []
        self._mark = (self.size, self._live_bytes)
        self._remove_unwanted()
        return True

    def give_up(self) -> None:
        """End a compaction without its result. What was written of it does no harm."""
        if self._compacting == "slices":
            self._end_compaction()

    def _add_slice(self, kind: int, now: float, changes: Sequence[Change], lanes: Sequence[Lane]) -> None:
        if self._compacting != "slices":
            raise RuntimeError("no compaction is going on, or it has all of its parts")
        try:
            self._add(kind, now, changes, lanes, reserve=self._from_reserve)
        except BaseException:
            self.give_up()
            raise

    def _end_compaction(self) -> None:
        self._compacting = ""
        self._mark = (self.size, self._live_bytes)

    # -- backups ---------------------------------------------------------------------------------------------------

    def pin(self) -> Pin:
        """Return the files, and how much of each, that make up the state at the end of the last tick; they stay."""
        files = [(segment.name, segment.size) for segment in self._older]
        files.append((segment_name(self._live), self._offset))
        self._last_pin += 1
        self._pins[self._last_pin] = {name for name, _ in files}
        return Pin(self._last_pin, files)

    def unpin(self, pin: Pin) -> None:
        """Let the files go that only this pin kept."""
        self._pins.pop(pin.token, None)
        self._remove_unwanted()

    def _remove_unwanted(self) -> None:
        for name in sorted(self._unwanted.difference(*self._pins.values())):
            self._unwanted.discard(name)
            self._syncer.unlink(name)
