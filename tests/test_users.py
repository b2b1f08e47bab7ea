"""Acting as another user. Most of it needs root, because only root can become somebody else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from state_manager import users
from state_manager.errors import StateError

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_it_is_a_plain_call_for_the_user_that_we_are() -> None:
    assert users.run_as(os.geteuid(), os.getegid(), os.getpid) == os.getpid()


@needs_root
def test_the_child_is_that_user_in_every_respect() -> None:
    def everything() -> int:
        assert os.getresuid() == (NOBODY, NOBODY, NOBODY)
        assert os.getresgid() == (NOBODY, NOBODY, NOBODY)
        assert 0 not in os.getgroups()
        return os.getpid()

    assert users.run_as(NOBODY, NOBODY, everything) not in (0, os.getpid())
    assert os.geteuid() == 0


@needs_root
def test_a_uid_without_a_name_will_do() -> None:
    assert users.run_as(54321, 54322, lambda: os.geteuid() * 100000 + os.getegid()) == 5432154322


def refuse(error: Exception) -> int:
    raise error


@needs_root
def test_errors_come_back() -> None:
    with pytest.raises(StateError, match="the state is on fire"):
        users.run_as(NOBODY, NOBODY, lambda: refuse(StateError("the state is on fire")))
    with pytest.raises(StateError, match="a mistake"):
        users.run_as(NOBODY, NOBODY, lambda: refuse(RuntimeError("a mistake")))
    with pytest.raises(StateError, match="Permission denied"):
        users.run_as(NOBODY, NOBODY, lambda: os.open("/etc/shadow", os.O_RDONLY))


@needs_root
def test_a_missing_directory_is_made_for_the_user(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state"
    users.make_directory_for(NOBODY, NOBODY, path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o700)
    os.chown(path, 0, 0)
    users.make_directory_for(NOBODY, NOBODY, path)
    assert path.stat().st_uid == 0  # one that was there is not given away


def test_nothing_is_made_for_oneself(tmp_path: Path) -> None:
    users.make_directory_for(os.geteuid(), os.getegid(), tmp_path / "state")
    assert not (tmp_path / "state").exists()


@needs_root
def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=f"cannot make {tmp_path}/file/state for uid {NOBODY}"):
        users.make_directory_for(NOBODY, NOBODY, tmp_path / "file" / "state")
