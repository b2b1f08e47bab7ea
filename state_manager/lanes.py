"""A lane: one connection to the manager with one request outstanding, and frames on its socket.

``socket.socket`` is looked up when it is used: gevent may replace it after this was imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any, Final

from .wire import HEADER, LENGTH, packer, unpack

RECV: Final = 65_536
_pack_length = LENGTH.pack
_read_length = LENGTH.unpack_from


class Lane:
    """One connection, or the place of one: ``sock`` is None until it is attached, and after it broke.

    ``timeout``: what its sends and receives are bounded by, in seconds. Whoever uses it next may need another one: it
    is set before a request and not after the reply, which would make who waits for that wait longer.
    """

    __slots__ = ("boot", "id", "large", "number", "pack", "page", "session", "sock", "timeout", "unsure")

    def __init__(self, session: bytes, id_: int) -> None:
        self.session = session
        self.id = id_
        self.number = 0
        self.pack = packer().pack
        self.sock: socket.socket | None = None
        self.timeout = 0.0
        self.unsure = False
        self.large = False  # whether the last reply was
        self.boot = b""  # which manager is at the other end, and where its page is
        self.page: str | None = None

    def ask(self, request: bytes) -> Any:
        """Send a request and return the reply. After an exception the lane is closed, and ``unsure`` tells whether the
        manager may have got the request: it cannot act on half a frame.
        """
        sock: Any = self.sock
        try:
            sock.sendall(_pack_length(len(request)) + request)
        except BaseException:
            self.close()
            self.unsure = False
            raise
        try:
            data = sock.recv(RECV)
            if len(data) <= HEADER or _read_length(data)[0] != len(data) - HEADER:
                data = receive(sock, data)
                self.large = len(data) > RECV
                return unpack(data)
            return unpack(data[HEADER:])
        except BaseException:
            self.close()
            self.unsure = True
            raise

    def set_timeout(self, seconds: float) -> None:
        if seconds != self.timeout and self.sock is not None:
            set_timeout(self.sock, seconds)
            self.timeout = seconds

    def close(self) -> None:
        sock, self.sock, self.timeout = self.sock, None, 0.0
        if sock is not None:
            sock.close()

    def __del__(self) -> None:
        self.close()  # a manager that is dropped without close() is no leak, and no ResourceWarning

    def abandon(self) -> None:
        """Close a descriptor that a parent process shares, and leave the parent's connection as it is."""
        sock, self.sock = self.sock, None
        if sock is not None:
            with contextlib.suppress(Exception):  # a patched socket may miss its event loop in a new child
                os.close(sock.detach())


def receive(sock: socket.socket, first: bytes | None = None) -> bytes:
    """Return the payload of the next frame, whose ``first`` part may have been read already.

    Raises OSError when the connection breaks or the time is up.
    """
    buffer = bytearray(sock.recv(RECV) if first is None else first)
    while not buffer or len(buffer) < HEADER or len(buffer) < HEADER + _read_length(buffer)[0]:
        data = sock.recv(2**20)
        if not data:
            raise ConnectionResetError("the manager closed the connection")
        buffer += data
    return bytes(buffer[HEADER:])


def set_timeout(sock: socket.socket, seconds: float) -> None:
    """Bound every send and receive. The kernel counts for a plain socket, which saves a ``poll`` for each call."""
    if socket.socket.__module__ != "socket":  # gevent's waits in its own loop, where the kernel's timeouts mean nothing
        sock.settimeout(seconds)
        return
    if sock.gettimeout() is not None:
        sock.setblocking(True)
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
