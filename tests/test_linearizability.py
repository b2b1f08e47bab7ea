"""The checker itself: it accepts every history that could have happened, and refuses those that could not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.linearizability import LOCK, MODEL, REFUSED, TRANSACTIONS, Model, NotLinearizable, Operation, check

CALLS = st.one_of(
    st.tuples(st.just("get")),
    st.tuples(st.just("set"), st.integers(0, 3)),
    st.tuples(st.just("add"), st.integers(0, 3)),
    st.tuples(st.just("pop")),
    st.tuples(st.just("delete")),
    st.tuples(st.just("increment"), st.integers(1, 2)),
    st.tuples(st.just("compare_and_set"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("transform"), st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 3)),
)
STEP = 10
"""Time between the moments at which the operations of a made history take effect."""


def op(name: str, *args: Any, result: Any = None, at: tuple[int, int | None], client: int = 0) -> Operation:
    return Operation(client, "k", name, args, result, *at)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Return operations that took effect one after the other, each within a time of its own that overlaps others'."""
    made: list[Operation] = []
    values: dict[str, Any] = {}
    for number, (name, *args) in enumerate(draw(st.lists(CALLS, max_size=30))):
        key = draw(st.sampled_from(["a", "b"]))
        called = number * STEP - draw(st.integers(0, 3 * STEP))
        answered, applied = draw(st.sampled_from([(True, True)] * 6 + [(False, True), (False, False)]))
        result = None
        if applied:
            values[key], result = MODEL[name](values.get(key), *args)
        returned = number * STEP + draw(st.integers(0, 3 * STEP)) if answered else None
        made.append(Operation(number, key, name, tuple(args), result if answered else None, called, returned))
    return draw(st.permutations(made))


@given(histories())
def test_what_could_have_happened_is_accepted(history: list[Operation]) -> None:
    check(history)


def orders(operations: Sequence[Operation]) -> Iterator[tuple[Operation, ...]]:
    """Every order of all answered operations and some of the others in which nothing precedes what came before it."""
    answered = [operation for operation in operations if operation.returned is not None]
    others = [operation for operation in operations if operation.returned is None]
    for count in range(len(others) + 1):
        for chosen in itertools.combinations(others, count):
            for order in itertools.permutations([*answered, *chosen]):
                if not any(
                    later.returned is not None and later.returned < earlier.called
                    for earlier, later in itertools.combinations(order, 2)
                ):
                    yield order


def explains(order: Sequence[Operation]) -> bool:
    value = None
    for operation in order:
        value, result = MODEL[operation.name](value, *operation.args)
        if operation.returned is not None and result != operation.result:
            return False
    return True


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """Return a few operations whose results may be anything."""
    made = []
    for name, *args in draw(st.lists(CALLS, min_size=1, max_size=5)):
        result: Any = None
        if name in ("add", "delete", "compare_and_set"):
            result = draw(st.booleans())
        elif name in ("get", "pop"):
            result = draw(st.one_of(st.none(), st.integers(0, 3)))
        elif name == "increment":
            result = draw(st.integers(1, 4))
        elif name == "transform":
            result = True
        called = draw(st.integers(0, 6))
        returned = draw(st.one_of(st.none(), st.integers(called, 8), st.integers(called, 8)))
        made.append(op(name, *args, result=result, at=(called, returned)))
    return made


@given(small_histories())
@example([op("increment", result=1, at=(0, 0)), op("get", result=None, at=(0, 0))])
def test_it_agrees_with_trying_every_order(history: list[Operation]) -> None:
    if any(explains(order) for order in orders(history)):
        check(history)
    else:
        with pytest.raises(NotLinearizable):
            check(history)


WRONG = {
    "a stale read": [
        op("set", "old", at=(0, 1)),
        op("set", "new", at=(2, 3)),
        op("get", result="old", at=(4, 5)),
    ],
    "a read that goes back in time": [
        op("set", "old", at=(0, 1)),
        op("set", "new", at=(2, 9)),
        op("get", result="new", at=(3, 4)),
        op("get", result="old", at=(5, 6)),
    ],
    "a read of what nobody wrote": [
        op("set", "new", at=(0, None)),
        op("get", result="other", at=(1, 2)),
    ],
    "a doubled increment": [
        op("increment", result=1, at=(0, 1)),
        op("increment", result=3, at=(2, 3)),
    ],
    "a doubled increment whose caller got one answer": [
        op("increment", result=1, at=(0, 5)),
        op("get", result=2, at=(6, 7)),
    ],
    "two increments with one answer": [
        op("increment", result=1, at=(0, 5), client=0),
        op("increment", result=1, at=(0, 5), client=1),
    ],
    "a lost update": [
        op("set", 7, at=(0, 1)),
        op("transform", 7, 8, result=True, at=(2, 9), client=0),
        op("transform", 7, 9, result=True, at=(2, 9), client=1),
    ],
    "a lost increment": [
        op("increment", result=1, at=(0, 1)),
        op("get", result=None, at=(2, 3)),
    ],
    "a pop delivered twice": [
        op("add", "item", result=True, at=(0, 1)),
        op("pop", result="item", at=(2, 9), client=0),
        op("pop", result="item", at=(2, 9), client=1),
    ],
    "an item that was lost": [
        op("add", "item", result=True, at=(0, 1)),
        op("pop", result=None, at=(2, 3)),
    ],
    "a key that was added twice": [
        op("add", 1, result=True, at=(0, 9), client=0),
        op("add", 2, result=True, at=(0, 9), client=1),
    ],
    "a key that was deleted twice": [
        op("set", 1, at=(0, 1)),
        op("delete", result=True, at=(2, 9), client=0),
        op("delete", result=True, at=(2, 9), client=1),
    ],
    "a comparison that was wrong": [
        op("set", 1, at=(0, 1)),
        op("compare_and_set", 2, 3, result=True, at=(2, 3)),
    ],
    "a comparison with an absent key": [
        op("compare_and_set", None, 3, result=True, at=(2, 3)),
    ],
    "an operation without an answer that took effect before its call": [
        op("get", result=1, at=(0, 1)),
        op("set", 1, at=(2, None)),
    ],
    "an operation without an answer that took effect twice": [
        op("increment", at=(0, None)),
        op("get", result=2, at=(1, 2)),
    ],
    "an operation without an answer that was seen and then was not": [
        op("set", 1, at=(0, 1)),
        op("set", 2, at=(2, None)),
        op("get", result=2, at=(3, 4)),
        op("get", result=1, at=(5, 6)),
    ],
}

ACCEPTED = {
    "a write seen by one and not yet by another, while it runs": [
        op("set", "old", at=(0, 1)),
        op("set", "new", at=(2, 9)),
        op("get", result="old", at=(3, 6)),
        op("get", result="new", at=(3, 6)),
    ],
    "an operation without an answer that never took effect": [
        op("increment", at=(0, None)),
        op("get", result=None, at=(9, 10)),
    ],
    "an operation without an answer that took effect late": [
        op("set", 1, at=(0, None)),
        op("set", 2, at=(1, 2)),
        op("get", result=2, at=(3, 4)),
        op("get", result=1, at=(5, 6)),
    ],
    "equal operations without an answer, some of which took effect": [
        *(op("increment", at=(number, None)) for number in range(20)),
        op("get", result=12, at=(30, 31)),
        op("get", result=15, at=(32, 33)),
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_it_refuses(name: str) -> None:
    with pytest.raises(NotLinearizable, match="key 'k': no order"):
        check(WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_other_keys_histories_excuse_nothing(name: str) -> None:
    late = ACCEPTED["an operation without an answer that took effect late"]
    before, after = ([operation._replace(key=key) for operation in late] for key in "az")
    with pytest.raises(NotLinearizable, match="key 'k'"):
        check([*before, *WRONG[name], *after])


@pytest.mark.timeout(10)  # a search that takes every order of equal operations would not end
@pytest.mark.parametrize("name", ACCEPTED)
def test_it_accepts(name: str) -> None:
    check(ACCEPTED[name])


def test_the_error_names_the_operation_and_what_was_possible() -> None:
    with pytest.raises(NotLinearizable) as caught:
        check(
            [
                op("set", 5, at=(0, 1), client=1),
                op("set", 6, at=(2, 8), client=2),
                op("get", result=4, at=(3, 4), client=3),
            ]
        )
    assert str(caught.value).splitlines() == [
        "key 'k': no order of its operations explains this result",
        "  client 3: get() -> 4  [3, 4]",
        "before the operations below took effect the value was 5",
        "  client 2: set(6) -> None  [2, 8]",
    ]


def long_history(clients: int, length: int, seed: int) -> list[Operation]:
    """Return a history of clients that are busy all the time, on few keys: each moment falls into one call of each."""
    draw = random.Random(seed)
    free = [0] * clients
    values: dict[str, Any] = {}
    made = []
    for moment in range(length):
        client = draw.randrange(clients)
        key = draw.choice("abc")
        calls: list[tuple[Any, ...]] = [("get",), ("set", moment), ("pop",), ("add", moment), ("increment",)]
        name, *args = draw.choice([*calls, ("transform", values.get(key), moment)])
        values[key], result = MODEL[name](values.get(key), *args)
        called, returned = free[client] * STEP, moment * STEP + draw.randrange(STEP)
        free[client] = moment + 1
        made.append(Operation(client, key, name, tuple(args), result, called, returned))
    return made


def test_thousands_of_operations_by_eight_busy_clients() -> None:
    history = long_history(8, 6_000, seed=1)
    check(history)
    late = next(number for number in range(5_000, 6_000) if history[number].name == "increment")
    history[late] = history[late]._replace(result=history[late].result + 1)
    with pytest.raises(NotLinearizable):
        check(history)


# -- locks -------------------------------------------------------------------------------------------------------------

ACQUIRE, RELEASE, END = "acquire", "release", "end"

WRONG_LOCKS = {
    "two holders": [
        op(ACQUIRE, result=1, at=(0, 1), client=0),
        op(ACQUIRE, result=2, at=(2, 3), client=1),
        op(RELEASE, 1, result=True, at=(4, 5), client=0),
    ],
    "a token that is given twice": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(RELEASE, 1, result=True, at=(2, 3)),
        op(ACQUIRE, result=1, at=(4, 5)),
    ],
    "a token that is smaller than one before": [
        op(ACQUIRE, result=7, at=(0, 1)),
        op(RELEASE, 7, result=True, at=(2, 3)),
        op(ACQUIRE, result=6, at=(4, 5), client=1),
    ],
    "a release that was forgotten": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(RELEASE, 1, result=True, at=(2, 3)),
        op(ACQUIRE, result=None, at=(4, 5), client=1),
    ],
    "a release that was refused to the holder": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(RELEASE, 1, result=False, at=(2, 3)),
    ],
    "a release of what nobody holds": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(RELEASE, 1, result=True, at=(2, 3)),
        op(RELEASE, 1, result=True, at=(4, 5)),
    ],
    "a release of somebody else's": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(RELEASE, 1, result=True, at=(2, 3), client=1),
    ],
    "a lock that its holder's end did not free": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(END, at=(2, 3)),
        op(ACQUIRE, result=None, at=(4, 5), client=1),
    ],
    "a lock that was freed before its holder's end": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(ACQUIRE, result=2, at=(2, 3), client=1),
        op(END, at=(4, 5)),
    ],
    "a lock that was freed by another one's end": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(END, at=(2, 3), client=2),
        op(ACQUIRE, result=2, at=(4, 5), client=1),
    ],
    "a grant to one who has ended": [
        op(ACQUIRE, at=(0, None)),
        op(END, at=(1, 2)),
        op(ACQUIRE, result=None, at=(3, 4), client=1),
    ],
}

RIGHT_LOCKS = {
    "a hand-over while the release is not answered": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(RELEASE, 1, result=True, at=(2, 9)),
        op(ACQUIRE, result=2, at=(1, 4), client=1),
    ],
    "a lock that is held by one who never learned of it, until he ends": [
        op(ACQUIRE, at=(0, None)),
        op(ACQUIRE, result=None, at=(3, 4), client=1),
        op(END, at=(5, 9)),
        op(ACQUIRE, result=2, at=(6, 7), client=1),
    ],
    "an end that is noticed late": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(END, at=(2, 9)),
        op(ACQUIRE, result=None, at=(3, 4), client=1),
        op(ACQUIRE, result=2, at=(5, 6), client=1),
    ],
    "a late release": [
        op(ACQUIRE, result=1, at=(0, 1)),
        op(END, at=(2, 3)),
        op(ACQUIRE, result=2, at=(4, 5), client=1),
        op(RELEASE, 1, result=False, at=(6, 7), client=2),
        op(RELEASE, 2, result=True, at=(8, 9), client=1),
    ],
}

# -- transactions ------------------------------------------------------------------------------------------------------


def tx(*steps: tuple[str, str, Any], at: tuple[int, int | None], client: int = 0, result: Any = True) -> Operation:
    return op("transaction", *steps, result=result, at=at, client=client)


BOTH = tx(("set", "a", 1), ("set", "b", 1), at=(0, 1))

WRONG_TRANSACTIONS = {
    "half of one": [BOTH, op("get", "a", result=1, at=(2, 3)), op("get", "b", result=None, at=(2, 3))],
    "a snapshot of two moments": [
        BOTH,
        tx(("set", "a", 2), ("set", "b", 2), at=(2, 9)),
        tx(("get", "a", 2), ("get", "b", 1), at=(3, 8), client=1),
    ],
    "a lost update": [
        BOTH,
        tx(("get", "a", 1), ("set", "a", 2), at=(2, 9)),
        tx(("get", "a", 1), ("set", "a", 3), at=(2, 9), client=1),
    ],
    "write skew": [
        BOTH,
        tx(("get", "a", 1), ("set", "b", 2), at=(2, 9)),
        tx(("get", "b", 1), ("set", "a", 2), at=(2, 9), client=1),
    ],
    "a read of what was not applied": [
        tx(("set", "a", 1), at=(0, 1), result=False),
        op("get", "a", result=1, at=(2, 3)),
    ],
    "a transaction that was applied twice": [
        BOTH,
        tx(("get", "a", 1), ("set", "a", 2), at=(2, None)),
        op("set", "a", 1, at=(4, 5)),
        op("get", "a", result=2, at=(6, 7)),
        op("set", "a", 1, at=(8, 9)),
        op("get", "a", result=2, at=(10, 11)),
    ],
    "a transaction that was lost": [BOTH, op("get", "b", result=None, at=(2, 3), client=1)],
    "a snapshot that goes back in time": [
        BOTH,
        tx(("get", "a", 1), ("get", "b", 1), at=(2, 3)),
        tx(("get", "a", None), ("get", "b", None), at=(4, 5), client=1),
    ],
}

RIGHT_TRANSACTIONS = {
    "one that reads what it has written": [tx(("set", "a", 1), ("get", "a", 1), ("set", "a", 2), at=(0, 1))],
    "two that collide, of which one is refused": [
        BOTH,
        tx(("get", "a", 1), ("set", "a", 2), at=(2, 9)),
        tx(("get", "a", 1), ("set", "a", 3), at=(2, 9), client=1, result=False),
        op("get", "a", result=2, at=(10, 11)),
    ],
    "one without an answer that was applied late": [
        tx(("get", "a", None), ("set", "a", 1), at=(0, None)),
        op("get", "a", result=None, at=(2, 3)),
        op("get", "a", result=1, at=(4, 5)),
    ],
    "a delete and an increment beside it": [
        BOTH,
        tx(("get", "b", 1), ("set", "a", None), at=(2, 9)),
        op("increment", "b", result=2, at=(3, 8), client=1),
        op("get", "a", result=None, at=(10, 11)),
    ],
}

OTHERS = [(LOCK, WRONG_LOCKS, RIGHT_LOCKS), (TRANSACTIONS, WRONG_TRANSACTIONS, RIGHT_TRANSACTIONS)]


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, wrong, _ in OTHERS for name in wrong])
def test_it_refuses_of_others(model: Model, name: str) -> None:
    with pytest.raises(NotLinearizable, match="key 'k': no order"):
        check({**WRONG_LOCKS, **WRONG_TRANSACTIONS}[name], model)


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, _, right in OTHERS for name in right])
def test_it_accepts_of_others(model: Model, name: str) -> None:
    check({**RIGHT_LOCKS, **RIGHT_TRANSACTIONS}[name], model)


@st.composite
def lock_calls(draw: st.DrawFn) -> Operation:
    name = draw(st.sampled_from([ACQUIRE, ACQUIRE, RELEASE, END]))
    args: tuple[Any, ...] = ()
    result: Any = None
    if name == ACQUIRE:
        result = draw(st.sampled_from([None, 1, 2, 3]))
    elif name == RELEASE:
        args, result = (draw(st.integers(1, 3)),), draw(st.booleans())
    return op(name, *args, result=result, at=(0, None), client=draw(st.integers(0, 1)))


steps = st.tuples(st.sampled_from(["get", "set"]), st.sampled_from("ab"), st.sampled_from([None, 1, 2]))
tx_calls = st.one_of(
    st.builds(
        lambda steps, result: tx(*steps, at=(0, None), result=result), st.lists(steps, max_size=3), st.booleans()
    ),
    st.builds(lambda place, found: op("get", place, result=found, at=(0, None)), st.sampled_from("ab"), st.just(1)),
    st.builds(lambda place, value: op("set", place, value, at=(0, None)), st.sampled_from("ab"), st.integers(1, 2)),
)


@st.composite
def small_histories_of(draw: st.DrawFn, calls: st.SearchStrategy[Operation]) -> list[Operation]:
    """Return a few of these operations, at any times."""
    made = []
    for operation in draw(st.lists(calls, min_size=1, max_size=5)):
        called = draw(st.integers(0, 6))
        returned = draw(st.one_of(st.none(), st.integers(called, 8), st.integers(called, 8)))
        made.append(operation._replace(called=called, returned=returned))
    return made


def fits(model: Model, order: Sequence[Operation]) -> bool:
    state: Any = model.first
    for operation in order:
        state = model.step(state, operation)
        if state is REFUSED:
            return False
    return True


@given(
    st.one_of(
        st.tuples(st.just(LOCK), small_histories_of(lock_calls())),
        st.tuples(st.just(TRANSACTIONS), small_histories_of(tx_calls)),
    )
)
def test_it_agrees_with_trying_every_order_of_others(drawn: tuple[Model, list[Operation]]) -> None:
    model, history = drawn
    if any(fits(model, order) for order in orders(history)):
        check(history, model)
    else:
        with pytest.raises(NotLinearizable):
            check(history, model)
