"""The manager's loop: one thread, one selector, every ready socket in one tick; no thread ever waits for another.

A tick: read each ready socket, cut frames, set ``now``, run one request of each connection, commit, and only then send
the replies. ``multiprocessing.managers.Server`` gives each connection a thread instead; this one has its name, its
registry and its messages, so that a stock ``BaseManager`` can connect (``stock``), and none of its threads.

Rules
- Nothing here blocks and nothing runs unbounded: one request a connection a tick, so that a client that pipelines gets
  no more than the others; a connection with unsent output is not read; what is bounded elsewhere (pages, sweeps) is not
  repeated here.
- Until a peer has shown that it knows the key it may send small frames for a few seconds, and is of our uid.
- Attaching a lane closes its former connection, unread input and all, and only then answers. Otherwise a request that
  was sent twice could run twice, the second time through the old socket.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing.managers
import os
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .commands import TABLE
from .commands.base import Done, View, row
from .directory import peer_pid, peer_uid
from .errors import StateError, TooLarge, Unavailable, to_wire
from .service import Lane, Service, Session
from .settings import FRAME_LIMIT, HANDSHAKE_LIMIT, HANDSHAKE_SECONDS, PROTOCOL, VERSION
from .stock import StockPeer
from .store import Store
from .wire import ERROR, RETURN, Frames, Handshake, frame, packer, unpack

log = logging.getLogger("state_manager")

RECV: Final = 65_536
RECV_LARGE: Final = 2**20
"""Read with the larger size only in the middle of a frame: a buffer that size costs more than most requests."""
TICK_BYTES: Final = 64 * 2**20
"""Replies that one tick may hold back for its commit; the rest of the requests go into the next tick."""
HOUSEKEEPING: Final = 1.0
"""Seconds between looks at what no event announces: late handshakes, sessions unwatched, a stolen directory."""
EPOCHS_AHEAD: Final = 1_000
"""Epochs that are reserved on disk, so that emptying a large space, which takes one, waits for no file."""
GRACE: Final = 60.0
"""How long a session that cannot be watched may be without a connection before its process counts as ended."""


class Clock:
    """Seconds since 1970 that never go back: the boot-time clock, with an offset that was fixed at the start."""

    def __init__(self) -> None:
        self._id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        self._offset = time.time() - time.clock_gettime(self._id)

    def __call__(self) -> float:
        return time.clock_gettime(self._id) + self._offset


class Connection:
    """One accepted socket. ``handler`` says what a payload means now: handshake, hello, request."""

    __slots__ = ("closed", "deadline", "frames", "handler", "lane", "outbox", "pending", "sock")

    def __init__(self, sock: socket.socket, handler: Callable[[Connection, bytes], bytes | None]) -> None:
        self.sock = sock
        self.handler = handler
        self.frames = Frames(HANDSHAKE_LIMIT)
        self.pending: deque[bytes | int] = deque()
        self.outbox = b""
        self.lane: Lane | None = None
        self.deadline: float | None = time.monotonic() + HANDSHAKE_SECONDS
        self.closed = False

    def __repr__(self) -> str:
        return f"<Connection {self.lane} pending={len(self.pending)} unsent={len(self.outbox)}>"


class StateServer(multiprocessing.managers.Server):
    """Serves a store on a listening socket until ``stop`` or a ``shutdown`` request.

    Unlike the class it is derived from it takes the socket ready made, because who made it also checked the directory,
    and ``serve_forever`` returns instead of ending the process.
    """

    def __init__(
        self,
        registry: dict[str, Any],
        listener: socket.socket,
        authkey: bytes,
        epoch: int,
        *,
        directory: str = "",
        clock: Callable[[], float] | None = None,
        reserve_epoch: Callable[[int], None] = lambda epoch: None,
        still_mine: Callable[[], bool] = lambda: True,
    ) -> None:
        # Not super().__init__: it would bind a socket of its own, with a backlog of 16.
        self.registry = registry
        self.address = listener.getsockname()
        self._listener = listener
        self._key = authkey
        self._clock = clock or Clock()
        self._directory = directory
        self._reserve_epoch = reserve_epoch
        self._still_mine = still_mine
        self._started = time.monotonic()
        table = {**TABLE, ("manager", "stats"): row("manager", "stats", self._stats, writes=False)}
        table["manager", "shutdown"] = row("manager", "shutdown", self._shutdown, writes=False)
        self.service = Service(Store(epoch), token=lambda: secrets.token_hex(32), table=table)
        self._pack = packer().pack
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._by_lane: dict[Lane, Connection] = {}
        self._backlog: deque[Connection] = deque()
        self._watched: dict[Session, int] = {}
        self._unwatched: dict[Session, float] = {}
        self._accepting = True
        self._stopping = False
        self._next_housekeeping = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)

    # -- the loop --------------------------------------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Serve until stopped, then send what is unsent and close everything."""
        try:
            while not self._stopping:
                self._tick(self._selector.select(self._timeout()))
        finally:
            self._close_all()

    def stop(self) -> None:
        """End ``serve_forever`` after the present tick. May be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _timeout(self) -> float:
        if self._backlog:
            return 0.0
        wait = self._next_housekeeping - time.monotonic()
        due = self.service.store.next_due()
        if due is not None:
            wait = min(wait, due - self._clock())
        return max(0.0, wait)

    def _tick(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        ready: deque[Connection] = self._backlog
        self._backlog = deque()
        for key, mask in events:
            data = key.data
            if type(data) is Connection:
                if mask & selectors.EVENT_WRITE:
                    self._flush(data)
                elif self._read(data):
                    ready.append(data)
            else:
                data()
        if ready:
            self._run(ready)
        if not events or time.monotonic() >= self._next_housekeeping:
            self._keep_house()

    def _run(self, ready: deque[Connection]) -> None:
        """Run one request of each of these connections, commit, and send the replies."""
        service = self.service
        service.begin(self._clock())
        replies: list[tuple[Connection, bytes]] = []
        size = 0
        for connection in ready:
            if connection.closed or connection.outbox or not connection.pending:
                continue  # one with unsent output comes back when that has gone
            if size > TICK_BYTES:
                self._backlog.append(connection)
                continue
            payload = connection.pending.popleft()
            if isinstance(payload, int):
                reply = self._too_long(connection, payload)
            else:
                reply = connection.handler(connection, payload)
            if reply is not None:
                replies.append((connection, reply))
                size += len(reply)
            if connection.pending:
                self._backlog.append(connection)
        service.commit()
        for connection, reply in replies:
            self._send(connection, frame(reply))

    # -- sockets ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # The listener would stay ready and the loop would spin; housekeeping tries again.
                log.warning("cannot accept a connection: %s; trying again in %s s", error.strerror, HOUSEKEEPING)
                self._selector.unregister(self._listener)
                self._accepting = False
            return
        uid = peer_uid(sock)
        if uid is not None and uid != os.geteuid():
            log.warning("refused a connection from uid %s: only uid %s may connect", uid, os.geteuid())
            sock.close()
            return
        sock.setblocking(False)
        handshake = Handshake(self._key)
        connection = Connection(sock, lambda connection, payload: self._shake(connection, handshake, payload))
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        self._send(connection, frame(handshake.first))

    def _read(self, connection: Connection) -> bool:
        """Read what there is; return whether a request is complete."""
        if connection.closed or connection.pending:
            return False  # what lies here already comes first
        frames = connection.frames
        try:
            data = connection.sock.recv(RECV_LARGE if frames.started else RECV)
            if not data:
                self._close(connection)
                return False
            connection.pending.extend(frames.feed(data))
        except (BlockingIOError, InterruptedError):
            return False
        except (OSError, ValueError):
            self._close(connection)
            return False
        return bool(connection.pending)

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.closed:
            return
        if not connection.outbox:
            try:
                sent = connection.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._close(connection)
                return
            if sent == len(data):
                return
            data = data[sent:]
        connection.outbox += data
        self._selector.modify(connection.sock, selectors.EVENT_WRITE, connection)

    def _flush(self, connection: Connection) -> None:
        data, connection.outbox = memoryview(connection.outbox), b""
        try:
            sent = connection.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.outbox = bytes(data[sent:])
        if not connection.outbox:
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)
            if connection.pending:
                self._backlog.append(connection)

    def _close(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()
        lane = connection.lane
        if lane is not None and self._by_lane.get(lane) is connection:
            del self._by_lane[lane]
            if lane.session in self._unwatched:
                self._unwatched[lane.session] = time.monotonic()

    def _close_all(self) -> None:
        self._selector.unregister(self._listener) if self._accepting else None
        self._listener.close()
        end = time.monotonic() + 1.0
        while (left := end - time.monotonic()) > 0 and any(connection.outbox for connection in self._connections):
            for key, mask in self._selector.select(left):
                if type(key.data) is Connection and mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
        for connection in list(self._connections):
            self._close(connection)
        for descriptor in (*self._watched.values(), self._wake_read, self._wake_write):
            os.close(descriptor)
        self._selector.close()

    # -- what a payload means: handshake, hello, request -----------------------------------------------------------

    def _shake(self, connection: Connection, handshake: Handshake, payload: bytes) -> bytes | None:
        for answer in handshake.receive(payload):
            self._send(connection, frame(answer))
        if handshake.failed:
            self._close(connection)
        elif handshake.done:
            connection.handler = self._hello
            connection.frames.limit = FRAME_LIMIT
        return None

    def _hello(self, connection: Connection, payload: bytes) -> bytes | None:
        """The first message of a peer that knows the key: ours introduces its lane, a stock one does not."""
        connection.deadline = None
        try:
            message = unpack(payload)
            if message[:2] == [None, "accept_connection"] and type(message[2][0]) is list:
                reply = [RETURN, self._attach(connection, *message[2][0])]
                connection.handler = self._request
                return self._pack(reply)
        except StateError as error:
            return self._pack([ERROR, to_wire(error)])
        except (ValueError, TypeError, IndexError, KeyError):
            pass  # not ours; the stock peer says what is wrong with it
        connection.handler = StockPeer(self).receive
        return connection.handler(connection, payload)

    def _request(self, connection: Connection, payload: bytes) -> bytes | None:
        return self.service.handle(connection.lane, payload)

    def _too_long(self, connection: Connection, size: int) -> bytes | None:
        if connection.deadline is not None:
            self._close(connection)  # a stranger is owed no explanation
            return None
        error = TooLarge(f"a message of {size} bytes is over the limit of {FRAME_LIMIT}")
        return self._pack([ERROR, to_wire(error)])

    def _attach(self, connection: Connection, protocol: int, version: str, session: bytes, lane: int) -> list[Any]:
        if protocol != PROTOCOL:
            raise Unavailable(
                f"the manager of {self._directory} is version {VERSION} (protocol {PROTOCOL}), this client is version "
                f"{version} (protocol {protocol}): stop the older one and start it again with the newer package"
            )
        if type(session) is not bytes or len(session) != 16 or type(lane) is not int:
            raise ValueError("a session is 16 bytes and a lane a number")
        found, known = self.service.attach(session, lane, peer_pid(connection.sock))
        former = self._by_lane.get(found)
        if former is not None:
            self._close(former)
        connection.lane = found
        self._by_lane[found] = connection
        self._watch(found.session)
        return [PROTOCOL, VERSION, self.service.store.epoch, known]

    # -- sessions --------------------------------------------------------------------------------------------------

    def _watch(self, session: Session) -> None:
        """Learn of the end of the session's process: from its pidfd, else from its staying without a connection."""
        if session in self._watched or session in self._unwatched:
            return
        try:
            descriptor = os.pidfd_open(session.pid or 0)
        except (AttributeError, OSError, ValueError):
            self._unwatched[session] = time.monotonic()
            return
        self._watched[session] = descriptor
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._end(session))

    def _end(self, session: Session) -> None:
        descriptor = self._watched.pop(session, None)
        if descriptor is not None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
        self._unwatched.pop(session, None)
        for lane in session.lanes.values():
            connection = self._by_lane.get(lane)
            if connection is not None:
                self._close(connection)
        self.service.end(session)

    # -- housekeeping ----------------------------------------------------------------------------------------------

    def _woken(self) -> None:
        os.read(self._wake_read, 4096)

    def _keep_house(self) -> None:
        self.service.begin(self._clock())
        if self.service.tidy():
            self._next_housekeeping = 0.0  # more of it in the next tick, after those who wait
            return
        now = time.monotonic()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING
        for connection in [each for each in self._connections if each.deadline is not None and each.deadline < now]:
            self._close(connection)
        attached = {lane.session for lane in self._by_lane}
        for session, seen in list(self._unwatched.items()):
            if session in attached:
                self._unwatched[session] = now
            elif now - seen > GRACE:
                self._end(session)
        if not self._accepting:
            self._accepting = True
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        store = self.service.store
        if store.last_epoch - store.epoch < EPOCHS_AHEAD // 2:
            self._reserve_epoch(store.epoch + EPOCHS_AHEAD)
            store.last_epoch = store.epoch + EPOCHS_AHEAD
        if not self._still_mine():
            log.error("another manager owns %s now, or it was removed: this one ends", self._directory)
            self._stopping = True

    # -- commands of the process itself ----------------------------------------------------------------------------

    def _stats(self, view: View, now: float) -> Done:
        """Return what this process is and holds."""
        store = self.service.store
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "protocol": PROTOCOL,
            "directory": self._directory,
            "epoch": store.epoch,
            "uptime": time.monotonic() - self._started,
            "connections": len(self._connections),
            "sessions": len(self.service.sessions),
            "spaces": len(store.spaces),
            "entries": store.entries,
            "bytes": store.bytes,
            "commands": self.service.commands,
        }, ()

    def _shutdown(self, view: View, now: float) -> Done:
        """End the manager's process after the reply."""
        self._stopping = True
        return None, ()


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write
