"""The file operations that a journal needs: a protocol, so that tests can let each of them fail, and the real ones.

Names are file names in one directory, descriptors are the operating system's. Every operation raises OSError. Syncs and
``unlink`` are also called by the journal's second thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from ..checked import open_file

log = logging.getLogger("state_manager")

Buffer = bytes | memoryview


class Files(Protocol):
    path: Path
    """The directory, for messages."""

    def names(self) -> list[str]: ...

    def open(self, name: str, *, create: bool = False, write: bool = True) -> int:
        """Open a file; ``create``: one that must not exist yet."""

    def close(self, fd: int) -> None: ...

    def size(self, fd: int) -> int: ...

    def read(self, fd: int, size: int, offset: int) -> bytes: ...

    def write(self, fd: int, data: Buffer, offset: int) -> int:
        """Return how many bytes were written, which may be fewer."""

    def truncate(self, fd: int, size: int) -> None: ...

    def sync(self, fd: int) -> None:
        """Return when the file's bytes and its length are on disk."""

    def sync_directory(self) -> None:
        """Return when the directory's names are on disk."""

    def rename(self, old: str, new: str) -> None: ...

    def link(self, old: str, new: str) -> None: ...

    def unlink(self, name: str) -> None: ...

    def free(self) -> int:
        """Return the bytes that the file system has left for this user."""


class DirectoryFiles:
    """The files of an open, checked directory. Links are never followed, and files are this user's alone."""

    def __init__(self, directory: int, path: Path) -> None:
        self._directory = directory
        self.path = path

    def names(self) -> list[str]:
        return os.listdir(self._directory)

    def open(self, name: str, *, create: bool = False, write: bool = True) -> int:
        flags = os.O_RDWR if write else os.O_RDONLY
        return open_file(self._directory, self.path / name, flags | (os.O_CREAT | os.O_EXCL if create else 0))

    close = staticmethod(os.close)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    read = staticmethod(os.pread)
    write: Callable[[int, Buffer, int], int] = staticmethod(os.pwrite)
    truncate = staticmethod(os.ftruncate)

    def sync(self, fd: int) -> None:
        _sync(fd)

    def sync_directory(self) -> None:
        os.fsync(self._directory)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def link(self, old: str, new: str) -> None:
        os.link(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._directory)

    def free(self) -> int:
        found = os.fstatvfs(self._directory)
        return found.f_bavail * found.f_frsize


FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room."""


def write_all(files: Files, fd: int, data: Buffer, offset: int) -> None:
    """Write all of the data, or raise OSError with the reason."""
    left = memoryview(data)
    while left:
        written = files.write(fd, left, offset)
        if written <= 0:
            raise OSError(errno.EIO, "the system wrote nothing and said nothing")
        left, offset = left[written:], offset + written


def unlink(files: Files, name: str) -> None:
    """Remove a file that does not count any more; one that stays is removed by the next start."""
    try:
        files.unlink(name)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot remove %s, which is not needed any more: %s", files.path / name, error)


def _sync(fd: int) -> None:
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync leaves it in the drive's cache
    if full_sync is None:
        os.fdatasync(fd)
        return
    try:
        fcntl.fcntl(fd, full_sync)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):
            raise
        os.fsync(fd)  # a file system that has none
