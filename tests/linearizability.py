"""Is there an order in which a history's operations could have happened, one at a time? Per key.

    check(history)                  raises NotLinearizable, which names the operation that fits nowhere
    check(history, LOCK)            the same of locks, each under its name
    check(history, TRANSACTIONS)    of transactions, where one key stands for all that they read and write

Each operation must take effect at one moment between its call and its return. The search is Wing and Gong's, breadth
first: the history is walked through in time, with the set of all that may be true by now, pairs of (the key's state,
the open operations that have taken effect). A return keeps what can still let its operation take effect. Equal pairs
are one, which is the memory that keeps the search small: it grows with the number of operations open at once, not with
the length of the history.

- A key's state is its value; None for an absent key, so None is never stored. Values must be hashable.
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


class Refused:
    """The type of ``REFUSED``."""


REFUSED: Final = Refused()
"""What a step gives when the operation cannot have had its result in this state."""


class Model(NamedTuple):
    """The state that a key has first, and ``(state, operation) -> state after``, or REFUSED.

    ``can_wait``: whether, in this state, the operation may as well take effect when it returns. It saves looking at
    states that can do nothing more than others.
    """

    first: Hashable
    step: Callable[[Any, Operation], Any]
    can_wait: Callable[[Any, Operation], bool] = lambda state, operation: False


def _value_step(value: Any, operation: Operation) -> Any:
    after, result = MODEL[operation.name](value, *operation.args)
    return after if operation.returned is None or result == operation.result else REFUSED


VALUE: Final = Model(None, _value_step)


class Locked(NamedTuple):
    """A lock: the client that holds it, its token (both None if nobody does), the last token, and who has ended."""

    owner: int | None = None
    token: int | None = None
    last: int = 0
    ended: frozenset[int] = frozenset()


def _lock_step(state: Locked, operation: Operation) -> Any:
    """``acquire`` gives a token, or None if it was held, and is the same whether it waits; ``release(token)`` gives
    True, or False if the token is not the holder's; ``end`` is that of a client, who has nothing from then on.
    """
    client = operation.client
    if operation.name == "end":
        ended = state.ended | {client}
        return Locked(None, None, state.last, ended) if state.owner == client else state._replace(ended=ended)
    if client in state.ended:
        return REFUSED
    if operation.name == "release":
        mine = state.owner == client and state.token in (operation.args[0], None)
        if operation.returned is not None and operation.result != mine:
            return REFUSED
        return state._replace(owner=None, token=None) if mine else state
    if operation.returned is None:
        return state._replace(owner=client, token=None) if state.owner is None else REFUSED
    if operation.result is None:
        return state if state.owner is not None else REFUSED
    if state.owner is not None or operation.result <= state.last:
        return REFUSED
    return state._replace(owner=client, token=operation.result, last=operation.result)


def _can_wait(state: Locked, operation: Operation) -> bool:
    """The end of one who holds nothing only takes something from him: that he may get it."""
    return operation.name == "end" and operation.client != state.owner


LOCK: Final = Model(Locked(), _lock_step, _can_wait)


def _transaction_step(state: frozenset[tuple[Hashable, Any]], operation: Operation) -> Any:
    """``transaction(("get", place, value), ("set", place, value), ...)`` gives True if it was applied: then all that it
    read must be so. Any other operation is one of values, its first argument the place.
    """
    values = dict(state)
    if operation.name != "transaction":
        place, *args = operation.args
        after = _value_step(values.get(place), operation._replace(args=tuple(args)))
        if after is REFUSED:
            return REFUSED
        values[place] = after
    elif operation.returned is None or operation.result:
        written: set[Hashable] = set()
        for what, place, value in operation.args:
            if what == "set":
                values[place] = value
                written.add(place)
            elif place not in written and values.get(place) != value:
                return REFUSED
    return frozenset((place, value) for place, value in values.items() if value is not None)


TRANSACTIONS: Final = Model(frozenset(), _transaction_step)


def check(history: Iterable[Operation], model: Model = VALUE) -> None:
    """Raise NotLinearizable unless every key's operations, on a key that was absent, can be put in order."""
    keys: defaultdict[Hashable, list[Operation]] = defaultdict(list)
    for operation in history:
        keys[operation.key].append(operation)
    for operations in keys.values():
        _check_key(sorted(operations, key=lambda operation: operation.called), model)


Possible = tuple[Any, frozenset[int]]
"""What may be true: the key's state, and which open operations have taken effect."""


def _check_key(operations: Sequence[Operation], model: Model) -> None:
    possible: set[Possible] = {(model.first, frozenset())}
    opened: dict[int, int | None] = {}
    twins: dict[Any, int] = {}
    for number, returns in _events(operations):
        operation = operations[number]
        if not returns:
            opened[number] = None
            if operation.returned is None:
                opened[number] = twins.get(_kind(operation, model))
                twins[_kind(operation, model)] = number
            continue
        after = _taken(possible, operations, opened, number, model)
        if not after:
            raise NotLinearizable(_why(operation, [operations[other] for other in opened], possible))
        possible = after
        del opened[number]


def _kind(operation: Operation, model: Model) -> tuple[Any, ...]:
    """Return what makes an operation equal to another; to a lock it matters whose it is."""
    return operation.name, operation.args, operation.client if model is LOCK else None


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
    possible: set[Possible],
    operations: Sequence[Operation],
    opened: dict[int, int | None],
    number: int,
    model: Model,
) -> set[Possible]:
    """Let open operations take effect, in every order, until the one that returns now has; return what is left."""
    found: set[Possible] = set()
    seen, waiting = set(possible), list(possible)
    while waiting:
        state, taken = waiting.pop()
        if number in taken:
            found.add((state, taken - {number}))
            continue
        for other, twin in opened.items():
            # Of equal operations without an answer the first called goes first: one order stands for all.
            if other in taken or (twin is not None and twin not in taken):
                continue
            if other != number and model.can_wait(state, operations[other]):
                continue
            after = model.step(state, operations[other])
            if after is REFUSED:
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
