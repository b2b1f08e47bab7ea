"""The container of a backup: what is not exactly what was written is refused, by the name of the file."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from state_manager.archive import ABOUT, BEGINNING, FORMAT, SUMS, Archive, Source, write
from state_manager.errors import StateError

FILES = {"journal.00000001": b"one" * 300, "journal.00000002": b"", "journal.00000003": b"\0" * 512}


def silent(done: int, total: int) -> None: ...


def read(path: Path) -> dict[str, bytes]:
    with Archive(path, silent) as archive:
        return {name: archive.read(index, 2**20, 0) for index, name in enumerate(archive.names()) if name != SUMS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A backup of FILES, each of which goes on behind the part that counts."""
    sources = []
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data + b"later")
        sources.append(Source(name, os.open(tmp_path / name, os.O_RDONLY), len(data)))
    path = tmp_path / "backup"
    with path.open("wb") as file:
        write(file, tmp_path, sources, silent)
    for source in sources:
        os.close(source.descriptor)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    assert read(path) == FILES
    with Archive(path, silent) as archive:
        assert archive.about["format"] == FORMAT
        fd = archive.open("journal.00000001")
        assert (archive.size(fd), archive.read(fd, 4, 1)) == (900, b"neon")
        assert archive.read(fd, 100, 899) == b"e"
        assert archive.read(fd, 100, 1000) == b""


def test_any_tar_can_read_it(path: Path) -> None:
    with tarfile.open(path) as tar:
        assert tar.getnames() == [ABOUT, *FILES, SUMS]
        assert {member.mode for member in tar} == {0o600}


def test_progress_is_told(path: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with Archive(path, lambda done, total: told.append((done, total))):
        pass
    assert told[-1] == (1412, 1412)


def test_a_cut_backup_is_refused_wherever_it_is_cut(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut"
    whole = len(data.rstrip(b"\0"))
    for size in [*range(0, whole, 13), whole - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(StateError, match=f"{cut} is (not a backup|damaged)"):
            read(cut)


def test_a_changed_byte_is_noticed_or_does_not_matter(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    changed = tmp_path / "changed"
    for offset in range(0, len(data), 7):
        changed.write_bytes(data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        with contextlib.suppress(StateError):
            assert read(changed) == FILES, offset
    for needle, name in ((b"oneone", "journal.00000001"), (b"  journal.00000003", "checksum")):
        changed.write_bytes(data.replace(needle, needle[:-1] + b"!", 1))
        with pytest.raises(StateError, match=f"{changed} is damaged.*{name}"):
            read(changed)


def test_another_format_is_refused_by_its_number(path: Path) -> None:
    data = path.read_bytes()
    assert data.startswith(BEGINNING)
    path.write_bytes(data.replace(b'"format": 1', b'"format": 7', 1))
    with pytest.raises(StateError, match=f"{path} is a backup of format 7"):
        read(path)


@pytest.mark.parametrize("data", [b"", b"hello", json.dumps({"format": FORMAT}).encode()])
def test_another_file_is_no_backup(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(StateError, match=f"{tmp_path / 'x'} is not a backup"):
        read(tmp_path / "x")
