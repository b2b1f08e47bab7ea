"""Locks and their lines against a plain model: a list for each line, in the order of arrival. No process."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from state_manager.errors import StoreFull
from tests.test_parking import NOW, Room

CLIENTS = 5
NAMES = ("m", "n")

clients = st.integers(0, CLIENTS - 1)
names = st.sampled_from(NAMES)
spans = st.sampled_from([0.5, 1.0, 3.0, 10.0])


class Grant(NamedTuple):
    who: int
    token: int
    ends: float


class Waiter(NamedTuple):
    who: int
    lease: float | None
    until: float


class Locks(RuleBasedStateMachine):
    """Each client is a session with two lanes: one to ask on, and one to abandon on."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        for who in range(CLIENTS):
            assert self.room.lane(session=who) == who
        self.others = [self.room.lane(session=who) for who in range(CLIENTS)]
        self.now = 0.0
        self.held: dict[str, Grant | None] = dict.fromkeys(NAMES)
        self.lines: dict[str, list[Waiter]] = {name: [] for name in NAMES}
        self.answers: dict[int, list[Any]] = {who: [] for who in range(CLIENTS)}
        self.last_token = 0

    # -- the model ---------------------------------------------------------------------------------------------------

    def waits(self, who: int) -> str | None:
        return next((name for name, line in self.lines.items() for one in line if one.who == who), None)

    def grant(self, name: str, who: int, lease: float | None) -> Any:
        """Note a grant; its token is the service's, and must have grown."""
        token = self.room.holder(name)
        assert token is not None
        former = self.held[name]
        assert former is None or token > former.token
        self.held[name] = Grant(who, token, float("inf") if lease is None else self.now + lease)
        return token

    def settle(self, name: str) -> None:
        """Let the line proceed, if it can: the first who waits has it."""
        grant, line = self.held[name], self.lines[name]
        if not self.is_free(name):
            return
        if line:
            first = line.pop(0)
            self.answers[first.who].append(self.grant(name, first.who, first.lease))
        elif grant is not None:
            self.held[name] = grant._replace(who=-1)

    def expire(self, name: str) -> None:
        for waiter in [one for one in self.lines[name] if one.until <= self.now]:
            self.lines[name].remove(waiter)
            self.answers[waiter.who].append(None)

    def holds(self, who: int, name: str) -> Grant | None:
        grant = self.held[name]
        return grant if grant is not None and grant.who == who and grant.ends > self.now else None

    def is_free(self, name: str) -> bool:
        grant = self.held[name]
        return grant is None or grant.who == -1 or grant.ends <= self.now

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(who=clients, name=names, wait=spans | st.just(0.0), lease=st.none() | spans)
    def acquire(self, who: int, name: str, wait: float, lease: float | None) -> None:
        if self.waits(who) is not None:
            return
        number = self.room.lanes[who].number
        free = self.is_free(name)
        answer = self.room.acquire(who, name, wait, lease)
        if free:
            assert answer == self.grant(name, who, lease)
        elif wait:
            assert answer is None
            assert self.room.lanes[who].number == number, "there is no answer yet"
            self.lines[name].append(Waiter(who, lease, self.now + wait))
        else:
            assert answer is None
            assert self.room.lanes[who].number == number + 1

    @rule(who=clients, name=names)
    def release(self, who: int, name: str) -> None:
        grant = self.holds(who, name)
        if grant is None or self.waits(who) is not None:
            return
        assert self.room.release(who, grant.token, name) == 0
        self.held[name] = grant._replace(who=-1)
        self.settle(name)

    @rule(who=clients, name=names)
    def release_what_is_not_held(self, who: int, name: str) -> None:
        grant = self.held[name]
        if grant is not None and self.holds(who, name) is None and self.waits(who) is None:
            assert self.room.release(who, grant.token, name)[0] == "NotOwner"

    @rule(span=spans)
    def time_passes(self, span: float) -> None:
        """In steps that no two things fall into: what happens first at one moment is not promised."""
        for _ in range(int(span / 0.5)):
            self.now += 0.5
            self.room.at(self.now)
            for name in NAMES:
                if self.is_free(name):
                    self.settle(name)
                self.expire(name)

    @rule(who=clients)
    def a_connection_breaks_and_the_request_is_sent_again(self, who: int) -> None:
        name = self.waits(who)
        if name is None:
            return
        waiter = next(one for one in self.lines[name] if one.who == who)
        lane = self.room.lanes[who]
        assert self.room.service.attach(lane.session.id, lane.id, 42, 7) == (lane, True)
        self.room.commit()
        assert self.room.acquire(who, name, waiter.until - self.now, waiter.lease) is None
        self.lines[name].remove(waiter)
        self.lines[name].append(waiter)

    @rule(who=clients)
    def gives_up(self, who: int) -> None:
        name = self.waits(who)
        if name is None:
            return
        number = self.room.lanes[who].number + 1
        arguments = (self.room.lanes[who].id, number, "lock", "acquire", [name, 5, None, 0, 1.0])
        assert self.room.ask(self.others[who], "manager", "abandon", *arguments) is False
        self.lines[name] = [one for one in self.lines[name] if one.who != who]

    @rule(who=clients, name=names, lease=st.none() | spans)
    def gives_up_what_was_granted(self, who: int, name: str, lease: float | None) -> None:
        if self.waits(who) is not None or not self.is_free(name):
            return
        token = self.room.acquire(who, name, 1.0, lease)
        assert token == self.grant(name, who, lease)
        arguments = (self.room.lanes[who].id, self.room.lanes[who].number, "lock", "acquire", [name, 5, lease, 0, 1.0])
        assert self.room.ask(self.others[who], "manager", "abandon", *arguments) is True
        self.held[name] = Grant(-1, token, float("inf"))

    @rule(who=clients, name=names, other=clients)
    def a_tick_is_undone(self, who: int, name: str, other: int) -> None:
        """A release with all that it wakes, and one who comes in the same tick: nothing of it has happened."""
        grant = self.holds(who, name)
        if grant is None or self.waits(who) is not None or self.waits(other) is not None or who == other:
            return
        self.room.handle(who, "lock", "release", name, grant.token)
        self.room.handle(other, "lock", "acquire", name, 5, None, 0, 10.0)
        self.room.log.fails = True
        with pytest.raises(StoreFull):
            self.room.service.commit()
        self.room.service.undo()
        self.room.log.fails = False
        self.room.commit()

    @rule(who=clients, name=names)
    def a_grant_cannot_be_logged_for_a_while(self, who: int, name: str) -> None:
        grant = self.holds(who, name)
        if grant is None or self.waits(who) is not None:
            return
        with self.room.service.holding():
            self.room.handle(who, "lock", "release", name, grant.token)
            self.room.service.commit()
        self.room.log.fails = True
        self.room.service.wake()
        self.room.log.fails = False
        assert self.room.holder(name) is None
        self.held[name] = grant._replace(who=-1)
        self.room.service._not_before = 0.0
        self.room.commit()
        self.settle(name)

    @rule(who=clients)
    @precondition(lambda self: self.room.service.sessions)
    def a_process_ends(self, who: int) -> None:
        """Another one takes its place."""
        session = self.room.lanes[who].session
        while not self.room.service.end(session):
            pass
        self.room.commit()
        for name in NAMES:
            self.lines[name] = [one for one in self.lines[name] if one.who != who]
        for name in NAMES:
            if (grant := self.holds(who, name)) is not None:
                self.held[name] = grant._replace(who=-1)
                self.settle(name)
        id_ = b"%016d" % (100 + len(self.room.answers) + self.last_token)
        self.last_token += 1
        for lane, at in ((0, who), (1, self.others[who])):
            self.room.lanes[at], _ = self.room.service.attach(id_, lane, 42, 7)
        self.room.service.commit()

    # -- what must be so ---------------------------------------------------------------------------------------------

    @invariant()
    def the_lines_agree(self) -> None:
        for name in NAMES:
            assert self.room.waiting(name) == [one.who for one in self.lines[name]]
            grant = self.held[name]
            if not self.is_free(name):
                assert grant is not None
                assert self.room.holder(name) == grant.token
        assert {who: self.room.answers[who] for who in range(CLIENTS)} == self.answers

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        for name in NAMES:
            assert not (self.lines[name] and self.is_free(name))

    @invariant()
    def the_books_agree(self) -> None:
        service = self.room.service
        service.store.check()
        assert service.lines.count == sum(map(len, self.lines.values()))
        parked = {lane for lane in self.room.lanes if lane.parked is not None}
        assert parked == {self.room.lanes[one.who] for line in self.lines.values() for one in line}
        assert service.next_wake() > NOW + self.now


TestLocks = Locks.TestCase
TestLocks.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, phases=[Phase.generate]
)  # to shrink takes minutes
