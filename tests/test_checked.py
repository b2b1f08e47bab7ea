"""What ``checked`` refuses, and that every refusal names the path and the way out.

Root may do anything, so what depends on rights runs in a forked child, which gives up root first.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state_manager import checked
from state_manager.directory import StateDirectory
from state_manager.errors import StateError

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that belongs to the child's user; not ``tmp_path``, whose parents are closed to it."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    yield path
    for each in (path, *path.iterdir()):
        each.chmod(0o700)
    shutil.rmtree(path)


def refused(function: Callable[[], object]) -> str:
    """Call the function in a child without root's rights; return the text of the StateError that it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "it was not refused"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            function()
        except StateError as error:
            text = str(error)
        except BaseException as error:
            text = f"it raised {error!r}"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def ignore_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file look as it does on a file system that knows no modes."""
    fstat = os.fstat

    def loose(fd: int) -> os.stat_result:
        found = fstat(fd)
        return os.stat_result((found.st_mode | 0o055, *found[1:]))

    monkeypatch.setattr(os, "fstat", loose)


def test_a_directory_is_made_with_its_parents_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    before = os.umask(0o277)  # takes away what the owner needs, too
    try:
        path.parent.mkdir(0o700)
        path.parent.chmod(0o700)
        assert checked.make_directory(path)
        fd = checked.open_directory(path, made=True)
    finally:
        os.umask(before)
    os.close(fd)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert not checked.make_directory(path)


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    directory = checked.open_directory(tmp_path)
    file = checked.open_file(directory, tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert not os.get_inheritable(directory)
        assert not os.get_inheritable(file)
        assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
    finally:
        os.close(file)
        os.close(directory)


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("a report")
    with pytest.raises(StateError, match=f"{path} is not a directory; choose another directory with --dir"):
        StateDirectory.open(path, create=True)
    assert path.read_text() == "a report"


def test_a_file_in_place_of_a_parent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=f"{tmp_path}/file/state.*--dir"):
        StateDirectory.open(tmp_path / "file" / "state", create=True)
    with pytest.raises(StateError, match=f"{tmp_path}/file/state is not a directory"):
        StateDirectory.open(tmp_path / "file" / "state", create=False)


def test_a_name_that_is_too_long_for_any_file_system(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="x: File name too long; choose another directory"):
        StateDirectory.open(tmp_path / ("x" * 256), create=True)


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o755, 0o1777])
def test_a_directory_that_was_open_to_others_is_refused_and_left_alone(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "it's state"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(StateError) as caught:
        StateDirectory.open(path, create=True)
    assert f"(mode {mode:04o}); `chmod 700 '{tmp_path}/it'\"'\"'s state'`" in str(caught.value)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("chmod", ["is ignored", "fails"])
def test_a_file_system_that_ignores_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chmod: str) -> None:
    def fails(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "state"
    with monkeypatch.context() as patch:
        ignore_modes(patch)
        if chmod == "fails":
            patch.setattr(os, "fchmod", fails)
        with pytest.raises(StateError, match=f"the file system of {path} ignores modes.*--dir"):
            StateDirectory.open(path, create=True)
    assert not path.exists()


def test_a_mode_that_cannot_be_set_but_is_right_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", fails)  # a FAT mounted with umask=077
    StateDirectory.open(tmp_path / "state", create=True).close()


def test_another_users_directory(place: Path) -> None:
    path = place if os.geteuid() == 0 else Path("/")
    owner = path.stat().st_uid
    with pytest.raises(StateError, match=f"{path} belongs to uid {owner} and this process runs as uid {os.geteuid()}"):
        StateDirectory.open(path, create=False)


def test_another_users_directory_that_cannot_even_be_opened(place: Path) -> None:
    def attempt() -> None:
        (place / "state").mkdir(0o000)
        uid = os.geteuid()
        os.geteuid = lambda: uid + 1  # in the child only
        StateDirectory.open(place / "state", create=True)

    assert f"{place}/state belongs to uid " in refused(attempt)


def test_a_directory_that_its_owner_may_not_open(place: Path) -> None:
    def attempt() -> None:
        (place / "state").mkdir(0o000)
        StateDirectory.open(place / "state", create=True)

    assert f"cannot use {place}/state: Permission denied; give uid " in refused(attempt)


def test_a_directory_that_is_not_writable(place: Path) -> None:
    def attempt() -> None:
        (place / "state").mkdir(0o500)
        StateDirectory.open(place / "state", create=True)

    assert f"cannot use {place}/state: Permission denied; give uid " in refused(attempt)


def test_a_parent_that_is_not_writable(place: Path) -> None:
    place.chmod(0o500)
    text = refused(lambda: StateDirectory.open(place / "new" / "state", create=True))
    assert f"cannot use {place}/new/state: Permission denied; give uid " in text
    assert "--dir" in text


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    tmp_path.chmod(0o700)
    fd = checked.open_directory(tmp_path)
    yield fd
    os.close(fd)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(0o640)
    with pytest.raises(StateError, match=rf"{path} is open to other users \(mode 0640\); `chmod 600 {path}`"):
        checked.read_file(directory, path)


def test_another_users_file_is_refused(tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StateError, match=f"{path} belongs to uid {owner} and this process runs as uid {owner + 1}"):
        checked.read_file(directory, path)


def test_a_link_is_not_followed(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "key"
    (tmp_path / "elsewhere").touch(0o600)
    path.symlink_to("elsewhere")
    with pytest.raises(StateError, match=f"{path} is a symbolic link; `rm {path}`"):
        checked.read_file(directory, path)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "key"
    os.mkfifo(path, 0o600)
    with pytest.raises(StateError, match=f"{path} is not a plain file; `rm {path}`"):
        checked.read_file(directory, path)


def test_refusals_leave_no_descriptor_open(tmp_path: Path, directory: int) -> None:
    (tmp_path / "key").touch(0o644)
    (tmp_path / "key").chmod(0o644)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub").chmod(0o755)
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(StateError):
            checked.read_file(directory, tmp_path / "key")
        with pytest.raises(StateError):
            checked.open_directory(tmp_path / "sub")
    assert len(os.listdir("/dev/fd")) == before


def test_a_full_disk_is_named(tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, text: len(text) - 1)
    with (
        pytest.raises(StateError, match=f"{tmp_path}/new: No space left on device; choose another directory"),
        checked.refusing(tmp_path / "new"),
    ):
        checked.write_new_file(directory, tmp_path / "new", b"text")
