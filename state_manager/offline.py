"""What can be done with a journal while no manager runs: read it, and put a backup in its place.

Rules
- Reading changes no file.
- A backup is read to its end before anything is replaced. It becomes one new segment that is complete, so a single
  rename puts it in place: a crash before it leaves the old state, one after it the new one.
- The old files stay, under names that no manager reads or removes.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from .archive import Archive, Progress
from .checked import refusing
from .checks import COUNTERS, Key
from .clock import Clock
from .directory import StateDirectory, no_manager
from .errors import StateError
from .journal.files import DirectoryFiles, Files, unlink, write_all
from .journal.frames import COMPLETE, LIVE, Encoder, segment_header
from .journal.reading import NAME, Reading, segment_name
from .journal.recovery import ASIDE
from .policies import options_of
from .store import NEVER, Entry, Store

SUFFIX = ".before-restore"


class Restored(NamedTuple):
    entries: int
    kept: list[Path]
    """The former journal."""


def exported(directory: Path, progress: Progress) -> Iterator[tuple[str, Key, Any, float | None]]:
    """Yield space, key, stored value and ttl of all that a journal keeps in dicts and counters.

    Raises StateError if the journal is damaged, Unavailable if there is none.
    """
    with contextlib.closing(StateDirectory.open(directory, create=False)) as state:
        files = DirectoryFiles(state.fd, state.path)
        if not _segments(files):
            raise no_manager(state.path)
        store, reading = _read(files, progress)
    now = Clock(reading.now)()
    for name, space in sorted(store.spaces.items()):
        if name != COUNTERS and (name[0] == ":" or options_of(store, name).ephemeral):
            continue
        for key, entry in space.entries.items():
            if type(entry) is not Entry:
                yield name, key, entry, None
            elif entry.deadline > now:
                yield name, key, entry.value, None if entry.deadline == NEVER else entry.deadline - now


def restore(
    path: Path, directory: Path, progress: Progress, *, ready: Callable[[], object], patience: float
) -> Restored:
    """Let the next manager of the directory serve what is in the backup.

    ``ready`` is called when the backup was found to be good; then nobody may hold the manager's lock for longer than
    ``patience`` seconds. Raises StateError, and then nothing was replaced.
    """
    with Archive(path, progress) as archive:
        files = cast(Files, archive)  # it has what reading needs
        store, reading = _read(files, progress)
        if reading.report or not reading.segments:
            raise StateError(f"the backup is damaged: {reading.report or f'{path} holds no journal'}")
        ready()
        with contextlib.closing(StateDirectory.open(directory, create=True)) as state:
            lock = state.lock(patience)
            try:
                kept = _replace(DirectoryFiles(state.fd, state.path), files)
            finally:
                os.close(lock)
            return Restored(store.entries, [state.path / name for name in kept])


def _read(files: Files, progress: Progress) -> tuple[Store, Reading]:
    store, reading = Store(), Reading(files, progress=progress)
    gc.disable()  # it would look through all that was read, again and again, and find nothing
    try:
        for frame in reading:
            store.apply(frame.changes)
            store.changed.clear()  # nobody reads
    finally:
        gc.enable()
    return store, reading


def _segments(files: Files) -> dict[int, str]:
    with refusing(files.path):
        return {int(match[1]): name for name in files.names() if (match := NAME.fullmatch(name))}


def _replace(files: Files, source: Files) -> list[str]:
    """Put all frames of another journal in the place of this one; return the names under which its files stay."""
    former = _segments(files)
    number = max(former, default=1) + 1  # only the first segment of all need not be complete
    with refusing(files.path):
        unlink(files, ASIDE)
        descriptor = files.open(ASIDE, create=True)
        try:
            _copy(files, descriptor, number, source)
            kept = [_keep(files, name) for name in former.values()]
            files.sync_directory()
            files.rename(ASIDE, segment_name(number))
        except BaseException:
            unlink(files, ASIDE)
            raise
        finally:
            files.close(descriptor)
        files.sync_directory()
    for name in former.values():
        unlink(files, name)
    return kept


def _copy(files: Files, descriptor: int, number: int, source: Files) -> None:
    """Write one complete segment."""
    data = segment_header(number, 1)
    write_all(files, descriptor, data, 0)
    offset, last, encoder = len(data), 0, Encoder(number)
    reading = Reading(source)
    for frame in reading:
        data = encoder.encode(last + 1, frame.now, LIVE, 0, frame.changes, frame.lanes)
        write_all(files, descriptor, data, offset)
        offset, last = offset + len(data), last + 1
    write_all(files, descriptor, encoder.encode(last + 1, reading.now, COMPLETE, 0, (), ()), offset)
    files.sync(descriptor)


def _keep(files: Files, name: str) -> str:
    """Give a file a second name, and return it."""
    taken, kept, count = files.names(), name + SUFFIX, 1
    while kept in taken:
        count += 1
        kept = f"{name}{SUFFIX}-{count}"
    files.link(name, kept)
    return kept
