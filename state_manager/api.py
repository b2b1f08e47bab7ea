"""``connect`` and ``StateManager``: the way in, to proxies over one of two callers: a socket, or memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .backups import back_up
from .caller import Caller
from .checks import CHANNELS, LEADERS, LOCKS, QUEUE, SEMAPHORE, TAKEN, Key, check_key, seconds, shown
from .client import Client
from .errors import StateError
from .nearcache import NearCache
from .proxies.channels import HISTORY, Channel
from .proxies.counters import Counter
from .proxies.dicts import SharedDict, open_dict
from .proxies.leaders import Leader, candidacy_of
from .proxies.locks import TIMEOUT, Holding, Lock, Owner, Semaphore
from .proxies.options import UNSET
from .proxies.queues import Queue
from .proxies.secrets import Secret
from .proxies.transactions import Transaction, run
from .proxies.workers import Worker, worker_of
from .settings import DEFAULT_TIMEOUT, Address, MemoryAddress, resolve_address

T = TypeVar("T")


class Space(NamedTuple):
    """What a manager holds under one name. Names that begin with ":" are the manager's own."""

    name: str
    kind: str
    entries: int
    bytes: int


class StateManager:
    """The state of one directory, as this process sees it. Safe across threads, forks and greenlets.

    Nothing is connected until the first use, so importing an application needs no manager. ``with manager:`` and
    ``close()`` close this process's connections; only ``shutdown()`` ends the manager.
    """

    _web = False
    """Whether what is begun here waits until a web app serves."""

    def __init__(self, address: Address, caller: Caller) -> None:
        self._address = address
        self._caller = caller

    def __repr__(self) -> str:
        return f"<StateManager {self.address}: {self._caller!r}>"

    @property
    def address(self) -> Address:
        """Where the state is."""
        return self._address

    def __enter__(self) -> StateManager:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, name: str, *args: Any, numbered: bool = False) -> Any:
        return self._caller.call("manager", name, args, numbered)

    # -- what it holds ---------------------------------------------------------------------------------------------

    def dict(
        self,
        name: str,
        *,
        durable: bool = UNSET,
        max_bytes: int | None = UNSET,
        on_full: str = UNSET,
        ephemeral: bool = UNSET,
    ) -> SharedDict:
        """Return the dict of this name, which is empty until somebody writes to it.

        Options belong to the dict and not to this object: those given are set when it is first used (the last one to
        set one wins), the others stay as they are. ``durable`` False: kept in memory only (a new dict: True).
        ``max_bytes``: its bound (None); at it ``on_full`` "refuse" raises StoreFull and "evict" gives up its own oldest
        entries. ``ephemeral`` True: an entry goes when the process that wrote it ends.
        """
        options = {"durable": durable, "max_bytes": max_bytes, "on_full": on_full, "ephemeral": ephemeral}
        return open_dict(self._caller, name, options)

    def system(self, name: str) -> SharedDict:
        """Return one of the manager's own spaces, to read; the command line shows them."""
        if type(name) is not str or name[:1] != ":":
            raise ValueError(f"the manager's own names begin with ':', and {name!r} does not")
        return SharedDict(self._caller, name)

    def counter(self, name: str) -> Counter:
        """Return the counter of this name, which is 0 until somebody touches it."""
        return Counter(self._caller, name)

    def secret(self, name: str) -> Secret:
        """Return the secret of this name, which the manager makes when it is first read."""
        return Secret(self._caller, name)

    def lock(
        self,
        name: str,
        lease: float | timedelta | None = None,
        timeout: float = TIMEOUT,
        reentrant: bool = False,
    ) -> Lock:
        """Return the lock of this name, which one thread of one process holds at a time.

        It is free again when the holder lets go or his process ends, however it ends, or, given a ``lease``, that many
        seconds after he got it: for one that hangs. ``timeout``: how long ``with`` and ``acquire`` wait. ``reentrant``:
        the holder may acquire it again, and lets go as often.
        """
        return Lock(self._caller, name, lease, timeout, reentrant)

    def semaphore(
        self, name: str, n: int, lease: float | timedelta | None = None, timeout: float = TIMEOUT
    ) -> Semaphore:
        """Return the semaphore of this name, which up to ``n`` hold at a time, each as if it were a lock."""
        return Semaphore(self._caller, name, n, lease, timeout)

    def leader(self, name: str) -> Leader:
        """Return the leadership of this name, which one process of all that ``run`` something for it has at a time.

        For a scheduler, or anything else that is to run once and not once a worker. It moves on when its process ends.
        """
        return Leader(candidacy_of(self._caller, name), self._web)

    def queue(
        self,
        name: str,
        maxsize: int = 0,
        max_deliveries: int | None = None,
        lease: float | timedelta | None = None,
    ) -> Queue:
        """Return the queue of this name: work for whichever process takes it, and for the next one if that ends.

        ``maxsize``: how many items may wait, 0 for any number. ``max_deliveries``: how often an item is taken before it
        goes to the queue ``name + ":dead"`` instead of coming back. ``lease``: seconds after which it comes back from a
        taker that hangs.
        """
        return Queue(self._caller, name, maxsize, max_deliveries, lease)

    def channel(self, name: str, history: int = HISTORY) -> Channel:
        """Return the channel of this name: everybody who subscribes gets each message that is published.

        ``history``: how many messages are kept for who is slow or comes back.
        """
        return Channel(self._caller, name, history)

    def transaction(self) -> Transaction:
        """Return a transaction for a ``with`` block: several dicts and counters, read and written all at one moment.

        The end of the block raises Conflict, and nothing was written, if something that it read has changed.
        """
        return Transaction(self._caller)

    def run_transaction(self, function: Callable[[Transaction], T], timeout: float = TIMEOUT) -> T:
        """Run ``function(tx)`` in a transaction, again after each Conflict, and return what it returns.

        It may run several times, so it should do nothing but read and write ``tx``. A Conflict after ``timeout``
        seconds is raised.
        """
        return run(self._caller, function, timeout)

    def workers(self) -> list[Worker]:
        """Return the processes that use the manager: pid, name, since when, what they hold and what they wait for."""
        return [worker_of(*fields) for fields in self._ask("workers")]

    def held(self) -> Iterator[Holding]:
        """Yield who holds which lock, leadership or semaphore at the moment; the command line shows it."""
        for name in self.system(LOCKS):
            yield from self.lock(str(name)).holdings()
        for name, (token, *owner, _) in self.system(LEADERS).copy().items():
            waiters = self._caller.call("leader", "holders", (name,), False)[0]
            yield Holding("leader", str(name), Owner(*owner), token, None, waiters)
        for space in self.spaces():
            if space.kind == "semaphore":
                yield from self.semaphore(space.name.removeprefix(SEMAPHORE), 1).holdings()

    def queues(self) -> list[Queue]:
        """Return the queues in which something waits or was taken."""
        spaces = [space.name for space in self.spaces()]
        names = {name.removeprefix(prefix) for name in spaces for prefix in (QUEUE, TAKEN) if name.startswith(prefix)}
        return [Queue(self._caller, name) for name in sorted(names)]

    def channels(self) -> list[Channel]:
        """Return the channels that something was published to."""
        return [Channel(self._caller, name) for name in self.system(CHANNELS) if isinstance(name, str)]

    def once(self, key: Key, ttl: float | timedelta) -> bool:
        """Return True to the first of all processes that asks with this key within ``ttl`` seconds, else False."""
        check_key(key)
        return bool(self._ask("once", key, seconds(ttl), numbered=True))

    def fingerprints(self, name: str, pid: int, digest: str) -> list[tuple[int, str]]:
        """Remember that process ``pid`` has this digest of something, and return all that are known, newest last."""
        known = self._ask("fingerprints", name, pid, digest, numbered=True)
        return list(zip(known[::2], known[1::2], strict=True))

    def spaces(self) -> list[Space]:
        """Return what there is; dicts that hold nothing are not there."""
        return [Space(*fields) for fields in self._ask("spaces")]

    def drop(self, name: str) -> bool:
        """Delete the dict of this name and all that belongs to it; return whether it was there."""
        return bool(self._ask("drop", name, numbered=True))

    # -- the manager itself ----------------------------------------------------------------------------------------

    def stats(self) -> Mapping[str, Any]:
        """Return figures about the manager's process and what it holds."""
        found: Mapping[str, Any] = self._ask("stats")
        return found

    def ping(self) -> float:
        """Ask the manager for nothing and return the seconds that it took."""
        start = time.perf_counter()
        self._ask("ping")
        return time.perf_counter() - start

    def backup(self, path: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None) -> Path:
        """Write all that the manager keeps, as it is at one moment, to a file, and return the file's absolute path.

        Nobody waits for it. `state-manager restore` reads it. A backup of this name is replaced, any other file is
        refused. ``progress`` is called with the bytes done and the bytes in all. Raises StateError if the manager keeps
        no journal, OSError if the file cannot be written; then what was there is as it was.
        """
        if isinstance(self._address, MemoryAddress):
            raise StateError(f"{self._address} is kept nowhere, so it cannot be backed up: connect to a directory")
        return back_up(self._caller, self._address.path, path, progress)

    def look(self) -> None:
        """Check, at most once a second, that what this process has mapped is still the manager's.

        Any call that is not answered by a bare look-up does this, and so does each request of a Flask app. It matters
        after somebody has removed files of a manager that was not running.
        """
        self._caller.look()

    def shutdown(self) -> None:
        """End the manager, for everybody."""
        self._ask("shutdown")

    def close(self) -> None:
        """Close this process's connections; they open again when they are needed."""
        self._caller.close()


def connect(
    address: str | os.PathLike[str] | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    near_cache: bool = True,
    start: bool = False,
) -> StateManager:
    """Return the manager of ``address``; nothing is connected yet.

    ``address``: a directory; ``"memory://"`` for a new, empty store in this process; ``"memory://NAME"`` for one that
    this process shares; None for ``$STATE_MANAGER_ADDRESS``, else ``$STATE_MANAGER_DIR``, else ``./.state``.
    ``timeout``: seconds for one operation, retries included. ``start``: start a manager for the directory if none runs.
    ``near_cache``: whether reads may be answered from this process's own copies, which are never out of date: turn it
    off to measure, or to save the memory, up to about 32 MiB in each process.
    """
    return open_manager(address, timeout=timeout, near_cache=near_cache, start=start or _starting)


def start_managers() -> None:
    """Let ``connect`` start a manager where none runs, in this process and in those that it forks."""
    global _starting
    _starting = True


_starting = False


def open_manager(
    address: str | os.PathLike[str] | None, *, timeout: float, near_cache: bool, start: bool
) -> StateManager:
    """Do what ``connect`` does for one who says everything."""
    if type(timeout) not in (int, float) or not 0 < timeout < 1e6:
        raise ValueError(f"a timeout is a number of seconds above zero, not {shown(timeout)}")
    where = resolve_address(address)
    if isinstance(where, MemoryAddress):
        from .memory import open_memory  # only here: a worker with a manager never loads the server's half

        return StateManager(where, open_memory(where))
    near = NearCache() if near_cache else None
    return StateManager(where, Client(where.path, timeout=float(timeout), start=start, near=near))
