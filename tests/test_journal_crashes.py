"""Kills and power failures at every moment: what was acknowledged is there, and a crash is never taken for damage.

``Writer`` does to a journal what the service does, and knows every state that was acknowledged. A process may be killed
at any call to the disk; then the state is the last one, or that of the tick on its way. After a power failure it is one
of the states since the last sync; in the mode ``power`` the last one again.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from state_manager.errors import StateError
from state_manager.journal import Journal, JournalFailed, JournalFull, JournalLost, Lane, Reading
from state_manager.journal.log import Mode
from state_manager.journal.reserve import RESERVE
from state_manager.store import ABSENT, Change, Entry, Store
from tests.journal_disk import Disk, Killed, ManualSyncer, entries

State = tuple[dict[str, dict[Any, Any]], dict[int, tuple[int, bytes]]]


class Model:
    """What replayed frames make."""

    def __init__(self) -> None:
        self.store = Store()
        self.lanes: dict[int, tuple[int, bytes]] = {}

    def apply(self, changes: list[Change], lanes: list[Lane]) -> None:
        self.store.apply(changes)
        for lane, *reply in lanes:
            if reply:
                self.lanes[lane] = (int(reply[0]), bytes(reply[1]))  # type: ignore[call-overload]
            else:
                self.lanes.pop(lane, None)

    def state(self) -> State:
        return deepcopy(entries(self.store)), dict(self.lanes)


class Writer:
    """``states`` are those that were acknowledged since the last start, by the number of the frame that made them."""

    def __init__(self, disk: Disk, mode: Mode) -> None:
        self.disk = disk
        self.mode = mode
        self.model = Model()
        self.begun: State | None = None  # the state that the tick on its way would make
        self.slices: Iterator[tuple[list[Change], list[Lane]]] | None = None
        self.journal = Journal(disk, mode=mode)
        self.syncer = self.journal._syncer = ManualSyncer(disk, self.journal._syncer._position)
        for frame in self.journal.replay():
            self.model.apply(frame.changes, frame.lanes)
        self.states = [(self.journal.number, self.model.state())]

    @property
    def state(self) -> State:
        return self.states[-1][1]

    def tick(self, changes: list[Change], lanes: list[Lane]) -> None:
        after = deepcopy(self.model)
        after.apply(changes, lanes)
        self.begun = after.state()
        deletes = all(entry is ABSENT for _, _, entry in changes)
        self.journal.append(1.0, changes, lanes, deletes_only=deletes)
        self.model = after
        self.states.append((self.journal.number, self.begun))
        self.begun = None

    def compact(self, size: int = 2) -> None:
        """Take the next step of a compaction."""
        if self.slices is None:
            if self.journal.completed() or self.journal._compacting:
                return
            self.journal.begin_compaction()
            self.slices = self.parts(size)
            return
        try:
            changes, lanes = next(self.slices)
        except StopIteration:
            self.slices = None
            self.journal.complete(1.0)
        else:
            self.journal.append_slice(1.0, changes, lanes)

    def parts(self, size: int) -> Iterator[tuple[list[Change], list[Lane]]]:
        yield [], [(lane, *reply) for lane, reply in self.model.lanes.items()]
        keys = [(space.name, key) for space in self.model.store.spaces.values() for key in space.entries]
        for at in range(0, len(keys), size):
            found = [(name, key, self.model.store.get(name, key)) for name, key in keys[at : at + size]]
            yield [change for change in found if change[2] is not ABSENT], []

    def give_up(self) -> None:
        self.slices = None
        self.journal.give_up()

    def acknowledged(self) -> list[State]:
        """Return the states that a restart after a kill may find."""
        return [self.state] + ([self.begun] if self.begun is not None else [])

    def since_sync(self) -> list[State]:
        """Return the states that a restart after a power failure may find."""
        synced = self.syncer.synced
        known = max(index for index, (number, _) in enumerate(self.states) if index == 0 or number <= synced)
        return [state for _, state in self.states[known:]] + ([self.begun] if self.begun is not None else [])


def found(disk: Disk) -> State:
    model = Model()
    for frame in Reading(disk):
        model.apply(frame.changes, frame.lanes)
    return model.state()


# -- every point of one story ------------------------------------------------------------------------------------------


def story(writer: Writer) -> None:
    """Ticks, a compaction that fails, one that succeeds with ticks in it, and a full disk."""
    disk, journal = writer.disk, writer.journal
    for number in range(4):
        writer.tick([("a", number, "x" * 20), ("a", "last", number)], [(1, number, b"reply")])
    writer.syncer.work()
    writer.compact()
    writer.compact()
    writer.tick([("a", 1, ABSENT)], [(1, 10, b"deleted"), (2, 1, b"other")])
    writer.give_up()
    writer.tick([("b", "x", Entry(1, 5.0))], [])
    writer.compact()
    while writer.slices is not None:
        writer.tick([("c", journal.number, journal.number), ("a", "last", ABSENT)], [(2,), (3, journal.number, b"r")])
        writer.compact()
    writer.tick([("a", None, ABSENT)], [])
    writer.syncer.work()
    assert journal.completed()
    writer.tick([("a", 0, 0)], [])
    writer.syncer.work()
    disk.room = sum(map(len, disk.contents().values()))
    try:
        writer.tick([("a", "big", "x" * 100)], [])
    except JournalFull:
        writer.begun = None
    writer.tick([("c", None, ABSENT)], [])
    disk.room += 2 * RESERVE
    assert journal.restore_reserve()
    writer.tick([("a", "after", 1)], [])
    journal.close()


def killed_at(point: int, mode: Mode) -> tuple[Writer, bool]:
    """Return the writer after it was killed at this call to the disk, and whether it was."""
    disk = Disk()
    writer = Writer(disk, mode)
    disk.kill_at(point)
    try:
        story(writer)
    except Killed:
        return writer, True
    return writer, False


def points(mode: Mode) -> int:
    writer, killed = killed_at(10**6, mode)
    assert not killed
    return len(writer.disk.calls)


@pytest.mark.parametrize("mode", ["process", "power"])
def test_a_kill_at_any_point_loses_nothing(mode: Mode) -> None:
    for point in range(points(mode)):
        writer, killed = killed_at(point, mode)
        disk = writer.disk.kill()
        again = Writer(disk, mode)
        assert again.state in writer.acknowledged(), f"killed at {point} of {killed}: {writer.disk.calls[-3:]}"
        assert found(disk) == again.state
        again.tick([("z", 1, 1)], [])
        assert found(disk.kill()) == again.state


@pytest.mark.parametrize("mode", ["process", "power"])
def test_a_power_failure_at_any_point_loses_nothing_that_was_synced(mode: Mode) -> None:
    chance = random.Random(f"power {mode}")
    for point in range(points(mode)):
        writer, _ = killed_at(point, mode)
        for _ in range(6):
            disk = writer.disk.lose_power(chance)
            again = Writer(disk, mode)
            allowed = writer.acknowledged() if mode == "power" else writer.since_sync()
            assert again.state in allowed, f"power failed at {point}: {writer.disk.calls[-3:]}"
            assert found(disk.kill()) == again.state


@pytest.mark.parametrize("mode", ["process", "power"])
def test_a_second_crash_during_the_start_after_the_first_loses_nothing(mode: Mode) -> None:
    chance = random.Random("twice")
    for point in range(points(mode)):
        writer, _ = killed_at(point, mode)
        for second in range(20):
            disk = writer.disk.kill()
            first = found(disk)
            disk.kill_at(second)
            try:
                again = Writer(disk, mode)
            except Killed:
                assert found(disk.kill()) == first
                for _ in range(3):
                    assert found(disk.lose_power(chance)) in writer.since_sync()
            else:
                assert again.state == first
                assert all(found(disk.lose_power(chance)) == first for _ in range(3)), "a start syncs what it found"
                disk.works()
                again.tick([("z", 1, 1)], [])
                again.syncer.work()
                assert all(found(disk.lose_power(chance)) == again.state for _ in range(3)), "and where it is"
                break


# -- every failure of one story ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["process", "power"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasts", [1, 2, 10**6])
def test_a_disk_that_fails_at_any_point_loses_nothing(mode: Mode, code: int, lasts: int) -> None:
    """Whatever fails, a tick was acknowledged and is there, or was refused and is not."""
    for point in range(points(mode)):
        disk = Disk()
        writer = Writer(disk, mode)
        disk.hook = failing(point, lasts, code)
        clumsy_story(writer)
        if writer.begun is None:  # else the process ended, without a reply
            assert found(disk.kill()) == writer.state
        disk = disk.kill()
        again = Writer(disk, mode)
        assert again.state in writer.acknowledged()


def failing(point: int, lasts: int, code: int) -> Callable[[str], None]:
    count = 0

    def hook(call: str) -> None:
        nonlocal count
        count += 1
        if point < count <= point + lasts:
            raise OSError(code, "injected")

    return hook


def clumsy_story(writer: Writer) -> None:
    """Go on after every error, as the manager does."""
    journal = writer.journal
    for number in range(30):
        try:
            if number % 3 == 0:
                writer.compact(4)
            writer.tick([("a", number % 5, "x" * number), ("b", "last", number)], [(1, number, b"reply")])
        except JournalLost:
            return
        except (JournalFailed, JournalFull, RuntimeError):
            writer.begun = None
            if not journal._compacting:
                writer.slices = None
        if number % 4 == 0:
            writer.syncer.work()
        journal.restore_reserve()
    with contextlib.suppress(JournalFailed, JournalLost):
        journal.close()


# -- any story ---------------------------------------------------------------------------------------------------------

SPACES = st.sampled_from(["a", "b"])
KEYS = st.sampled_from(["x", "y", 1, b"x"])
VALUES = st.one_of(st.integers(0, 3), st.text("abc", max_size=40), st.builds(Entry, st.integers(0, 3), st.just(9.0)))
CHANGES = st.lists(
    st.one_of(
        st.tuples(SPACES, KEYS, VALUES),
        st.tuples(SPACES, KEYS, st.just(ABSENT)),
        st.tuples(SPACES, st.none(), st.just(ABSENT)),
    ),
    max_size=4,
)
LANES = st.lists(
    st.one_of(st.tuples(st.integers(1, 3), st.integers(1, 9), st.binary(max_size=5)), st.tuples(st.integers(1, 3))),
    max_size=2,
)


class JournalAndModel(RuleBasedStateMachine):
    """Writes, compactions, failures, crashes and restarts, against a plain model."""

    writer: Writer

    @initialize(mode=st.sampled_from(["process", "power"]))
    def begin(self, mode: Mode) -> None:
        self.writer = Writer(Disk(), mode)

    @rule(changes=CHANGES, lanes=LANES)
    def tick(self, changes: list[Change], lanes: list[Lane]) -> None:
        try:
            self.writer.tick(changes, lanes)
        except (JournalFull, JournalFailed):
            assert self.writer.journal.failed or not self.writer.journal._reserve.there
            self.writer.begun = None

    @rule(changes=CHANGES, lanes=LANES, call=st.sampled_from(["write", "sync"]), full=st.booleans())
    def a_tick_fails(self, changes: list[Change], lanes: list[Lane], call: str, full: bool) -> None:
        writer = self.writer
        writer.disk.fail(call, errno.ENOSPC if full else errno.EIO, times=1)
        try:
            writer.tick(changes, lanes)
        except (JournalFull, JournalFailed):
            writer.begun = None
        writer.disk.works()

    @rule()
    def compact(self) -> None:
        try:
            self.writer.compact()
        except (JournalFull, JournalFailed):
            assert self.writer.journal.failed or not self.writer.journal._reserve.there
            self.writer.slices = None

    @rule()
    def a_slice_fails(self) -> None:
        writer = self.writer
        writer.disk.fail("write", times=1)
        try:
            writer.compact()
        except (JournalFull, JournalFailed):
            writer.slices = None
        writer.disk.works()

    @rule()
    def give_up(self) -> None:
        self.writer.give_up()

    @rule()
    def sync(self) -> None:
        self.writer.syncer.work()

    @rule()
    def keep_house(self) -> None:
        self.writer.journal.restore_reserve()

    @rule(keep=st.booleans())
    def back_up(self, keep: bool) -> None:
        journal, disk = self.writer.journal, self.writer.disk
        pin = journal.pin()
        copy = Disk()
        for name, size in pin.files:
            copy.replace(name, disk.data(name)[:size])
        assert found(copy) == self.writer.state
        if not keep:
            journal.unpin(pin)

    @rule()
    def end_and_start(self) -> None:
        self.writer.journal.close()
        assert self.writer.disk.open_files == {}
        self.restart(self.writer.disk, [self.writer.state])

    @rule()
    def kill_and_start(self) -> None:
        self.restart(self.writer.disk.kill(), [self.writer.state])

    @rule(chance=st.randoms(use_true_random=False))
    def lose_power_and_start(self, chance: random.Random) -> None:
        self.restart(self.writer.disk.lose_power(chance), self.writer.since_sync())

    @rule(point=st.integers(0, 8), changes=CHANGES, lanes=LANES)
    def be_killed_and_start(self, point: int, changes: list[Change], lanes: list[Lane]) -> None:
        writer = self.writer
        writer.disk.kill_at(point)
        try:
            writer.compact()
            writer.syncer.work()
            writer.tick(changes, lanes)
        except (Killed, StateError):
            pass
        self.restart(writer.disk.kill(), writer.acknowledged())

    def restart(self, disk: Disk, allowed: list[State]) -> None:
        self.writer = Writer(disk, self.writer.mode)
        assert self.writer.state in allowed

    @precondition(lambda self: hasattr(self, "writer"))
    @invariant()
    def the_disk_holds_what_was_acknowledged(self) -> None:
        writer = self.writer
        assert found(writer.disk) == writer.state
        assert not writer.journal._uncut
        assert writer.journal.size <= sum(len(writer.disk.data(name)) for name in writer.disk.segments())
        writer.model.store.check()


JournalAndModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJournalAndModel = JournalAndModel.TestCase
