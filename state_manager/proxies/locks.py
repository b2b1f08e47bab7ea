"""``Lock`` and ``Semaphore``: between all threads, greenlets and processes that use one name.

What a thread or greenlet holds is noted here, for itself: so each of them is an owner of its own, may share an object
with others, and may let go through another object of the same name. What a forked child has inherited is not its own:
the manager, which knows the child as another process, refuses it.

``threading.local`` and ``get_ident`` are looked up when they are used: gevent may replace them after this was imported.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any, Final, NamedTuple, Self
from weakref import WeakKeyDictionary

from ..caller import Caller
from ..checks import check_int, check_name, seconds
from ..checks import timeout as check_timeout
from ..errors import NotOwner, TimedOut

TIMEOUT: Final = 20.0

_here: Any = None


class Owner(NamedTuple):
    """Who holds something: a thread (``threading.get_ident()``) of a process, and since when (seconds since 1970)."""

    pid: int
    thread: int
    since: float


class Holding(NamedTuple):
    """That somebody holds something. ``lease``: the seconds that are left of it, None without one."""

    kind: str
    name: str
    owner: Owner
    token: int
    lease: float | None
    waiters: int


def _grants(caller: Caller) -> dict[tuple[str, str], list[int]]:
    """Return, by kind and name, the tokens of what this thread or greenlet has been granted, the last one last."""
    global _here
    if type(_here) is not threading.local:
        _here = threading.local()
    try:
        callers = _here.callers
    except AttributeError:
        callers = _here.callers = WeakKeyDictionary()
    grants: dict[tuple[str, str], list[int]] = callers.setdefault(caller, {})
    return grants


class Held:
    """What a lock and a semaphore have in common."""

    kind: str

    def __init__(self, caller: Caller, name: str, lease: float | timedelta | None, timeout: float) -> None:
        check_name(name)
        self._caller = caller
        self._name = name
        self._lease = None if lease is None else seconds(lease, "a lease")
        self._timeout = check_timeout(timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} in {self._caller!r}>"

    def __enter__(self) -> Self:
        if not self.acquire():
            raise TimedOut(f"the {self.kind} {self._name!r} was not free within {self._timeout:g} s")
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Wait for at most ``timeout`` seconds (None: those of the object) and return whether it is held now.

        First come, first served. A waiting thread sleeps, and neither side polls.
        """
        if not blocking and timeout is not None:
            raise ValueError("without blocking there is no timeout")
        wait = (self._timeout if timeout is None else check_timeout(timeout)) if blocking else 0.0
        token = self._caller.wait(self.kind, "acquire", self._asked(self._tokens()), wait)
        if token is None:
            return False
        _grants(self._caller).setdefault((self.kind, self._name), []).append(token)
        return True

    def release(self) -> None:
        """Let go. Raises NotOwner if this thread or greenlet holds nothing, or no longer: a lease may have ended."""
        tokens = self._tokens()
        if not tokens:
            raise NotOwner(f"this thread has not acquired the {self.kind} {self._name!r}, or has let go of it")
        try:
            self._caller.call(self.kind, "release", (self._name, tokens[-1]), True)
        except NotOwner:
            self._forget(tokens)
            raise
        self._forget(tokens)

    def _tokens(self) -> list[int]:
        return _grants(self._caller).get((self.kind, self._name), [])

    def _forget(self, tokens: list[int]) -> None:
        tokens.pop()
        if not tokens:
            _grants(self._caller).pop((self.kind, self._name), None)

    @property
    def token(self) -> int | None:
        """The fencing token of what this thread or greenlet has acquired, None if it has let go.

        It is larger than that of any former holder, for ever. Whoever is written to can refuse a smaller one than it
        has seen, and so is safe from a holder whose lease ended without his noticing.
        """
        tokens = self._tokens()
        return tokens[-1] if tokens else None

    @property
    def waiters(self) -> int:
        """How many wait for it."""
        return int(self._state()[0])

    def holdings(self) -> list[Holding]:
        """Return who holds it, those who came first first."""
        waiters, *holders = self._state()
        return [
            Holding(self.kind, self._name, Owner(*owner), token, lease, waiters) for token, *owner, lease in holders
        ]

    def _state(self) -> list[Any]:
        """Return how many wait, and for each holder token, pid, thread, since, and what is left of his lease."""
        found: list[Any] = self._caller.call(self.kind, "holders", (self._name,), False)
        return found

    def _asked(self, tokens: list[int]) -> tuple[Any, ...]:
        """Return what an acquisition says, but for its timeout."""
        raise NotImplementedError


class Lock(Held):
    """Held by one thread or greenlet of one process, until it lets go, its process ends or its ``lease`` has passed."""

    kind = "lock"

    def __init__(
        self,
        caller: Caller,
        name: str,
        lease: float | timedelta | None = None,
        timeout: float = TIMEOUT,
        reentrant: bool = False,
    ) -> None:
        super().__init__(caller, name, lease, timeout)
        self._reentrant = reentrant

    def _asked(self, tokens: list[int]) -> tuple[Any, ...]:
        held = tokens[-1] if self._reentrant and tokens else 0
        return self._name, threading.get_ident(), self._lease, held

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return len(self._state()) > 1

    @property
    def owner(self) -> Owner | None:
        """Who holds it, None if nobody does."""
        holdings = self.holdings()
        return holdings[0].owner if holdings else None


class Semaphore(Held):
    """Held by up to ``n`` at a time. ``n`` is this object's: of two that differ, each goes by its own."""

    kind = "semaphore"

    def __init__(
        self, caller: Caller, name: str, n: int, lease: float | timedelta | None = None, timeout: float = TIMEOUT
    ) -> None:
        super().__init__(caller, name, lease, timeout)
        self._n = check_int(n, "n")

    def _asked(self, tokens: list[int]) -> tuple[Any, ...]:
        return self._name, self._n, threading.get_ident(), self._lease

    def locked(self) -> bool:
        """Whether all places are taken."""
        return len(self._state()) > self._n

    @property
    def owners(self) -> tuple[Owner, ...]:
        """Who holds it, those who came first first."""
        return tuple(holding.owner for holding in self.holdings())
