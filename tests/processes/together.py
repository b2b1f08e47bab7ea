"""What the tests of working together share: workers that are killed, what they wrote down, and the verdict.

The verdict is ``Workers.judge``. It raises ``Wrong``, whose text begins with the promise that was broken, or
NotLinearizable. It knows the manager's state only from what the workers were told, and from what is left at the end.

A worker that was killed had what it had until the moment before the kill; when that was given back shows in what others
get. So nothing here depends on when the manager noticed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import state_manager
from state_manager import sidecar
from tests.linearizability import LOCK, TRANSACTIONS, Operation, check
from tests.processes.crashes import Manager
from tests.processes.harness import ROOT, SECONDS, environment, wait_for
from tests.processes.together_client import ACCOUNTS, DELIVERIES, KEPT, LEASE, PLACES, TIMEOUT

WORKERS: Final = 4
NOTICED: Final = 2_000_000_000
"""Nanoseconds until what a killed process had is somebody else's."""
FINAL: Final = -1
"""The client number of the reads at the end."""


class Wrong(AssertionError):
    """A promise was broken."""


class Event(NamedTuple):
    """What a thread of a worker wrote down."""

    worker: int
    time: int
    role: str
    what: str
    more: list[Any]


class Life:
    """A worker process: whose place it has, after which messages it reads on, between which moments it was killed."""

    def __init__(
        self, number: int, place: int, after: dict[str, int], process: subprocess.Popen[bytes], log: Path
    ) -> None:
        self.number = number
        self.after = after
        self.place = place
        self.process = process
        self.log = log
        self.ready = False
        self.alive_until: float = float("inf")
        self.dead_from: float = float("inf")

    def read(self) -> list[Event]:
        """Return what it wrote down. The last line may be half a line."""
        events = []
        for line in self.log.read_bytes().split(b"\n")[:-1] if self.log.exists() else ():
            time, role, what, *more = json.loads(line)
            events.append(Event(self.number, time, role, what, more))
        return events


class Workers:
    """The worker processes of one manager. ``stop`` ends them; then ``judge`` says what it was like."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.lives: list[Life] = []
        self.downtimes: list[tuple[int, int]] = []
        self._seed = seed
        self._numbers = itertools.count()
        self._places: dict[int, Life] = {}
        self._stopped = threading.Event()
        self._ticker = threading.Thread(target=self._tick)
        self.ticks = 0
        self.began = time.monotonic_ns()
        self.ended = 0

    def start(self) -> None:
        for place in range(WORKERS):
            self._start(place, {"news": 0, "short": 0})
        for life in self._places.values():
            self._wait_until_ready(life)
        self._ticker.start()

    def _start(self, place: int, after: dict[str, int]) -> Life:
        number = next(self._numbers)
        log = self.directory.with_name(f"log {number}")
        command = [sys.executable, "-m", "tests.processes.together_client", str(number), str(self.directory), str(log)]
        process = subprocess.Popen(
            [*command, str(self._seed), json.dumps(after)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(self.directory.parent),
        )
        life = Life(number, place, after, process, log)
        self.lives.append(life)
        self._places[place] = life
        return life

    def _wait_until_ready(self, life: Life) -> None:
        if not life.ready:
            assert life.process.stdout is not None
            assert life.process.stdout.readline() == b"ready\n"
            life.ready = True

    def _tick(self) -> None:
        """Publish 1, 2, 3, ... to the short channel."""
        with state_manager.connect(self.directory, timeout=TIMEOUT) as manager:
            channel = manager.channel("short", history=KEPT)
            while not self._stopped.wait(0.002):
                self.ticks += 1
                channel.publish(self.ticks)

    # -- what happens to them ----------------------------------------------------------------------------------------

    def kill_one(self, place: int) -> None:
        """Kill the worker in this place, and start another one there, which goes on where it was in the channels."""
        life = self._places[place]
        life.alive_until = time.monotonic_ns()
        life.process.kill()
        life.process.wait()
        life.dead_from = time.monotonic_ns()
        read = {event.role: event.more[0] for event in life.read() if event.what == "message"}
        self._start(place, {**life.after, **read})

    def kill_one_who(self, *, holds: str = "", waits_for: str = "") -> None:
        """Kill a worker that does this at this very moment: so it is stopped before one looks.

        Nobody is killed if it is seen to be held by one that was killed before.
        """
        what, places = holds or waits_for, itertools.cycle(range(WORKERS))

        def have_it() -> set[int]:
            return {
                worker.pid or 0
                for worker in manager.workers()
                if any(each.startswith(what) for each in (worker.holds if holds else worker.waits))
            }

        def found() -> int | None:
            place = next(places)
            process = self._places[place].process
            process.send_signal(signal.SIGSTOP)
            have_it()  # when this is answered the manager has read all that the worker had sent
            if process.pid in (pids := have_it()):
                self.kill_one(place)
                return place + 1
            process.send_signal(signal.SIGCONT)
            return -1 if pids - {life.process.pid for life in self._places.values()} else None

        with state_manager.connect(self.directory) as manager:
            wait_for(found, f"a worker with {what}")

    def hang_one(self, place: int) -> None:
        """Stop the worker in this place for longer than its leases."""
        process = self._places[place].process
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * LEASE)
        process.send_signal(signal.SIGCONT)

    def kill_manager(
        self, manager: Manager, serve: tuple[str, ...] = sidecar.SERVE, *, point: str = "", count: int = 0
    ) -> None:
        """Kill it, and start it again; given a point, first one that kills itself there."""
        began = time.monotonic_ns()
        manager.kill()
        if point:
            manager.start_to_die(point, count)
        manager.start(serve=serve)
        self.downtimes.append((began, time.monotonic_ns()))

    def stop(self) -> None:
        """Let each finish what it is doing."""
        self.ended = time.monotonic_ns()
        self._stopped.set()
        self._ticker.join()
        for life in self._places.values():
            self._wait_until_ready(life)
            assert life.process.stdin is not None
            life.process.stdin.close()
        for life in self._places.values():
            assert life.process.wait(2 * SECONDS) == 0

    def kill(self) -> None:
        self._stopped.set()
        for life in self.lives:
            if life.process.poll() is None:
                os.kill(life.process.pid, signal.SIGCONT)
                life.process.kill()
            with life.process:
                pass  # closes its pipes
        if self._ticker.is_alive():
            self._ticker.join()

    # -- the verdict -------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Raise unless all was as it is promised."""
        self.collect()
        for events in self.events.values():
            for event in events:
                if event.what == "error":
                    raise Wrong(f"no error: worker {event.worker} saw {event.more[0]}")
        self.judge_locks()
        self.judge_places()
        self.judge_queue()
        self.judge_channels()
        self.judge_computing()
        self.judge_leaders()
        self.judge_transactions()

    def collect(self) -> None:
        """Read what all have written down."""
        self.events: defaultdict[str, list[Event]] = defaultdict(list)
        for life in self.lives:
            for event in life.read():
                self.events[event.role].append(event)
        for events in self.events.values():
            events.sort(key=lambda event: event.time)

    def alive_until(self, worker: int) -> float:
        return self.lives[worker].alive_until

    def noticed_by(self, life: Life) -> int:
        """Return when at the latest it was noticed that a worker was killed."""
        at = int(life.dead_from) + NOTICED
        for began, ready in self.downtimes:
            if began <= at:
                at = max(at, ready + NOTICED)
        return at

    def calls(self, role: str, key: Any) -> list[Operation]:
        """Return the calls of a role as operations: in one worker ``call`` and ``return`` alternate."""
        operations: list[Operation] = []
        for life in self.lives:
            open_: Event | None = None
            began: int | None = None
            for event in self.events[role]:
                if event.worker != life.number:
                    continue
                if event.what == "begin":
                    began = event.time
                elif event.what == "call":
                    open_ = event
                    began = began or event.time
                elif event.what == "return":
                    if open_ is not None and began is not None:
                        operations.append(_operation(open_, key, event.more[0], began, event.time))
                    open_ = began = None
            if open_ is not None and began is not None:
                operations.append(_operation(open_, key, None, began, None))
        return operations

    def holdings(self, role: str) -> list[Holding]:
        """Return what was held: from the answer to the release, or to the moment before the worker was killed."""
        found: list[Holding] = []
        for life in self.lives:
            called = 0
            for event in self.events[role]:
                if event.worker != life.number:
                    continue
                if event.what == "call" and event.more[0] == "acquire":
                    called = event.time
                elif event.what == "return" and type(event.more[0]) is int:
                    found.append(Holding(event.more[0], event.worker, called, event.time, life.alive_until))
                elif event.what == "call":
                    found[-1] = found[-1]._replace(end=event.time)
        return sorted(found, key=lambda each: each.begin)

    def judge_locks(self) -> None:
        exclusive = self.holdings("lock")
        _check_overlap("one holder at a time", exclusive, 1)
        lease = int(LEASE * 1e9)
        leased = [
            each._replace(end=min(each.end, each.called + lease))
            for each in self.holdings("leased")
            if each.begin < each.called + lease
        ]
        _check_overlap("one holder at a time, while its lease lasts", leased, 1)
        ends = [
            Operation(life.number, "lock", "end", (), None, int(life.alive_until), self.noticed_by(life))
            for life in self.lives
            if life.alive_until < float("inf")
        ]
        check([*self.calls("lock", "lock"), *ends], LOCK)

    def judge_places(self) -> None:
        _check_overlap("as many holders as places", self.holdings("places"), PLACES)

    def judge_queue(self) -> None:
        puts = Counter(event.more[0] for event in self.events["put"] if event.what == "return")
        perhaps = {event.more[0] for event in self.events["put"] if event.what == "call"}
        perhaps -= {event.more[0] for event in self.events["put"] if event.what == "full"}
        done = Counter(event.more[0] for event in self.events["take"] if event.what == "acknowledged")
        perhaps_done = {event.more[0] for event in self.events["take"] if event.what == "acknowledges"}
        left, dead = self.left("jobs"), self.left("jobs:dead")
        there = Counter([value for value, _ in [*left, *dead]])
        for value, times in (done + there).items():
            if value not in perhaps:
                raise Wrong(f"every item is somebody's: {value!r} was never put, or its put was answered with no room")
            if times > 1:
                raise Wrong(
                    f"every item once: {value!r} was acknowledged {done[value]} times and is there {there[value]}"
                )
        lost = puts.keys() - done.keys() - there.keys() - perhaps_done
        if lost:
            raise Wrong(f"no item is lost: {sorted(lost)[:5]} were put, and neither acknowledged nor left")
        self.judge_deliveries(done, left, dead)

    def left(self, name: str) -> list[tuple[str, int]]:
        """Take what is in a queue, and what comes back to it from workers that have ended."""
        found = []
        with state_manager.connect(self.directory) as manager:
            queue = manager.queue(name)
            deadline = time.monotonic() + NOTICED / 1e9
            while queue.state().taken:
                if time.monotonic() > deadline:
                    raise Wrong(f"what those had who have ended comes back: {queue.state()} does not")
                time.sleep(0.02)
            while len(queue):
                item = queue.get(timeout=1.0)
                assert item is not None
                found.append((item.value, item.deliveries))
                item.ack()
        return found

    def judge_deliveries(self, done: Counter[str], left: list[tuple[str, int]], dead: list[tuple[str, int]]) -> None:
        got: defaultdict[str, list[int]] = defaultdict(list)
        acknowledged: dict[str, int] = {}
        first_ones: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        for event in self.events["take"]:
            value, deliveries = event.more
            if event.what == "got":
                got[value].append(deliveries)
                if deliveries == 1 and not value.endswith("later"):
                    producer, number = value.split(".")
                    first_ones[event.worker, producer].append(int(number))
            elif event.what == "acknowledged":
                acknowledged[value] = deliveries
        kills = sum(life.alive_until < float("inf") for life in self.lives)
        for value, numbers in got.items():
            if len(set(numbers)) < len(numbers):
                raise Wrong(f"one delivery to one process: {value!r} was delivered as {numbers}")
            if max(numbers) > acknowledged.get(value, max(numbers)):
                raise Wrong(f"nothing comes back that was acknowledged: {value!r} was delivered as {numbers}")
            if max(numbers) > DELIVERIES or max(numbers) > len(numbers) + kills:
                raise Wrong(f"deliveries are counted: {value!r} was delivered as {numbers}")
        for (worker, producer), numbers in first_ones.items():
            if numbers != sorted(numbers):
                raise Wrong(f"first in, first out: worker {worker} got those of {producer} in this order: {numbers}")
        for value, deliveries in dead:
            if deliveries != DELIVERIES + 1:
                raise Wrong(f"only what was delivered {DELIVERIES} times is dead: {value!r}, {deliveries - 1} times")
        for value, deliveries in left:
            if deliveries > DELIVERIES:
                raise Wrong(f"what was delivered {DELIVERIES} times is dead: {value!r} is not")

    def judge_channels(self) -> None:
        with state_manager.connect(self.directory) as manager:
            messages: dict[int, str] = {}
            subscription = manager.channel("news").subscribe(after=0)
            while message := subscription.get(timeout=0):
                messages[message.id] = message.value
        if len(set(messages.values())) < len(messages):
            raise Wrong("every message once: some are there twice")
        for event in self.events["publish"]:
            if event.what == "return" and messages.get(event.more[1]) != event.more[0]:
                raise Wrong(f"what was published is there: {event.more} is not")
        ids = list(messages)
        for place in range(WORKERS):
            read = [event.more for event in self.read_by(place, "news")]
            if [each[0] for each in read] != ids[: len(read)] or [each[1] for each in read] != [
                messages[id_] for id_ in ids[: len(read)]
            ]:
                raise Wrong(f"every message once and in order: not to those in place {place}")
            if any(each[2] for each in read):
                raise Wrong("nothing is missed that is within the history")
            before = last = 0
            for id_, tick, missed in (event.more for event in self.read_by(place, "short")):
                if missed != tick - before - 1 or id_ <= last:
                    raise Wrong(f"what was missed is counted: {missed} between {before} and {tick}")
                before, last = tick, id_

    def read_by(self, place: int, role: str) -> Iterator[Event]:
        """Yield the messages that those in one place have read, one after the other."""
        numbers = {life.number for life in self.lives if life.place == place}
        return (event for event in self.events[role] if event.worker in numbers and event.what == "message")

    def judge_computing(self) -> None:
        flights: list[Holding] = []
        open_: dict[int, Event] = {}
        for event in self.events["compute"]:
            if event.what == "begin":
                open_[event.worker] = event
            elif event.what == "end":
                began = open_.pop(event.worker)
                flights.append(Holding(0, event.worker, began.time, began.time, event.time))
        killed = [
            Holding(0, each.worker, each.time, each.time, self.alive_until(each.worker)) for each in open_.values()
        ]
        flights = sorted([*flights, *killed], key=lambda each: each.begin)
        _check_overlap("one computes at a time", flights, 1, tokens=False)
        self.judge_fail_over("the next computes", flights)
        begun = {event.more[0] for event in self.events["compute"] if event.what == "begin"}
        got = {event.more[0] for event in self.events["compute"] if event.what == "got"}
        if not got <= begun:
            raise Wrong(f"what one gets was computed: not {got - begun}")

    def judge_leaders(self) -> None:
        terms: dict[int, Holding] = {}
        for event in self.events["lead"]:
            [token] = event.more
            if event.what == "begin":
                if token in terms:
                    raise Wrong(f"a token is of one leader: {token} is of two")
                terms[token] = Holding(token, event.worker, event.time, event.time, event.time)
            else:
                terms[token] = terms[token]._replace(end=event.time)
        in_order = sorted(terms.values(), key=lambda each: each.begin)
        _check_overlap("one leader at a time", in_order, 1)
        self.judge_fail_over("the next leads", in_order)
        for term, following in itertools.pairwise(in_order):
            if following.begin < min(self.ended, self.alive_until(term.worker)):
                raise Wrong(f"a leader leads until it ends: not {term}, whom {following} followed")

    def judge_fail_over(self, promise: str, all_: Sequence[Holding]) -> None:
        """Whoever was killed, and whatever he had told of it: soon somebody has it who lives."""
        for life in self.lives:
            by = self.noticed_by(life) if life.process.returncode else self.ended
            if by < self.ended and not any(each.begin <= by and each.end > life.dead_from for each in all_):
                raise Wrong(f"{promise} within two seconds of a kill: not after that of worker {life.number}")

    def judge_transactions(self) -> None:
        with state_manager.connect(self.directory) as manager:
            now = time.monotonic_ns()
            left = [
                Operation(FINAL, "bank", "get", ((name, key),), manager.dict(name).get(key), now, time.monotonic_ns())
                for name, key in ACCOUNTS
            ]
        check([*self.calls("bank", "bank"), *left], TRANSACTIONS)

    def check_that_all_was_tried(self) -> None:
        """Raise unless each thing has happened that could show something wrong."""
        what = Counter((event.role, event.what) for events in self.events.values() for event in events)
        print(f"{len(self.lives)} workers,", ", ".join(f"{' '.join(key)}: {count}" for key, count in what.items()))
        for role in ("lock", "leased", "places", "put", "take", "publish", "news", "short", "compute", "bank", "lead"):
            assert sum(count for (each, _), count in what.items() if each == role) > 50, role
        assert any(event.more[2] for event in self.events["short"]), "nobody was slow"
        assert any(event.what == "got" and event.more[1] > 1 for event in self.events["take"]), "nothing came back"


class Holding(NamedTuple):
    """That a worker had something, from one moment to another."""

    token: int
    worker: int
    called: int
    begin: int
    end: float


def _check_overlap(promise: str, holdings: Sequence[Holding], most: int, *, tokens: bool = True) -> None:
    """Raise unless no more than so many held something at a time, each with a larger token than any before."""
    held: list[Holding] = []
    for each in holdings:
        held = [other for other in held if other.end > each.begin]
        if len(held) >= most:
            raise Wrong(f"{promise}: {each} and {held}")
        held.append(each)
    if tokens and most == 1:
        for before, after in itertools.pairwise(holdings):
            if after.token <= before.token:
                raise Wrong(f"tokens grow: {after} came after {before}")
    elif tokens and len({each.token for each in holdings}) < len(holdings):
        raise Wrong(f"{promise}: a token was given twice")


def _operation(call: Event, key: Any, result: Any, called: int, returned: int | None) -> Operation:
    name, *args = call.more
    if len(args) == 1 and type(args[0]) is list:  # of the bank, whose places are tuples
        args = [_hashable(each) for each in args[0]]
    return Operation(call.worker, key, name, tuple(args), result, called, returned)


def _hashable(found: Any) -> Any:
    return tuple(map(_hashable, found)) if type(found) is list else found


@contextlib.contextmanager
def workers(directory: Path, seed: int) -> Iterator[Workers]:
    """Start the workers of a manager that runs, and end them."""
    running = Workers(directory, seed)
    try:
        running.start()
        yield running
    finally:
        running.kill()


def faulty(*faults: str) -> tuple[str, ...]:
    """Return how to start a manager that has these faults."""
    return "-P", str(Path(__file__).with_name("faulty_manager.py")), ",".join(faults)
