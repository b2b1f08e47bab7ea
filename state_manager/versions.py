"""The page: the version of every slot, written by the manager and mapped read-only by every worker.

The idea: a worker uses its cached copy only while the page shows the version that came with it. So whatever makes the
manager doubt (a start, a lost file, a stolen directory) it answers by poisoning: the page then shows what no copy has.

The rules:
- A version is read and written as one aligned 64-bit word: a memoryview's item access copies its 8 bytes at once.
- A page is written out in full, because a hole in it on a full tmpfs kills whoever touches it (SIGBUS), then renamed
  into place, and never cut.
- Each manager makes a page of its own, after it has poisoned its predecessor's. A page therefore outlives its manager
  under its name: workers go on reading it, and the next manager must find it.
- A file that a reader would not take (a link, another user's, of another size) need not be poisoned, and never is.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import stat
import struct
import time
from array import array
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from state_manager.checked import refusing
from state_manager.errors import StateError
from state_manager.settings import SLOTS

SHARED_MEMORY = Path("/dev/shm")
"""Where pages live if it is a tmpfs. On a disk a page's writer stalls under write-back."""
FILE: Final = "versions"
"""The page's name in the state directory, where it lives otherwise."""
POISON: Final = 2**64 - 1
"""What no version ever is. Read as a double it is a NaN, which equals nothing."""

logger = logging.getLogger("state_manager")

_MAGIC: Final = b"state-versions 1"  # the number is the format's
_HEADER: Final = struct.Struct("=16s16sdH")  # magic, boot, offset, length of the directory's path, which comes next
_START: Final = 4096
_SIZE: Final = _START + 8 * SLOTS
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: opening a FIFO must not hang
_STALE: Final = 60.0
"""Seconds after which an unfinished page is one whose writer was killed: writing one takes milliseconds."""
_SWEEP_LIMIT: Final = 1000

_NUMBER: Final = struct.Struct("Q")
_WORD: Final = struct.Struct("d")


# A reader takes the 64 bits of a version for a double, which CPython reads and compares much quicker than an int of 64
# bits. Equal doubles are equal versions: different bits are different numbers but for 0.0 and -0.0 (the first versions
# of epochs 0 and 2**31) and, in a process where a library lets the processor take denormals for zero, the other
# versions of epochs below 2**20 and of 2**31 up to 2**31 + 2**20. A NaN (epochs 0x7FF00000 to 0x7FFFFFFF, and from
# 0xFFF00000 on) equals nothing, itself included: a miss, never a wrong hit.


def readable_epoch(epoch: int) -> int:
    """Return the next epoch, from this one on, whose versions are all different as doubles, and numbers.

    They begin in 1970 (a machine whose clock was never set) and leave out the first weeks of 2038.
    """
    epoch = max(epoch, 0x00100000)
    return 0x80100000 if 0x7FF00000 <= epoch < 0x80100000 else epoch


def word_of(version: int) -> float:
    """Return the double that has this version's bits."""
    word: float = _WORD.unpack(_NUMBER.pack(version))[0]
    return word


def number_of(version: float) -> int:
    """Return the version whose bits this double has."""
    number: int = _NUMBER.unpack(_WORD.pack(version))[0]
    return number


class PageWriter:
    """The manager's side of its page. ``path`` is where workers find it."""

    def __init__(self, path: str, mapping: mmap.mmap, identity: tuple[int, int]) -> None:
        self.path = path
        self._mapping = mapping
        self._words = memoryview(mapping)[_START:].cast("Q")
        self._identity = identity

    @classmethod
    def create(cls, directory: Path, fd: int, boot: bytes, offset: float, versions: array[int]) -> PageWriter | None:
        """Poison the page that this directory has now and put a new one in its place; None if no place can hold it.

        ``fd`` is the open ``directory``, ``boot`` 16 bytes that no other manager's life has, and ``offset`` what the
        manager's clock adds to the boot-time clock. Raises StateError if a predecessor's page cannot be poisoned.
        """
        real = os.fsencode(directory)
        header = _HEADER.pack(_MAGIC, boot, offset, len(real)) + real
        data = header[:_START].ljust(_START, b"\0") + versions.tobytes()
        shared = str(SHARED_MEMORY / _name_of(os.fstat(fd)))
        for name in (shared, FILE):  # an absolute name goes past the descriptor
            _retire(name, fd)
        places = [(FILE, f".{FILE}")]
        if _is_tmpfs(SHARED_MEMORY):
            places.insert(0, (shared, f"{shared}.{secrets.token_hex(8)}"))
        for name, aside in places:
            path = os.path.join(directory, name)
            try:
                return cls(path, *_put(name, aside, fd, data))
            except OSError as error:
                logger.warning("%s cannot hold the versions: %s", path, error.strerror)
        logger.warning("workers of %s will cache nothing", directory)
        return None

    def publish(self, versions: array[int], slots: Iterable[int]) -> None:
        """Show the versions of these slots."""
        words = self._words
        for slot in slots:
            words[slot] = versions[slot]

    def publish_all(self, versions: array[int]) -> None:
        """Show all versions.

        A copy of so many bytes need not move whole words, and bytes of two versions could make an older one. With the
        poison, all ones, in between, they make one above the version before, or above the one to come: nobody has it.
        """
        self.poison()
        self._words[:] = versions

    def poison(self) -> None:
        """Let no copy be used until its version is published again. A page that has lost its name is reached, too."""
        self._mapping[_START:] = _poison()

    def still_there(self) -> bool:
        """Whether ``path`` still leads to this page."""
        return _leads_to(self.path, self._identity)

    def close(self) -> None:
        """Unmap the page; it stays where it is, as it is."""
        self._words.release()
        self._mapping.close()


class Page:
    """A worker's side of a page. ``words`` are its versions as doubles; the page is unmapped with the last of them.

    ``lasting``: the next manager finds it whatever becomes of the directory, so nobody needs to look whether it has.
    """

    def __init__(
        self, path: str, boot: bytes, offset: float, words: memoryview[float], identity: tuple[int, int]
    ) -> None:
        self.path = path
        self.boot = boot
        self.offset = offset
        self.words = words
        self.lasting = os.path.dirname(path) == str(SHARED_MEMORY)
        self._identity = identity

    @classmethod
    def open(cls, path: str) -> Page | None:
        """Map the page at ``path``; None if what is there is not one of this user's."""
        try:
            fd = os.open(path, os.O_RDONLY | _FLAGS)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            if not _is_page(found):
                return None
            mapping = mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError:
            return None
        finally:
            os.close(fd)
        magic, boot, offset, _ = _HEADER.unpack_from(mapping)
        if magic != _MAGIC:
            return None
        return cls(path, boot, offset, memoryview(mapping)[_START:].cast("d"), (found.st_dev, found.st_ino))

    def still_there(self) -> bool:
        """Whether ``path`` still leads to this page."""
        return _leads_to(self.path, self._identity)


def sweep() -> None:
    """Remove the pages in shared memory whose directory has gone or was moved, and those that were never finished."""
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(SHARED_MEMORY) if name.startswith(_prefix())]
        for name in islice(names, _SWEEP_LIMIT):
            with contextlib.suppress(OSError, StateError):
                _sweep(str(SHARED_MEMORY / name))


def _sweep(path: str) -> None:
    if "." in os.path.basename(path):
        if time.time() - os.lstat(path).st_mtime > _STALE:
            os.unlink(path)
    elif _is_orphan(path):
        _retire(path)


def _is_orphan(path: str) -> bool:
    """Whether this is a page whose directory has gone, or was made anew: nobody else would find it."""
    fd = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        header = os.read(fd, _START)
    finally:
        os.close(fd)
    if len(header) < _START:
        return False
    magic, _, _, length = _HEADER.unpack_from(header)
    directory = header[_HEADER.size :][:length]
    if magic != _MAGIC or len(directory) < length:  # of another format, or its path did not fit
        return False
    try:
        return _name_of(os.stat(directory)) != os.path.basename(path)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _name_of(directory: os.stat_result) -> str:
    """Return the name of a directory's page: by what it is, because it may have several paths."""
    return f"{_prefix()}{directory.st_dev:x}-{directory.st_ino:x}"


def _prefix() -> str:
    return f"state-manager-{os.geteuid()}-"


def _is_tmpfs(path: Path) -> bool:
    """Whether a path is on a tmpfs; False where there is no Linux to tell."""
    try:
        device = os.stat(path).st_dev
        number = b"%d:%d" % (os.major(device), os.minor(device))
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                mount, _, source = line.partition(b" - ")
                if mount.split()[2] == number:
                    return source.startswith(b"tmpfs ")
    except OSError:
        pass
    return False


def _is_page(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_size == _SIZE


def _poison() -> bytes:
    return b"\xff" * (_SIZE - _START)


def _put(name: str, aside: str, folder: int, data: bytes) -> tuple[mmap.mmap, tuple[int, int]]:
    """Make a file with this content, all or nothing; return its mapping, and its device and inode. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside, dir_fd=folder)  # a predecessor was killed while it wrote
    fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=folder)
    try:
        os.fchmod(fd, 0o600)  # whatever the umask: the next manager must be able to poison it
        _write(fd, data, 0)
        mapping = mmap.mmap(fd, len(data), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
        found = os.fstat(fd)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    return mapping, (found.st_dev, found.st_ino)


def _retire(name: str, folder: int | None = None) -> None:
    """Poison a page for those who map it and remove it; nothing happens to what no reader would take for one.

    It is written to, not mapped: that reaches the mappings as well, and a disk that refuses says so. Raises StateError.
    """
    try:
        if not _is_page(os.stat(name, dir_fd=folder, follow_symlinks=False)):
            return
    except OSError:
        return
    with refusing(Path(name)):
        fd = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=folder)
        try:
            _write(fd, _poison(), _START)
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):  # makes room for the new one; without it, that replaces it
        os.unlink(name, dir_fd=folder)


def _write(fd: int, data: bytes, offset: int) -> None:
    """Write all of it; a full disk is an OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def _leads_to(path: str, identity: tuple[int, int]) -> bool:
    """Whether a path leads to the file with this device and inode, which is mapped, so no other file can have them."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity
