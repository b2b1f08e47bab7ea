"""Is there an order in which a history's operations could have happened, one at a time? Per key.

    check(history)      raises NotLinearizable, which names the operation that fits nowhere

Each operation must take effect at one moment between its call and its return. The search is Wing and Gong's, breadth
first: the history is walked through in time, with the set of all that may be true by now, pairs of (the key's value,
the open operations that have taken effect). A return keeps what can still let its operation take effect. Equal pairs
are one, which is the memory that keeps the search small: it grows with the number of operations open at once, not with
the length of the history.

- An absent key has the value None, so None is never stored. Values must be hashable.
- An operation that has not returned (``returned`` is None) takes effect at any time after its call, or never.
- Times are integers of one clock. Equal times count as overlapping.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple


class Operation(NamedTuple):
    """One call of one client. Plain enough for JSON, which ``from_json`` reads back."""

    client: int
    key: Hashable
    name: str
    args: tuple[Any, ...]
    result: Any
    called: int
    returned: int | None

    def __str__(self) -> str:
        arguments = ", ".join(map(repr, self.args))
        outcome = "?" if self.returned is None else f"{self.result!r}"
        end = "..." if self.returned is None else str(self.returned)
        return f"client {self.client}: {self.name}({arguments}) -> {outcome}  [{self.called}, {end}]"

    @classmethod
    def from_json(cls, fields: Sequence[Any]) -> Operation:
        """Return the operation that JSON has made a list of."""
        client, key, name, args, *rest = fields
        return cls(client, key, name, tuple(args), *rest)


class NotLinearizable(AssertionError):
    """No order of the operations on one key explains their results."""


def _compare_and_set(value: Any, expected: Any, new: Any) -> tuple[Any, Any]:
    return (new, True) if value is not None and value == expected else (value, False)


def _transform(value: Any, old: Any, new: Any) -> tuple[Any, Any]:
    """A transform is recorded as what its function was last given and returned; ``old`` is None for an absent key."""
    return (new, True) if value == old else (value, False)


def _increment(value: Any, by: int = 1, initial: int = 0) -> tuple[Any, Any]:
    total = (initial if value is None else value) + by
    return total, total


MODEL: Final[dict[str, Callable[..., tuple[Any, Any]]]] = {
    "get": lambda value: (value, value),
    "set": lambda value, new: (new, None),
    "add": lambda value, new: (new, True) if value is None else (value, False),
    "pop": lambda value: (None, value),
    "delete": lambda value: (None, value is not None),
    "increment": _increment,
    "compare_and_set": _compare_and_set,
    "transform": _transform,
}
"""``(value, *args) -> (value after, result)`` of each operation, when nothing else happens."""


def check(history: Iterable[Operation]) -> None:
    """Raise NotLinearizable unless every key's operations, on a key that was absent, can be put in order."""
    keys: defaultdict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        keys[operation.key].append(operation)
    for operations in keys.values():
        _check_key(sorted(operations, key=lambda operation: operation.called))


Possible = tuple[Any, frozenset[int]]
"""What may be true: the key's value, and which open operations have taken effect."""


def _check_key(operations: Sequence[Operation]) -> None:
    possible: set[Possible] = {(None, frozenset())}
    opened: dict[int, int | None] = {}
    twins: dict[Any, int] = {}
    for number, returns in _events(operations):
        operation = operations[number]
        if not returns:
            opened[number] = None
            if operation.returned is None:
                opened[number] = twins.get((operation.name, operation.args))
                twins[operation.name, operation.args] = number
            continue
        after = _taken(possible, operations, opened, number)
        if not after:
            raise NotLinearizable(_why(operation, [operations[other] for other in opened], possible))
        possible = after
        del opened[number]


def _events(operations: Sequence[Operation]) -> Iterator[tuple[int, bool]]:
    """Give each call and each return, by its operation's number and in time; at equal times calls come first."""
    events = [(operation.called, False, number) for number, operation in enumerate(operations)]
    events += [
        (operation.returned, True, number)
        for number, operation in enumerate(operations)
        if operation.returned is not None
    ]
    for _, returns, number in sorted(events):
        yield number, returns


def _taken(
    possible: set[Possible], operations: Sequence[Operation], opened: dict[int, int | None], number: int
) -> set[Possible]:
    """Let open operations take effect, in every order, until the one that returns now has; return what is left."""
    found: set[Possible] = set()
    seen, waiting = set(possible), list(possible)
    while waiting:
        value, taken = waiting.pop()
        if number in taken:
            found.add((value, taken - {number}))
            continue
        for other, twin in opened.items():
            # Of equal operations without an answer the first called goes first: one order stands for all.
            if other in taken or (twin is not None and twin not in taken):
                continue
            operation = operations[other]
            after, result = MODEL[operation.name](value, *operation.args)
            if operation.returned is not None and result != operation.result:
                continue
            next_ = (after, taken | {other})
            if next_ not in seen:
                seen.add(next_)
                waiting.append(next_)
    return found


def _why(operation: Operation, opened: Sequence[Operation], possible: Iterable[Possible]) -> str:
    values = sorted({repr(value) for value, _ in possible})
    lines = [
        f"key {operation.key!r}: no order of its operations explains this result",
        f"  {operation}",
        f"before the operations below took effect the value was {' or '.join(values[:10])}",
        *(f"  {other}" for other in opened if other is not operation),
    ]
    return "\n".join(lines)
