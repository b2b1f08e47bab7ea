"""Ticks, lanes and numbers, with no socket: payloads in, payloads out."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_manager import view as view_module
from state_manager.commands import TABLE
from state_manager.errors import BY_NAME, StateError
from state_manager.service import Service
from state_manager.sessions import Lane
from state_manager.store import Store


@pytest.fixture
def service() -> Service:
    service = Service(Store(1), token=lambda: "ab" * 32)
    service.begin(1_000.0)
    return service


@pytest.fixture
def lane(service: Service) -> Lane:
    return service.attach(b"s" * 16, 0, 42, None)[0]


def ask(service: Service, lane: Lane | None, kind: Any, name: Any, args: Any, *number: Any) -> Any:
    reply = service.handle(lane, msgpack.packb([kind, name, args, {}, *number]))
    service.commit()
    return None if reply is None else msgpack.unpackb(reply)


def test_a_request_and_its_reply(service: Service, lane: Lane) -> None:
    version = service.store.version("a", "x")
    assert ask(service, lane, "dict", "set", ["a", "x", 1], 1) == ["#RETURN", None, 1, version + 1]
    kind, (version, value) = ask(service, lane, "dict", "get", ["a", "x"])
    assert (kind, value) == ("#RETURN", 1)
    assert version == service.store.version("a", "x")


def test_a_repeat_gets_the_stored_reply_and_nothing_runs(service: Service, lane: Lane) -> None:
    first = ask(service, lane, "dict", "increment", ["a", "n"], 1)
    assert ask(service, lane, "dict", "increment", ["a", "n"], 1) == first
    assert first[:3] == ["#RETURN", 1, 1]
    assert ask(service, lane, "dict", "increment", ["a", "n"], 2)[:3] == ["#RETURN", 2, 2]
    assert ask(service, lane, "dict", "increment", ["a", "n"], 1) is None
    assert ask(service, lane, "dict", "increment", ["a", "n"], 7)[:3] == ["#RETURN", 3, 7]
    assert service.store.get("a", "n") == 3


def test_a_failed_write_is_not_run_again_either(service: Service, lane: Lane) -> None:
    ask(service, lane, "dict", "set", ["a", "n", "text"], 1)
    refused = ask(service, lane, "dict", "increment", ["a", "n"], 2)
    assert refused[0] == "#ERROR"
    assert refused[1][0] == "TypeError"
    service.store.apply([("a", "n", 5)])
    assert ask(service, lane, "dict", "increment", ["a", "n"], 2) == refused
    assert service.store.get("a", "n") == 5


def test_a_write_that_changes_nothing_advances_the_number_too(service: Service, lane: Lane) -> None:
    assert ask(service, lane, "dict", "delete", ["a", "n"], 1) == ["#RETURN", False, 1]
    ask(service, None, "dict", "set", ["a", "n", 1])
    assert ask(service, lane, "dict", "delete", ["a", "n"], 1) == ["#RETURN", False, 1]


def test_lanes_are_apart(service: Service, lane: Lane) -> None:
    other, known = service.attach(b"s" * 16, 1, 42, None)
    assert not known
    assert ask(service, lane, "counter", "increment", ["c"], 1)[1] == 1
    assert ask(service, other, "counter", "increment", ["c"], 1)[1] == 2
    assert service.attach(b"s" * 16, 0, 42, None) == (lane, True)
    assert service.attach(b"t" * 16, 0, 43, None)[1] is False


def test_an_ended_session_is_forgotten(service: Service, lane: Lane) -> None:
    service.end(lane.session)
    assert service.sessions == {}
    assert service.attach(b"s" * 16, 0, 42, None)[1] is False


MALFORMED: list[Any] = [
    None,
    1,
    "text",
    {},
    [],
    ["dict", "get", ["a", "x"]],
    ["dict", "get", ["a", "x"], {}, 1, 2],
    ["dict", "get", ["a", "x"], {"key": "x"}],
    ["dict", "get", "ax", {}],
    ["dict", "get", {"a": 1}, {}],
    ["dict", ["get"], [], {}],
    [None, "get", [], {}],
    [["dict"], "get", ["a", "x"], {}],
    ["dict", "nosuch", [], {}],
    ["nosuch", "get", ["a", "x"], {}],
    ["dict", "__class__", [], {}],
    ["dict", "get", [], {}],
    ["dict", "get", ["a"], {}],
    ["dict", "get", ["a", "x", "y"], {}],
    ["dict", "get", ["a", ["x"]], {}],
    ["dict", "get", ["a", True], {}],
    ["dict", "get", ["", "x"], {}],
    ["dict", "get", [5, "x"], {}],
    ["dict", "get", [":secrets", "x"], {}],
    ["dict", "set", [":counters", "x", 1], {}, 1],
    ["dict", "set", ["a", "x", [1]], {}, 1],
    ["dict", "set", ["a", "x", {}], {}, 1],
    ["dict", "set", ["a", "x", msgpack.ExtType(1, b"x")], {}, 1],
    ["dict", "set", ["a", "x", 2**64 - 1], {}, 1],
    ["dict", "set", ["a", 2**64 - 1, 1], {}, 1],
    ["dict", "set", ["a", "x", 1, -1], {}, 1],
    ["dict", "set", ["a", "x", 1, "1"], {}, 1],
    ["dict", "set", ["a", "x", 1, float("nan")], {}, 1],
    ["dict", "set", ["a", "x", 1], {}, "1"],
    ["dict", "set", ["a", "x", 1], {}, None],
    ["dict", "set_many", ["a", ["x"]], {}, 1],
    ["dict", "set_many", ["a", "xy"], {}, 1],
    ["dict", "set_many", ["a", ["x", 1, "y", [2]]], {}, 1],
    ["dict", "get_many", ["a", "xy"], {}],
    ["dict", "put", ["a", "x", "1", 1], {}, 1],
    ["dict", "scan", ["a", 99], {}],
    ["dict", "scan", ["a", "99"], {}],
    ["dict", "increment", ["a", "x", 2**63], {}, 1],
    ["counter", "reset", ["c", 1.5], {}, 1],
    ["secret", "rotate", ["s", 99], {}, 1],
    ["manager", "once", ["k", None], {}, 1],
    ["manager", "fingerprints", ["n", "1", "d"], {}, 1],
    ["manager", "drop", [":counters"], {}, 1],
]


@pytest.mark.parametrize("message", MALFORMED, ids=repr)
def test_a_message_of_the_wrong_shape_is_an_error_and_changes_nothing(
    service: Service, lane: Lane, message: Any
) -> None:
    reply = service.handle(lane, msgpack.packb(message))
    assert reply is not None
    kind, (name, text), *_ = msgpack.unpackb(reply)
    assert kind == "#ERROR"
    assert name in BY_NAME
    assert text
    assert set(service.store.spaces) <= {":sessions"}
    assert ask(service, lane, "dict", "set", ["a", "x", 1], 5)[:3] == ["#RETURN", None, 5]


def test_a_number_needs_a_lane(service: Service) -> None:
    reply = service.handle(None, msgpack.packb(["dict", "set", ["a", "x", 1], {}, 1]))
    assert b"lane" in (reply or b"")
    assert set(service.store.spaces) <= {":sessions"}


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary())
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
)
REQUESTS = st.one_of(
    ANYTHING,
    st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING),
    st.sampled_from(sorted(TABLE)).flatmap(
        lambda row: st.tuples(st.just(row[0]), st.just(row[1]), st.lists(ANYTHING, max_size=5), st.just({}))
    ),
)


@given(st.lists(st.one_of(REQUESTS.map(msgpack.packb), st.binary(max_size=60)), max_size=5))
def test_no_request_ends_the_service_and_none_is_answered_with_success_that_was_not_understood(
    payloads: list[bytes],
) -> None:
    service = Service(Store(1), token=lambda: "ab" * 32)
    lane, _ = service.attach(b"s" * 16, 0, 42, None)
    for payload in payloads:
        service.begin(1_000.0)
        reply = service.handle(lane, payload)
        service.commit()
        assert reply is not None
        kind, result, *_ = msgpack.unpackb(reply, strict_map_key=False)
        if kind == "#RETURN":
            message = msgpack.unpackb(payload, strict_map_key=False)
            command = TABLE[message[0], message[1]]
            assert command.least <= len(message[2]) <= command.most
        else:
            assert kind == "#ERROR"
            assert result[0] in BY_NAME
            assert "Assertion" not in result[1]
            assert "has no attribute" not in result[1]
            assert "unhashable" not in result[1]
    service.store.check()


def test_a_page_is_bounded_by_keys_and_by_bytes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "PAGE_BYTES", 10_000)
    service.call("dict", "set_many", ["a", [part for i in range(40) for part in (i, "x" * 1_000)]])
    sizes = []
    cursor = None
    while True:
        cursor, page, *_ = service.call("dict", "scan", ["a", cursor, True])
        sizes.append(len(page) // 2)
        if cursor is None:
            break
    assert sum(sizes) == 40
    assert max(sizes) <= 10


def test_open_iterations_are_bounded_and_the_oldest_is_given_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "CURSOR_KEYS", 2_000)
    service.call("dict", "set_many", ["a", [part for i in range(1_000) for part in (i, i)]])
    cursors = [service.call("dict", "scan", ["a"])[0] for _ in range(20)]
    with pytest.raises(StateError, match="begin it again"):
        service.call("dict", "scan", ["a", cursors[0]])
    assert service.call("dict", "scan", ["a", cursors[-1]])[0] is None
    assert service.call("dict", "scan", ["a", cursors[-1]])[0] is None, "a tick that is undone asks twice"
    service.commit()
    with pytest.raises(StateError, match="begin it again"):
        service.call("dict", "scan", ["a", cursors[-1]])


def test_an_iteration_that_rests_for_too_long_is_given_up(service: Service) -> None:
    service.call("dict", "set_many", ["a", [part for i in range(1_000) for part in (i, i)]])
    cursor = service.call("dict", "scan", ["a"])[0]
    service.begin(1_059.0)
    service.tidy()
    assert service.call("dict", "scan", ["a", cursor])[0] is None
    service.undo()
    service.begin(1_200.0)
    service.tidy()
    with pytest.raises(StateError, match="begin it again"):
        service.call("dict", "scan", ["a", cursor])


def test_an_iteration_belongs_to_its_session(service: Service, lane: Lane) -> None:
    service.call("dict", "set_many", ["a", [part for i in range(1_000) for part in (i, i)]])
    cursor = ask(service, lane, "dict", "scan", ["a"])[1][0]
    other, _ = service.attach(b"t" * 16, 0, 43, None)
    assert ask(service, other, "dict", "scan", ["a", cursor])[0] == "#ERROR"
    assert ask(service, lane, "dict", "scan", ["b", cursor])[0] == "#ERROR"
    service.end(lane.session)
    assert ask(service, lane, "dict", "scan", ["a", cursor])[0] == "#ERROR"


def test_an_answer_that_fits_no_message_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state_manager.commands.base.VALUE_LIMIT", 10_000)
    service.call("dict", "set_many", ["a", [part for i in range(20) for part in (i, "x" * 1_000)]])
    with pytest.raises(ValueError, match="fewer keys"):
        service.call("dict", "get_many", ["a", list(range(20))])
    assert len(service.call("dict", "get_many", ["a", [1, 2]])) == 2


def test_meeting_an_expired_entry_is_a_change(service: Service) -> None:
    service.call("dict", "set", ["a", "x", 1, 5.0])
    version = service.call("dict", "get", ["a", "x"])[0]
    service.begin(1_005.0)
    found = service.call("dict", "get", ["a", "x"])
    assert list(found) == [service.store.version("a", "x")]
    assert found[0] > version
    assert set(service.store.spaces) <= {":sessions"}


def test_an_expired_version_is_not_the_version_that_was_read(service: Service) -> None:
    service.call("dict", "set", ["a", "x", 1, 5.0])
    version = service.call("dict", "get", ["a", "x"])[0]
    service.begin(1_005.0)
    assert not service.call("dict", "put", ["a", "x", version, 2])
    assert set(service.store.spaces) <= {":sessions"}


def test_put_keeps_the_deadline_or_sets_another(service: Service) -> None:
    service.call("dict", "set", ["a", "x", 1, 5.0])
    version = service.call("dict", "get", ["a", "x"])[0]
    assert service.call("dict", "put", ["a", "x", version, 2])
    version, value, deadline = service.call("dict", "get", ["a", "x"])
    assert (value, deadline) == (2, 1_005.0)
    assert service.call("dict", "put", ["a", "x", version, 3, 9.0])
    version, value, deadline = service.call("dict", "get", ["a", "x"])
    assert (value, deadline) == (3, 1_009.0)
    assert not service.call("dict", "put", ["a", "x", version - 1, 4, 5.0])
    with pytest.raises(ValueError, match="a ttl is finite and above zero"):
        service.call("dict", "put", ["a", "x", version, 4, 0])
    assert service.call("dict", "get", ["a", "x"])[1:] == (3, 1_009.0)


def test_it_says_what_it_holds(service: Service, lane: Lane) -> None:
    ask(service, lane, "dict", "set", ["a", "x", 1], 1)
    assert "2 entries" in repr(service)
    assert "1 sessions" in repr(service)
    assert "42" in repr(lane)
    assert "pid=42" in repr(lane.session)
