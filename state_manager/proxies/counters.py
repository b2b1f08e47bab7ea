"""``Counter``: a number that all processes add to. No addition is lost and none counts twice."""

from __future__ import annotations

from ..caller import Caller
from ..checks import COUNTERS, check_int, check_name
from .near import Near


class Counter:
    """A 64-bit integer in the manager; 0 until somebody touches it."""

    def __init__(self, caller: Caller, name: str) -> None:
        check_name(name)
        self._caller = caller
        self._name = name
        self._near = Near(caller, COUNTERS)

    def __repr__(self) -> str:
        return f"<Counter {self._name!r} in {self._caller!r}>"

    @property
    def value(self) -> int:
        """The number now."""
        value: int = self._near.get(self._name, 0)
        return value

    def __int__(self) -> int:
        return self.value

    def increment(self, by: int = 1) -> int:
        """Add ``by`` and return the sum. Raises OverflowError when it does not fit 64 bits."""
        check_int(by, "by")
        total: int = self._near.write("counter", "increment", self._name, (self._name, by))
        return total

    def decrement(self, by: int = 1) -> int:
        """Subtract ``by`` and return the difference."""
        return self.increment(-by)

    def reset(self, value: int = 0) -> int:
        """Set the number and return the one before."""
        before: int = self._near.write("counter", "reset", self._name, (self._name, value), value)
        return before
