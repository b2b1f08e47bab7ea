"""Opens directories and files that nobody else may touch, or refuses them by name.

The idea: what was opened is checked, not what a path led to a moment ago. Directories are opened whole, files relative
to a directory's descriptor; no link is followed, and ``fstat`` says what it is, whose, and who else may use it.
Something with rights for others is refused, never repaired: nobody knows who has read it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from state_manager.errors import StateError

ELSEWHERE = "choose another directory with --dir or $STATE_MANAGER_DIR"
"""The way out of most refusals."""

_FILE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: opening a FIFO must not hang
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 4096


def make_directory(path: Path) -> bool:
    """Make the directory, closed to others whatever the umask, and its parents; False if it was there."""
    with refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(0o700)
        except FileExistsError:
            return False
    return True


def open_directory(path: Path, *, made: bool = False) -> int:
    """Return a descriptor of a directory that only this user can use; ``made``: this process has just made it.

    Raises FileNotFoundError if there is none, StateError if it is not safe.
    """
    try:
        fd = os.open(path, _DIRECTORY_FLAGS)
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise StateError(f"{path} is not a directory; {ELSEWHERE}") from None
    except OSError as error:
        with contextlib.suppress(OSError):
            _check(os.stat(path), path)  # another user's cannot be opened: say whose it is
        raise refusal(path, error) from error
    try:
        if made:
            with contextlib.suppress(OSError):  # what counts is what fstat says after it
                os.fchmod(fd, 0o700)
            if os.fstat(fd).st_mode & 0o077:
                raise StateError(f"the file system of {path} ignores modes, so others could read the key; {ELSEWHERE}")
        _check(os.fstat(fd), path)
    except StateError:
        os.close(fd)
        raise
    return fd


def open_file(directory: int, path: Path, flags: int) -> int:
    """Return a descriptor of the file ``path.name`` in ``directory``; one that is made here is this user's alone.

    ``path`` is for the messages. Raises OSError as ``os.open`` does, StateError if the file is not safe.
    """
    fd = os.open(path.name, flags | _FILE_FLAGS, 0o600, dir_fd=directory)
    try:
        _check(os.fstat(fd), path)
    except StateError:
        os.close(fd)
        raise
    return fd


def read_file(directory: int, path: Path) -> bytes | None:
    """Return the text of a small file without the white space around it, None if there is no such file."""
    with refusing(path):
        try:
            fd = open_file(directory, path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return os.read(fd, _SMALL).strip()
        finally:
            os.close(fd)


def write_new_file(directory: int, path: Path, text: bytes) -> None:
    """Make a small file that must not exist yet; it is on disk when this returns. Raises OSError."""
    fd = open_file(directory, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        if os.write(fd, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(found: os.stat_result, path: Path) -> None:
    directory = stat.S_ISDIR(found.st_mode)
    if not directory and not stat.S_ISREG(found.st_mode):
        raise StateError(f"{path} is not a plain file; `rm {quoted(path)}`")
    if found.st_uid != os.geteuid():
        raise StateError(
            f"{path} belongs to uid {found.st_uid} and this process runs as uid {os.geteuid()}; "
            f"run it as the owner, or {ELSEWHERE}"
        )
    if found.st_mode & 0o077:
        raise StateError(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"`chmod {'700' if directory else '600'} {quoted(path)}` "
            f"(if that changes nothing, its file system ignores modes: {ELSEWHERE})"
        )


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn an OSError into a StateError that names ``path`` and the way out."""
    try:
        yield
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> StateError:
    """Return the StateError for what the operating system said about ``path``."""
    if error.errno == errno.ELOOP:
        return StateError(f"{path} is a symbolic link; `rm {quoted(path)}`")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StateError(f"cannot use {path}: {error.strerror}; give uid {os.geteuid()} access, or {ELSEWHERE}")
    return StateError(f"cannot use {path}: {error.strerror}; {ELSEWHERE}")


def quoted(path: Path) -> str:
    """Return the path as a shell wants it."""
    return shlex.quote(str(path))
