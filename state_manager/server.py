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
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from .clock import Clock
from .commands.base import Done, View, row
from .connection import PIECE, Connection, Handler
from .directory import peer_pid, peer_uid
from .errors import OutcomeUnknown, StateError, TooLarge, Unavailable, to_wire
from .poller import READ, new_poller
from .processes import start_time
from .service import Service
from .sessions import LANE_BITS, Lane, Session
from .settings import FRAME_LIMIT, NAME_LIMIT, PROTOCOL, VERSION
from .stock import StockPeer
from .store import Store
from .versions import PageWriter
from .watch import Watch
from .wire import ERROR, HEADER, LENGTH, LOADING, RETURN, Handshake, frame, packer, unpack

logger = logging.getLogger("state_manager")

_pack_length = LENGTH.pack
_read_length = LENGTH.unpack_from

TICK_BYTES: Final = 64 * 2**20
"""Replies that one tick may hold back for its commit; the rest of the requests go into the next tick."""
HOUSEKEEPING: Final = 1.0
"""Seconds between looks at what no event announces: late handshakes, sessions unwatched, a stolen directory."""
SPINS_LEFT_OUT: Final = 63
"""Polls in a row, at the most, that do not spin after spinning was for nothing."""
EPOCHS_AHEAD: Final = 1_000
"""Epochs that are reserved on disk, so that emptying a large space, which takes one, waits for no file."""
LANES_LIMIT: Final = 2**LANE_BITS
NewPage: TypeAlias = Callable[[bytes, float, "array[int]"], PageWriter | None]
"""Makes the page of a manager: from its boot token, what its clock adds to the boot-time clock, and the versions."""


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
        max_memory: int | None = None,
        reserve_epoch: Callable[[int], None] = lambda epoch: None,
        still_mine: Callable[[], bool] = lambda: True,
        new_page: NewPage = lambda boot, offset, versions: None,
    ) -> None:
        # Not super().__init__: it would bind a socket of its own, with a backlog of 16.
        self.registry = registry
        self.address = listener.getsockname()
        self._listener = listener
        self._key = authkey
        self.clock: Callable[[], float] = Clock()
        self.durability = "none"
        self._max_memory = max_memory
        self.loading: str | None = None  # how far the journal is read; until then nobody is attached
        self.chores: list[Callable[[float], bool]] = []  # called between ticks; each says whether it has more to do
        self._directory = os.fsencode(directory).decode(
            errors="backslashreplace"
        )  # it is shown, and it crosses the wire
        self._reserve_epoch = reserve_epoch
        self._still_mine = still_mine
        self._new_page = new_page
        self._boot = secrets.token_bytes(16)
        self.page: PageWriter | None = None
        self._started = time.monotonic()
        self.service = Service(Store(epoch), token=lambda: secrets.token_hex(32), max_memory=max_memory)
        self.service.add(
            row("manager", "stats", self._stats, writes=False),
            row("manager", "shutdown", self._shutdown, writes=False),
        )
        self._pack = packer().pack
        self._poller = new_poller()
        self._ready: dict[int, Connection | Callable[[], object]] = {}  # what to do when a descriptor is ready
        self._by_lane: dict[Lane, Connection] = {}
        self._backlog: deque[Connection] = deque()
        self._watch = Watch(self._register, self._unregister, self._session_ended)
        self._ending: deque[Session] = deque()
        self._accepting = True
        self._stopping = False
        self._untidy = False
        self._next_housekeeping = 0.0
        self.now = 0.0
        self.spin = 0.0
        self._vain_spins = 0
        self._spins_to_skip = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        listener.setblocking(False)
        self._register(listener.fileno(), self._accept)
        self._register(self._wake_read, lambda: os.read(self._wake_read, 4096))

    # -- the loop --------------------------------------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Serve until stopped, then send what is unsent and close everything."""
        ready, waiting = self._ready, self.service.lines.by_name
        poll = self._poller.poll if self.spin == 0.0 else self._spin
        try:
            while not self._stopping:
                rest = HOUSEKEEPING if not waiting else self._rest()
                events = poll(0.0 if self._backlog or self._untidy else rest)
                if len(events) != 1 or self._backlog or not self._one(ready[events[0][0]]):
                    self._tick(events)
                if self.now >= self._next_housekeeping or self._untidy:
                    self._keep_house()
                if waiting and self.service.next_wake() <= self.now:
                    self._wake()
        finally:
            self._close_all()

    def _rest(self) -> float:
        """Return how long nothing is to be done, if nothing happens: until somebody has waited for long enough."""
        return max(0.0, min(HOUSEKEEPING, self.service.next_wake() - self.clock()))

    def _wake(self) -> None:
        """Run requests that wait and have been touched by something else than a request, or whose time has come."""
        self.service.begin(self.now)
        self.service.wake()
        self._send_woken()

    def _spin(self, timeout: float) -> list[tuple[int, int]]:
        """Poll, but look for a while first without sleeping: waking an idle CPU may take longer than all else here.

        It pays when a client asks again at once and has a CPU of its own. Where it was for nothing, because CPUs have
        other work or nobody is in a hurry, it is left out for twice as many times as before.
        """
        poll, clock = self._poller.poll, time.perf_counter
        if timeout == 0.0:
            return poll(0.0)
        if self._spins_to_skip:
            self._spins_to_skip -= 1
            return poll(timeout)
        end = clock() + self.spin
        while not (events := poll(0.0)) and clock() < end:
            pass
        self._vain_spins = 0 if events else min(2 * self._vain_spins + 1, SPINS_LEFT_OUT)
        self._spins_to_skip = self._vain_spins
        return events or poll(timeout)

    def _one(self, connection: object) -> bool:
        """Do the usual tick, one whole request on one lane, by the short way; return whether it was one."""
        if type(connection) is not Connection or connection.lane is None or connection.busy:
            return False
        data = connection.receive()
        # The clock is read after the last byte came: what was sent after a deadline is never answered from before it.
        self.now = now = self.clock()
        if data is None or len(data) <= HEADER or _read_length(data)[0] != len(data) - HEADER:
            if self._cut(connection, data):
                self._run(deque((connection,)))
            return True
        service = self.service
        service.begin(now)
        reply = service.handle(connection.lane, data[HEADER:])
        try:
            service.commit()
        except StateError as error:
            service.undo()
            reply = self._alone(connection, connection.handler, data[HEADER:], error)
        if len(service.woken) == 1:
            self._send_woken()  # first: it has waited for this. Many would make the one wait who has woken them
        if reply is not None:
            self._answer(connection, reply)
        if service.woken:
            self._send_woken()
        return True

    def answer_while_loading(self, progress: str) -> None:
        """Do a tick for those who connect while the journal is read: they are told to wait."""
        self.loading = progress
        self._tick(self._poller.poll(0.0))

    def stop(self) -> None:
        """End ``serve_forever`` after the present tick. May be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _tick(self, events: list[tuple[int, int]]) -> None:
        """Read what is ready and run one request of each connection that has one."""
        runnable, self._backlog = self._backlog, deque()
        for fd, _ in events:
            ready = self._ready.get(fd)
            if type(ready) is not Connection:
                if ready is not None:  # else closed by what came before it in this tick
                    ready()  # type: ignore[operator]
            elif ready.outbox:
                self._flush(ready)
            elif not ready.pending and self._cut(ready, ready.receive()):  # what lies here already comes first
                runnable.append(ready)
        self.now = self.clock()
        if runnable:
            self._run(runnable)

    def _run(self, runnable: deque[Connection]) -> None:
        """Run one request of each of these connections, commit, and send the replies."""
        service = self.service
        service.begin(self.now)
        replies: list[tuple[Connection, Handler, bytes, bytes | None]] = []
        size = 0
        for connection in runnable:
            if connection.closed or connection.outbox or not connection.pending:
                continue  # one with unsent output comes back when that has gone
            if size > TICK_BYTES:
                self._backlog.append(connection)
                continue
            payload, handler = connection.pending.popleft(), connection.handler
            if isinstance(payload, int):
                payload, handler = b"%d" % payload, self._too_long
            reply = handler(connection, payload)
            if reply is not None:
                replies.append((connection, handler, payload, reply))
                size += len(reply)
            elif handler == self._request:
                replies.append((connection, handler, payload, None))  # it may be parked
            if connection.pending:
                self._backlog.append(connection)
            else:
                connection.busy = connection.frames.started
        try:
            service.commit()
        except StateError as error:
            service.undo()
            replies = [(each, how, what, self._alone(each, how, what, error)) for each, how, what, _ in replies]
        for connection, _, _, reply in replies:
            if reply is not None:
                self._answer(connection, reply)
        if service.woken:
            self._send_woken()

    def _send_woken(self) -> None:
        """Send the replies of requests that were parked."""
        woken, self.service.woken = self.service.woken, []
        for lane, reply in woken:
            if connection := self._by_lane.get(lane):
                self._answer(connection, reply)

    def _alone(self, connection: Connection, handler: Handler, payload: bytes, error: StateError) -> bytes | None:
        """Run a request of a tick that could not be logged again, in a tick of its own, in which nobody else is woken.

        After a failed sync nothing can be logged any more; the error says that the outcome is unknown, to all of them.
        """
        if isinstance(error, OutcomeUnknown):
            return self._refuse(connection, handler, payload, error)
        with self.service.holding():
            reply = handler(connection, payload)
        try:
            self.service.commit()
        except StateError as again:
            return self._refuse(connection, handler, payload, again)
        return reply

    def _refuse(self, connection: Connection, handler: Handler, payload: bytes, error: StateError) -> bytes | None:
        """Undo the only request of a tick and answer it with the error, unless it can be answered without a change."""
        self.service.undo()
        try:
            with self.service.refusing(error):
                reply = handler(connection, payload)
            self.service.commit()  # nothing but that it was parked, perhaps
            return reply
        finally:
            # The frames that it passed through hold the request, and nobody collects cycles here.
            error.__traceback__ = error.__cause__ = error.__context__ = None

    # -- sockets ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # The listener would stay ready and the loop would spin; housekeeping tries again.
                logger.warning("cannot accept a connection: %s; trying again in %s s", error.strerror, HOUSEKEEPING)
                self._unregister(self._listener.fileno())
                self._accepting = False
            return
        uid = peer_uid(sock)
        if uid is not None and uid != os.geteuid():
            logger.warning("refused a connection from uid %s: only uid %s may connect", uid, os.geteuid())
            sock.close()
            return
        sock.setblocking(False)
        handshake = Handshake(self._key)
        connection = Connection(
            sock, self._poller, lambda connection, payload: self._shake(connection, handshake, payload)
        )
        self._register(sock.fileno(), connection)
        self._send(connection, frame(handshake.first))

    def _register(self, fd: int, ready: Connection | Callable[[], object]) -> None:
        self._ready[fd] = ready
        self._poller.register(fd, READ)

    def _unregister(self, fd: int) -> None:
        del self._ready[fd]
        self._poller.unregister(fd)

    def _cut(self, connection: Connection, data: bytes | None) -> bool:
        """Cut what was received into requests; return whether there is one."""
        if data is None:
            self._close(connection)
            return False
        try:
            return bool(data) and connection.cut(data)
        except ValueError:
            self._close(connection)
            return False

    def _answer(self, connection: Connection, reply: bytes) -> None:
        header = _pack_length(len(reply))
        if len(reply) <= PIECE:
            self._send(connection, header + reply)
        else:  # one copy less
            self._send(connection, header)
            self._send(connection, reply)

    def _send(self, connection: Connection, data: bytes) -> None:
        if not connection.closed and not connection.send(data):
            self._close(connection)

    def _flush(self, connection: Connection) -> None:
        if not connection.flush():
            self._close(connection)
        elif connection.pending and not connection.outbox:
            self._backlog.append(connection)

    def _close(self, connection: Connection) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._unregister(connection.fd)
        connection.sock.close()
        lane = connection.lane
        if lane is not None and self._by_lane.get(lane) is connection:
            del self._by_lane[lane]
            self.service.unpark(lane)

    def _close_all(self) -> None:
        if self._accepting:
            self._unregister(self._listener.fileno())
        self._listener.close()
        end = time.monotonic() + 1.0
        while (left := end - time.monotonic()) > 0 and any(connection.outbox for connection in self.connections()):
            for fd, _ in self._poller.poll(left):
                connection = self._ready.get(fd)
                if type(connection) is Connection and connection.outbox:
                    self._flush(connection)
        for connection in self.connections():
            self._close(connection)
        self._wake_write, wake_write = -1, self._wake_write  # ``stop`` may still be called
        self._watch.close()
        os.close(self._wake_read)
        os.close(wake_write)
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
        if self.loading is not None:
            return self._pack([LOADING, f"the manager of {self._directory} is reading its journal ({self.loading})"])
        try:
            message = unpack(payload)
            if message[:2] == [None, "accept_connection"] and type(message[2][0]) is list:
                reply = self._pack([RETURN, self._attach(connection, *message[2][0])])
                connection.handler = self._request
                return reply
        except StateError as error:
            return self._pack([ERROR, to_wire(error)])
        except (ValueError, TypeError, IndexError, KeyError):
            pass  # not ours; the stock peer says what is wrong with it
        connection.handler = StockPeer(self).receive
        return connection.handler(connection, payload)

    def _request(self, connection: Connection, payload: bytes) -> bytes | None:
        return self.service.handle(connection.lane, payload)

    def _too_long(self, connection: Connection, size: bytes) -> bytes | None:
        if connection.deadline is not None:
            self._close(connection)  # a stranger is owed no explanation
            return None
        error = TooLarge(f"a message of {int(size):,} bytes is over the limit of {FRAME_LIMIT:,}")
        return self._pack([ERROR, to_wire(error)])

    def _attach(
        self, connection: Connection, protocol: int, version: str, session: bytes, lane: int, name: str = ""
    ) -> list[Any]:
        if protocol != PROTOCOL:
            raise Unavailable(
                f"the manager of {self._directory} is version {VERSION} (protocol {PROTOCOL}), this client is version "
                f"{version} (protocol {protocol}): stop the older one and start it again with the newer package"
            )
        if type(session) is not bytes or len(session) != 16 or type(lane) is not int or type(name) is not str:
            raise ValueError("a session is 16 bytes, a lane a number, and a name a text")
        if not 0 <= lane < LANES_LIMIT:
            raise TooLarge(f"a process may have {LANES_LIMIT:,} connections")
        if connection.lane is not None:  # this is said again, after a tick that could not be logged
            self._by_lane.pop(connection.lane, None)
        pid = peer_pid(connection.sock)
        found, known = self.service.attach(
            session, lane, pid, None if pid is None else start_time(pid), name[:NAME_LIMIT]
        )
        former = self._by_lane.get(found)
        if former is not None and former is not connection:
            self._close(former)
        connection.lane = found
        self._by_lane[found] = connection
        self._watch.add(found.session)
        page = None if self.page is None else os.fsencode(self.page.path)
        return [PROTOCOL, VERSION, self.service.store.epoch, known, self._boot, page]

    def watch_sessions(self) -> None:
        """Watch sessions that were restored; those whose process has ended meanwhile end now."""
        for session in list(self.service.sessions.values()):
            self._watch.add(session)
        self.service.begin(self.clock())
        while self._end_a_session():
            pass

    def _session_ended(self, session: Session) -> None:
        """Note that a session's process has ended. It may be in the middle of a tick, so the rest is done after it."""
        self._ending.append(session)
        self._untidy = True

    def _end_a_session(self) -> bool:
        """End a part of a session whose process has ended; return whether there is more to do at once."""
        if not self._ending:
            return False
        session = self._ending[0]
        for lane in session.lanes.values():
            if connection := self._by_lane.get(lane):
                self._close(connection)
        try:
            if self.service.end(session):
                self._ending.popleft()
        except StateError:
            self._ending.rotate(-1)  # the next one may have less to say
            return False  # the log does not take it now: in a second again
        return bool(self._ending)

    # -- housekeeping ----------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        """Do what no event announces: a bounded part of what there is to tidy, and the rest of it once a second."""
        now = self.now
        self.service.begin(now)
        self._untidy = self._end_a_session()
        with contextlib.suppress(StateError):  # then it waits until the log takes something again
            self._untidy |= self.service.tidy()
        for chore in self.chores:
            self._untidy |= chore(now)
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + HOUSEKEEPING
        late = time.monotonic()
        for connection in self.connections():
            if connection.deadline is not None and connection.deadline < late:
                self._close(connection)
        self._watch.look({lane.session for lane in self._by_lane})
        if not self._accepting:
            self._accepting = True
            self._register(self._listener.fileno(), self._accept)
        self._reserve_epochs()
        if not self._still_mine():
            logger.error("another manager owns %s now, or it was removed: this one ends", self._directory)
            self._stopping = True
            if self.page is not None:
                self.page.poison()  # whoever reads there is to find the other one
        elif self.page is not None and not self.page.still_there():
            self._show_page_again()

    def show_page(self) -> None:
        """Show the versions of all that is here to workers, before any of it can change."""
        offset = self.clock.offset if isinstance(self.clock, Clock) else 0.0
        self.service.page = self.page = self._new_page(self._boot, offset, self.service.store.versions)

    def _show_page_again(self) -> None:
        """Make another page where somebody has removed ours; workers that map the old one turn to it."""
        assert self.page is not None
        self.page.poison()
        self.page.close()
        self.service.page = self.page = None
        try:
            self.show_page()
        except StateError as error:
            logger.warning("workers of %s cache nothing: %s", self._directory, error)

    def _reserve_epochs(self) -> None:
        store = self.service.store
        if store.last_epoch - store.epoch < EPOCHS_AHEAD // 2:
            try:
                self._reserve_epoch(store.epoch + EPOCHS_AHEAD)
            except (StateError, OSError) as error:
                logger.warning("cannot reserve epochs, so that emptying a large dict takes longer: %s", error)
            else:
                store.last_epoch = store.epoch + EPOCHS_AHEAD

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
            "durability": self.durability,
            "max_memory": self._max_memory,
            "uptime": time.monotonic() - self._started,
            "connections": len(self.connections()),
            "sessions": len(self.service.sessions),
            "waiting": self.service.lines.count,
            "spaces": len(store.spaces),
            "entries": store.entries,
            "bytes": store.bytes,
            "replies": sum(
                len(lane.reply) for session in self.service.sessions.values() for lane in session.lanes.values()
            ),
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
