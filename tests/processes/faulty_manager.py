"""A manager with faults in what processes do together, to prove that the tests would notice.

    python faulty_manager.py FAULT,FAULT... --dir DIRECTORY --ready-fd DESCRIPTOR

A fault is one of ``FAULTS``. Those that would stop everything show once in ``RARE`` times.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from state_manager import manager
from state_manager.checks import LEADERS, LOCKS, Key
from state_manager.commands import TABLE, flights, queues
from state_manager.commands.base import Outcome, View, Wait
from state_manager.service import Service
from state_manager.store import ABSENT, NEVER, Change, Entry

RARE: Final = 50

Run = Callable[[], Outcome]


def fault(kind: str, name: str, wrong: Callable[..., Outcome]) -> None:
    """Let a command be run by ``wrong(run, view, now, *arguments)``, where ``run()`` does what it should."""
    row = TABLE[kind, name]

    def function(view: View, now: float, *args: Any) -> Outcome:
        return wrong(lambda: row.function(view, now, *args), view, now, *args)

    TABLE[kind, name] = dataclasses.replace(row, function=function)


def replace(where: object, name: str, value: object) -> None:
    assert hasattr(where, name)
    setattr(where, name, value)


def rarely(times: int = RARE) -> Callable[[], bool]:
    count = itertools.count(1)
    return lambda: next(count) % times == 0


def several_holders(kind: str, space: str, times: int) -> None:
    """What one holds is granted to another."""
    is_due = rarely(times)

    def wrong(run: Run, view: View, now: float, name: str, thread: int, *args: Any) -> Outcome:
        outcome = run()
        if type(outcome) is not Wait or not view.session or not is_due():
            return outcome
        token = view.version(space, name) + 1
        return token, ((space, name, Entry([token, view.session.pid, thread, now, 1], NEVER, view.session.number)),)

    fault(kind, "acquire", wrong)


def one_place_more() -> None:
    take = TABLE["semaphore", "acquire"].function
    fault("semaphore", "acquire", lambda _, view, now, name, slots, *args: take(view, now, name, slots + 1, *args))


def tokens_that_shrink() -> None:
    is_due = rarely()

    def wrong(run: Run, view: View, now: float, name: str, *args: Any) -> Outcome:
        outcome = run()
        if type(outcome) is Wait or not is_due():
            return outcome
        [(space, key, entry)] = outcome[1]
        token = entry.value[0] - RARE
        return token, ((space, key, Entry([token, *entry.value[1:]], entry.deadline, entry.owner)),)

    fault("lock", "acquire", wrong)


def items_that_are_given_twice() -> None:
    is_due = rarely()

    def wrong(run: Run, view: View, now: float, name: str, *args: Any) -> Outcome:
        outcome = run()
        return outcome if type(outcome) is Wait or not is_due() else (outcome[0], outcome[1][1:])

    fault("queue", "get", wrong)


def items_that_die_with_workers() -> None:
    def gone(space: str, receipt: Key, found: Entry) -> Sequence[Change]:
        return ((space, receipt, ABSENT),)

    replace(queues, "returned", gone)


def messages_that_are_not_kept() -> None:
    is_due = rarely()

    def wrong(run: Run, view: View, now: float, *args: Any) -> Outcome:
        outcome = run()
        assert type(outcome) is not Wait
        return (outcome[0], ()) if is_due() else outcome

    fault("channel", "publish", wrong)


def messages_missed_that_are_not_counted() -> None:
    def wrong(run: Run, view: View, now: float, *args: Any) -> Outcome:
        outcome = run()
        return outcome if type(outcome) is Wait else ([0, *outcome[0][1:]], ())

    fault("channel", "read", wrong)


def several_who_compute() -> None:
    is_due = rarely(2)

    def wrong(run: Run, view: View, now: float, space: str, key: Key, lease: float, *args: Any) -> Outcome:
        outcome = run()
        return flights._begin(view, now, space, key, lease) if type(outcome) is Wait and is_due() else outcome

    fault("dict", "compute", wrong)


def leaders_that_end_with_the_manager() -> None:
    restore = Service.restore

    def forgetful(service: Service, lanes: Any) -> None:
        service.store.apply([(LEADERS, None, ABSENT)])
        restore(service, lanes)

    replace(Service, "restore", forgetful)


def what_outlives_workers() -> None:
    """The end of a process is not noticed."""
    replace(Service, "end", lambda service, session: True)


def commits_that_look_at_nothing() -> None:
    commit = TABLE["transaction", "commit"].function
    fault("transaction", "commit", lambda _, view, now, reads, writes: commit(view, now, [], writes))


def halves_of_commits() -> None:
    commit = TABLE["transaction", "commit"].function
    fault("transaction", "commit", lambda _, view, now, reads, writes: commit(view, now, reads, writes[:1]))


FAULTS: Final[dict[str, Callable[[], None]]] = {
    "several holders": lambda: several_holders("lock", LOCKS, RARE),
    "several leaders": lambda: several_holders("leader", LEADERS, 2),
    "one place more": one_place_more,
    "tokens that shrink": tokens_that_shrink,
    "items that are given twice": items_that_are_given_twice,
    "items that die with workers": items_that_die_with_workers,
    "messages that are not kept": messages_that_are_not_kept,
    "messages missed that are not counted": messages_missed_that_are_not_counted,
    "several who compute": several_who_compute,
    "leaders that end with the manager": leaders_that_end_with_the_manager,
    "what outlives workers": what_outlives_workers,
    "commits that look at nothing": commits_that_look_at_nothing,
    "halves of commits": halves_of_commits,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("faults")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args()
    for name in options.faults.split(","):
        FAULTS[name]()
    return manager.serve(options.dir, ready_fd=options.ready_fd, durability="process")


if __name__ == "__main__":
    raise SystemExit(main())
