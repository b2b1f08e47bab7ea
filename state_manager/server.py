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
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .commands import TABLE
from .commands.base import Done, View, row
from .directory import peer_pid, peer_uid
from .errors import StateError, TooLarge, Unavailable, to_wire
from .poller import READ, WRITE, new_poller
from .service import Lane, Service, Session
from .settings import FRAME_LIMIT, HANDSHAKE_LIMIT, HANDSHAKE_SECONDS, PROTOCOL, VERSION
from .stock import StockPeer
from .store import Store
from .wire import ERROR, HEADER, LENGTH, RETURN, Frames, Handshake, frame, packer, unpack

log = logging.getLogger("state_manager")

_pack_length = LENGTH.pack
_read_length = LENGTH.unpack_from

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

    __slots__ = ("busy", "closed", "deadline", "frames", "handler", "lane", "outbox", "pending", "recv", "send", "sock")

    def __init__(self, sock: socket.socket, handler: Callable[[Connection, bytes], bytes | None]) -> None:
        self.sock = sock
        self.recv = sock.recv
        self.send = sock.send
        self.handler = handler
        self.frames = Frames(HANDSHAKE_LIMIT)
        self.pending: deque[bytes | int] = deque()
        self.outbox = b""
        self.lane: Lane | None = None
        self.deadline: float | None = time.monotonic() + HANDSHAKE_SECONDS
        self.closed = False
        self.busy = False  # half a frame, more than one, or unsent output lies here

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
        self._poller = new_poller()
        self._ready: dict[int, Connection | Callable[[], object]] = {}  # what to do when a descriptor is ready
        self._by_lane: dict[Lane, Connection] = {}
        self._backlog: deque[Connection] = deque()
        self._watched: dict[Session, int] = {}
        self._unwatched: dict[Session, float] = {}
        self._accepting = True
        self._stopping = False
        self._untidy = False
        self._next_housekeeping = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        listener.setblocking(False)
        self._register(listener.fileno(), self._accept)
        self._register(self._wake_read, lambda: os.read(self._wake_read, 4096))

    # -- the loop --------------------------------------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Serve until stopped, then send what is unsent and close everything."""
        poll, clock, ready = self._poller.poll, self._clock, self._ready
        try:
            while not self._stopping:
                events = poll(0.0 if self._backlog or self._untidy else HOUSEKEEPING)
                now = clock()
                if len(events) != 1 or self._backlog or not self._one(ready[events[0][0]], now):
                    self._tick(events, now)
                if now >= self._next_housekeeping or self._untidy:
                    self._keep_house(now)
        finally:
            self._close_all()

    def _one(self, connection: object, now: float) -> bool:
        """Do the usual tick, one whole request on one lane, by the short way; return whether it was one."""
        if type(connection) is not Connection or connection.lane is None or connection.busy:
            return False
        data = self._receive(connection)
        if len(data) <= HEADER or _read_length(data)[0] != len(data) - HEADER:
            if data and self._cut(connection, data):
                self._run(deque((connection,)), now)
            return True
        service = self.service
        service.begin(now)
        reply = service.handle(connection.lane, data[HEADER:])
        service.commit()
        if reply is not None:
            self._send(connection, _pack_length(len(reply)) + reply)
        return True

    def stop(self) -> None:
        """End ``serve_forever`` after the present tick. May be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _tick(self, events: list[tuple[int, int]], now: float) -> None:
        """Read what is ready and run one request of each connection that has one."""
        runnable, self._backlog = self._backlog, deque()
        for fd, mask in events:
            ready = self._ready.get(fd)
            if type(ready) is not Connection:
                if ready is not None:  # else closed by what came before it in this tick
                    ready()  # type: ignore[operator]
            elif mask & WRITE:
                self._flush(ready)
            elif not ready.pending:  # what lies here already comes first
                data = self._receive(ready)
                if data and self._cut(ready, data):
                    runnable.append(ready)
        if runnable:
            self._run(runnable, now)

    def _run(self, runnable: deque[Connection], now: float) -> None:
        """Run one request of each of these connections, commit, and send the replies."""
        service = self.service
        service.begin(now)
        replies: list[tuple[Connection, bytes]] = []
        size = 0
        for connection in runnable:
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
            else:
                connection.busy = connection.frames.started
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
                self._unregister(self._listener.fileno())
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
        self._register(sock.fileno(), connection)
        self._send(connection, frame(handshake.first))

    def _register(self, fd: int, ready: Connection | Callable[[], object]) -> None:
        self._ready[fd] = ready
        self._poller.register(fd, READ)

    def _unregister(self, fd: int) -> None:
        del self._ready[fd]
        self._poller.unregister(fd)

    def _receive(self, connection: Connection) -> bytes:
        """Return what there is to read, nothing if that is nothing or the connection has ended."""
        try:
            data = connection.recv(RECV_LARGE if connection.busy else RECV)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            data = b""
        if not data:
            self._close(connection)
        return data

    def _cut(self, connection: Connection, data: bytes) -> bool:
        """Cut data into requests; return whether there is one."""
        try:
            connection.pending.extend(connection.frames.feed(data))
        except ValueError:
            self._close(connection)
        connection.busy = connection.frames.started or len(connection.pending) > 1
        return bool(connection.pending)

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.closed:
            return
        if not connection.outbox:
            try:
                sent = connection.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._close(connection)
                return
            if sent == len(data):
                return
            data = data[sent:]
        connection.outbox += data
        connection.busy = True
        self._poller.modify(connection.sock.fileno(), WRITE)

    def _flush(self, connection: Connection) -> None:
        data, connection.outbox = memoryview(connection.outbox), b""
        try:
            sent = connection.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.outbox = bytes(data[sent:])
        if not connection.outbox:
            self._poller.modify(connection.sock.fileno(), READ)
            if connection.pending:
                self._backlog.append(connection)
            else:
                connection.busy = connection.frames.started

    def _close(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._unregister(connection.sock.fileno())
        connection.sock.close()
        lane = connection.lane
        if lane is not None and self._by_lane.get(lane) is connection:
            del self._by_lane[lane]
            if lane.session in self._unwatched:
                self._unwatched[lane.session] = time.monotonic()

    def _close_all(self) -> None:
        if self._accepting:
            self._unregister(self._listener.fileno())
        self._listener.close()
        end = time.monotonic() + 1.0
        while (left := end - time.monotonic()) > 0 and any(connection.outbox for connection in self.connections()):
            for fd, mask in self._poller.poll(left):
                connection = self._ready.get(fd)
                if type(connection) is Connection and mask & WRITE:
                    self._flush(connection)
        for connection in self.connections():
            self._close(connection)
        self._wake_write, wake_write = -1, self._wake_write  # ``stop`` may still be called
        for descriptor in (*self._watched.values(), self._wake_read, wake_write):
            os.close(descriptor)
        self._poller.close()

    def connections(self) -> list[Connection]:
        """Return the open connections."""
        return [ready for ready in self._ready.values() if type(ready) is Connection]

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
        self._register(descriptor, lambda: self._end(session))

    def _end(self, session: Session) -> None:
        descriptor = self._watched.pop(session, None)
        if descriptor is not None:
            self._unregister(descriptor)
            os.close(descriptor)
        self._unwatched.pop(session, None)
        for lane in session.lanes.values():
            connection = self._by_lane.get(lane)
            if connection is not None:
                self._close(connection)
        self.service.end(session)

    # -- housekeeping ----------------------------------------------------------------------------------------------

    def _keep_house(self, now: float) -> None:
        """Do what no event announces: a bounded part of what there is to tidy, and the rest of it once a second."""
        self.service.begin(now)
        self._untidy = self.service.tidy()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING
        late = time.monotonic()
        for connection in self.connections():
            if connection.deadline is not None and connection.deadline < late:
                self._close(connection)
        attached = {lane.session for lane in self._by_lane}
        for session, seen in list(self._unwatched.items()):
            if session in attached:
                self._unwatched[session] = late
            elif late - seen > GRACE:
                self._end(session)
        if not self._accepting:
            self._accepting = True
            self._register(self._listener.fileno(), self._accept)
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
            "connections": len(self.connections()),
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
