"""Copies a running manager's journal into one file, while writes go on and wait for nothing.

The manager says which files, and how much of each, hold the state of this moment, and keeps them until they are open
here; what is open can be read to its end, whatever becomes of its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from . import archive
from .archive import Progress, Source
from .caller import Asker
from .checked import open_file, refusing
from .directory import StateDirectory
from .errors import StateError


def back_up(caller: Asker, directory: Path, path: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Write a backup and return its absolute path. A backup that is there is replaced, any other file is refused.

    Raises StateError if the manager keeps no journal, OSError if the file cannot be written; then there is no new file.
    """
    target = Path(os.path.abspath(path))
    _check_replaceable(target)
    with contextlib.ExitStack() as stack:
        sources = _pinned(caller, directory, stack)
        with whole_file(target) as file:
            archive.write(file, directory, sources, progress or (lambda done, total: None))
    return target


def _check_replaceable(target: Path) -> None:
    """Refuse to replace what is not a backup: a mistyped name must not cost a file."""
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "this is a directory; name a file in it", str(target))
    with os.fdopen(descriptor, "rb") as file:
        if file.read(len(archive.BEGINNING)) != archive.BEGINNING:
            raise FileExistsError(
                errno.EEXIST, "this file exists and is not a backup; choose another name", str(target)
            )


def _pinned(caller: Asker, directory: Path, stack: contextlib.ExitStack) -> list[Source]:
    """Return the journal's files, open until the stack ends."""
    try:
        token, *files = caller.call("manager", "pin", (), False)
    except ValueError:  # an unknown command
        raise StateError(
            f"the manager of {directory} keeps no journal (--durability none), so there is nothing to back up; "
            "`state-manager export` writes what it holds as JSON lines"
        ) from None
    try:
        with contextlib.closing(StateDirectory.open(directory, create=False)) as state:
            sources = []
            for name, size in zip(files[::2], files[1::2], strict=True):
                with refusing(state.path / name):
                    descriptor = open_file(state.fd, state.path / name, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                sources.append(Source(name, descriptor, size))
            return sources
    finally:
        with contextlib.suppress(StateError):  # a manager that has ended has let them go
            caller.call("manager", "unpin", (token,), False)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Give a file that gets its name, and takes that of another one, only when all of it is on disk. Its mode is 0600.

    Raises OSError; after an exception, the caller's included, nothing is left of it.
    """
    aside = target.parent / f".state-manager-{secrets.token_hex(8)}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.rename(aside, target)
    except BaseException:
        os.unlink(aside)
        raise
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
