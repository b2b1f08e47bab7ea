"""The listening sockets that outlive every gunicorn: made once, handed to each, closed when the last one stops.

The rules:
- A socket is bound as gunicorn would bind it (same options, umask and owner), so `--bind` means the same here.
- A Unix socket's name is taken over, or removed at the end, only if nobody listens on it.
- Whoever holds an address that we want is named by its pid where the system tells.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Address = tuple[str, int] | str | int
"""What gunicorn makes of one `--bind`: (host, port), the path of a Unix socket, or the number of an open descriptor."""

_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to listen on, as gunicorn's configuration says it. ``umask``, ``uid`` and ``gid`` concern Unix sockets."""

    addresses: tuple[Address, ...]
    backlog: int
    umask: int
    uid: int
    gid: int
    reuse_port: bool


class CannotListen(Exception):
    """An address cannot be had; the message names it and the reason."""


class InUse(CannotListen):
    """Somebody else listens there; ``holder`` is the pid, None if the system does not tell."""

    def __init__(self, address: Address) -> None:
        super().__init__(f"Connection in use: {address}")  # in gunicorn's words
        self.holder = holder_of(address)


class Listeners:
    """The open sockets, in the order of the addresses."""

    def __init__(self, wanted: Wanted) -> None:
        """Open all of them or none. Raises CannotListen."""
        self._wanted = wanted
        self._open: list[_Listener] = []
        try:
            for address in wanted.addresses:
                self._open.append(_Listener(address, wanted))
        except BaseException:
            self.close()
            self.unlink()
            raise

    def filenos(self) -> list[int]:
        """Return the descriptors for the next gunicorn. The one before may have taken a Unix socket's name along.

        Raises CannotListen if that has been taken by somebody else.
        """
        for index, listener in enumerate(self._open):
            if isinstance(listener.address, str) and not listener.has_name():
                listener.socket.close()
                self._open[index] = _Listener(listener.address, self._wanted)
        return [listener.socket.fileno() for listener in self._open]

    def urls(self, scheme: str) -> list[str]:
        """Return what people type to get there, with the port that port 0 became."""
        return [_url(listener.socket, scheme) for listener in self._open]

    def close(self) -> None:
        """Let new connections be refused, once gunicorn has closed its copies too. Accepted connections go on."""
        for listener in self._open:
            listener.socket.close()

    def unlink(self) -> None:
        """Remove the names of Unix sockets that gunicorn, when it was killed, could not remove. After ``close``."""
        for listener in self._open:
            if isinstance(listener.address, str) and listener.has_name() and not _answers(listener.address):
                os.unlink(listener.address)


class _Listener:
    def __init__(self, address: Address, wanted: Wanted) -> None:
        self.address = address
        self.socket = _listening_socket(address, wanted)
        self._identity = _identity(address)

    def has_name(self) -> bool:
        """Tell whether the name of a Unix socket still leads here."""
        return self._identity is not None and self._identity == _identity(self.address)


def _identity(address: Address) -> tuple[int, int] | None:
    if isinstance(address, str):
        with contextlib.suppress(OSError):
            found = os.stat(address, follow_symlinks=False)
            return found.st_dev, found.st_ino
    return None


def _listening_socket(address: Address, wanted: Wanted) -> socket.socket:
    if isinstance(address, int):
        return socket.socket(fileno=os.dup(address))  # bound by whoever started this process
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if isinstance(address, str):
            _bind_unix(listener, address, wanted)
        else:
            if wanted.reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
        listener.listen(wanted.backlog)
        listener.setblocking(False)
    except (OSError, OverflowError, UnicodeError) as error:  # a port over 65535, a host that cannot be a name
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise InUse(address) from None
        raise CannotListen(f"cannot listen on {address}: {error}") from error
    return listener


def _bind_unix(listener: socket.socket, path: str, wanted: Wanted) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise OSError(errno.EEXIST, "it exists and is not a socket")
        if _answers(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        os.unlink(path)
    before = os.umask(wanted.umask)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    os.chown(path, wanted.uid, wanted.gid)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) in (0, errno.EAGAIN)  # EAGAIN: alive, with a full backlog


def _url(listener: socket.socket, scheme: str) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    return f"unix:{os.fsdecode(name)}"


def holder_of(address: Address) -> int | None:
    """Return the pid of the process that listens there; of a server and its workers, the server.

    None where there is no /proc, or if it is another user's: then its descriptors cannot be seen.
    """
    with contextlib.suppress(OSError):
        inodes = {f"socket:[{inode}]" for inode in _listening_inodes(address)}
        holders = {pid for pid in _pids() if inodes & set(_descriptors(pid))}
        return min((pid for pid in holders if _parent(pid) not in holders), default=None)
    return None


def _listening_inodes(address: Address) -> Iterator[str]:
    if isinstance(address, str):
        for line in Path("/proc/net/unix").read_text().splitlines():
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7] == address:
                yield fields[6]
    elif isinstance(address, tuple):
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(FileNotFoundError):  # tcp6, where IPv6 is off
                for line in Path(table).read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == address[1]:
                        yield fields[9]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _descriptors(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def command_of(pid: int) -> str:
    """Return a process's command line, as far as it can be read and fits into a line."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()[:120]
    return ""
