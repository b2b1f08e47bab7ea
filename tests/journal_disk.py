"""A disk in memory for the journal's tests, which can be full, fail, end the process at any call, and lose power.

``Disk`` is a ``Files``. What was written and not synced is with the kernel: it survives ``kill``, and any part of it
may be missing after ``lose_power``.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from state_manager.journal import Journal, Reading
from state_manager.journal.log import Mode
from state_manager.journal.syncing import Syncer
from state_manager.store import Change, Store

SECTOR = 32
"""Bytes that reach the disk together, or not at all. Small, so that frames are torn."""


LARGE = 2**16
"""Bytes from which a file, which is then the reserve, is there as a whole or not."""


class Killed(BaseException):
    """The process ends here."""


class Inode:
    def __init__(self) -> None:
        self.data = b""
        self.synced = b""


class Disk:
    """``calls`` names every operation that changes something. ``hook`` is called before each, and may raise."""

    def __init__(self) -> None:
        self.path = Path("/disk")
        self.names_: dict[str, Inode] = {}
        self.synced_names: dict[str, Inode] = {}
        self.open_files: dict[int, Inode] = {}
        self.calls: list[str] = []
        self.hook: Callable[[str], None] = lambda call: None
        self.room: int | None = None
        self._next_descriptor = 100

    # Files

    def names(self) -> list[str]:
        return list(self.names_)

    def open(self, name: str, *, create: bool = False, write: bool = True) -> int:
        if create:
            self._call("create", name)
            if name in self.names_:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            self.names_[name] = Inode()
        elif name not in self.names_:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._next_descriptor += 1
        self.open_files[self._next_descriptor] = self.names_[name]
        return self._next_descriptor

    def close(self, fd: int) -> None:
        del self.open_files[fd]

    def size(self, fd: int) -> int:
        return len(self.open_files[fd].data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return self.open_files[fd].data[offset : offset + size]

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        inode = self.open_files[fd]
        try:
            self._call("write", self.name_of(inode))
        except Killed:
            self._put(inode, bytes(data[: len(data) // 2]), offset)
            raise
        free = self.free() + max(0, len(inode.data) - offset)
        if free <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._put(inode, bytes(data[:free]), offset)
        return min(len(data), free)

    def truncate(self, fd: int, size: int) -> None:
        inode = self.open_files[fd]
        self._call("truncate", self.name_of(inode))
        inode.data = inode.data[:size]

    def sync(self, fd: int) -> None:
        inode = self.open_files[fd]
        self._call("sync", self.name_of(inode))
        inode.synced = inode.data

    def sync_directory(self) -> None:
        self._call("sync", "the directory")
        self.synced_names = dict(self.names_)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", old)
        self.names_[new] = self.names_.pop(old)

    def link(self, old: str, new: str) -> None:
        self._call("link", old)
        self.names_[new] = self.names_[old]

    def unlink(self, name: str) -> None:
        if name not in self.names_:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._call("unlink", name)
        del self.names_[name]

    def free(self) -> int:
        if self.room is None:
            return 2**40
        return self.room - sum(len(inode.data) for inode in {*self.names_.values(), *self.open_files.values()})

    # What tests do to it

    def fail(self, call: str, code: int = errno.EIO, *, times: int = 10**9) -> None:
        """Let operations whose description begins with ``call`` fail, the next so many times."""
        left = times

        def hook(found: str) -> None:
            nonlocal left
            if found.startswith(call) and left > 0:
                left -= 1
                raise OSError(code, os.strerror(code))

        self.hook = hook

    def works(self) -> None:
        self.hook = lambda call: None
        self.room = None

    def kill_at(self, point: int) -> None:
        """Let the process end at this operation from now; every later one fails too, as the process is gone."""
        left = point

        def hook(call: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed(call)

        self.hook = hook

    def kill(self) -> Disk:
        """Return the disk as the next process finds it; what was not synced still is not."""
        after = Disk()
        inodes = {*self.names_.values(), *self.synced_names.values()}
        copies = {inode: _inode(inode.data, inode.synced) for inode in inodes}
        after.names_ = {name: copies[inode] for name, inode in self.names_.items()}
        after.synced_names = {name: copies[inode] for name, inode in self.synced_names.items()}
        return after

    def lose_power(self, chance: random.Random) -> Disk:
        """Return the disk with an arbitrary part of what was not synced."""
        after = Disk()
        for name in sorted(self.names_.keys() | self.synced_names.keys()):
            inode = chance.choice([self.names_.get(name), self.synced_names.get(name)])
            if inode is not None:
                data = _torn(inode, chance) if len(inode.data) < LARGE else chance.choice([inode.data, inode.synced])
                after.names_[name] = _inode(data, data)
        after.synced_names = dict(after.names_)
        return after

    def name_of(self, inode: Inode) -> str:
        return next((name for name, found in self.names_.items() if found is inode), "an unlinked file")

    def data(self, name: str) -> bytes:
        return self.names_[name].data

    def replace(self, name: str, data: bytes) -> None:
        """Put a file there, as it is on disk."""
        self.names_[name] = self.synced_names[name] = _inode(data, data)

    def contents(self) -> dict[str, bytes]:
        return {name: inode.data for name, inode in self.names_.items()}

    def segments(self) -> list[str]:
        return sorted(name for name in self.names_ if name[8:].isdigit())

    def _call(self, call: str, name: str) -> None:
        self.hook(f"{call} {name}")
        self.calls.append(f"{call} {name}")

    @staticmethod
    def _put(inode: Inode, data: bytes, offset: int) -> None:
        before = inode.data.ljust(offset, b"\0")
        inode.data = before[:offset] + data + before[offset + len(data) :]


def _inode(data: bytes, synced: bytes) -> Inode:
    inode = Inode()
    inode.data, inode.synced = data, synced
    return inode


def _torn(inode: Inode, chance: random.Random) -> bytes:
    """Return the synced bytes, with any of the sectors that were written since, up to any length between the two."""
    size = chance.randint(*sorted((len(inode.synced), len(inode.data))))
    old, new = inode.synced.ljust(size, b"\0"), inode.data.ljust(size, b"\0")
    keep = chance.random()
    sectors = range(0, size, SECTOR)
    return b"".join((new if chance.random() < keep else old)[at : at + SECTOR] for at in sectors)[:size]


class ManualSyncer(Syncer):
    """The second thread's work, done when a test says so."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        while not self._jobs.empty():
            self.step(0)

    def work(self) -> None:
        """Do all that was asked for, and sync."""
        self.stop()
        self.step(0)


def start(disk: Disk, mode: Mode = "process", *, recover: bool = False) -> tuple[Journal, Store]:
    """Return a journal that has been replayed, and what it holds."""
    journal = Journal(disk, mode=mode, recover=recover)
    journal._syncer = ManualSyncer(disk, journal._syncer._position)
    store = Store()
    for frame in journal.replay():
        store.apply(frame.changes)
    store.check()
    return journal, store


def work(journal: Journal) -> None:
    assert isinstance(journal._syncer, ManualSyncer)
    journal._syncer.work()


def entries(store: Store) -> dict[str, dict[Any, Any]]:
    return {space.name: dict(space.entries) for space in store.spaces.values()}


def read(disk: Disk) -> dict[str, dict[Any, Any]]:
    """Return what a start would find, changing nothing."""
    store = Store()
    for frame in Reading(disk):
        store.apply(frame.changes)
    return entries(store)


def after(*ticks: Iterable[Change]) -> dict[str, dict[Any, Any]]:
    store = Store()
    for changes in ticks:
        store.apply(changes)
    return entries(store)
