"""``memory://``: the same commands over a store in this process, for unit tests. Nothing is shared and nothing is kept.

Its clock is ``time.time()``, looked up at each call, so that freezegun and time-machine move it: back, too. A call that
waits ends when its timeout has passed by that clock or by the machine's own, so that a clock that stands does not hang
it. ``threading.Event`` is looked up when it is used: gevent may replace it after this was imported.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from .commands.base import Done, View, row
from .errors import StateError, from_wire
from .service import Service
from .sessions import Lane, Session
from .settings import PROTOCOL, VERSION, MemoryAddress
from .store import Store
from .wire import RETURN, packer, unpack

SHORTEST: Final = 0.01
"""Seconds between two looks of a call that waits, should the clock stand just before the time that it waits for."""
SWEEP: Final = 1.0
"""Seconds between two looks, while somebody waits, for what has expired: an item whose lease has ended comes back."""


class MemoryClient:
    """Calls a ``Service`` under a lock, where ``Client`` sends a message."""

    def __init__(self, address: MemoryAddress) -> None:
        self.address = address
        self._started = time.monotonic()
        self.service = Service(Store(int(time.time())), token=lambda: secrets.token_hex(32))
        self.service.add(
            row("manager", "stats", self._stats, writes=False),
            row("manager", "shutdown", self._shutdown, writes=False),
        )
        self._lock = threading.Lock()
        self._begin_session()
        _stores.add(self)

    def __repr__(self) -> str:
        return f"<MemoryClient {self.address}: {self.service!r}>"

    def _begin_session(self) -> None:
        """This process is one session, and each call that waits is a lane of it."""
        self._session = Session(os.getpid(), b"", os.getpid(), None, "memory", time.time())
        self._session.stored = True
        self.service.sessions[b""] = self._session
        self._lane = self._new_lane()  # for calls that do not wait
        self._idle: deque[Lane] = deque()
        self._events: dict[Lane, threading.Event] = {}

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        with self._lock:
            self.service.begin(time.time())
            try:
                return self.service.call_unattached(kind, name, args, self._lane)
            finally:
                self.service.commit()
                self.service.tidy()
                if self.service.lines.by_name or self.service.woken:
                    self._wake()

    def wait(self, kind: str, name: str, args: Sequence[Any], timeout: float, numbered: bool = True) -> Any:
        until = time.monotonic() + timeout
        with self._lock:
            lane = self._idle.pop() if self._idle else self._new_lane()
            event = self._events[lane] = threading.Event()
            number = lane.number + 1
        try:
            reply = self._ask(lane, kind, name, [*args, timeout])
            while reply is None:
                with self._lock:
                    rest = min(max(self.service.next_wake() - time.time(), SHORTEST), SWEEP)
                event.wait(min(until - time.monotonic(), rest))
                with self._lock:
                    self._wake()
                    if lane.number == number:
                        reply = lane.reply
                    elif time.monotonic() >= until and lane.parked is not None:
                        return lane.parked.timed_out
        except BaseException:
            self._ask(self._lane, "manager", "abandon", [lane.id, number, kind, name, [*args, timeout]])
            raise
        finally:
            with self._lock:
                self.service.unpark(lane)
                self._wake()
                del self._events[lane]
                self._idle.append(lane)
        kind_of_reply, result, *_ = unpack(reply)
        if kind_of_reply == RETURN:
            return result
        raise from_wire(*result)

    def _new_lane(self) -> Lane:
        lanes = self._session.lanes
        lane = lanes[len(lanes)] = Lane(self._session, len(lanes))
        return lane

    def _ask(self, lane: Lane, kind: str, name: str, args: Sequence[Any]) -> bytes | None:
        with self._lock:
            self.service.begin(time.time())
            reply = self.service.handle(lane, packer().pack((kind, name, args, {}, lane.number + 1)))
            self.service.commit()
            self._wake()
            return reply

    def _wake(self) -> None:
        """Run what has been touched or whose time has come, and tell those who wait in other threads."""
        self.service.begin(time.time())
        self.service.tidy()
        self.service.wake()
        woken, self.service.woken = self.service.woken, []
        for lane, _ in woken:
            self._events[lane].set()

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], None]:
        return (RETURN, self.call(kind, name, args, numbered)), None

    def copies(self, space: str) -> None:
        """There are none: the store is as near."""

    lasting_copies = copies

    def look(self) -> None:
        """There is nothing to look at."""

    def tell_later(self, kind: str, name: str, args: Sequence[Any]) -> None:
        with contextlib.suppress(StateError):
            self.call(kind, name, args, True)

    def close(self) -> None:
        """There is nothing to close."""

    def _stats(self, view: View, now: float) -> Done:
        """Return what this store holds."""
        store = self.service.store
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "protocol": PROTOCOL,
            "directory": None,
            "epoch": store.epoch,
            "uptime": time.monotonic() - self._started,
            "connections": 0,
            "sessions": 0,
            "waiting": self.service.lines.count,
            "spaces": len(store.spaces),
            "entries": store.entries,
            "bytes": store.bytes,
            "replies": 0,
            "commands": self.service.commands,
        }, ()

    def _shutdown(self, view: View, now: float) -> Done:
        """Forget a named store: the next ``connect`` finds a new, empty one."""
        if self.address.name is not None:
            _named.pop(self.address.name, None)
        return None, ()


_named: dict[str, MemoryClient] = {}
_stores: weakref.WeakSet[MemoryClient] = weakref.WeakSet()


def open_memory(address: MemoryAddress) -> MemoryClient:
    """Return the store of this name, or a new one for an address without a name."""
    if address.name is None:
        return MemoryClient(address)
    found = _named.get(address.name)
    return found if found is not None else _named.setdefault(address.name, MemoryClient(address))


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._lock = threading.Lock()  # a thread that held it does not exist here
        store.service.begin(time.time())
        while not store.service.end(store._session):  # nor one that waited, and what it held was the parent's
            pass
        store._begin_session()


os.register_at_fork(after_in_child=_after_fork_in_child)
