"""The journal's format, as pure functions of bytes.

A segment file is a header and frames. All numbers are little-endian.

    segment header   magic 8s, version u16, 2 bytes of 0, segment number u64, number of its first frame u64, CRC u32
    frame            marker 2s, kind u8, length u32, number u64, now f64, synced u64, body CRC u32, header CRC u32, body

The body is msgpack ``[changes, lanes]`` of ``length`` bytes. A change is ``[space, key, entry]``, and a map stands for
what is not a bare value: ``{}`` deletes, else its 0 is the value, 1 the deadline and 2 the owner, each if there is one.
A lane is ``[lane, number, reply]``, or ``[lane]`` once it is forgotten. ``synced`` is the number of the last frame that
was on disk when this one was written.

Rules
- Frame numbers go up by one, over segments too.
- A header has a CRC of its own, seeded with the segment's number: zeros are no frame, nor is one of another segment. So
  a length can be trusted, and a tail is torn only if its header is good and its body runs past the end, or if it is
  shorter than a header. Everything else is damage.
- The marker begins with a byte that neither UTF-8 nor msgpack uses: frames can be found again behind damage.
- Every version keeps the segment header as it is here, so that an older one can name what it cannot read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

import msgpack

from ..errors import StateError, TooLarge
from ..store import ABSENT, NEVER, Absent, Change, Entry

VERSION: Final = 1

LIVE: Final = 0
"""What a tick changed."""
SLICE: Final = 1
"""A part of the current state, written by a compaction."""
COMPLETE: Final = 2
"""With this frame the segment holds the whole state."""
KINDS: Final = (LIVE, SLICE, COMPLETE)

Lane: TypeAlias = tuple[int, int, bytes] | tuple[int]
"""``(lane, number, reply)``: the stored reply to the lane's last write; ``(lane,)``: forgotten."""
Read: TypeAlias = Callable[[int, int], bytes]
"""``read(offset, size)``: bytes of a file, fewer only at its end."""

MAGIC: Final = b"SMJRNL\r\n"
MARKER: Final = b"\xc1\xfe"
_SEGMENT: Final = struct.Struct("<8sH2xQQ")
_FRAME: Final = struct.Struct("<2sBIQdQI")
_CRC: Final = struct.Struct("<I")
_WHOLE: Final = struct.Struct("<2sBIQdQII")
SEGMENT_HEADER: Final = _SEGMENT.size + _CRC.size
FRAME_HEADER: Final = _WHOLE.size

_VALUE, _DEADLINE, _OWNER = range(3)
_NOTHING: Final[Any] = ((), ())
unpackb: Final[Callable[..., Any]] = msgpack.unpackb

CHUNK: Final = 2**20
"""Bytes to read at a time."""
_BUFFER: Final = 4096
_LARGE: Final = 2**20
"""A packer keeps the memory of its largest frame; above this it is not worth keeping."""


class Frame(NamedTuple):
    number: int
    now: float
    kind: int
    synced: int
    changes: list[Change]
    lanes: list[Lane]


class Problem(NamedTuple):
    """Why a scan ended before its file did."""

    offset: int
    reason: str
    torn: bool
    """Whether it is only a frame that was not written to its end."""


def _seed(segment: int) -> int:
    return crc32(b"segment %d" % segment)


# -- writing -----------------------------------------------------------------------------------------------------------


def segment_header(segment: int, first: int) -> bytes:
    """Return what a segment begins with; ``first`` is the number that its first frame will have."""
    header = _SEGMENT.pack(MAGIC, VERSION, segment, first)
    return header + _CRC.pack(crc32(header, _seed(segment)))


class Encoder:
    """Makes the frames of one segment. Not for two threads at once."""

    def __init__(self, segment: int) -> None:
        self._seed = _seed(segment)
        self._pack = _packer()

    def encode(
        self, number: int, now: float, kind: int, synced: int, changes: Sequence[Change], lanes: Sequence[Lane]
    ) -> bytes:
        """Return a frame. Raises TooLarge at 4 GiB, TypeError for what is no stored form."""
        body = self._pack((changes, lanes))
        if len(body) > _LARGE:
            self._pack = _packer()
        try:
            header = _FRAME.pack(MARKER, kind, len(body), number, now, synced, crc32(body))
        except struct.error as error:
            raise TooLarge(f"a frame of {len(body)} bytes, number {number}, cannot be written: {error}") from None
        return header + _CRC.pack(crc32(header, self._seed)) + body


def _packer() -> Callable[[Any], bytes]:
    return msgpack.Packer(default=_pack_entry, buf_size=_BUFFER).pack  # type: ignore[call-arg]  # not in the stubs yet


def _pack_entry(entry: object) -> dict[int, Any]:
    if type(entry) is Absent:
        return {}
    if type(entry) is not Entry:
        raise TypeError(f"{entry!r} is no stored form")
    fields = {_VALUE: entry.value}
    if entry.deadline != NEVER:
        fields[_DEADLINE] = entry.deadline
    if entry.owner is not None:
        fields[_OWNER] = entry.owner
    return fields


# -- reading -----------------------------------------------------------------------------------------------------------


def read_segment_header(data: bytes, segment: int) -> int | Problem:
    """Return the number of a segment's first frame, or what is wrong. Raises NewerVersion."""
    if len(data) < SEGMENT_HEADER:
        return Problem(0, "the file ends within its header", torn=True)
    magic, version, number, first = _SEGMENT.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _SEGMENT.size)
    if magic != MAGIC or crc32(data[: _SEGMENT.size], _seed(segment)) != crc:
        return Problem(0, "the file's header is not that of this segment", torn=False)
    if version > VERSION:
        raise NewerVersion(f"is of format {version}, and this version of the package reads up to {VERSION}: upgrade it")
    if number != segment:
        return Problem(0, f"the file says that it is segment {number}", torn=False)
    return int(first)


class NewerVersion(StateError):
    """A segment of a format that only a newer version of this package can read. It is not damaged."""


class Scan:
    """Yields the frames of one segment up to its end or a problem. Then ``offset`` is the end of the good part.

    ``number`` and ``now`` are those of the last frame, ``synced`` is what the last good header said. ``find`` goes on
    behind a problem. ``first`` is the first frame's number, 0 if nobody knows. Without ``decode`` the frames are empty.
    """

    def __init__(
        self, read: Read, size: int, segment: int, first: int, offset: int = SEGMENT_HEADER, *, decode: bool = True
    ) -> None:
        self._read = read
        self._size = size
        self._seed = _seed(segment)
        self._decode = decode
        self._next = offset + 1  # where to look for a frame behind a problem
        self.offset = offset
        self.number = first - 1
        self.now = 0.0
        self.synced = 0
        self.problem: Problem | None = None

    def __iter__(self) -> Iterator[Frame]:
        seed, decode, unpack, whole, crc_at = self._seed, self._decode, _WHOLE.unpack, FRAME_HEADER, _FRAME.size
        new = tuple.__new__  # half the time of calling Frame, for every frame of a start
        data, at = b"", 0  # a window of the file; ``at`` in it is self.offset
        while True:
            header = data[at : at + whole]
            if len(header) < whole:
                data, at = self._window(self.offset, whole), 0
                header = data[:whole]
                if len(header) < whole:
                    if header:
                        self._stop("a frame was not written to its end", torn=True)
                    return
            marker, kind, length, number, now, synced, body_crc, header_crc = unpack(header)
            if crc32(header[:crc_at], seed) != header_crc or marker != MARKER or kind not in KINDS:
                return self._stop("there is no frame where one should be")
            self.synced = synced
            if number != self.number + 1 and self.number >= 0:
                self._next = self.offset
                return self._stop(f"frame {number} is where frame {self.number + 1} should be")
            end = at + whole + length
            if end > len(data):
                data, at = self._window(self.offset, whole + length), 0
                end = whole + length
                if end > len(data):
                    return self._stop("a frame was not written to its end", torn=True)
            self._next = self.offset + whole + length
            body = data[at + whole : end]
            if crc32(body) != body_crc:
                return self._stop(f"frame {number} is damaged")
            try:
                changes, lanes = unpackb(body, strict_map_key=False, object_hook=_entry) if decode else _NOTHING
                parts = number, now, kind, synced, [(a, b, c) for a, b, c in changes], [*map(tuple, lanes)]
            except Exception as error:
                return self._stop(f"frame {number} cannot be decoded ({type(error).__name__}: {error})")
            self.offset += whole + length
            self._next = self.offset + 1
            self.number = number
            self.now = now
            at = end
            yield new(Frame, parts)

    def find(self) -> bool:
        """Go to the next frame behind the problem, for another iteration; return whether there is one.

        Its number is larger than the last one's, and not by more than the file could hold.
        """
        offset = self._next
        while len(data := self._window(offset, FRAME_HEADER)) >= FRAME_HEADER:
            at = data.find(MARKER)
            while 0 <= at <= len(data) - FRAME_HEADER:
                header = data[at : at + FRAME_HEADER]
                if crc32(header[: _FRAME.size], self._seed) == _CRC.unpack_from(header, _FRAME.size)[0]:
                    number = _WHOLE.unpack(header)[3]
                    lost = number - self.number - 1
                    if self.number < 0 or 0 <= lost <= self._size // FRAME_HEADER:
                        self.offset, self.number, self.problem = offset + at, number - 1, None
                        self._next = self.offset + 1
                        return True
                at = data.find(MARKER, at + 1)
            offset += len(data) - FRAME_HEADER + 1
        return False

    def _window(self, offset: int, size: int) -> bytes:
        return self._read(offset, min(max(size, CHUNK), max(self._size - offset, 0)))

    def _stop(self, reason: str, *, torn: bool = False) -> None:
        self.problem = Problem(self.offset, reason, torn)


def _entry(fields: dict[int, Any]) -> Any:
    if not fields:
        return ABSENT
    return Entry(fields[_VALUE], fields.get(_DEADLINE, NEVER), fields.get(_OWNER))
