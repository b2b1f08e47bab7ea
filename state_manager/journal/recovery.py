"""Puts what can be read of a damaged journal into a new one, and keeps the damaged files.

The readable frames are copied, renumbered, into one new segment that ends with a completion frame: once it has its
name, the others do not count any more. Until then nothing has changed, so a crash leaves it all to be done again.
"""

from __future__ import annotations

from .files import Files, unlink, write_all
from .frames import COMPLETE, LIVE, Encoder, segment_header
from .reading import Reading, Segment, segment_name

ASIDE = "journal.new"
"""A segment that has no number yet."""


def salvage(files: Files, damaged: Reading) -> tuple[Segment, int, str]:
    """Return the new segment, the number of its last frame, and what was lost and saved. Raises OSError."""
    number, first = damaged.newest + 1, damaged.number + 1
    encoder = Encoder(number)
    again = Reading(files, recover=True)
    unlink(files, ASIDE)
    descriptor = files.open(ASIDE, create=True)
    try:
        header = segment_header(number, first)
        write_all(files, descriptor, header, 0)
        size, last = len(header), first - 1
        for frame in again:
            last += 1
            data = encoder.encode(last, frame.now, LIVE, first - 1, frame.changes, frame.lanes)
            write_all(files, descriptor, data, size)
            size += len(data)
        data = encoder.encode(last + 1, again.now, COMPLETE, first - 1, (), ())
        write_all(files, descriptor, data, size)
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    kept = [_keep(files, name) for name in damaged.damaged]
    files.sync_directory()
    files.rename(ASIDE, segment_name(number))
    files.sync_directory()
    for segment in damaged.segments:
        unlink(files, segment.name)
    report = [*damaged.lost, *filter(None, [damaged.report])]
    report.append(f"{last - first + 1} frames were saved; the damaged files are kept as {', '.join(kept)}")
    return Segment(number, segment_name(number), size + len(data)), last + 1, "\n".join(report)


def _keep(files: Files, name: str) -> str:
    """Give a file a second name, which nothing here will remove."""
    taken = files.names()
    kept = f"{name}.damaged"
    count = 1
    while kept in taken:
        count += 1
        kept = f"{name}.damaged-{count}"
    files.link(name, kept)
    return kept
