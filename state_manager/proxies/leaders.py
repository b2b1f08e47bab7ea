"""``Leader``: what runs in one process of all, and moves on when that process ends.

A process stands for a leadership once, whatever number of objects it has of that name: a thread of its own waits for a
lock of the manager's, which is free again when its holder's process ends. It stands from the first ``run`` or ``every``
on, or rather from when the process serves (``serving``).

``threading.Thread``, ``Event`` are looked up when they are used: gevent may replace them after this was imported.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from .. import serving
from ..caller import Caller
from ..checks import LEADERS, check_name, seconds
from ..client import is_stopping
from ..errors import NotOwner, StateError, TimedOut, Unavailable
from ..patience import Patience
from .locks import Owner
from .near import Near

logger = logging.getLogger("state_manager")

WAIT: Final = 20.0
"""Seconds of one request for the leadership, of which one follows the other."""
Function = TypeVar("Function", bound=Callable[[], object])


class Term:
    """From an election to its end. ``over`` is set when it is to end; ``periodic``: what it waits for then."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.over = threading.Event()
        self.periodic: list[threading.Thread] = []


Job = Callable[[Term], None]
"""What is done in a term, in a thread of its own."""


class Candidacy:
    """This process's standing for one leadership."""

    def __init__(self, caller: Caller, name: str) -> None:
        check_name(name)
        self.caller = caller
        self.name = name
        self._lock = threading.Lock()
        self._pid = 0  # of the process that stands
        self._forget()

    def _forget(self) -> None:
        self._jobs: list[tuple[Job, bool]] = []
        self._resigned = threading.Event()
        self._standing = False
        self.term: Term | None = None

    def add(self, job: Job, *, periodic: bool, web: bool) -> None:
        """Do this in every term of this process; stand for it, if it does not yet."""
        if self._pid not in (0, os.getpid()):  # a process that stands has forked this one, which does not
            self._lock, self._pid = threading.Lock(), 0
            self._forget()
        with self._lock:
            self._jobs.append((job, periodic))
            if self.term is not None:
                self._start(self.term, job, periodic)
        serving.when_serving(self._stand, web=web)

    def _stand(self) -> None:
        with self._lock:
            if not self._standing and self._jobs:
                self._standing, self._pid = True, os.getpid()
                _thread(f"leader {self.name}", partial(self._run, self._resigned))

    def resign(self) -> None:
        """End the term, or the standing for one, and forget what is to be done."""
        with self._lock:
            resigned, term = self._resigned, self.term
            self._forget()
        resigned.set()
        if term is not None:
            term.over.set()

    def _run(self, resigned: threading.Event) -> None:
        """Stand for election, lead, and so on, until this process resigns or ends."""
        patience = Patience(f"stand for leader {self.name!r}")
        while not resigned.is_set() and not is_stopping():
            try:
                token = self.caller.wait("leader", "acquire", (self.name, threading.get_ident(), None, 0), WAIT)
            except TimedOut:
                return  # the process is being stopped
            except StateError as error:
                patience.rest(error, resigned)
                continue
            patience.reset()
            if token is not None:
                self._lead(token, resigned)

    def _lead(self, token: int, resigned: threading.Event) -> None:
        term = Term(token)
        with self._lock:
            if resigned.is_set():
                term.over.set()
            else:
                logger.info("process %d leads %r", os.getpid(), self.name)
                self.term = term
                for job, periodic in self._jobs:
                    self._start(term, job, periodic)
        term.over.wait()
        for thread in term.periodic:
            thread.join()  # so that what the next leader does does not overlap it
        with self._lock:
            if self.term is term:
                self.term = None
        self._release(token)

    def _release(self, token: int) -> None:
        patience = Patience(f"resign as leader {self.name!r}")
        while True:
            try:
                self.caller.call("leader", "release", (self.name, token), True)
                return
            except NotOwner:
                return
            except StateError as error:
                patience.rest(error)

    def _start(self, term: Term, job: Job, periodic: bool) -> None:
        thread = _thread(f"{self.name} of leader", partial(job, term))
        if periodic:
            term.periodic.append(thread)

    def lost(self, term: Term) -> None:
        """Note that the manager knows another leader: its state was removed, perhaps. This process stands again."""
        logger.warning("process %d does not lead %r any more", os.getpid(), self.name)
        term.over.set()

    def current(self) -> Term | None:
        """Return the term of this very process."""
        return self.term if self._pid == os.getpid() else None


def _thread(name: str, function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


class Leader:
    """One process of all that ask for a leadership of this name has it, until it ends or resigns.

    ``web``: it belongs to a web app, so nothing begins before the app serves.
    """

    def __init__(self, candidacy: Candidacy, web: bool = False) -> None:
        self._candidacy = candidacy
        self._name = candidacy.name
        self._web = web
        self._near = Near(candidacy.caller, LEADERS)

    def __repr__(self) -> str:
        return f"<Leader {self._name!r} in {self._candidacy.caller!r}>"

    @property
    def is_leader(self) -> bool:
        """Whether this process leads, as the manager has it: not as it was when it was elected.

        While no manager can be reached nobody else can be elected, so it stays what it was.
        """
        term = self._candidacy.current()
        if term is None:
            return False
        try:
            found = self._held()
        except Unavailable:
            return True
        if found and found[0] == term.token:
            return True
        self._candidacy.lost(term)
        return False

    @property
    def token(self) -> int | None:
        """The fencing token of this process's term, larger than that of any leader before; None if it does not lead."""
        term = self._candidacy.current()
        return None if term is None else term.token

    @property
    def owner(self) -> Owner | None:
        """The process that leads, None if none does."""
        found = self._held()
        return Owner(*found[1:4]) if found else None

    def _held(self) -> list[Any]:
        found: list[Any] = self._near.get(self._name, [])
        return found

    def run(self, function: Callable[[], object]) -> None:
        """Return at once; a daemon thread calls ``function`` when this process is elected.

        It stays the leader when the function returns. One that raises is called again, after a second at first and a
        minute at most. Nothing is elected in gunicorn's master, in a ``flask`` command or under pytest.
        """
        self._candidacy.add(partial(_call, self._name, function), periodic=False, web=self._web)

    def every(self, period: float) -> Callable[[Function], Function]:
        """Decorate a function that the leader is to call every ``period`` seconds, the first time at once.

        It never overlaps itself, and the next due time is kept by the manager: another leader waits for it. One that
        takes longer than the period leaves out the turns that it has missed; what it raises is logged.
        """
        if callable(period):
            raise TypeError("write @leader.every(60), with the seconds between two calls, above the function")
        period = seconds(period, "a period")

        def decorate(function: Function) -> Function:
            job = f"{function.__module__}.{function.__qualname__}"
            turns = Turns(self._candidacy, job, function, period)
            self._candidacy.add(turns.run, periodic=True, web=self._web)
            return function

        return decorate

    def resign(self) -> None:
        """Give up the leadership, or standing for it, in this process, until the next ``run`` or ``every``.

        It is free for others when the periodic functions that run just now have returned. A function that was given to
        ``run`` is not stopped: one that goes on looks at ``is_leader``.
        """
        self._candidacy.resign()


def _call(name: str, function: Callable[[], object], term: Term) -> None:
    """Call a function until it returns."""
    patience = Patience(f"run {function!r} of leader {name!r}")
    while not term.over.is_set():
        try:
            function()
            return
        except Exception as error:
            logger.exception("%r of leader %r failed", function, name)
            patience.rest(error, term.over)


class Turns:
    """A function that is called periodically; the manager says when."""

    def __init__(self, candidacy: Candidacy, job: str, function: Callable[[], object], period: float) -> None:
        self._candidacy = candidacy
        self._job = job
        self._function = function
        self._period = period

    def run(self, term: Term) -> None:
        """Call the function whenever it is due, until the term is over."""
        name = self._candidacy.name
        patience = Patience(f"see whether {self._job} is due")
        while not term.over.is_set():
            try:
                args = (name, term.token, self._job, self._period)
                is_due, rest = self._candidacy.caller.call("leader", "turn", args, True)
            except NotOwner:
                self._candidacy.lost(term)
                return
            except StateError as error:
                patience.rest(error, term.over)
                continue
            patience.reset()
            began = time.monotonic()
            if is_due:
                try:
                    self._function()
                except Exception:
                    logger.exception("%s of the leader %r failed; it is called again when it is due", self._job, name)
            term.over.wait(max(0.0, rest - (time.monotonic() - began)))
