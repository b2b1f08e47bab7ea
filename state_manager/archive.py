"""The container of a backup: one tar, which any tar can list and unpack.

    state-manager.backup     what it is, as JSON; it comes first, so the file begins with this name
    journal.00000001 ...     the journal's files, up to the end of a tick
    SHA256SUMS               their checksums, as sha256sum writes them; it comes last, so a whole file has it

Rules: nothing is unpacked to be read, and nothing is believed before every checksum was compared.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

from .errors import StateError
from .settings import VERSION

FORMAT: Final = 1
ABOUT: Final = "state-manager.backup"
SUMS: Final = "SHA256SUMS"
BEGINNING: Final = ABOUT.encode() + b"\0"
"""What the file of a backup begins with."""
CHUNK: Final = 2**20

Progress: TypeAlias = Callable[[int, int], object]
"""``progress(bytes done, bytes in all)``"""


class Source(NamedTuple):
    """The first ``size`` bytes of an open file."""

    name: str
    descriptor: int
    size: int


def write(target: BinaryIO, directory: Path, sources: Sequence[Source], progress: Progress) -> None:
    """Write a backup of these files. Raises OSError."""
    about = {"format": FORMAT, "version": VERSION, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    done, total = 0, sum(source.size for source in sources)
    sums = ""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add_text(tar, ABOUT, json.dumps(about | {"directory": str(directory)}) + "\n")
        for source in sources:
            reader = _Reader(source, progress, done, total)
            tar.addfile(_member(source.name, source.size), reader)  # type: ignore[arg-type]  # it only reads
            sums += f"{reader.digest.hexdigest()}  {source.name}\n"
            done += source.size
        _add_text(tar, SUMS, sums)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    return member


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    tar.addfile(_member(name, len(data)), io.BytesIO(data))


class _Reader:
    """What tarfile copies from: it counts and digests what it gives."""

    def __init__(self, source: Source, progress: Progress, before: int, total: int) -> None:
        self._source = source
        self._progress = progress
        self._before = before
        self._total = total
        self._offset = 0
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = os.pread(self._source.descriptor, size, self._offset)
        self._offset += len(data)
        self.digest.update(data)
        self._progress(self._before + self._offset, self._total)
        return data


class Archive:
    """A backup that is whole. It can be read like a directory of a journal's files (``journal.files.Files``)."""

    def __init__(self, path: Path, progress: Progress) -> None:
        """Open a backup and compare all of it with its checksums. Raises StateError, naming the file, and OSError."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.about = self._read_about()
            self._members = self._read_members()
            self._verify(progress)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def _read_about(self) -> dict[str, Any]:
        if os.pread(self._descriptor, len(BEGINNING), 0) != BEGINNING:
            raise StateError(f"{self.path} is not a backup: `state-manager backup FILE` makes one")
        try:
            about = json.loads(os.pread(self._descriptor, tarfile.BLOCKSIZE, tarfile.BLOCKSIZE).split(b"\n")[0])
            number = about["format"]
        except (ValueError, TypeError, KeyError):
            raise self._damaged("what it says of itself cannot be read") from None
        if number != FORMAT:
            raise StateError(
                f"{self.path} is a backup of format {number}, made by version {about.get('version')}, and this version "
                f"({VERSION}) reads format {FORMAT}: restore it with that one"
            )
        found: dict[str, Any] = about
        return found

    def _read_members(self) -> list[tarfile.TarInfo]:
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                file.seek(0)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    members = tar.getmembers()
        except tarfile.TarError as error:
            raise self._damaged(str(error)) from None
        names = [member.name for member in members]
        if names[-1] != SUMS or len(set(names)) < len(names) or not all(member.isreg() for member in members):
            raise self._damaged("it is cut off, or a part of it is not what it should be")
        return members[1:]

    def _verify(self, progress: Progress) -> None:
        *members, sums = self._members
        text = self.read(len(members), sums.size, 0).decode(errors="replace")
        wanted = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
        if wanted.keys() != {member.name for member in members}:
            raise self._damaged("its checksums are not those of its files")
        done, total = 0, sum(member.size for member in members)
        for index, member in enumerate(members):
            digest = hashlib.sha256()
            for offset in range(0, member.size, CHUNK):
                data = self.read(index, CHUNK, offset)
                digest.update(data)
                done += len(data)
                progress(done, total)
            if digest.hexdigest() != wanted[member.name]:
                raise self._damaged(f"{member.name} in it does not have the checksum that it was written with")

    def _damaged(self, how: str) -> StateError:
        return StateError(f"the backup {self.path} is damaged: {how}; take another one, nothing was changed")

    # What reading a journal needs; a descriptor is an index.

    def names(self) -> list[str]:
        return [member.name for member in self._members]

    def open(self, name: str, *, create: bool = False, write: bool = False) -> int:
        return self.names().index(name)

    def close(self, fd: int) -> None:
        """There is one file, which stays open."""

    def size(self, fd: int) -> int:
        return self._members[fd].size

    def read(self, fd: int, size: int, offset: int) -> bytes:
        member = self._members[fd]
        return os.pread(self._descriptor, min(size, max(member.size - offset, 0)), member.offset_data + offset)
