"""``Leader``: what runs in one process of all, and moves on when that process ends.

A process stands for a leadership once, whatever number of objects it has of that name: a thread of its own waits for a
lock of the manager's, which is free again when its holder's process ends. It stands from the first ``run`` or ``every``
on, or rather from when the process serves (``serving``).

Rules
- Nothing is called while a ``Candidacy``'s lock is held, which may have been made before gevent replaced it.
- ``threading.Thread``, ``Event`` are looked up and made when they are used, for the same reason.
- A function never runs twice at a time in one process, though a term ends and another begins while it runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from .. import serving
from ..caller import Caller
from ..checks import LEADERS, check_name
from ..checks import seconds as check_seconds
from ..client import is_stopping
from ..errors import NotOwner, Unavailable
from ..patience import Patience
from .locks import Owner
from .near import Near

logger = logging.getLogger("state_manager")

WAIT: Final = 20.0
"""Seconds of one request for the leadership, of which one follows the other."""
LOOK: Final = 20.0
"""Seconds between two looks of a leader whether it still is one, which cost a look at its own memory."""

Function = TypeVar("Function", bound=Callable[[], object])


class Term:
    """From an election to its end, which comes when ``over`` is set."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.over = threading.Event()


class Job:
    """Something that is done in every term, in a thread of its own. ``periodic``: a term's end waits for it."""

    def __init__(self, name: str, function: Callable[[Term], None], *, periodic: bool) -> None:
        self.name = name
        self.function = function
        self.periodic = periodic
        self.replaced = False
        self.term: Term | None = None  # the last one that it was started in
        self.thread: threading.Thread | None = None


class Candidacy:
    """This process's standing for one leadership."""

    def __init__(self, caller: Caller, name: str) -> None:
        check_name(name)
        self.caller = caller
        self.name = name
        self._near = Near(caller, LEADERS)
        self._lock = threading.Lock()
        self._pid = 0  # of the process that stands
        self._forget()

    def _forget(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._resigned: threading.Event | None = None  # there is one while it stands
        self._term: Term | None = None

    def held(self) -> list[Any]:
        """Return ``[token, pid, thread, since, ...]`` of who leads, ``[]`` if nobody does."""
        found: list[Any] = self._near.get(self.name, [])
        return found

    def add(self, job: Job, *, web: bool) -> None:
        """Do this in every term of this process; stand for it, if it does not yet."""
        if self._pid not in (0, os.getpid()):  # a process that stands has forked this one, which does not
            self._lock, self._pid = threading.Lock(), 0
            self._forget()
        with self._lock:
            former = self._jobs.get(job.name)
            if former is not None:
                former.replaced = True
            self._jobs[job.name] = job
            term = self._term
        if former is not None:
            logger.warning("%s is given to leader %r again: the last one counts", job.name, self.name)
        if term is not None:
            self._start(term, job)
        serving.when_serving(self._stand, web=web)

    def _stand(self) -> None:
        with self._lock:
            if self._resigned is not None or not self._jobs:
                return
            self._resigned, self._pid = threading.Event(), os.getpid()
            resigned = self._resigned
        _thread(f"leader {self.name}", partial(self._run, resigned))

    def resign(self) -> None:
        """End the term, or the standing for one, and forget what is to be done."""
        with self._lock:
            resigned, term = self._resigned, self._term
            self._forget()
            if resigned is not None:
                resigned.set()
        if term is not None:
            term.over.set()

    def _run(self, resigned: threading.Event) -> None:
        """Stand for election, lead, and so on, until this process resigns or ends."""
        patience = Patience(f"stand for leader {self.name!r}")
        while not resigned.is_set():
            try:
                token = self.caller.wait("leader", "acquire", (self.name, threading.get_ident(), None, 0), WAIT)
            except Exception as error:
                if is_stopping():
                    return
                patience.rest(error, resigned)
                continue
            patience.reset()
            if token is not None:
                self._lead(token, resigned)

    def _lead(self, token: int, resigned: threading.Event) -> None:
        term = Term(token)
        with self._lock:
            if not resigned.is_set():
                self._term = term
            jobs = list(self._jobs.values()) if self._term is term else []
        if jobs:
            logger.info("process %d leads %r", os.getpid(), self.name)
            for job in jobs:
                self._start(term, job)
            while not term.over.wait(LOOK):
                self.leads(term)
        for job in jobs:
            if job.periodic and job.thread is not None:
                job.thread.join()  # so that what the next leader does does not overlap it
        with self._lock:
            if self._term is term:
                self._term = None
        self._release(token)

    def _release(self, token: int) -> None:
        patience = Patience(f"resign as leader {self.name!r}")
        while True:
            try:
                self.caller.call("leader", "release", (self.name, token), True)
                return
            except NotOwner:
                return
            except Exception as error:
                if is_stopping():
                    return
                patience.rest(error)

    def _start(self, term: Term, job: Job) -> None:
        with self._lock:
            if job.term is term:
                return
            before, job.term = job.thread, term
        if before is not None and before.is_alive():
            logger.warning("%s of leader %r still runs, so it is not started again", job.name, self.name)
            return
        job.thread = _thread(f"{job.name} of leader {self.name}", partial(job.function, term))

    def leads(self, term: Term) -> bool:
        """Return whether a term of this process goes on, as the manager has it; end it if it does not.

        While no manager can be reached nobody else can be elected, so it does.
        """
        try:
            found = self.held()
        except Unavailable:
            return True
        if found and found[0] == term.token:
            return True
        self.lost(term)
        return False

    def lost(self, term: Term) -> None:
        """Note that the manager knows another leader: its state was removed, perhaps. This process stands again."""
        if not term.over.is_set():
            logger.warning("process %d does not lead %r any more", os.getpid(), self.name)
        term.over.set()

    def current(self) -> Term | None:
        """Return the term of this very process."""
        return self._term if self._pid == os.getpid() else None


def _thread(name: str, function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


_candidacies: WeakValueDictionary[tuple[Any, str], Candidacy] = WeakValueDictionary()


def candidacy_of(caller: Caller, name: str) -> Candidacy:
    """Return this process's standing for the leadership of this name in one directory, or store."""
    where = getattr(caller, "path", caller)
    found = _candidacies.get((where, name))
    return _candidacies.setdefault((where, name), Candidacy(caller, name)) if found is None else found


class Leader:
    """One process of all that ask for a leadership of this name has it, until it ends or resigns.

    ``web``: it belongs to a web app, so nothing begins before the app serves.
    """

    def __init__(self, candidacy: Candidacy, web: bool = False) -> None:
        self._candidacy = candidacy
        self._name = candidacy.name
        self._web = web

    def __repr__(self) -> str:
        return f"<Leader {self._name!r} in {self._candidacy.caller!r}>"

    @property
    def is_leader(self) -> bool:
        """Whether this process leads, as the manager has it: not as it was when it was elected.

        While no manager can be reached nobody else can be elected, so it stays what it was.
        """
        term = self._candidacy.current()
        return term is not None and self._candidacy.leads(term)

    @property
    def token(self) -> int | None:
        """The fencing token of this process's term, larger than that of any leader before; None if it does not lead."""
        term = self._candidacy.current()
        return None if term is None else term.token

    @property
    def owner(self) -> Owner | None:
        """The process that leads, None if none does."""
        found = self._candidacy.held()
        return Owner(*found[1:4]) if found else None

    def run(self, function: Callable[[], object]) -> None:
        """Return at once; a daemon thread calls ``function`` when this process is elected.

        It stays the leader when the function returns. One that raises is called again, after a second at first and a
        minute at most. Nothing is elected in gunicorn's master, in a ``flask`` command or under pytest.
        """
        job = Job(f"run {_name(function)} {id(function):x}", partial(_call, self._name, function), periodic=False)
        self._candidacy.add(job, web=self._web)

    def every(self, seconds: float | timedelta, name: str | None = None) -> Callable[[Function], Function]:
        """Decorate a function that the leader is to call every so many seconds, the first time at once.

        It never overlaps itself, and the next due time is kept by the manager: another leader waits for it. One that
        takes longer than the period leaves out the turns that it has missed; what it raises is logged. ``name``: what
        the due time is kept under, if two functions have one name; else the function's module and name.
        """
        if callable(seconds):
            raise TypeError("write @leader.every(60), with the seconds between two calls, above the function")
        period = check_seconds(seconds, "a period")

        def decorate(function: Function) -> Function:
            turns = Turns(self._candidacy, name or _name(function), function, period)
            self._candidacy.add(turns.job, web=self._web)
            return function

        return decorate

    def resign(self) -> None:
        """Give up the leadership, or standing for it, in this process, until the next ``run`` or ``every``.

        It is free for others when the periodic functions that run just now have returned. A function that was given to
        ``run`` is not stopped: one that goes on looks at ``is_leader``.
        """
        self._candidacy.resign()


def _name(function: Callable[[], object]) -> str:
    """Return the module and name of a function; of what has none, such as a partial, that of its type."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


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

    def __init__(self, candidacy: Candidacy, name: str, function: Callable[[], object], period: float) -> None:
        self._candidacy = candidacy
        self.job = Job(name, self.run, periodic=True)
        self._function = function
        self._period = period

    def run(self, term: Term) -> None:
        """Call the function whenever it is due, until the term is over."""
        leader, name = self._candidacy.name, self.job.name
        patience = Patience(f"see whether {name} is due")
        while not (term.over.is_set() or self.job.replaced):
            try:
                args = (leader, term.token, name, self._period)
                is_due, rest = self._candidacy.caller.call("leader", "turn", args, True)
            except NotOwner:
                self._candidacy.lost(term)
                return
            except Exception as error:
                patience.rest(error, term.over)
                continue
            patience.reset()
            began = time.monotonic()
            if is_due:
                try:
                    self._function()
                except (Exception, SystemExit):
                    logger.exception("%s of leader %r failed; it is called again when it is due", name, leader)
            term.over.wait(max(0.0, rest - (time.monotonic() - began)))
