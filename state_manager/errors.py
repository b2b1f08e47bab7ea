"""The errors of this package.

    StateError
    ├── Unavailable            the manager could not be asked; nothing was applied (``applied`` is False)
    │   └── OutcomeUnknown     asked, but no answer came before the deadline (``applied`` is None)
    ├── AuthenticationFailed   wrong key, or the peer belongs to another user
    ├── NotStorable            a value of a type that cannot be stored           (also TypeError)
    ├── TooLarge               a key, value or message over its size limit       (also ValueError)
    ├── StoreFull              the store or a bounded dict has no room
    ├── NotOwner               releasing what somebody else holds                (also RuntimeError)
    ├── TimedOut               a wait ended without what it waited for           (also TimeoutError)
    ├── Conflict               something a transaction read has changed
    └── ComputeFailed          the process that computed a value failed

Rules: every error pickles, because gunicorn, concurrent.futures and pytest-xdist carry errors across processes, so each
takes one message and nothing else. A mistake of the caller's is Python's own TypeError, ValueError, KeyError or
OverflowError, which cross the wire by name like these.
"""

from __future__ import annotations


class StateError(Exception):
    """The base of every error that is not the caller's mistake."""


class Unavailable(StateError):
    """The manager could not be reached, or refused before it did anything. Trying again is safe."""

    applied: bool | None = False


class OutcomeUnknown(Unavailable):
    """The request was sent and no answer came: it may have been applied once, or not at all."""

    applied = None


class AuthenticationFailed(StateError):
    """The peer does not know the key of the state directory, or belongs to another user."""


class NotStorable(StateError, TypeError):
    """The value's type cannot be stored; the message names it and says what can."""


class TooLarge(StateError, ValueError):
    """A key, a value or a message is over its size limit; the message names both sizes."""


class StoreFull(StateError):
    """There is no room for the write. Reads and deletes still work."""


class NotOwner(StateError, RuntimeError):
    """Somebody else holds this now, or nobody does."""


class TimedOut(StateError, TimeoutError):
    """The wait ended without what it waited for."""


class Conflict(StateError):
    """Something that was read has changed; nothing was applied. Run it again."""


class ComputeFailed(StateError):
    """The process that computed the value raised; the message has its type and text."""


MESSAGE_LIMIT = 4096
BY_NAME: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        StateError,
        Unavailable,
        OutcomeUnknown,
        AuthenticationFailed,
        NotStorable,
        TooLarge,
        StoreFull,
        NotOwner,
        TimedOut,
        Conflict,
        ComputeFailed,
        TypeError,
        ValueError,
        KeyError,
        OverflowError,
    )
}
"""The errors that may cross the wire, by the name that they cross it with."""


def to_wire(error: Exception) -> list[str]:
    """Return ``[name, message]`` for an error; a subclass crosses as the nearest class that has a name here."""
    for cls in type(error).__mro__:
        if BY_NAME.get(cls.__name__) is cls:
            return [cls.__name__, _text(error.args[0]) if error.args else ""]
    return ["StateError", _text(f"{type(error).__name__}: {error}")]


def _text(message: object) -> str:
    """Return a message that can be sent: it may name a path that is no UTF-8, and is not for novels."""
    return str(message)[:MESSAGE_LIMIT].encode(errors="backslashreplace").decode()


def from_wire(name: str, message: str) -> Exception:
    """Return the error that the other side named; a name from a newer version becomes a StateError."""
    cls = BY_NAME.get(name)
    return cls(message) if cls else StateError(f"{name}: {message}")
