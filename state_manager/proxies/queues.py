"""``Queue``: work handed from any process to any other, and handed on if the one that took it ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, NamedTuple, Self

from ..caller import Caller
from ..checks import DEAD, check_int, check_name, seconds
from ..checks import timeout as check_timeout
from ..codec import Stored, decode, encode
from ..errors import NotOwner, TimedOut, Unavailable
from ..nearcache import UNKNOWN
from ..patience import Patience

TIMEOUT: Final = 20.0


class QueueState(NamedTuple):
    """How many items wait (delayed ones too), were taken and not acknowledged; who waits for an item, and for room."""

    waiting: int
    taken: int
    getters: int
    putters: int


class Item:
    """Something taken from a queue, which is this process's until ``ack`` or ``nack``, or its own end.

    ``with item:`` acknowledges it at the end of the block, or gives it back if the block raises; if no manager can be
    reached then, it is told as soon as one can. ``deliveries``: how often it was taken, this time included.
    """

    def __init__(self, queue: Queue, receipt: bytes, stored: Stored, deliveries: int) -> None:
        self._stored = stored
        self.deliveries = deliveries
        self._queue = queue
        self._receipt = receipt
        self._value: Any = UNKNOWN
        self._settled = False

    def __repr__(self) -> str:
        return f"<Item of {self._queue.name!r}, delivery {self.deliveries}>"

    @property
    def value(self) -> Any:
        """A copy of what was put, the same at each look. Raises NotStorable for a class that this process lacks."""
        if self._value is UNKNOWN:
            self._value = decode(self._stored)
        return self._value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._settled:
            return
        settle = self.ack if kind is None else self.nack
        try:
            settle()
        except Unavailable:  # what the block has done, or not, does not depend on it
            self._queue._caller.tell_later("queue", settle.__name__, self._said(*([] if kind is None else [0.0])))
        except NotOwner:
            if kind is None:
                raise  # else it has come back already, and the block's exception says more

    def ack(self) -> None:
        """Say that it is done: it goes. Raises NotOwner if this delivery is over: settled, or its lease has ended."""
        self._settle("ack")

    def nack(self, delay: float | timedelta = 0) -> None:
        """Give it back, at the end of the queue, to be had again after ``delay`` seconds. Raises NotOwner like ``ack``.

        One that was taken ``max_deliveries`` times goes to the queue of undeliverable items instead.
        """
        self._settle("nack", check_timeout(delay, "a delay"))

    def _settle(self, command: str, *args: Any) -> None:
        self._queue._caller.call("queue", command, self._said(*args), True)
        self._settled = True

    def _said(self, *args: Any) -> tuple[Any, ...]:
        return (self._queue.name, self._receipt, *args)


class Queue:
    """First in, first out, among all processes; items are taken, and go when they are acknowledged.

    An item whose taker's process ends without that comes back to where it was. ``maxsize``: how many items may wait, 0
    for any number, for those who put through this object. ``max_deliveries``: how often an item that is put, or taken,
    through this object is delivered before it goes to the queue ``name + ":dead"``; None for no bound, or for what was
    said when it was put. ``lease``: seconds after which an item comes back that was taken through this object, from a
    taker that lives and hangs.
    """

    def __init__(
        self,
        caller: Caller,
        name: str,
        maxsize: int = 0,
        max_deliveries: int | None = None,
        lease: float | timedelta | None = None,
    ) -> None:
        check_name(name)
        if check_int(maxsize, "maxsize") < 0:
            raise ValueError(f"maxsize is above zero, or 0 for no bound, not {maxsize}")
        if max_deliveries is not None:
            check_name(name + DEAD)
            if check_int(max_deliveries, "max_deliveries") < 1:
                raise ValueError(f"max_deliveries is at least 1, or None for no bound, not {max_deliveries}")
        self._caller = caller
        self._name = name
        self._maxsize = maxsize
        self._max_deliveries = max_deliveries
        self._lease = None if lease is None else seconds(lease, "a lease")

    def __repr__(self) -> str:
        return f"<Queue {self._name!r} in {self._caller!r}>"

    @property
    def name(self) -> str:
        """The name that the queue has in the manager."""
        return self._name

    def put(self, value: Any, delay: float | timedelta = 0, timeout: float = TIMEOUT) -> None:
        """Add an item, to be had after ``delay`` seconds.

        Where ``maxsize`` items wait, wait for room for ``timeout`` seconds, then raise TimedOut.
        """
        args = (self._name, encode(value), check_timeout(delay, "a delay"), self._maxsize, self._max_deliveries)
        timeout = check_timeout(timeout)
        if self._maxsize:
            number = self._caller.wait("queue", "put", args, timeout)
        else:
            number = self._caller.call("queue", "put", (*args, 0.0), True)
        if number is None:
            raise TimedOut(f"the queue {self._name!r} was full, with {self._maxsize} items or more, for {timeout:g} s")

    def get(self, timeout: float = TIMEOUT) -> Item | None:
        """Take the next item; wait for one for ``timeout`` seconds, then return None.

        Of those who wait, who came first is given the first. A waiting thread sleeps, and neither side polls.
        """
        args = (self._name, self._lease, self._max_deliveries)
        found = self._caller.wait("queue", "get", args, check_timeout(timeout))
        if found is None:
            return None
        receipt, stored, deliveries = found
        return Item(self, receipt, stored, deliveries)

    def consume(self) -> Iterator[Item]:
        """Yield items as they come, for a worker: ``for item in queue.consume():`` and then ``with item:``.

        It waits for as long as it takes, over restarts of the manager too, and ends when the process is being stopped
        as gunicorn stops its workers.
        """
        patience = Patience(f"wait for items of the queue {self._name!r}")
        while True:
            try:
                item = self.get()
            except TimedOut:
                return
            except Unavailable as error:
                patience.rest(error)
                continue
            patience.reset()
            if item is not None:
                yield item

    def retry(self) -> int:
        """Let the undeliverable items of ``name + ":dead"`` be delivered again, as if new; return how many."""
        total = 0
        while count := int(self._caller.call("queue", "retry", (self._name,), True)):
            total += count
        return total

    def peek(self, default: Any = None) -> Any:
        """Return a copy of the value that ``get`` would take now, ``default`` if there is none."""
        found = self._caller.call("queue", "peek", (self._name,), False)
        return decode(found[0]) if found else default

    def clear(self) -> int:
        """Delete the items that wait; return how many. Those that were taken stay with their takers."""
        return int(self._caller.call("queue", "clear", (self._name,), True))

    def __len__(self) -> int:
        """Return how many items wait, delayed ones too; those that were taken do not."""
        return self.state().waiting

    def __bool__(self) -> bool:
        """A queue is not false for being empty."""
        return True

    def state(self) -> QueueState:
        """Return how many items and how many processes wait."""
        return QueueState(*self._caller.call("queue", "size", (self._name,), False))
