"""Queues and their lines against a plain model: a sorted list, and a list for each line. No process.

Times are whole tenths of a second. Clients act at multiples of five; delays are multiples of five too, leases end at 3
or 8 and timeouts at 1 or 6: no two different things fall into one moment, because what happens first is not promised.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from state_manager.checks import DEAD, QUEUE, TAKEN
from state_manager.errors import StoreFull
from state_manager.parking import GONE, LineKey
from tests.test_parking import NOW, Room

CLIENTS = 4
NAMES = ("q", "r")
NEVER = 10**9

clients = st.integers(0, CLIENTS - 1)
names = st.sampled_from([*NAMES[:1] * 3, *NAMES])
delays = st.sampled_from([0, 0, 0, 5, 10])
leases = st.sampled_from([None, 3, 8, 23])
timeouts = st.sampled_from([0, 6, 11, 31])
bounds = st.sampled_from([0, 1, 2])
mosts = st.sampled_from([None, None, 1, 2])
which = st.integers(0, 10**6)


def bound_of(value: int) -> int | None:
    """Return what who puts an item says of its deliveries."""
    return (None, 1, None, 2)[value % 4]


@dataclass
class Job:
    """An item. It waits in the order of ``due`` and ``turn``."""

    value: int
    due: int
    turn: int
    deliveries: int = 0
    most: int | None = None


@dataclass
class Taking:
    who: int
    job: Job
    receipt: Any
    ends: int


@dataclass
class Getter:
    who: int
    until: int
    lease: int | None
    most: int | None


@dataclass
class Putter:
    who: int
    until: int
    value: int
    delay: int
    maxsize: int


@dataclass
class Model:
    """What one queue is."""

    waiting: list[Job] = field(default_factory=list)
    taken: list[Taking] = field(default_factory=list)
    getters: list[Getter] = field(default_factory=list)
    putters: list[Putter] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)


class Queues(RuleBasedStateMachine):
    """Each client is a session with two lanes: one to ask on, and one to abandon on."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        for who in range(CLIENTS):
            assert self.room.lane(session=who) == who
        self.others = [self.room.lane(session=who) for who in range(CLIENTS)]
        self.now = 0
        self.queues = {name: Model() for name in NAMES}
        self.answers: dict[int, list[Any]] = {who: [] for who in range(CLIENTS)}
        self.numbers = itertools.count(1)
        self.receipts: set[Any] = set()
        self.former: list[tuple[str, Any]] = []  # receipts that are worth nothing any more
        self.put_values: set[int] = set()
        self.done: set[int] = set()

    def teardown(self) -> None:
        self.room.service.store.check()

    # -- the model ---------------------------------------------------------------------------------------------------

    def line(self, name: str, who: int) -> list[Any] | None:
        model = self.queues[name]
        lines: tuple[list[Any], ...] = (model.getters, model.putters)
        for line in lines:
            if any(one.who == who for one in line):
                return line
        return None

    def waits(self, who: int) -> tuple[str, list[Any]] | None:
        return next(((name, line) for name in NAMES if (line := self.line(name, who)) is not None), None)

    def free(self, who: int) -> int | None:
        """Return a client that waits for nothing."""
        free = [one for one in range(CLIENTS) if self.waits(one) is None]
        return free[who % len(free)] if free else None

    def next_job(self, name: str) -> Job | None:
        waiting = [job for job in self.queues[name].waiting if job.due <= self.now]
        return min(waiting, key=lambda job: (job.due, job.turn), default=None)

    def take(self, name: str, who: int, lease: int | None, most: int | None, answer: Any) -> None:
        """Note that somebody was given the next item, and that this is what he was answered."""
        model, job = self.queues[name], self.next_job(name)
        assert job is not None
        model.waiting.remove(job)
        job.deliveries += 1
        job.most = job.most if most is None else most
        receipt, value, deliveries = answer
        assert (value, deliveries) == (job.value, job.deliveries)
        assert (name, receipt) not in self.receipts, "a receipt is of one delivery"
        self.receipts.add((name, receipt))
        model.taken.append(Taking(who, job, receipt, NEVER if lease is None else self.now + lease))

    def add(self, name: str, value: int, delay: int) -> None:
        self.queues[name].waiting.append(Job(value, self.now + delay, next(self.numbers), most=bound_of(value)))
        self.put_values.add(value)

    def back(self, name: str, taking: Taking) -> None:
        model = self.queues[name]
        model.taken.remove(taking)
        self.former.append((name, taking.receipt))
        if taking.job.most is not None and taking.job.deliveries >= taking.job.most:
            model.dead.append(taking.job.value)
        else:
            model.waiting.append(taking.job)

    def settle(self, name: str) -> None:
        """Let the lines proceed as far as they can: one who gets an item makes room for one who puts."""
        model = self.queues[name]
        while True:
            if model.getters and self.next_job(name) is not None:
                getter = model.getters.pop(0)
                answer = self.room.answers[getter.who][len(self.answers[getter.who])]
                self.take(name, getter.who, getter.lease, getter.most, answer)
                self.answers[getter.who].append(answer)
            elif model.putters and len(model.waiting) < model.putters[0].maxsize:
                putter = model.putters.pop(0)
                self.add(name, putter.value, putter.delay)
                number = self.room.answers[putter.who][len(self.answers[putter.who])]
                assert type(number) is int
                self.answers[putter.who].append(number)
            else:
                return

    def moment(self) -> None:
        """What happens by itself at this moment."""
        for name, model in self.queues.items():
            for taking in [one for one in model.taken if one.ends <= self.now]:
                self.back(name, taking)
            self.settle(name)
            lines: tuple[list[Any], ...] = (model.getters, model.putters)
            for line in lines:
                for one in [one for one in line if one.until <= self.now]:
                    line.remove(one)
                    self.answers[one.who].append(None)
            self.settle(name)

    # -- what happens ------------------------------------------------------------------------------------------------

    def put_args(self, name: str, value: int, delay: int, maxsize: int, wait: int) -> list[Any]:
        return [name, value, delay / 10, maxsize, bound_of(value), wait / 10]

    def get_args(self, name: str, lease: int | None, most: int | None, wait: int) -> list[Any]:
        return [name, None if lease is None else lease / 10, most, wait / 10]

    @rule(index=which, name=names, delay=delays, maxsize=bounds, wait=timeouts)
    def put(self, index: int, name: str, delay: int, maxsize: int, wait: int) -> None:
        if (who := self.free(index)) is None:
            return
        model, value = self.queues[name], next(self.numbers)
        full = maxsize and (model.putters or len(model.waiting) >= maxsize)
        answer = self.room.ask(who, "queue", "put", *self.put_args(name, value, delay, maxsize, wait))
        if not full:
            assert type(answer) is int
            self.add(name, value, delay)
            self.settle(name)
            return
        assert answer is None
        if wait:
            model.putters.append(Putter(who, self.now + wait, value, delay, maxsize))

    @rule(index=which, name=names, lease=leases, most=mosts, wait=timeouts)
    def get(self, index: int, name: str, lease: int | None, most: int | None, wait: int) -> None:
        if (who := self.free(index)) is None:
            return
        model = self.queues[name]
        free = not model.getters and self.next_job(name) is not None
        answer = self.room.ask(who, "queue", "get", *self.get_args(name, lease, most, wait))
        if free:
            self.take(name, who, lease, most, answer)
            self.settle(name)
            return
        assert answer is None
        if wait:
            model.getters.append(Getter(who, self.now + wait, lease, most))

    def one_taken(self, name: str, index: int) -> Taking | None:
        mine = [taking for taking in self.queues[name].taken if self.waits(taking.who) is None]
        return mine[index % len(mine)] if mine else None

    @rule(name=names, index=which)
    def ack(self, name: str, index: int) -> None:
        taking = self.one_taken(name, index)
        if taking is None:
            return
        assert self.room.ask(taking.who, "queue", "ack", name, taking.receipt) is None
        self.queues[name].taken.remove(taking)
        self.former.append((name, taking.receipt))
        assert taking.job.value not in self.done
        self.done.add(taking.job.value)

    @rule(name=names, index=which, delay=delays)
    def nack(self, name: str, index: int, delay: int) -> None:
        taking = self.one_taken(name, index)
        if taking is None:
            return
        assert self.room.ask(taking.who, "queue", "nack", name, taking.receipt, delay / 10) is None
        taking.job.due, taking.job.turn = self.now + delay, next(self.numbers)
        self.back(name, taking)
        self.settle(name)

    @rule(index=which, nack=st.booleans())
    def who_has_it_no_longer_is_refused(self, index: int, nack: bool) -> None:
        """Be it the same process that has it again, in another thread."""
        if self.former and (who := self.free(index)) is not None:
            name, receipt = self.former[index % len(self.former)]
            answer = self.room.ask(who, "queue", *(("nack", name, receipt, 0) if nack else ("ack", name, receipt)))
            assert answer[0] == "NotOwner"

    @rule(who=clients, name=names, index=which)
    def others_are_refused(self, who: int, name: str, index: int) -> None:
        taking = self.one_taken(name, index)
        if taking is not None and taking.who != who and self.waits(who) is None:
            assert self.room.ask(who, "queue", "ack", name, taking.receipt)[0] == "NotOwner"

    @rule(index=which, name=names)
    def clear(self, index: int, name: str) -> None:
        if (who := self.free(index)) is None:
            return
        model = self.queues[name]
        assert self.room.ask(who, "queue", "clear", name) == len(model.waiting)
        self.done |= {job.value for job in model.waiting}
        model.waiting.clear()
        self.settle(name)

    @rule(span=st.sampled_from([5, 10, 30]))
    def time_passes(self, span: int) -> None:
        for _ in range(span):
            self.now += 1
            self.room.at(self.now / 10)
            self.moment()

    @rule(who=clients)
    def a_connection_breaks_and_the_request_is_sent_again(self, who: int) -> None:
        found = self.waits(who)
        if found is None:
            return
        name, line = found
        waiter = next(one for one in line if one.who == who)
        lane = self.room.lanes[who]
        assert self.room.service.attach(lane.session.id, lane.id, 42, 7) == (lane, True)
        self.room.commit()
        line.remove(waiter)
        self.settle(name)  # who stood behind one that wanted less room
        left = waiter.until - self.now
        if isinstance(waiter, Getter):
            answer = self.room.ask(who, "queue", "get", *self.get_args(name, waiter.lease, waiter.most, left))
            assert answer is None
            line.append(waiter)
            return
        args = self.put_args(name, waiter.value, waiter.delay, waiter.maxsize, left)
        full = line or len(self.queues[name].waiting) >= waiter.maxsize
        answer = self.room.ask(who, "queue", "put", *args)
        assert (answer is None) == bool(full)
        if full:
            line.append(waiter)
        else:
            self.add(name, waiter.value, waiter.delay)
            self.settle(name)

    @rule(who=clients)
    def gives_up(self, who: int) -> None:
        found = self.waits(who)
        if found is None:
            return
        name, line = found
        waiter = next(one for one in line if one.who == who)
        lane = self.room.lanes[who]
        asked = ("get", [name, None, None, 1]) if isinstance(waiter, Getter) else ("put", [name, 0, 0, 1, None, 1])
        assert self.room.ask(self.others[who], "manager", "abandon", lane.id, lane.number + 1, "queue", *asked) is False
        line.remove(waiter)
        self.settle(name)

    @rule(index=which, name=names, lease=leases, most=mosts)
    def gives_up_what_it_was_given(self, index: int, name: str, lease: int | None, most: int | None) -> None:
        """Then it was not delivered, and is where it was."""
        if (who := self.free(index)) is None or self.next_job(name) is None:
            return
        args = self.get_args(name, lease, most, 10)
        with self.room.service.holding():  # or one who puts would have its room
            answer = self.room.handle(who, "queue", "get", *args)
            self.room.service.commit()
            lane = self.room.lanes[who]
            given = ["manager", "abandon", lane.id, lane.number, "queue", "get", args]
            assert self.room.handle(self.others[who], *given) is True  # type: ignore[arg-type]
        self.room.commit()
        self.former.append((name, answer[0]))
        job = self.next_job(name)
        assert job is not None
        job.most = job.most if most is None else most
        self.settle(name)

    @rule(index=which, name=names, lease=leases)
    def a_tick_is_undone(self, index: int, name: str, lease: int | None) -> None:
        """Somebody puts an item and takes the next one, and nothing of it has happened, nor what it woke."""
        who, other = self.free(index), self.free(index + 1)
        if who is None or other is None or who == other:
            return
        self.room.handle(who, "queue", "put", *self.put_args(name, -1, 0, 0, 0))
        self.room.handle(other, "queue", "get", *self.get_args(name, lease, None, 10))
        self.room.log.fails = True
        with pytest.raises(StoreFull):
            self.room.service.commit()
        self.room.service.undo()
        self.room.log.fails = False
        self.room.commit()

    @rule(index=which, name=names, wait=timeouts)
    def a_newcomer_stands_behind_who_waits_for_the_log(self, index: int, name: str, wait: int) -> None:
        who, other, model = self.free(index), self.free(index + 1), self.queues[name]
        if who is None or other is None or who == other or not model.getters:
            return
        value = next(self.numbers)
        with self.room.service.holding():
            self.room.handle(other, "queue", "put", *self.put_args(name, value, 0, 0, 0))
            assert self.room.handle(who, "queue", "get", *self.get_args(name, None, None, wait)) is None
        self.room.commit()
        self.add(name, value, 0)
        if wait:
            model.getters.append(Getter(who, self.now + wait, None, None))
        self.settle(name)

    @rule(name=names, index=which)
    def what_a_return_wakes_cannot_be_logged_for_a_while(self, name: str, index: int) -> None:
        taking = self.one_taken(name, index)
        if taking is None:
            return
        with self.room.service.holding():
            self.room.handle(taking.who, "queue", "nack", name, taking.receipt, 0)
            self.room.service.commit()
        self.room.log.fails = True
        self.room.service.wake()
        self.room.log.fails = False
        self.room.service._not_before = 0.0
        taking.job.due, taking.job.turn = self.now, next(self.numbers)
        self.back(name, taking)
        self.room.commit()
        self.settle(name)

    @rule(who=clients)
    def a_process_ends(self, who: int) -> None:
        """Another one takes its place. What it had comes back to where it was."""
        session = self.room.lanes[who].session
        while not self.room.service.end(session):
            pass
        for name, model in self.queues.items():
            model.getters = [one for one in model.getters if one.who != who]
            model.putters = [one for one in model.putters if one.who != who]
            for taking in [one for one in model.taken if one.who == who]:
                self.back(name, taking)
        self.room.commit()
        for name in NAMES:
            self.settle(name)
        id_ = b"%016d" % (100 + next(self.numbers))
        for lane, at in ((0, who), (1, self.others[who])):
            self.room.lanes[at], _ = self.room.service.attach(id_, lane, 42, 7)
        self.room.service.commit()

    # Each rule is drawn as often as any other, and these are what most of the life of a queue is.
    put_more, get_more, get_still_more, more_time_passes = put, get, get, time_passes

    # -- what must be so ---------------------------------------------------------------------------------------------

    def found(self, space: str) -> dict[Any, Any]:
        found = self.room.service.store.spaces.get(space)
        return dict(found.entries) if found else {}

    @invariant()
    def the_queues_agree(self) -> None:
        for name, model in self.queues.items():
            # Who asks sees at once that a lease has ended, as does who waits; nobody has swept here.
            shown = self.room.service.call_unattached("queue", "size", [name])
            everything: list[list[Any]] = [model.waiting, model.taken, model.getters, model.putters]
            assert shown == list(map(len, everything))
            in_order = sorted(model.waiting, key=lambda job: (job.due, job.turn))
            entries = self.found(QUEUE + name)
            assert [entries[place] for place in sorted(entries)] == [
                [job.value, job.deliveries, job.most] for job in in_order
            ]
            assert {receipt: entry.value[:3] for receipt, entry in self.found(TAKEN + name).items()} == {
                taking.receipt: [taking.job.value, taking.job.deliveries, taking.job.most] for taking in model.taken
            }
            assert sorted(value for value, *_ in self.found(QUEUE + name + DEAD).values()) == sorted(model.dead)

    @invariant()
    def the_lines_agree(self) -> None:
        by_name = self.room.service.lines.by_name
        for name, model in self.queues.items():
            lines: list[tuple[LineKey, list[Any]]] = [(None, model.getters), (GONE, model.putters)]
            for key, line in lines:
                parked = by_name.get((QUEUE + name, key), [])
                assert [self.room.lanes.index(one.lane) for one in parked] == [one.who for one in line]
        assert {who: self.room.answers[who] for who in range(CLIENTS)} == self.answers

    @invariant()
    def every_item_is_somewhere(self) -> None:
        left = [job.value for model in self.queues.values() for job in model.waiting]
        left += [taking.job.value for model in self.queues.values() for taking in model.taken]
        left += [value for model in self.queues.values() for value in model.dead]
        assert sorted([*left, *self.done]) == sorted(self.put_values)

    @invariant()
    def the_books_agree(self) -> None:
        service = self.room.service
        assert service.lines.count == sum(len(model.getters) + len(model.putters) for model in self.queues.values())
        assert service.next_wake() > NOW + self.now / 10


TestQueues = Queues.TestCase
TestQueues.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, phases=[Phase.generate]
)  # to shrink takes minutes
