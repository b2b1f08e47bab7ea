"""A process's connections to its manager: lanes, deadlines, retries, forks.

    client.call(kind, name, args, numbered) -> result

A lane is one connection with one request outstanding. Idle lanes lie on a stack; a thread or greenlet takes one, asks,
and puts it back, so there are as many lanes as calls at the same time, and none belongs to anybody.

Rules
- A numbered request (a write) that broke off is sent again on the same lane with the same number: the manager answers
  from the stored reply if it had applied it. Only a manager that does not know the lane cannot tell, hence
  ``OutcomeUnknown``.
- One deadline covers an operation with all of its retries. Once it has passed, a call waits for a moment only, until
  the manager answers again: else each request of a web worker would hang for the whole of it.
- A call that waits (``wait``) is parked in the manager, which decides when it has waited for long enough; the client
  waits past that. After a break it asks again, for what is left of the time. Whatever else ends the waiting (Ctrl-C, a
  killed greenlet, ``sys.exit`` in a signal's handler) closes the lane, and another one tells the manager to let nothing
  come of it: at once, or, if nobody answers within a second, as soon as there is a connection again.
- A child forked from this process closes its copies of the lanes, without a word to the manager, is a new session, and
  keeps none of the copies of what the parent has read.
- Copies are kept under the page of the manager that answered, and only of what it answered just now: a reply that was
  stored for a retry is of another moment.
- ``socket.socket``, ``time.sleep`` are looked up when they are used: gevent may replace them after this was imported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from . import sidecar
from .directory import SOCKET, StateDirectory
from .errors import OutcomeUnknown, StateError, TimedOut, TooLarge, Unavailable, from_wire
from .lanes import Lane, receive, set_timeout
from .nearcache import Copies, NearCache
from .settings import FRAME_LIMIT, NAME_LIMIT, PROTOCOL, VERSION
from .versions import Page
from .wire import LOADING, RETURN, check_server, check_welcome, client_handshake, frame

DOWN_SECONDS: Final = 0.1
"""The deadline of a call after one whose own has passed."""
LAST_TRY_SECONDS: Final = 0.05
"""What the last try before a deadline has at the least, or it would be none."""
LOAD_SECONDS: Final = 60.0
"""How much longer than its deadline a call waits for a manager that says that it is reading its journal."""
LOOK_SECONDS: Final = 1.0
"""How often a process that reads looks whether the page that it maps is still the manager's."""
ABANDON_SECONDS: Final = 1.0
"""How long a call that was given up may take to tell the manager so."""
TELL_SECONDS: Final = 1.0
"""How often the manager is told again what it could not be told, or did not take."""
BACKOFF: Final = (0.002, 0.1)
"""Seconds to wait after the first failed try and at most; each try doubles it."""
_NO_KEYWORDS: Final[dict[str, Any]] = {}


class StillLoading(Unavailable):
    """The manager is reading its journal."""


class Client:
    """The lanes of this process to the manager of one directory. Safe across threads, greenlets and forks."""

    def __init__(self, path: Path, *, timeout: float, start: bool, near: NearCache | None = None) -> None:
        self.path = path
        self._near = near
        self._next_look = 0.0
        self.timeout = timeout
        self._start = start
        self._directory: StateDirectory | None = None
        self._was_up = False
        self._down = False
        self._unseen = b""
        self._begin_session()
        _clients.add(self)

    def __repr__(self) -> str:
        state = "down" if self._down else f"{len(self._lanes)} lanes, {len(self._idle)} idle"
        return f"<Client of {self.path}: {state}, {self._near or 'no near cache'}>"

    def __del__(self) -> None:
        if self._near is not None:
            self._near.turn_to(None)  # it and its copies hold one another, and the page is a mapping
        if self._directory is not None:
            self._directory.close()

    def _begin_session(self) -> None:
        self.session = os.urandom(16)
        self._ids = itertools.count()
        self._lanes: list[Lane] = []
        self._idle: deque[Lane] = deque()
        self._waiting: set[Lane] = set()
        self._abandoned: deque[tuple[Lane, tuple[Any, ...]]] = deque()  # what the manager has not been told yet
        self._owed: deque[tuple[str, str, Sequence[Any]]] = deque()  # and what else it is to be told
        self._next_telling = 0.0
        self._lock = threading.Lock()  # for opening the directory

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        """Run a command in the manager and return its result; raise what ``exchange`` raises."""
        reply, _ = self.exchange(kind, name, args, numbered)
        return reply[1]

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], Page | None]:
        """Run a command in the manager; return its reply and the page under which what it says may be kept.

        Raises what the command raises; Unavailable when the manager was not reached within ``timeout`` seconds;
        OutcomeUnknown when it was and did not answer.
        """
        began = time.monotonic()
        idle = self._idle  # this one, whatever it is at the end: a child that is forked meanwhile has another
        try:
            lane = idle.pop()
        except IndexError:
            lane = self._new_lane()
        try:
            if numbered:
                lane.number += 1
                request = lane.pack((kind, name, args, _NO_KEYWORDS, lane.number))
            else:
                request = lane.pack((kind, name, args, _NO_KEYWORDS))
            if len(request) > FRAME_LIMIT:
                raise _too_large(request)
            again = numbered  # what was stored for a retry says nothing about now
            if lane.sock is None:
                lane.unsure = False
                reply = self._ask_again(lane, request, numbered, began)
            else:
                try:
                    if lane.timeout != self.timeout:
                        lane.set_timeout(self.timeout)
                    reply = lane.ask(request)
                    again = False
                except (TimeoutError, BlockingIOError):
                    self._give_up()
                    raise self._too_late(numbered and lane.unsure, began) from None
                except OSError:
                    reply = self._ask_again(lane, request, numbered, began)
            if numbered and reply[2] != lane.number:
                lane.close()
                raise OutcomeUnknown(f"the manager of {self.path} answered another request than this one: {reply[2:]}")
            if lane.large:
                self._acknowledge(lane, numbered)
            if self._abandoned or self._owed:
                self._tell()
            near = self._near
            if near is None or again:
                page = None
            else:
                page = near.page
                if page is None or page.boot != lane.boot or began >= self._next_look:
                    page = self._look(near, lane)
        finally:
            idle.append(lane)
        if reply[0] == RETURN:
            return reply, page
        raise from_wire(*reply[1])

    def wait(self, kind: str, name: str, args: Sequence[Any], timeout: float, numbered: bool = True) -> Any:
        """Run a command that may wait and return its result; ``timeout``, in seconds, is its last argument.

        Raises what ``exchange`` raises, and TimedOut when this process is being stopped.
        """
        left, until = timeout, time.monotonic() + timeout
        idle = self._idle
        lane = self._take()
        lane.number += numbered
        asked = sent = False
        try:
            while True:
                began = time.monotonic()
                if lane.sock is None:
                    lane.unsure = sent  # then the manager must know the lane, or nobody can tell what became of it
                    self._ask_again(lane, lane.pack(("manager", "ping", (), _NO_KEYWORDS)), True, began)
                    left = max(until - time.monotonic(), 0.0)
                if _stopping:
                    left = 0.0
                number = (lane.number,) if numbered else ()
                request = lane.pack((kind, name, (*args, left), _NO_KEYWORDS, *number))
                if len(request) > FRAME_LIMIT:
                    raise _too_large(request)
                self._waiting.add(lane)
                try:
                    lane.set_timeout(left + self.timeout)
                    if _stopping and left:
                        continue  # since a moment ago, so nobody has ended this wait
                    asked = numbered
                    reply = lane.ask(request)
                    break
                except (TimeoutError, BlockingIOError):
                    self._give_up()
                    raise self._too_late(numbered and lane.unsure, began) from None
                except OSError:
                    sent = sent or (numbered and lane.unsure)
                    if _stopping and left:
                        raise TimedOut("the process is being stopped, so it waits for nothing any more") from None
                    if time.monotonic() > until + self.timeout:
                        raise self._too_late(sent, began) from None
                    time.sleep(BACKOFF[0])
                finally:
                    self._waiting.discard(lane)
            if numbered and reply[2] != lane.number:
                lane.close()
                raise OutcomeUnknown(f"the manager of {self.path} answered another request than this one: {reply[2:]}")
        except BaseException:
            lane.close()
            if asked and lane.session == self.session:  # not in a child that was forked meanwhile
                self._abandon(lane, (lane.id, lane.number, kind, name, (*args, timeout)))
            else:
                idle.append(lane)
            raise
        if lane.large:
            self._acknowledge(lane, numbered)
        idle.append(lane)
        if self._abandoned or self._owed:
            self._tell()
        if reply[0] == RETURN:
            return reply[1]
        raise from_wire(*reply[1])

    def tell_later(self, kind: str, name: str, args: Sequence[Any]) -> None:
        self._owed.append((kind, name, args))

    def _tell(self) -> None:
        """Tell the manager, which answers, what it could not be told before, or did not take. Once in a moment."""
        now = time.monotonic()
        if now < self._next_telling:
            return
        self._next_telling = now + TELL_SECONDS
        with contextlib.suppress(StateError, OSError):
            self._tell_abandoned()
        with contextlib.suppress(StateError, OSError, IndexError):
            while True:
                owed = self._owed.popleft()
                try:
                    self.call(*owed, True)
                except Unavailable:
                    self._owed.appendleft(owed)
                    raise

    def _abandon(self, lane: Lane, what: tuple[Any, ...]) -> None:
        """Tell the manager, within a moment, that nobody waits for this any more: else when it answers again.

        Nobody uses the lane before: a later number on it would say that this one has been dealt with.
        """
        self._abandoned.append((lane, what))
        with contextlib.suppress(StateError, OSError):
            self._tell_abandoned()

    def _tell_abandoned(self) -> None:
        while self._abandoned:
            first = self._abandoned[0]
            idle = self._idle
            lane = self._take()
            lane.number += 1
            try:
                lane.close()  # a new connection cannot be one that has broken
                self._greet(lane, self._open(ABANDON_SECONDS))
                kind, result, *_ = lane.ask(lane.pack(("manager", "abandon", first[1], _NO_KEYWORDS, lane.number)))
            finally:
                idle.append(lane)
            if kind != RETURN and isinstance(error := from_wire(*result), StateError):
                raise error  # such as a full disk: it is told again later
            with contextlib.suppress(ValueError):  # another thread may have told the same
                self._abandoned.remove(first)
                idle.append(first[0])

    def end_waits(self) -> None:
        """Break off what waits at the moment. May be called from a signal handler."""
        for lane in list(self._waiting):
            sock = lane.sock
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this process's connections. Using the client again opens new ones."""
        self._close_idle()

    # -- the near cache --------------------------------------------------------------------------------------------

    def copies(self, space: str) -> Copies | None:
        self.look()
        return self.lasting_copies(space)

    def lasting_copies(self, space: str) -> Copies | None:
        return None if self._near is None else self._near.copies(space)

    def look(self) -> None:
        if self._near is not None and time.monotonic() >= self._next_look:
            self._check_page(self._near)

    def _look(self, near: NearCache, lane: Lane) -> Page | None:
        """Return the page of the manager that has just answered on this lane, None if it cannot be seen."""
        if time.monotonic() >= self._next_look:
            if not self._check_page(near):
                lane.close()  # the next request attaches it again, and so learns where the page is now
                return None
        elif lane.boot == self._unseen:
            return None  # it could not be opened a moment ago
        page = near.page
        if page is None or page.boot != lane.boot:
            page = Page.open(lane.page) if lane.page is not None else None
            if page is None or page.boot != lane.boot:
                self._unseen = lane.boot
                return None
            near.turn_to(page)
        return page

    def _check_page(self, near: NearCache) -> bool:
        """Turn away from a page that is no longer the manager's, as when its directory was removed and made anew.

        A manager that notices marks its old page; this finds the one that was killed before it could.
        """
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._unseen = b""
        if near.page is None or near.page.still_there():
            return True
        near.turn_to(None)
        return False

    def _acknowledge(self, lane: Lane, numbered: bool) -> None:
        """Let the manager forget a large reply, which it keeps in case that it did not arrive."""
        lane.large = False
        if numbered:
            lane.number += 1
            with contextlib.suppress(OSError):  # the next request attaches the lane again
                lane.set_timeout(self.timeout)
                lane.ask(lane.pack(("manager", "ping", (), _NO_KEYWORDS, lane.number)))

    # -- lanes -----------------------------------------------------------------------------------------------------

    def _take(self) -> Lane:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_lane()

    def _new_lane(self) -> Lane:
        lane = Lane(self.session, next(self._ids))
        self._lanes.append(lane)
        return lane

    def _ask_again(self, lane: Lane, request: bytes, numbered: bool, began: float) -> Any:
        """Attach the lane and send the request, again and again until there is an answer or the deadline has passed."""
        deadline = began + (min(self.timeout, DOWN_SECONDS) if self._down else self.timeout)
        delay, longest = BACKOFF
        unsure = numbered and lane.unsure
        while True:
            left = max(deadline - time.monotonic(), LAST_TRY_SECONDS)
            try:
                sock = self._connect(left)
            except (Unavailable, OSError) as error:
                reason: Exception = error
            else:
                try:
                    known = self._greet(lane, sock)
                    if unsure and not known:
                        raise OutcomeUnknown(
                            f"the manager of {self.path} ended with this request: it may have been applied or not"
                        )
                    # It is well, so a request of its own size may take its own time.
                    deadline = max(deadline, began + self.timeout)
                    lane.set_timeout(max(deadline - time.monotonic(), LAST_TRY_SECONDS))
                    reply = lane.ask(request)
                except StillLoading as error:
                    reason = error
                    deadline = max(deadline, began + self.timeout + LOAD_SECONDS)
                    delay = longest
                except OSError as error:
                    reason = error
                    unsure = unsure or (numbered and lane.unsure)
                else:
                    self._was_up, self._down = True, False
                    if self._abandoned or self._owed:
                        self._next_telling = 0.0
                        self._tell()
                    return reply
            left = deadline - time.monotonic()
            if left <= 0 or (self._down and type(reason) is not StillLoading) or self._hopeless():
                if left <= 0:
                    self._give_up()
                if isinstance(reason, Unavailable) and not unsure:
                    raise reason
                raise self._too_late(unsure, began) from None
            time.sleep(min(delay, left))
            delay = min(2 * delay, longest)

    def _hopeless(self) -> bool:
        """Whether nobody ever was here: then there is no restart to wait for, and the caller learns it at once."""
        return not self._was_up and not self._start and not os.path.lexists(self.path / SOCKET)

    def _give_up(self) -> None:
        """Note that a deadline has passed, and close what might make the next call wait for another one."""
        self._down = True
        self._close_idle()

    def _close_idle(self) -> None:
        lanes: list[Lane] = []
        with contextlib.suppress(IndexError):
            while True:  # who has taken a lane off the stack has it for himself
                lanes.append(self._idle.pop())
        for lane in lanes:
            lane.close()
        self._idle.extend(lanes)

    def _too_late(self, unsure: bool, began: float) -> Unavailable:
        text = f"the manager of {self.path} did not answer within {time.monotonic() - began:.2g} s"
        return OutcomeUnknown(f"{text}: the request may have been applied or not") if unsure else Unavailable(text)

    def _connect(self, timeout: float) -> socket.socket:
        """Return a connection to the manager, which is started first if there is none and this client may."""
        try:
            return self._open(timeout)
        except Unavailable:
            if not self._start:
                raise
        sidecar.ensure(self.path, timeout=timeout)
        return self._open(timeout)

    def _open(self, timeout: float) -> socket.socket:
        """Return a connection that has shown, both ways, that the peer knows the key."""
        with self._lock:
            if self._directory is None:
                self._directory = StateDirectory.open(self.path, create=False)
            directory = self._directory
        sock = directory.connect(timeout)
        try:
            set_timeout(sock, timeout)
            key = directory.key(create=False)
            asked = receive(sock)
            response, question = client_handshake(key, asked)
            sock.sendall(frame(response))
            check_welcome(receive(sock))
            sock.sendall(frame(question))
            sock.sendall(frame(check_server(key, question, receive(sock))))
        except BaseException:
            sock.close()
            raise
        return sock

    def _greet(self, lane: Lane, sock: socket.socket) -> bool:
        """Attach the lane to a new connection; return whether the manager knew it, and so can answer repeats."""
        lane.close()
        lane.sock = sock
        hello = [PROTOCOL, VERSION, lane.session, lane.id, _process_name or program()]
        try:
            kind, result = lane.ask(lane.pack((None, "accept_connection", [hello], _NO_KEYWORDS)))
        finally:
            lane.unsure = False  # whatever became of the hello, the request was not sent
        if kind != RETURN:
            lane.close()
            if kind == LOADING:
                raise StillLoading(result)
            raise from_wire(*result)
        known: bool
        _, _, _, known, lane.boot, page = result
        lane.page = None if page is None else os.fsdecode(page)
        near = self._near
        if near is not None and near.page is not None and near.page.boot != lane.boot:
            near.turn_to(None)  # it is another manager's, who may not have been able to mark it
        return known

    # -- forks -----------------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        for lane in self._lanes:
            lane.abandon()
        if self._near is not None:
            self._near.turn_to(None)
        self._begin_session()


def program() -> str:
    """Return what this process was started as: the last part of its path."""
    path = Path(sys.argv[0] if sys.argv else "")
    return (path.parent.name if path.name == "__main__.py" else path.name)[:NAME_LIMIT] or "python"


def call_process(name: str) -> None:
    """From now on tell managers that this process is called so."""
    global _process_name
    _process_name = name[:NAME_LIMIT]


def _too_large(request: bytes) -> TooLarge:
    return TooLarge(f"a message of {len(request):,} bytes is over the limit of {FRAME_LIMIT:,}")


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_stopping = False
_process_name = ""


def is_stopping() -> bool:
    """Return whether this process waits for nothing any more."""
    return _stopping


def end_waits() -> None:
    """End every wait of this process, now and from now on: it is being stopped. May be called from a signal handler."""
    global _stopping
    _stopping = True
    for client in list(_clients):
        client.end_waits()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
