"""The error tree: what each one also is, that it pickles, and how it crosses the wire."""

from __future__ import annotations

import pickle

import pytest

from state_manager import errors

TREE = {
    errors.StateError: Exception,
    errors.Unavailable: errors.StateError,
    errors.OutcomeUnknown: errors.Unavailable,
    errors.AuthenticationFailed: errors.StateError,
    errors.NotStorable: TypeError,
    errors.TooLarge: ValueError,
    errors.StoreFull: errors.StateError,
    errors.NotOwner: RuntimeError,
    errors.TimedOut: TimeoutError,
    errors.Conflict: errors.StateError,
    errors.ComputeFailed: errors.StateError,
}


@pytest.mark.parametrize("error", TREE)
def test_each_is_a_state_error_and_what_python_would_call_it(error: type[errors.StateError]) -> None:
    assert issubclass(error, errors.StateError)
    assert issubclass(error, TREE[error])


@pytest.mark.parametrize("error", errors.BY_NAME.values())
def test_each_pickles(error: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error("the message")))
    assert type(copy) is error
    assert copy.args == ("the message",)


@pytest.mark.parametrize("error", errors.BY_NAME.values())
def test_each_crosses_the_wire_by_name(error: type[Exception]) -> None:
    copy = errors.from_wire(*errors.to_wire(error("the message")))
    assert type(copy) is error
    assert copy.args == ("the message",)


def test_a_subclass_crosses_as_the_nearest_that_has_a_name() -> None:
    class Fuller(errors.StoreFull):
        pass

    assert errors.to_wire(Fuller("x")) == ["StoreFull", "x"]
    assert errors.to_wire(UnicodeDecodeError("utf-8", b"", 0, 1, "bad"))[0] == "ValueError"
    assert errors.to_wire(ZeroDivisionError("x")) == ["StateError", "ZeroDivisionError: x"]
    assert errors.to_wire(KeyError()) == ["KeyError", ""]


def test_a_name_from_a_newer_version_is_a_state_error() -> None:
    error = errors.from_wire("Unheard", "of")
    assert type(error) is errors.StateError
    assert str(error) == "Unheard: of"


def test_whether_it_was_applied() -> None:
    assert errors.Unavailable("x").applied is False
    assert errors.OutcomeUnknown("x").applied is None
