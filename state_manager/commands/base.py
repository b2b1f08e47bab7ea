"""What a command is: a pure function of a view of the store, the time and its arguments.

A command never changes anything. It returns its result and the changes that it wants, or a ``Wait``; whoever runs it
applies the changes with ``Store.apply``, makes them durable and only then answers. So a new command needs no code for
undo, durability, expiry or retries. It checks all of its arguments, which came from a socket, before it returns a
change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, final

from msgpack import packb

from ..checks import SECRETS, Key, check_name, seconds
from ..errors import TooLarge
from ..parking import LineKey
from ..sessions import Session
from ..settings import VALUE_LIMIT
from ..store import ABSENT, NEVER, Change, Entry, Stored

ONCE: Final = ":once"
FINGERPRINTS: Final = ":fingerprints"


class View(Protocol):
    """All that commands may see of a store: live entries, their versions, bounded pages of keys."""

    def get(self, space: str, key: Key) -> Any:
        """Return the live entry or ABSENT; meeting an expired one deletes it first, as a change of its own."""

    def version(self, space: str, key: Key) -> int: ...

    def look(self, space: str, key: Key) -> tuple[Any, int]:
        """Return what ``get`` and ``version`` return."""

    def space_version(self, space: str) -> int:
        """Return the version of the space itself, which every change in it advances."""

    def size(self, space: str) -> int:
        """Return the number of entries, counting those that have expired and were not yet swept."""

    def last(self, space: str) -> Key | None:
        """Return the live key that was added last."""

    def first(self, space: str) -> Key | None:
        """Return the smallest key of a space whose entries have no deadlines and whose keys are of one type."""

    def page(self, space: str, cursor: list[int] | None) -> tuple[list[tuple[Key, Any]], list[int] | None]:
        """Return the next live entries of an iteration and the cursor that continues it, None at its end."""

    def spaces(self) -> list[tuple[str, int, int]]:
        """Return name, entries and bytes of every space."""

    def token(self) -> str:
        """Return 256 fresh random bits as hexadecimal text."""

    @property
    def session(self) -> Session | None:
        """The process that asks, None for a stock client."""

    @property
    def parked(self) -> bool:
        """Whether the request has waited before it is run now."""

    def ahead(self, space: str, key: LineKey) -> int:
        """Return how many requests that wait for ``(space, key)`` stand before this one, which may be one of them."""

    def waiting(self, space: str, key: LineKey) -> int:
        """Return how many requests wait for ``(space, key)``."""


@final
class Wait(NamedTuple):
    """The command cannot proceed: run it again when ``(space, key)`` changes.

    ``key`` None: when anything in the space does; GONE: when an entry of it goes. At the head of its line it is also
    run at ``retry_at``. At the time ``until``, which it keeps from its first run, the answer is ``timed_out``. Who
    wants first come, first served waits while anybody is ``ahead``; where it does not matter who is, ``in_order`` is
    False, and a change runs all who wait.
    """

    space: str
    key: LineKey
    until: float
    retry_at: float = NEVER
    timed_out: Any = None
    in_order: bool = True


Done: TypeAlias = tuple[Any, Sequence[Change]]
Outcome: TypeAlias = Done | Wait
Function: TypeAlias = Callable[..., Outcome]


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the command table. ``writes``: its request carries a number, and a repeat gets the stored reply.

    ``reverse``: takes back what an executed request has got, whose caller has given up: from its result and arguments.
    """

    kind: str
    name: str
    function: Function
    writes: bool
    least: int
    most: int
    doc: str
    reverse: Callable[..., Done] | None = None


def row(
    kind: str, name: str, function: Function, *, writes: bool, reverse: Callable[..., Done] | None = None
) -> Command:
    """Make a row; the numbers of arguments and the one-line doc are the function's own."""
    parameters = list(inspect.signature(function).parameters.values())[2:]  # without view and now
    least = sum(parameter.default is parameter.empty for parameter in parameters)
    doc = (getattr(function, "func", function).__doc__ or "").strip().splitlines()[0]  # that of a partial is its own
    return Command(kind, name, function, writes, least, len(parameters), doc, reverse)


def check_readable(space: object) -> None:
    """Refuse a space that cannot be read: the manager's own may be, except for the one with the secrets."""
    if type(space) is not str or space[:1] != ":":
        check_name(space)
    elif space == SECRETS:
        raise ValueError("secrets are not entries to read; use 'state-manager secret show'")


def owner_of(view: View, what: str) -> Session:
    """Return the session that will own ``what``. A stock client has none."""
    if view.session is None:
        raise TypeError(f"{what} ends with the process that holds it, so it takes a client with lanes")
    return view.session


def entry(value: Stored, ttl: object, now: float) -> Any:
    """Return the entry of a value that lives for ``ttl`` seconds, or for ever with None."""
    return value if ttl is None else Entry(value, now + seconds(ttl))


def value_of(found: Any) -> Stored:
    """Return the value of a live entry."""
    return found.value if type(found) is Entry else found


def shown(view: View, space: str, key: Key) -> tuple[Any, ...]:
    """Return ``(version, value)`` of an entry, ``(version, value, deadline)`` if it has one, ``(version,)`` if absent.

    With the version a reader may keep it for as long as the page shows the same.
    """
    found, version = view.look(space, key)
    if found is ABSENT:
        return (version,)
    if type(found) is Entry and found.deadline < NEVER:
        return version, shown_value(found), found.deadline
    return version, shown_value(found)


def shown_value(found: Any) -> Stored:
    """Return a value as a client may have it: a list of the manager's own is encoded as ``codec`` would do it."""
    value = found.value if type(found) is Entry else found
    return packb(value) if type(value) is list else value


def with_value(found: Any, value: Stored) -> Any:
    """Return an entry with this value and the deadline that ``found`` has, if any."""
    return Entry(value, found.deadline, found.owner) if type(found) is Entry else value


def check_size(total: int) -> None:
    """Refuse an answer that would not fit a message."""
    if total > VALUE_LIMIT:
        raise TooLarge(f"the answer would have more than {VALUE_LIMIT} bytes: ask for fewer keys at once")
