"""One accepted socket: what came and was not run yet, what was answered and is not sent yet. Never blocks."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from .poller import READ, WRITE, Poller
from .sessions import Lane
from .settings import HANDSHAKE_LIMIT, HANDSHAKE_SECONDS
from .wire import Frames

RECV: Final = 65_536
PIECE: Final = 2**17
"""Bytes that are read at once in the middle of a frame, and sent at once of a large reply: others wait as long."""

Handler: TypeAlias = "Callable[[Connection, bytes], bytes | None]"
"""What a payload means: returns the reply, or None for none."""


class Connection:
    """``handler`` says what a payload means now: handshake, hello, request.

    ``deadline``: by when a stranger must have shown the key. ``busy``: half a frame, more than one, or unsent output
    lies here, so that the next tick is not the usual one.
    """

    __slots__ = (
        "busy",
        "closed",
        "deadline",
        "fd",
        "frames",
        "handler",
        "lane",
        "outbox",
        "pending",
        "poller",
        "recv",
        "send_some",
        "sock",
    )

    def __init__(self, sock: socket.socket, poller: Poller, handler: Handler) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.recv = sock.recv
        self.send_some = sock.send
        self.poller = poller
        self.handler = handler
        self.frames = Frames(HANDSHAKE_LIMIT)
        self.pending: deque[bytes | int] = deque()
        self.outbox: bytes | memoryview = b""
        self.lane: Lane | None = None
        self.deadline: float | None = time.monotonic() + HANDSHAKE_SECONDS
        self.busy = False
        self.closed = False

    def __repr__(self) -> str:
        return f"<Connection {self.lane} pending={len(self.pending)} unsent={len(self.outbox)}>"

    def receive(self) -> bytes | None:
        """Return what there is to read, None if the other side has ended."""
        try:
            return self.recv(PIECE if self.busy else RECV) or None
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            return None

    def cut(self, data: bytes) -> bool:
        """Cut data into payloads; return whether one is pending. Raises ValueError if the stream makes no sense."""
        self.pending.extend(self.frames.feed(data))
        self.busy = self.frames.started or len(self.pending) > 1
        return bool(self.pending)

    def send(self, data: bytes) -> bool:
        """Send what goes now and keep the rest; return False if the other side has ended.

        With unsent output nothing more is read, so a client that does not read its replies costs one of them.
        """
        if self.outbox:
            self.outbox = bytes(self.outbox) + data
            return True
        try:
            sent = self.send_some(data if len(data) <= PIECE else memoryview(data)[:PIECE])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return False
        if sent < len(data):
            self.outbox = memoryview(data)[sent:]
            self.busy = True
            self.poller.modify(self.fd, WRITE)
        return True

    def flush(self) -> bool:
        """Send more of what is unsent; return False if the other side has ended."""
        try:
            sent = self.send_some(self.outbox[:PIECE])
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self.outbox = self.outbox[sent:]
        if not self.outbox:
            self.busy = self.frames.started or bool(self.pending)
            self.poller.modify(self.fd, READ)
        return True
