"""``Transaction``: reads and writes of several dicts and counters that happen all at one moment, or not at all.

Inside it two reads may be of different moments; then its end raises Conflict, and nothing that was made of them stays.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Self, TypeVar

from ..caller import Caller
from ..checks import COUNTERS, check_int, check_name, timeout
from ..codec import encode
from ..errors import Conflict
from .ledger import SET, Ledger, Written
from .near import Near
from .transaction_dict import TransactionDict

T = TypeVar("T")

QUICK_TRIES: Final = 3
"""How often ``run`` begins again at once; after that it rests first, so that not all collide again."""
REST: Final = (0.001, 0.05)
"""Seconds that it rests at the most: the first time, and ever."""


class Transaction:
    """What ``with manager.transaction() as tx:`` gives: ``tx.dict(name)``, ``tx.counter(name)``, ``tx.queue(name)``.

    The end of the block applies all writes at once. It raises Conflict, and applies none, if anything that was read has
    changed. An exception in the block discards them. It belongs to one thread.
    """

    def __init__(self, caller: Caller) -> None:
        self._ledger = Ledger(caller)

    def __repr__(self) -> str:
        return f"<Transaction {self._ledger!r}>"

    def __enter__(self) -> Self:
        self._ledger.check()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._ledger.over = True
        if kind is None:
            self._ledger.commit()

    def dict(self, name: str) -> TransactionDict:
        """Return a dict as this transaction sees it, with what it has written."""
        check_name(name)
        return TransactionDict(self._ledger, name)

    def counter(self, name: str) -> TransactionCounter:
        """Return a counter as this transaction sees it. To add to it is to read it: others' additions conflict."""
        check_name(name)
        return TransactionCounter(self._ledger, name)

    def queue(self, name: str, max_deliveries: int | None = None) -> TransactionQueue:
        """Return a queue to put items into: they are there if all else is, and not otherwise."""
        check_name(name)
        return TransactionQueue(self._ledger, name, max_deliveries)


class TransactionQueue:
    """A queue inside a transaction: its items are put at the end, if there is no conflict."""

    def __init__(self, ledger: Ledger, name: str, max_deliveries: int | None) -> None:
        self._ledger = ledger
        self._name = name
        self._max_deliveries = max_deliveries

    def __repr__(self) -> str:
        return f"<TransactionQueue {self._name!r} in {self._ledger!r}>"

    def put(self, value: Any, delay: float | timedelta = 0) -> None:
        """Add an item, to be had ``delay`` seconds after the end of the transaction. It waits for no room."""
        self._ledger.put(self._name, encode(value), timeout(delay, "a delay"), self._max_deliveries)


class TransactionCounter:
    """A counter inside a transaction."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name
        self._near = Near(ledger.caller, COUNTERS)

    def __repr__(self) -> str:
        return f"<TransactionCounter {self._name!r} in {self._ledger!r}>"

    @property
    def value(self) -> int:
        """The number as this transaction sees it."""
        written = self._ledger.writes(COUNTERS).entries.get(self._name)
        if written is not None:
            found = written.stored
        else:
            version, found = self._near.versioned(self._name)
            self._ledger.note(COUNTERS, self._name, version)
        return found if type(found) is int else 0

    def __int__(self) -> int:
        return self.value

    def increment(self, by: int = 1) -> int:
        """Add ``by`` and return the sum. Raises OverflowError when it does not fit 64 bits."""
        return self._write(self.value + check_int(by, "by"))

    def decrement(self, by: int = 1) -> int:
        """Subtract ``by`` and return the difference."""
        return self.increment(-by)

    def reset(self, value: int = 0) -> int:
        """Set the number and return the one before."""
        before = self.value
        self._write(value)
        return before

    def _write(self, value: int) -> int:
        self._ledger.writes(COUNTERS).entries[self._name] = Written(SET, check_int(value, "a counter"))
        return value


def run(caller: Caller, function: Callable[[Transaction], T], patience: float) -> T:
    """Run ``function(tx)`` in transactions until one ends without a conflict; return what it returned then.

    After ``patience`` seconds raise Conflict instead of trying again.
    """
    until = time.monotonic() + timeout(patience)
    rest, longest = REST
    tries = 0
    while True:
        try:
            with Transaction(caller) as transaction:
                return function(transaction)
        except Conflict:
            tries += 1
            if time.monotonic() >= until:
                raise
        if tries > QUICK_TRIES:
            time.sleep(random.uniform(0, rest))
            rest = min(2 * rest, longest)
