"""Several transactions at once, against a plain dict of dicts in which they run one after the other. No process.

The oracle is serial execution: what a transaction was told, and what it leaves, must be what the same calls are told
and leave when nothing else happens between them, at the moment of its end. It is asked after each call already, unless
something that was read has changed since: then, and only then, the end must be a conflict.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import pytest
import time_machine
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import state_manager
from state_manager import Conflict
from state_manager.checks import COUNTERS, Key, key_bytes
from state_manager.memory import MemoryClient
from state_manager.proxies.transactions import Transaction
from state_manager.settings import SLOTS
from state_manager.store import NEVER, Entry, Store

NOW = 2_000_000_000.0
NAMES = ("a", "b")
KEYS: tuple[Key, ...] = ("x", 1)
COUNTER = "n"
OPEN = 2
"""Transactions that may be open at a time."""


def slot(space: str, key: Key) -> int:
    return crc32(key_bytes(key), crc32(space.encode())) % SLOTS


SLOTS_USED = [*(slot(name, key) for name in NAMES for key in KEYS), slot(COUNTERS, COUNTER)]
SLOTS_USED += [crc32(name.encode()) % SLOTS for name in (*NAMES, COUNTERS)]


def test_no_two_things_here_have_one_slot() -> None:
    """Or there would be conflicts that the model knows nothing of."""
    assert len(set(SLOTS_USED)) == len(SLOTS_USED)


class Held(NamedTuple):
    value: int
    deadline: float = NEVER


State: TypeAlias = dict[str, dict[Key, Held]]


class Plain:
    """A dict, or the counters, with nobody else about. Its methods are called like those of the real ones."""

    def __init__(self, entries: dict[Key, Held], now: float) -> None:
        self.entries = entries
        self.now = now

    def get(self, key: Key) -> Any:
        held = self.entries.get(key)
        return None if held is None or held.deadline <= self.now else held.value

    def contains(self, key: Key) -> bool:
        return self.get(key) is not None

    def set(self, key: Key, value: int, ttl: float | None = None) -> None:
        self.entries[key] = Held(value, NEVER if ttl is None else self.now + ttl)

    def delete(self, key: Key) -> bool:
        there = self.contains(key)
        self.entries.pop(key, None)
        return there

    def pop(self, key: Key) -> Any:
        value = self.get(key)
        self.entries.pop(key, None)
        return value

    def add(self, key: Key, value: int, ttl: float | None = None) -> bool:
        absent = not self.contains(key)
        if absent:
            self.set(key, value, ttl)
        return absent

    def replace(self, key: Key, value: int, ttl: float | None = None) -> bool:
        there = self.contains(key)
        if there:
            self.set(key, value, ttl)
        return there

    def increment(self, key: Key, by: int, initial: int, ttl: float | None) -> int:
        if not self.contains(key):
            self.set(key, initial + by, ttl)
        else:
            self.entries[key] = self.entries[key]._replace(value=self.entries[key].value + by)
        return self.entries[key].value

    def compare_and_set(self, key: Key, expected: int, value: int) -> bool:
        fits: bool = self.get(key) == expected
        if fits:
            self.entries[key] = self.entries[key]._replace(value=value)
        return fits

    def transform(self, key: Key, by: int) -> int:
        return self.increment(key, by, 100, None)

    def expire(self, key: Key, ttl: float) -> bool:
        there = self.contains(key)
        if there:
            self.entries[key] = self.entries[key]._replace(deadline=self.now + ttl)
        return there

    def persist(self, key: Key) -> bool:
        bounded = self.contains(key) and self.entries[key].deadline < NEVER
        if bounded:
            self.entries[key] = self.entries[key]._replace(deadline=NEVER)
        return bounded

    def get_many(self, keys: list[Key]) -> dict[Key, Any]:
        return {key: self.get(key) for key in keys if self.contains(key)}

    def set_many(self, mapping: dict[Key, int], ttl: float | None) -> None:
        for key, value in mapping.items():
            self.set(key, value, ttl)

    def delete_many(self, keys: list[Key]) -> int:
        return sum([self.delete(key) for key in dict.fromkeys(keys)])

    def clear(self) -> None:
        self.entries.clear()

    def copy(self) -> dict[Key, int]:
        return {key: held.value for key, held in self.entries.items() if held.deadline > self.now}

    def length(self) -> int:
        return len(self.copy())

    def keys(self) -> AbstractSet[Key]:
        return self.copy().keys()

    # counters

    def value(self, name: str) -> int:
        return self.get(name) or 0

    def count(self, name: str, by: int) -> int:
        return self.increment(name, by, 0, None)

    def reset(self, name: str, value: int) -> int:
        before = self.value(name)
        self.set(name, value)
        return before


class Op(NamedTuple):
    """A call of a dict, or of the counters."""

    space: str
    name: str
    args: tuple[Any, ...] = ()


BLIND = ("set", "set_many", "clear")
WHOLE = ("copy", "length", "keys")


def keys_of(op: Op) -> list[Key]:
    """Return the keys that a call names."""
    if not op.args:
        return []
    return list(op.args[0]) if op.name.endswith("_many") else [op.args[0]]


def call(target: Any, op: Op) -> Any:
    """Make a call of a transaction, or of a manager."""
    if op.space == COUNTERS:
        counter = target.counter(op.args[0])
        if op.name == "value":
            return counter.value
        return counter.increment(op.args[1]) if op.name == "count" else counter.reset(op.args[1])
    shared = target.dict(op.space)
    match op.name:
        case "contains":
            return op.args[0] in shared
        case "pop":
            return shared.pop(op.args[0], None)
        case "transform":
            key, by = op.args
            return shared.transform(key, lambda old: (100 if old is None else old) + by)
        case "length":
            return len(shared)
        case "keys":
            return set(shared)
    result = getattr(shared, op.name)(*op.args)
    return None if op.name == "clear" else result  # outside it counts


def call_plain(state: State, op: Op, now: float) -> Any:
    return getattr(Plain(state[op.space], now), op.name)(*op.args)


VALUES = (0, 1, 2)
TTLS = (None, 2.0, 5.0)
MANY = ([*KEYS], [KEYS[0]], [KEYS[1], KEYS[1]])


def table(*rows: tuple[Any, ...]) -> st.SearchStrategy[Op]:
    """Return any call, each name as often as any other. A row is a name and what its arguments may be."""
    variants = []
    for name, *arguments in rows:
        spaces = (COUNTERS,) if name in ("value", "count", "reset") else NAMES
        variants.append([Op(space, name, args) for space in spaces for args in itertools.product(*arguments)])
    most = max(map(len, variants))
    return st.sampled_from([ops[number % len(ops)] for number in range(most) for ops in variants])


READS = [("get", KEYS), ("contains", KEYS), ("get_many", MANY), ("copy",), ("length",), ("keys",), ("value", [COUNTER])]
WRITES = [
    ("set", KEYS, VALUES, TTLS),
    ("delete", KEYS),
    ("pop", KEYS),
    ("add", KEYS, VALUES, TTLS),
    ("replace", KEYS, VALUES, TTLS),
    ("increment", KEYS, VALUES, VALUES, TTLS),
    ("compare_and_set", KEYS, VALUES, VALUES),
    ("transform", KEYS, VALUES),
    ("expire", KEYS, (2.0, 5.0)),
    ("persist", KEYS),
    ("set_many", [dict.fromkeys(keys, 1) for keys in MANY], TTLS),
    ("delete_many", MANY),
    ("clear",),
    ("count", [COUNTER], VALUES),
    ("reset", [COUNTER], VALUES),
]
writes = table(*WRITES)
calls = table(*READS, *WRITES)


@dataclass
class Read:
    """Of which change a key or a whole dict was when it was read, and until when that is true if nobody writes."""

    change: int
    there: bool
    until: float


@dataclass
class Running:
    """A transaction, all that it was told, and what the model knows of it."""

    tx: Transaction
    end: contextlib.ExitStack
    told: list[tuple[Op, Any]] = field(default_factory=list)
    reads: dict[tuple[str, Key | None], Read] = field(default_factory=dict)
    written: set[tuple[str, Key]] = field(default_factory=set)
    cleared: set[str] = field(default_factory=set)


MUST, MAY, MUST_NOT = range(3)


class Transactions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.time = time_machine.travel(NOW, tick=False)
        self.clock = self.time.start()
        self.now = NOW
        self.manager = state_manager.connect("memory://")
        self.state: State = {name: {} for name in (*NAMES, COUNTERS)}
        self.changes: Counter[tuple[str, Key | None]] = Counter()
        self.running: dict[int, Running] = {}

    def teardown(self) -> None:
        self.time.stop()
        self.store().check()

    # -- the model ---------------------------------------------------------------------------------------------------

    def is_there(self, space: str, key: Key) -> bool:
        return Plain(self.state[space], self.now).contains(key)

    def note_reads(self, running: Running, op: Op) -> int:
        """Note what a call reads that the transaction has not written; return whether that must be a conflict."""
        if op.name in BLIND or op.space in running.cleared:
            return MUST_NOT
        if op.name in WHOLE:
            return self.note_read(running, op.space, None)
        unwritten = [key for key in keys_of(op) if (op.space, key) not in running.written]
        if op.name == "persist" and not unwritten and (read := running.reads.get((op.space, op.args[0]))):
            return max(
                MAY, self.is_outdated((op.space, op.args[0]), read)
            )  # it asks for the deadline, if that was kept
        return min([self.note_read(running, op.space, key) for key in unwritten], default=MUST_NOT)

    def note_read(self, running: Running, space: str, key: Key | None) -> int:
        place = (space, key)
        if place in running.reads:
            return self.is_outdated(place, running.reads[place])
        held = self.state[space]
        if key is None:
            until = min((each.deadline for each in held.values() if each.deadline > self.now), default=NEVER)
            running.reads[place] = Read(self.changes[place], True, until)
        else:
            there = self.is_there(space, key)
            running.reads[place] = Read(self.changes[place], there, held[key].deadline if there else NEVER)
        return MUST_NOT

    def is_outdated(self, place: tuple[str, Key | None], read: Read) -> int:
        if self.changes[place] != read.change:
            return MUST
        if read.until > self.now:
            return MUST_NOT
        return MAY if place[1] is None else MUST  # a whole dict is not searched for what has ended meanwhile

    def note_writes(self, running: Running, op: Op, result: Any) -> None:
        if op.name in WHOLE or op.name in ("get", "contains", "get_many", "value"):
            return
        if op.name == "clear":
            running.cleared.add(op.space)
            running.written -= {place for place in running.written if place[0] == op.space}
        elif op.name == "pop":
            if result is not None:
                running.written.add((op.space, op.args[0]))
        elif result is not False or op.name == "delete":
            running.written |= {(op.space, key) for key in keys_of(op)}

    def replay(self, running: Running) -> State:
        """Run the transaction's calls one after the other, now; what they are told must be what they were told."""
        state = {space: dict(entries) for space, entries in self.state.items()}
        for op, result in running.told:
            assert call_plain(state, op, self.now) == result, op
        return state

    def note_changes(self, touched: set[tuple[str, Key]], cleared: set[str], after: State) -> None:
        """Take over the state after a write of all this. To write the same value is a change as well."""
        before = self.state
        for space in cleared:
            touched |= {(space, key) for key in before[space]}
        self.state = after
        for space, key in touched:
            was = key in before[space] and before[space][key].deadline > self.now
            if was or self.is_there(space, key):
                self.changes[space, key] += 1
                self.changes[space, None] += 1

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, OPEN - 1), op=calls)
    def call(self, which: int, op: Op) -> None:
        if which not in self.running:
            end = contextlib.ExitStack()
            self.running[which] = Running(end.enter_context(self.manager.transaction()), end)
        running = self.running[which]
        conflict = self.note_reads(running, op)
        try:
            result = call(running.tx, op)
        except Conflict:
            assert conflict != MUST_NOT
            self.an_exception_ends_it(which)
            return
        assert conflict != MUST
        self.note_writes(running, op, result)
        running.told.append((op, result))
        if all(self.is_outdated(place, read) == MUST_NOT for place, read in running.reads.items()):
            self.replay(running)

    @rule(which=st.integers(0, OPEN - 1))
    def end(self, which: int) -> None:
        running = self.running.pop(which, None)
        if running is None:
            return
        conflict = min((self.is_outdated(*item) for item in running.reads.items()), default=MUST_NOT)
        if not running.written and not running.cleared and len(running.reads) == 1:
            conflict = MUST_NOT  # all that it read was of one moment
            running.told.clear()
        try:
            running.end.close()
        except Conflict:
            assert conflict != MUST_NOT
            return
        assert conflict != MUST
        if conflict == MAY:  # what it was told of a whole dict may hold no longer
            running.told = [(op, result) for op, result in running.told if op.name not in WHOLE]
        self.note_changes(running.written, running.cleared, self.replay(running))

    @rule(which=st.integers(0, OPEN - 1))
    def an_exception_ends_it(self, which: int) -> None:
        running = self.running.pop(which, None)
        if running is not None:
            with pytest.raises(ZeroDivisionError), running.end:
                raise ZeroDivisionError

    @rule(op=writes)
    def somebody_else_writes(self, op: Op) -> None:
        after = {space: dict(entries) for space, entries in self.state.items()}
        expected = call_plain(after, op, self.now)
        assert call(self.manager, op) == expected
        touched = set() if expected is False else {(op.space, key) for key in keys_of(op)}
        self.note_changes(touched, {op.space} if op.name == "clear" else set(), after)

    @rule(span=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, span: float) -> None:
        self.now += span
        self.clock.move_to(self.now, tick=False)

    # Each rule is drawn as often as any other, and a transaction is several calls.
    call_more, call_still_more, end_more = call, call, end

    # -- what must be so ---------------------------------------------------------------------------------------------

    def store(self) -> Store:
        client = self.manager._caller
        assert isinstance(client, MemoryClient)
        return client.service.store

    def found(self) -> State:
        """Return what is in the store, without a look that would delete what has ended."""
        state: State = {}
        for name in (*NAMES, COUNTERS):
            space = self.store().spaces.get(name)
            state[name] = {
                key: Held(found.value, found.deadline) if type(found) is Entry else Held(found)
                for key, found in (space.entries.items() if space else ())
            }
        return state

    @invariant()
    def the_dicts_agree(self) -> None:
        def live(state: State) -> State:
            return {
                name: {key: held for key, held in entries.items() if held.deadline > self.now}
                for name, entries in state.items()
            }

        assert live(self.found()) == live(self.state)


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(
    max_examples=250, stateful_step_count=60, deadline=None, phases=[Phase.generate]
)  # to shrink takes minutes
