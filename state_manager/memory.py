"""``memory://``: the same commands over a store in this process, for unit tests. Nothing is shared and nothing is kept.

Its clock is ``time.time()``, looked up at each call, so that freezegun and time-machine move it: back, too.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from .commands.base import Done, View, row
from .service import Service
from .settings import PROTOCOL, VERSION, MemoryAddress
from .store import Store
from .wire import RETURN


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
        _stores.add(self)

    def __repr__(self) -> str:
        return f"<MemoryClient {self.address}: {self.service!r}>"

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        with self._lock:
            self.service.begin(time.time())
            try:
                return self.service.call(kind, name, args)
            finally:
                self.service.commit()
                self.service.tidy()

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], None]:
        return (RETURN, self.call(kind, name, args, numbered)), None

    def copies(self, space: str) -> None:
        """There are none: the store is as near."""

    lasting_copies = copies

    def look(self) -> None:
        """There is nothing to look at."""

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


os.register_at_fork(after_in_child=_after_fork_in_child)
