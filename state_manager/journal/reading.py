"""Reads a journal's segments in order, and judges what is wrong with them. It changes nothing.

Rules
- Reading begins, from an empty store, at the newest segment with a completion frame in its good part, else at the first
  one. Segments go up by one, and so do frames from one segment to the next.
- What is wrong at the end of the newest segment, with no frame behind it that says that this was on disk, is the trace
  of a crash: the good part ends there, and ``report`` says so.
- Anything else is damage: StateError names file and offset. With ``recover`` it is stepped over, and noted in ``lost``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

from ..checked import refusing
from ..errors import StateError
from .files import Files
from .frames import COMPLETE, SEGMENT_HEADER, Frame, NewerVersion, Problem, Scan, read_segment_header

NAME: Final = re.compile(r"journal\.(\d{8,})")

Progress: TypeAlias = Callable[[int, int], object]
"""``progress(bytes done, bytes in all)``"""


def segment_name(number: int) -> str:
    return f"journal.{number:08}"


class Segment(NamedTuple):
    number: int
    name: str
    size: int


class Reading:
    """Yields the frames of the journal in a directory, once. What is below holds after the last one."""

    def __init__(self, files: Files, *, recover: bool = False, progress: Progress | None = None) -> None:
        self._files = files
        self._recover = recover
        self._progress = progress
        self._descriptors: dict[int, int] = {}
        self._done = 0
        self.segments: list[Segment] = []
        """The segments that count, oldest first; the last one up to the end of its good part."""
        self.stale: list[str] = []
        """Segments that do not count any more."""
        self.newest = 0
        """The highest number that a segment has, counted or not."""
        self.damaged: list[str] = []
        """Files that were stepped over somewhere."""
        self.lost: list[str] = []
        """Where, and why."""
        self.report = ""
        """What was left out at the end of the newest segment, and why; empty if nothing was."""
        self.number = 0
        """The number of the last frame."""
        self.now = 0.0
        """The largest ``now`` of a frame."""

    def __iter__(self) -> Iterator[Frame]:
        try:
            self._open()
            yield from self._frames()
        finally:
            for descriptor in self._descriptors.values():
                self._files.close(descriptor)
            self._descriptors.clear()

    def _open(self) -> None:
        """Open all segments, and choose those that count."""
        with refusing(self._files.path):
            found = filter(None, map(NAME.fullmatch, self._files.names()))
        numbers = sorted(number for match in found if match[0] == segment_name(number := int(match[1])))
        self.newest = max(numbers, default=0)
        for number in numbers:
            name = segment_name(number)
            with refusing(self._files.path / name):
                self._descriptors[number] = descriptor = self._files.open(name, write=False)
                self.segments.append(Segment(number, name, self._files.size(descriptor)))
        if self.segments and self.segments[-1].size < SEGMENT_HEADER and (len(numbers) > 1 or numbers == [1]):
            self._cut(self.segments[-1], Problem(0, "the file ends within its header", torn=True))
            self.stale.append(self.segments.pop().name)  # it never held a frame
        for start in reversed(range(len(self.segments))):
            if start == 0 or self._is_complete(self.segments[start]):
                self.stale += [segment.name for segment in self.segments[:start]]
                del self.segments[:start]
                break

    def _is_complete(self, segment: Segment) -> bool:
        first = self._header(segment)
        if isinstance(first, Problem):
            return False
        scan = Scan(self._reader(segment), segment.size, segment.number, first, decode=False)
        return any(frame.kind == COMPLETE for frame in scan)

    def _frames(self) -> Iterator[Frame]:
        complete = True
        for index, segment in enumerate(self.segments):
            first = self._header(segment)
            if isinstance(first, Problem):
                self._damage(segment, first)
                first = self.number + 1 if index else 0
            elif index and segment.number != self.segments[index - 1].number + 1:
                self._damage(segment, Problem(0, "the segment before it is missing", torn=False))
            elif index and first != self.number + 1:
                reason = f"it begins with frame {first}, and the one before it ends with {self.number}"
                self._damage(segment, Problem(0, reason, torn=False))
            if index == 0:
                complete = segment.number == 1
            scan = Scan(self._reader(segment), segment.size, segment.number, first)
            while True:
                for frame in scan:
                    if frame.kind == COMPLETE:
                        complete = True
                    yield frame
                self.number, self.now = max(self.number, scan.number), max(self.now, scan.now)
                if scan.problem is None:
                    break
                if complete and segment is self.segments[-1] and self._is_unsynced(segment, scan):
                    self._cut(segment, scan.problem)
                    self.segments[-1] = segment._replace(size=scan.offset)
                    return
                self._damage(segment, scan.problem)
                if not scan.find():
                    break
            if not complete:
                complete = True
                reason = "it ends before the frame that completes it"
                self._damage(segment, Problem(segment.size, reason, torn=False))
            self._done += segment.size

    def _is_unsynced(self, segment: Segment, scan: Scan) -> bool:
        """Return whether no frame behind the problem says that what is lost had been on disk."""
        ahead = Scan(self._reader(segment), segment.size, segment.number, scan.number + 1, scan.offset, decode=False)
        while True:
            for _ in ahead:
                pass
            if ahead.synced > scan.number:
                return False
            if ahead.problem is None or not ahead.find():
                return True

    def _cut(self, segment: Segment, problem: Problem) -> None:
        size = segment.size - problem.offset
        self.report = (
            f"{self._files.path / segment.name}, offset {problem.offset}: {problem.reason}; "
            f"the {size} bytes from there on do not count: nothing says that they had been on disk"
        )

    def _damage(self, segment: Segment, problem: Problem) -> None:
        where = f"{self._files.path / segment.name}, offset {problem.offset}: {problem.reason}"
        if not self._recover:
            raise StateError(
                f"the journal is damaged: {where}; start the manager with --recover to keep what can be read "
                "(the damaged file stays, under another name), or restore a backup"
            )
        self.lost.append(where)
        if segment.name not in self.damaged:
            self.damaged.append(segment.name)

    def _header(self, segment: Segment) -> int | Problem:
        try:
            return read_segment_header(self._reader(segment)(0, SEGMENT_HEADER), segment.number)
        except NewerVersion as error:
            raise NewerVersion(f"{self._files.path / segment.name} {error}") from None

    def _reader(self, segment: Segment) -> Callable[[int, int], bytes]:
        descriptor, before, progress = self._descriptors[segment.number], self._done, self._progress

        def read(offset: int, size: int) -> bytes:
            if progress is not None:
                progress(before + offset, sum(segment.size for segment in self.segments))
            data = b""
            with refusing(self._files.path / segment.name):
                while more := self._files.read(descriptor, size - len(data), offset + len(data)):
                    data += more
                    if len(data) == size:
                        break
            return data

        return read
