"""The state directory: the only way to the files and the socket in it.

The idea: a directory of mode 0700 that belongs to this user keeps everybody else out. It is opened once, checked on the
open descriptor, and everything in it is reached through that descriptor.

The rules:
- ``path`` is the real path from the moment of opening. A directory that was removed and made again is another one.
- What must be whole (key, epoch) is written aside, synced, and then linked or renamed into place.
- Only the holder of the lock takes epochs, binds, or unlinks the socket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from state_manager.checked import (
    ELSEWHERE,
    make_directory,
    open_directory,
    open_file,
    quoted,
    read_file,
    refusal,
    refusing,
    write_new_file,
)
from state_manager.errors import AuthenticationFailed, StateError, Unavailable
from state_manager.versions import FILE, readable_epoch

SOCKET, KEY, LOCK, EPOCH, LOG, IGNORE = "socket", "key", "lock", "epoch", "manager.log", ".gitignore"
FILES = (SOCKET, KEY, LOCK, EPOCH, LOG, IGNORE, FILE)
"""Everything this package puts into the directory."""

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel's own limit is often lower."""
LOCK_PATIENCE = 1.0
"""Seconds to wait for the lock of a manager that is about to end."""
LOG_LIMIT = 2**20
"""Bytes of ``manager.log``; a longer one is put aside, as ``manager.log.1``, when the next manager starts."""
EPOCH_LIMIT = 2**32 - 1
"""An epoch is the high half of a 64-bit version."""

_PROC_DESCRIPTORS = "/proc/self/fd"
_NAME_LIMIT = 103
"""Bytes of a socket's name: 103 on macOS, 107 on Linux."""
_NO_SOCKETS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
_KEY_TEXT = re.compile(rb"[0-9a-f]{64}")
_RETRY = 0.01
"""Seconds between two tries at what the kernel cannot wait for."""


class NoDirectory(Unavailable, FileNotFoundError):
    """The directory does not exist, so no manager runs in it."""


def no_manager(path: Path) -> Unavailable:
    """Return the error of a client that finds nobody in ``path``."""
    return Unavailable(_nobody(path))


def _nobody(path: Path) -> str:
    return (
        f"no manager runs in {path}: start the app with `state-manager run` or `gunicorn -c "
        f"python:state_manager.gunicorn`, or a manager alone with `state-manager serve --dir {quoted(path)}`"
    )


class StateDirectory:
    """An open, checked state directory. ``fd`` is its descriptor, close-on-exec; a forked child may go on using it."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._identity = _identity(fd)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool) -> StateDirectory:
        """Open ``path``; with ``create``, make it and its parents if missing.

        Raises NoDirectory (an Unavailable and a FileNotFoundError) if it is missing, StateError if it is not safe.
        """
        real = Path(os.path.realpath(path))
        made = create and make_directory(real)
        try:
            directory = cls(real, open_directory(real, made=made))
        except FileNotFoundError:
            raise NoDirectory(_nobody(real)) from None
        except StateError:
            if made:
                real.rmdir()
            raise
        if create:
            directory._hide_from_git()
        return directory

    def __repr__(self) -> str:
        return f"<StateDirectory {self.path} {'closed' if self.fd < 0 else f'fd={self.fd}'}>"

    def close(self) -> None:
        """Close the descriptor; ``connect`` opens the directory again."""
        fd, self.fd = self.fd, -1
        if fd >= 0 and _identity(fd) == self._identity:  # else it was closed elsewhere, and the number is reused
            os.close(fd)

    # Files

    def key(self, create: bool) -> bytes:
        """Return the shared key, the whole text of the file ``key`` (64 hexadecimal digits); ``create``: make it."""
        name = self.path / KEY
        text = read_file(self.fd, name)
        if text is None and create:
            self._make_key()
            text = read_file(self.fd, name)
        if text is None:
            raise no_manager(self.path)
        if not _KEY_TEXT.fullmatch(text):
            raise StateError(f"{name} does not hold a key; stop the manager, `rm {quoted(name)}`, and start it again")
        return text

    def _make_key(self) -> None:
        """Link a whole new key into place. A racer may be first: then its key stays."""
        aside = f".{KEY}.{secrets.token_hex(8)}"
        with refusing(self.path):
            try:
                write_new_file(self.fd, self.path / aside, secrets.token_hex(32).encode())
                with contextlib.suppress(FileExistsError):
                    os.link(aside, KEY, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=self.fd)
            os.fsync(self.fd)

    def next_epoch(self) -> int:
        """Return an epoch above every earlier one, max(last + 1, unix seconds); it is on disk before this returns."""
        epoch = readable_epoch(max(self._last_epoch() + 1, int(time.time())))
        self._write_epoch(epoch)
        return epoch

    def reserve_epoch(self, value: int) -> None:
        """Let every later epoch be above ``value``; on disk before this returns."""
        if value > self._last_epoch():
            self._write_epoch(value)

    def _last_epoch(self) -> int:
        name = self.path / EPOCH
        text = read_file(self.fd, name)
        if text is None:
            return 0
        if not text.isdigit():
            raise StateError(f"{name} holds {text!r}, not a number; if the clock is right, `rm {quoted(name)}`")
        return int(text)

    def _write_epoch(self, epoch: int) -> None:
        if epoch > EPOCH_LIMIT:
            raise StateError(f"{self.path / EPOCH}: epoch {epoch} is over {EPOCH_LIMIT}; is the clock right?")
        aside = f".{EPOCH}"
        with refusing(self.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=self.fd)  # a predecessor was killed while it wrote
            write_new_file(self.fd, self.path / aside, f"{epoch}\n".encode())
            os.rename(aside, EPOCH, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            os.fsync(self.fd)

    def open_log(self) -> int:
        """Return a descriptor that appends to ``manager.log`` and can read it."""
        with refusing(self.path / LOG):
            with contextlib.suppress(FileNotFoundError):
                if os.stat(LOG, dir_fd=self.fd, follow_symlinks=False).st_size > LOG_LIMIT:
                    os.rename(LOG, f"{LOG}.1", src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return open_file(self.fd, self.path / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT)

    def _hide_from_git(self) -> None:
        """Keep the key out of version control. Only in an empty directory: ``--dir .`` must not hide a project."""
        with refusing(self.path):
            with os.scandir(self.fd) as entries:
                empty = next(entries, None) is None
            if empty:
                with contextlib.suppress(FileExistsError):
                    write_new_file(self.fd, self.path / IGNORE, b"*\n")

    # The manager's lock

    def lock(self, patience: float = LOCK_PATIENCE) -> int:
        """Take the lock of the one manager, and return the descriptor that holds it until it is closed.

        A forked child shares it: take it after the last fork. ``patience``: seconds to wait for a holder to end. Raises
        StateError with the holder's pid if it does not.
        """
        deadline = time.monotonic() + patience
        while True:
            with refusing(self.path / LOCK):
                fd = open_file(self.fd, self.path / LOCK, os.O_RDWR | os.O_CREAT)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self.still_mine(fd):  # else somebody unlinked the file that we locked
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                        return fd
                except BlockingIOError:
                    pass
                except BaseException:
                    os.close(fd)
                    raise
                holder = _pid_text(fd)
                os.close(fd)
            if time.monotonic() > deadline:
                raise StateError(
                    f"another manager (pid {holder or 'unknown'}) serves {self.path}; use it, "
                    f"or stop it with `state-manager stop --dir {quoted(self.path)}`"
                )
            time.sleep(_RETRY)

    def holder(self) -> int | None:
        """Return the pid of the process that holds the lock now, None if nobody does or it cannot be told."""
        with refusing(self.path / LOCK):
            try:
                fd = open_file(self.fd, self.path / LOCK, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _pid_text(fd)
            finally:
                os.close(fd)
        return None

    def still_mine(self, lock_fd: int) -> bool:
        """Whether ``path`` still leads here and its ``lock`` to ``lock_fd``; if not, another manager may be serving."""
        try:
            here = os.stat(self.path, follow_symlinks=False)
            lock = os.stat(LOCK, dir_fd=self.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # no proof: a rival would meet the same error
            return True
        return (here.st_dev, here.st_ino) == self._identity and (lock.st_dev, lock.st_ino) == _identity(lock_fd)

    # The socket

    def bind(self) -> socket.socket:
        """Return the manager's listening, non-blocking socket. It replaces one that a killed manager left."""
        self.unlink_socket()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._short_name() as name:
                listener.bind(name)
            os.chmod(SOCKET, 0o600, dir_fd=self.fd)  # nobody connects before listen, and the directory lets nobody in
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if error.errno in _NO_SOCKETS:
                problem = f"the file system of {self.path} cannot hold a Unix socket ({error.strerror})"
                raise StateError(f"{problem}; {ELSEWHERE}") from error
            raise refusal(self.path / SOCKET, error) from error
        return listener

    def unlink_socket(self) -> None:
        """Remove the socket's name. Only the holder of the lock may: it might be a living manager's."""
        with refusing(self.path / SOCKET), contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=self.fd)

    def connect(self, timeout: float | None) -> socket.socket:
        """Return a connection to the manager of the directory that ``path`` leads to now.

        ``timeout`` in seconds, None for none; the socket keeps it. A directory that was made again has another key.
        Raises Unavailable if nobody takes the connection, AuthenticationFailed if it is another user's.
        """
        with self._reaching():
            self._follow_path()
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with self._short_name() as name:
                    _connect(connection, name, timeout)
                uid = peer_uid(connection)
                if uid is not None and uid != os.geteuid():
                    problem = f"the manager of {self.path} runs as uid {uid} and this process as uid {os.geteuid()}"
                    raise AuthenticationFailed(f"{problem}; start both as the same user")
            except BaseException:
                connection.close()
                raise
            return connection

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn what a client meets on its way to the manager into Unavailable."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise no_manager(self.path) from None
        except BlockingIOError:
            raise Unavailable(f"the manager of {self.path} takes no connections; is it stopped?") from None
        except OSError as error:
            raise Unavailable(f"cannot reach the manager of {self.path}: {error.strerror}") from error

    def _follow_path(self) -> None:
        """Open the directory again if ``path`` leads to another one now, or if something closed the descriptor."""
        found = os.stat(self.path, follow_symlinks=False)
        held = _identity(self.fd)
        if held == self._identity == (found.st_dev, found.st_ino):
            return
        fresh = open_directory(self.path)
        if held == self._identity:  # in one step and under the same number: another thread may be using it
            os.dup2(fresh, self.fd, inheritable=False)
            os.close(fresh)
        else:  # the number is somebody else's now
            self.fd = fresh
        self._identity = _identity(self.fd)

    @contextlib.contextmanager
    def _short_name(self) -> Iterator[str]:
        """Give a name for the socket that is short enough for the kernel, whatever the length of ``path``."""
        through_descriptor = f"{_PROC_DESCRIPTORS}/{self.fd}"
        plain = str(self.path / SOCKET)
        if os.path.isdir(through_descriptor):
            yield f"{through_descriptor}/{SOCKET}"
        elif len(os.fsencode(plain)) <= _NAME_LIMIT:
            yield plain
        else:
            with tempfile.TemporaryDirectory(prefix="state-", dir="/tmp") as short:  # $TMPDIR may be long itself
                os.symlink(self.path, f"{short}/d")
                yield f"{short}/d/{SOCKET}"


def _connect(connection: socket.socket, name: str, timeout: float | None) -> None:
    """Connect within ``timeout``. A Unix socket connects at once, or the backlog is full: the waiting is done here."""
    deadline = None if timeout is None else time.monotonic() + timeout
    connection.setblocking(False)
    while True:
        try:
            connection.connect(name)
            break
        except BlockingIOError:
            if deadline is not None and time.monotonic() > deadline:
                raise
            time.sleep(_RETRY)
    connection.settimeout(timeout)


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user id of the process at the other end, None where the platform does not tell."""
    credentials = _credentials(connection)
    return credentials[1] if credentials else None


def peer_pid(connection: socket.socket) -> int | None:
    """Return the process id of the other end, None where the platform does not tell or the pid cannot be seen."""
    credentials = _credentials(connection)
    return (credentials[0] or None) if credentials else None


def _credentials(connection: socket.socket) -> tuple[int, int] | None:
    """Return (pid or 0, uid) of the other end."""
    try:
        if option := getattr(socket, "SO_PEERCRED", None):  # Linux: struct ucred
            pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, option, 12))
            return pid, uid
        if option := getattr(socket, "LOCAL_PEERCRED", None):  # macOS: struct xucred (version, uid, ...); LOCAL_PEERPID
            _, uid = struct.unpack_from("II", connection.getsockopt(0, option, 76))
            (pid,) = struct.unpack("i", connection.getsockopt(0, 2, 4))
            return pid, uid
    except OSError:  # the other end has gone
        pass
    return None


def _identity(fd: int) -> tuple[int, int] | None:
    """Return device and inode of an open descriptor, None for one that is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _pid_text(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
