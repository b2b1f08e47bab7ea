"""A tick: requests in, changes applied and logged, replies out. No socket, file or clock; ``now`` is set by their
owner.

    begin(now) -> handle(lane, payload) ... -> commit() -> the caller sends the replies

Rules
- Replies are sent after ``commit`` only, because a reply is a promise that the change is kept, and that the page which
  workers look at (``Page``) shows the versions of all that it changed.
- A write carries a number; asked again with the same number on the same lane, the stored reply is the answer and
  nothing runs. So a retry counts once. A lane is forgotten only when its process has ended: until then a retry may
  still come.
- A request that cannot proceed is parked (``parking``) and has no reply yet. After a change the lines that wait for it
  are run, from the head to the first that waits again, before the next request. Those replies are in ``woken``, to be
  sent after the commit like all others. In a tick that is undone everybody is back in his place.
- A tick that cannot be logged is undone as a whole. Its requests are then run again one by one, so that only those get
  the error that cannot do without the log (``refusing``); what the manager itself wanted to change waits.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from .checks import OPTIONS, Key, shown
from .commands import TABLE, Command, ended
from .commands.base import Done, View, Wait, row
from .errors import StateError, to_wire
from .parking import Lines, Parked
from .policies import adapt, kept, options_of
from .sessions import LANE_BITS, SESSIONS, Lane, LaneRecord, Session
from .store import ABSENT, NEVER, Change, Entry, Store, cost
from .view import StoreView
from .wire import ERROR, RETURN, packer, unpack

SWEEP_LIMIT: Final = 500
"""Expired entries that one tick deletes, and freed entries of emptied spaces."""


WOKEN_BYTES: Final = 16 * 2**20
"""Replies to requests that waited which one tick may hold; who else waits for the same is answered in the next."""
WAKE_LIMIT: Final = 500
"""Parked requests whose time has come that one tick looks at."""
HOLDS_SHOWN: Final = 100
"""Things that one process holds, or waits for, which ``workers`` names."""
RETRY: Final = 1.0
"""Seconds until lines are run again after what they changed could not be logged."""


class Log(Protocol):
    """Where the changes of a tick are kept before it is answered."""

    def append(self, now: float, changes: Sequence[Change], lanes: Sequence[LaneRecord]) -> None:
        """Keep all of this, or raise a StateError and keep nothing of it."""


class Page(Protocol):
    """Where readers in other processes see which versions are current."""

    def publish(self, versions: array[int], slots: Sequence[int]) -> None:
        """Show the versions of these slots."""

    def publish_all(self, versions: array[int]) -> None:
        """Show all versions."""


class Waiting(StateError):
    """A command returned this ``Wait``; it only gets as far as to who has no lane to wait on."""

    def __init__(self, wait: Wait) -> None:
        super().__init__("this waits, which takes a client with lanes")
        self.wait = wait


class NoLog:
    """Keeps nothing: the state is in memory alone."""

    def append(self, now: float, changes: Sequence[Change], lanes: Sequence[LaneRecord]) -> None:
        """There is nothing to do."""


class Service:
    """Runs requests against a store, one at a time. ``table`` is the command table, with the owner's own rows in it."""

    def __init__(
        self,
        store: Store,
        *,
        token: Callable[[], str],
        table: Mapping[tuple[str, str], Command] = TABLE,
        log: Log | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.store = store
        self.sessions: dict[bytes, Session] = {}
        self.commands = 0
        self.log: Log = log or NoLog()
        self.page: Page | None = None
        self._max_memory = max_memory
        self._table = dict(table)
        self.lines = Lines()
        self._touched_lines, self._moved = self.lines.touched, self.lines.moved
        self.woken: list[tuple[Lane, bytes]] = []  # replies to requests that were parked, to send after the commit
        self._view = StoreView(store, token, self.lines)
        self._pack = packer().pack
        self._touched: list[tuple[Lane, int, bytes]] = []  # lanes that this tick answers, and what they were before
        self._records: list[LaneRecord] = []  # lanes to log without a request: new ones, forgotten ones
        self._new: list[Lane | Session] = []  # what this tick made or stored, for undo
        self._refusal: StateError | None = None
        self._last_session = 0
        self._written: Change | None = None  # what the last command changed, if that is one entry
        self._holding = False  # lines are left alone for the moment
        self._not_before = 0.0  # lines are left alone until then
        self._woken_bytes = 0
        self.add(
            row("manager", "abandon", self._abandon, writes=True),
            row("manager", "workers", self._workers, writes=False),
        )

    def __repr__(self) -> str:
        store = self.store
        return f"<Service {store.entries} entries, {store.bytes} bytes, {len(self.sessions)} sessions>"

    def add(self, *commands: Command) -> None:
        """Add rows to the table."""
        self._table |= {(command.kind, command.name): command for command in commands}

    # -- the tick --------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Begin a tick: everything in it happens at ``now``, in seconds, which never decreases."""
        self._view.now = now

    def handle(self, lane: Lane | None, payload: bytes) -> bytes | None:
        """Run the request in a payload and return the reply, None for one that is out of date or was parked.

        The reply to a write that changed one entry has its version, and its deadline if it has one: with them the
        writer can keep what it wrote.
        """
        number = None
        try:
            message = unpack(payload)
            if type(message) is not list or not 4 <= len(message) <= 5:
                raise ValueError("a request is [ident, method, arguments, {}], with a number if it writes")
            if len(message) == 5:
                if lane is None or type(message[4]) is not int:
                    raise ValueError("a number needs an attached lane, and is an int")
                number = message[4]
                if number <= lane.number:
                    return lane.reply if number == lane.number else None
                if lane.parked is not None:
                    self.unpark(lane)
            args = message[2]
            if type(args) is not list or message[3]:
                raise ValueError("a request's arguments are a list, and it has no keyword arguments")
            self._view.lane = lane
            result = self.call(message[0], message[1], args)
            if number is None:
                reply = self._pack((RETURN, result))
            elif self._written is None:
                reply = self._pack((RETURN, result, number))
            else:
                entry, version = self._written[2], self.store.last_version()
                if type(entry) is Entry and entry.deadline < NEVER:
                    reply = self._pack((RETURN, result, number, version, entry.deadline))
                else:
                    reply = self._pack((RETURN, result, number, version))
        except Waiting as waiting:
            answer = self._park(lane, number, message, waiting.wait)
            if answer is None:
                self._run_touched()
                return None
            reply = self._pack(answer if number is None else (*answer, number))
        except Exception as error:
            reply = self._pack((ERROR, to_wire(error)) if number is None else (ERROR, to_wire(error), number))
        if lane is not None and number is not None and self._refusal is None:
            self._touched.append((lane, lane.number, lane.reply))
            lane.number = number
            lane.reply = reply
        if self._touched_lines and not self._holding:
            self._run_lines()
        return reply

    def call_unattached(self, kind: str, name: str, args: Sequence[Any], lane: Lane | None = None) -> Any:
        """Run one command for somebody who sends no payloads, perhaps as if it came on this lane."""
        self._view.lane = lane
        try:
            return self.call(kind, name, args)
        finally:
            self._run_touched()

    def call(self, kind: str, name: str, args: Sequence[Any]) -> Any:
        """Run one command and return its result; its changes are applied. Raises Waiting if it returns a Wait."""
        try:
            command = self._table[kind, name]
        except (KeyError, TypeError):
            raise ValueError(f"unknown command: {shown(kind)}, {shown(name)}") from None
        if not command.least <= len(args) <= command.most:
            raise TypeError(f"{kind}.{name} takes {command.least} to {command.most} arguments, not {len(args)}")
        self.commands += 1
        view = self._view
        outcome = command.function(view, view.now, *args)
        if type(outcome) is Wait:
            raise Waiting(outcome)
        result, changes = outcome
        self._written = None
        if changes:
            if self._refusal is not None:
                raise self._refusal
            if self._max_memory is not None or OPTIONS in self.store.spaces:
                owner = view.session.number if view.session else None
                changes = adapt(self.store, changes, owner, self._max_memory)
            view.apply(changes)
            if len(changes) == 1 and changes[0][1] is not None:
                self._written = changes[0]
        return result

    def commit(self) -> None:
        """End the tick: log what was applied, and it is final. Raises StateError if it cannot be; then ``undo`` it."""
        view = self._view
        if view.changes or self._records:
            lanes: list[LaneRecord] = []
            for lane, _, _ in self._touched:
                if not lane.session.stored:
                    self._store_session(lane.session)
                lanes.append((lane.key, lane.number, lane.reply))
            lanes += self._records
            changes = view.changes if OPTIONS not in self.store.spaces else kept(self.store, view.changes)
            if changes or self._records:
                self.log.append(view.now, changes, lanes)
            self._records, self._new = [], []
        if view.changes or view.ended:
            view.settle()
        if self._touched:
            self._touched = []
        if self._moved:
            self.lines.settle()
            self._woken_bytes = 0
        if self.store.changed or self.store.all_changed:
            self._publish()

    def undo(self) -> None:
        """Take back everything since the last commit; versions alone go on growing.

        A request that was parked since then is to be run again, like those that were answered.
        """
        self._view.take_back()
        self.lines.take_back()
        self.woken.clear()
        self._woken_bytes = 0
        for lane, number, reply in reversed(self._touched):
            lane.number, lane.reply = number, reply
        for new in self._new:
            if isinstance(new, Session):
                new.stored = False
            else:
                del new.session.lanes[new.id]
        self._touched, self._records, self._new = [], [], []
        self._publish()

    def _publish(self) -> None:
        """Let readers see what has changed, and what was undone: its versions have grown twice."""
        store = self.store
        if self.page is not None:
            if store.all_changed:
                self.page.publish_all(store.versions)
            else:
                self.page.publish(store.versions, store.changed)
        store.changed.clear()
        store.all_changed = False

    @contextmanager
    def refusing(self, error: StateError) -> Iterator[None]:
        """While this lasts nothing changes: a request that would change something gets the error, the others go on."""
        self._refusal, self._view.frozen = error, True
        try:
            with self.holding():
                yield
        finally:
            self._refusal, self._view.frozen = None, False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While this lasts no line is run: a request that frees something is not to fail for those who wait for it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _park(self, lane: Lane | None, number: int | None, message: list[Any], wait: Wait) -> tuple[str, Any] | None:
        """Let a request wait; return what is to be answered if it cannot, or may not wait any longer."""
        if wait.until <= self._view.now:
            return RETURN, wait.timed_out
        if lane is None:
            return ERROR, to_wire(Waiting(wait))
        self.unpark(lane)
        parked = Parked(lane, number, message[0], message[1], message[2])
        parked.until, parked.timed_out, parked.in_order = wait.until, wait.timed_out, wait.in_order
        try:
            self.lines.park(parked, (wait.space, wait.key), min(wait.until, wait.retry_at))
        except StateError as error:
            return ERROR, to_wire(error)
        return None

    def _run_touched(self) -> None:
        if self.lines.touched and not self._holding:
            self._run_lines()

    def _run_lines(self) -> None:
        """Run the lines that were touched: each from its head to the first that waits again, or, without order, all."""
        lines = self.lines
        while lines.touched and self._woken_bytes < WOKEN_BYTES:
            name = next(iter(lines.touched))
            head = lines.head(name)
            if head is not None and not head.in_order:
                for parked in lines.all(name):
                    self._try(parked)
                    if self._woken_bytes >= WOKEN_BYTES:
                        return  # the line stays touched, and those who were answered have left it
            else:
                while head is not None and self._try(head):
                    head = lines.head(name)
            lines.touched.pop(name, None)

    def _try(self, parked: Parked) -> bool:
        """Run a parked request again; return whether it was answered."""
        self._view.lane, self.lines.current = parked.lane, parked
        answer: tuple[Any, ...]
        try:
            answer = RETURN, self.call(parked.kind, parked.name, parked.args)
        except Waiting as waiting:
            if self._view.now < parked.until:
                due = min(parked.until, waiting.wait.retry_at)
                if due != parked.due or due <= self._view.now:
                    self.lines.set_due(parked, due)
                return False
            answer = RETURN, parked.timed_out
        except Exception as error:
            answer = ERROR, to_wire(error)
        finally:
            self.lines.current = None
        self._answer(parked, answer)
        return True

    def _answer(self, parked: Parked, answer: tuple[Any, ...]) -> None:
        lane, number = parked.lane, parked.number
        reply = self._pack(answer if number is None else (*answer, number))
        if number is not None and self._refusal is None:
            self._touched.append((lane, lane.number, lane.reply))
            lane.number = number
            lane.reply = reply
        self.lines.wake(parked)
        self.woken.append((lane, reply))
        self._woken_bytes += len(reply)

    def next_wake(self) -> float:
        """Return when ``wake`` is to be called, infinite if nobody waits for a time."""
        return max(0.0 if self.lines.touched else self.lines.next_due(), self._not_before)

    def wake(self) -> None:
        """Run what was touched between ticks and those requests whose time has come, in a tick of its own.

        If that cannot be logged, only those are answered who cannot wait any longer.
        """
        now = self._view.now
        try:
            for parked in self.lines.due(now, WAKE_LIMIT):
                if not parked.in_line:
                    continue
                if not parked.in_order or self.lines.ahead_of(parked):
                    self._try(parked)
                else:
                    self.lines.touched[parked.line] = None
            self._run_lines()
            self.commit()
        except StateError as error:
            self.undo()
            self._not_before = now + RETRY
            with self.refusing(error):
                for parked in self.lines.due(now, WAKE_LIMIT):
                    if parked.until <= now:
                        self._answer(parked, (RETURN, parked.timed_out))
                    else:
                        self.lines.set_due(parked, min(parked.until, self._not_before))
                self.commit()

    def unpark(self, lane: Lane) -> None:
        """Forget what waits on a lane, whose connection has ended or asks for something else: nobody reads the answer.

        One that was woken in this very tick stays answered, for a retry; but the answer is not sent.
        """
        if lane.parked is not None:
            if not lane.parked.in_line:
                self.woken[:] = [item for item in self.woken if item[0] is not lane]
            self.lines.unpark(lane)

    def _abandon(self, view: View, now: float, id_: int, number: int, kind: str, name: str, args: list[Any]) -> Done:
        """See to it that a request of another lane, whose caller has given up, has no effect; return whether it had.

        One that waits leaves its line, one that was not run never is, and one that has got something gives it back.
        """
        if type(id_) is not int or type(number) is not int or type(args) is not list or view.session is None:
            raise TypeError("abandon takes a lane of the same session, a number, and what was asked with it")
        lane = view.session.lanes.get(id_)
        if lane is None or number < lane.number:
            return False, ()
        executed = number == lane.number
        kind_of_reply, result, *_ = unpack(lane.reply) if executed and lane.reply else (ERROR, None)
        command = self._table.get((kind, name))
        changes: Sequence[Change] = ()
        if kind_of_reply == RETURN and command is not None and command.reverse is not None:
            _, changes = command.reverse(view, now, result, *args)
        if self._refusal is not None:
            if changes or not executed:
                raise self._refusal
            return False, ()
        self.unpark(lane)
        self._touched.append((lane, lane.number, lane.reply))
        lane.number = number
        lane.reply = self._pack((ERROR, to_wire(StateError("whoever asked this has given up")), number))
        return bool(changes), changes

    def _workers(self, view: View, now: float) -> Done:
        """Return ``[pid, name, since, [what it holds], [what it waits for]]`` of every process that has asked anything.

        What it holds is the oldest part of it, as ``[space, key]``; what it waits for is ``[kind, command, name]``.
        """
        return [
            [
                session.pid,
                session.name,
                session.since,
                [list(owned) for owned in self.store.owned(session.number, HOLDS_SHOWN)],
                [
                    [lane.parked.kind, lane.parked.name, str(next(iter(lane.parked.args), ""))]
                    for lane in session.lanes.values()
                    if lane.parked is not None and lane.parked.in_line
                ][:HOLDS_SHOWN],
            ]
            for session in self.sessions.values()
        ], ()

    # -- between ticks ---------------------------------------------------------------------------------------------

    def tidy(self) -> bool:
        """Delete a bounded number of expired entries and free emptied spaces; return whether there is more to do.

        Raises StateError if the log takes no more; then nothing was deleted.
        """
        self._view.give_up_iterations()
        expired = self.store.due(self._view.now, SWEEP_LIMIT)
        if expired:
            self._end_entries(expired)
        return self.store.collect(SWEEP_LIMIT * 10) or len(expired) == SWEEP_LIMIT

    def _end_entries(self, keys: Sequence[tuple[str, Key]]) -> None:
        """Make of these entries what becomes of them without their owner, or after their deadline.

        Those that only go are a tick of their own, and the first: it can be logged on a full disk too.
        """
        now = self._view.now
        gone: list[Change] = []
        moved: list[Change] = []
        for space, key in keys:
            changes = ended(space, key, self.store.get(space, key), now)
            (gone if all(entry is ABSENT for _, _, entry in changes) else moved).extend(changes)
        for part in (gone, moved):
            if part:
                self._view.apply(part)
                self._commit_or_undo()

    def _commit_or_undo(self) -> None:
        try:
            self.commit()
        except StateError:
            self.undo()
            raise

    # -- sessions --------------------------------------------------------------------------------------------------

    def attach(self, id_: bytes, lane: int, pid: int | None, started: int | None, name: str = "") -> tuple[Lane, bool]:
        """Return the lane and whether it was known: whether a request that was sent before can be answered."""
        session = self.sessions.get(id_)
        if session is None:
            self._last_session += 1
            session = self.sessions[id_] = Session(self._last_session, id_, pid, started, name, self._view.now)
        found = session.lanes.get(lane)
        if found is not None:
            self.unpark(found)
            return found, True
        found = session.lanes[lane] = Lane(session, lane)
        if self._refusal is None:
            # Kept from now on: a first write that breaks off can then be asked again, whoever is killed.
            if not session.stored:
                self._store_session(session)
            self._records.append(found.record)
            self._new.append(found)
        return found, False

    def _store_session(self, session: Session) -> None:
        self._view.apply(((SESSIONS, session.number, session.entry),))
        session.stored = True
        self._new.append(session)

    def end(self, session: Session) -> bool:
        """Forget a session whose process has ended, a bounded part of what it has at a time; return whether it is done.

        Not within a tick. Raises StateError if the log takes no more: then the rest stays.
        """
        for lane in session.lanes.values():
            self.unpark(lane)
        owned = self.store.owned(session.number, SWEEP_LIMIT * 10)
        if owned:
            self._end_entries(owned)
            return False
        if session.stored:
            self._view.apply(((SESSIONS, session.number, ABSENT),))
            self._records += [(lane.key,) for lane in session.lanes.values()]
            self._commit_or_undo()
        self.sessions.pop(session.id, None)
        session.lanes.clear()  # they point back, and the manager runs without a collector of cycles
        self._view.give_up_iterations(session)
        return True

    def restore(self, lanes: Mapping[int, tuple[int, bytes]]) -> None:
        """Make the sessions that the store holds, with these lanes."""
        space = self.store.spaces.get(SESSIONS)
        by_number = {}
        for number, (id_, *about) in space.entries.items() if space else ():
            assert isinstance(number, int)
            session = self.sessions[id_] = by_number[number] = Session(number, id_, *about)
            session.stored = True
            self._last_session = max(self._last_session, number)
        for key, (last, reply) in lanes.items():
            if owner := by_number.get(key >> LANE_BITS):
                id_ = key & ((1 << LANE_BITS) - 1)
                owner.lanes[id_] = Lane(owner, id_, last, reply)

    def snapshot(self, limit: int) -> Iterator[tuple[list[Change], list[LaneRecord]]]:
        """Yield all that must be kept, in slices of about ``limit`` bytes, while ticks go on between them.

        The lanes come first: without them a retry after a compaction and a crash would count twice. Each slice is made
        when it is asked for, from what is there then, so it may follow later changes in the log and never undoes one.
        """
        records: list[LaneRecord] = []
        size = 0
        for session in list(self.sessions.values()):
            for lane in list(session.lanes.values()):
                if lane.id not in session.lanes:
                    continue  # its process has ended since
                records.append(lane.record)
                size += 32 + len(lane.reply)
                if size >= limit:
                    yield [], records
                    records, size = [], 0
        yield [], records
        for name in list(self.store.spaces):
            space = self.store.spaces.get(name)
            changes: list[Change] = []
            size = 0
            for key in list(space.entries) if space else ():
                if not changes and not options_of(self.store, name).durable:
                    break
                entry = self.store.get(name, key)
                if entry is ABSENT:
                    continue
                changes.append((name, key, entry))
                size += cost(key, entry)
                if size >= limit:
                    yield changes, []
                    changes, size = [], 0
            if changes:
                yield changes, []
