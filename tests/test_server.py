"""The loop over real sockets, in a thread: strangers, malformed frames, pipelines, slow readers, ends of processes."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import state_manager
from state_manager import connection as connection_module
from state_manager import server as server_module
from state_manager import watch, wire
from state_manager.client import Client
from state_manager.directory import SOCKET, StateDirectory
from state_manager.errors import StateError, StoreFull
from state_manager.lanes import receive
from state_manager.manager import Manager
from state_manager.settings import FRAME_LIMIT, PROTOCOL


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Return when the condition holds; fail when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Served:
    """A server in a thread, and raw ways to talk to it."""

    def __init__(self, path: Path) -> None:
        self.directory = StateDirectory.open(path, create=True)
        self.path = self.directory.path
        self.lock = self.directory.lock()
        self.server = Manager(self.directory, self.lock).get_server()
        self.key = self.directory.key(create=False)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.server.service.store.check()
        os.close(self.lock)
        self.directory.close()

    def stranger(self) -> socket.socket:
        """A connection that has not shown the key."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(self.path / SOCKET))
        return sock

    def raw(self) -> socket.socket:
        """A connection that has shown the key and has no lane yet."""
        sock = Client(self.path, timeout=10, start=False)._connect(10)
        sock.settimeout(10)
        return sock

    def lane(self, session: bytes = b"s" * 16, lane: int = 0) -> socket.socket:
        sock = self.raw()
        assert ask(sock, None, "accept_connection", [[PROTOCOL, "test", session, lane]])[0] == "#RETURN"
        return sock


def ask(sock: socket.socket, *message: Any) -> Any:
    """Send a request and return its reply."""
    kind, name, args, *number = message
    sock.sendall(wire.frame(msgpack.packb([kind, name, args, {}, *number])))
    return msgpack.unpackb(receive(sock), strict_map_key=False)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "state")
    try:
        yield served
    finally:
        served.stop()


def closed(sock: socket.socket) -> bool:
    """Whether the server closed the connection, after whatever it still said."""
    try:
        while sock.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    sock.close()
    return True


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused(served: Served) -> None:
    sock = served.stranger()
    answer, _ = wire.client_handshake(b"0" * 64, receive(sock))
    sock.sendall(wire.frame(answer))
    assert receive(sock) == b"#FAILURE#"
    assert closed(sock)


@pytest.mark.parametrize(
    "stream",
    [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 8, wire.frame(b"x" * 1000), wire.frame(b""), wire.frame(b"\x80\x04.")],
)
def test_a_stranger_that_talks_nonsense_is_closed(served: Served, stream: bytes) -> None:
    sock = served.stranger()
    sock.sendall(stream)
    assert closed(sock)
    served.lane().close()


def test_a_stranger_that_sends_nothing_is_closed_in_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE_SECONDS", 0.05)
    sock = served.stranger()
    start = time.monotonic()
    assert closed(sock)
    assert time.monotonic() - start < 5


def test_a_stranger_of_another_uid_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "peer_uid", lambda sock: os.geteuid() + 1)
    assert closed(served.stranger())


def test_where_the_uid_cannot_be_told_the_key_decides(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "peer_uid", lambda sock: None)
    with served.lane() as sock:
        assert ask(sock, "manager", "ping", [])[0] == "#RETURN"


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x94", b"\x01", b"\x80\x04\x95\x00."])
def test_a_frame_that_is_no_request_is_an_error_and_the_connection_goes_on(served: Served, payload: bytes) -> None:
    with served.lane() as sock:
        sock.sendall(wire.frame(payload))
        assert msgpack.unpackb(receive(sock))[0] == "#ERROR"
        assert ask(sock, "dict", "set", ["a", "x", 1], 1)[:3] == ["#RETURN", None, 1]


def test_an_over_long_frame_is_an_error_and_the_connection_goes_on(served: Served) -> None:
    with served.lane() as sock:
        sock.sendall(wire.LENGTH.pack(FRAME_LIMIT + 5))
        chunk = b"\x01" * 2**20
        for _ in range(FRAME_LIMIT // 2**20):
            sock.sendall(chunk)
        sock.sendall(b"\x01" * (FRAME_LIMIT % 2**20 + 5))
        kind, (name, text) = msgpack.unpackb(receive(sock))
        assert (kind, name) == ("#ERROR", "TooLarge")
        assert f"{FRAME_LIMIT:,}" in text
        assert ask(sock, "manager", "ping", [])[0] == "#RETURN"


def test_a_truncated_frame_does_nothing(served: Served) -> None:
    with served.lane() as sock:
        sock.sendall(wire.frame(msgpack.packb(["dict", "set", ["a", "x", 1], {}, 1]))[:-1])
    with served.lane(lane=1) as sock:
        kind, (_, *found) = ask(sock, "dict", "contains", ["a", "x"])
        assert (kind, found) == ("#RETURN", [])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=80), max_size=6))
def test_arbitrary_bytes_in_arbitrary_cuts_never_end_the_server(served: Served, pieces: list[bytes]) -> None:
    with served.raw() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            sock.sendall(piece)
    with served.lane(lane=7) as sock:
        assert ask(sock, "manager", "ping", [])[0] == "#RETURN"
        assert [space[0] for space in ask(sock, "manager", "spaces", [])[1]] == [":sessions"]


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_pipeline_is_answered_in_order(served: Served) -> None:
    with served.lane() as sock:
        count = 3000
        request = b"".join(wire.frame(msgpack.packb(["counter", "increment", ["c"], {}, i + 1])) for i in range(count))
        sender = threading.Thread(target=sock.sendall, args=(request,))
        sender.start()
        assert [msgpack.unpackb(payload)[1] for payload in read_frames(sock, count)] == list(range(1, count + 1))
        sender.join()


def read_frames(sock: socket.socket, count: int) -> Iterator[bytes]:
    frames = wire.Frames(FRAME_LIMIT)
    while count:
        for payload in frames.feed(sock.recv(65_536)):
            assert isinstance(payload, bytes)
            count -= 1
            yield payload


def test_a_client_that_pipelines_gets_no_more_than_the_others(served: Served) -> None:
    with served.lane(lane=0) as greedy, served.lane(lane=1) as modest:
        greedy.sendall(wire.frame(msgpack.packb(["manager", "ping", [], {}])) * 2_000)
        before = served.server.service.commands
        assert ask(modest, "manager", "ping", [])[0] == "#RETURN"
        assert served.server.service.commands - before < 2_000
        assert sum(1 for _ in read_frames(greedy, 2_000)) == 2_000


def test_a_reader_that_does_not_read_stops_nobody_and_costs_little(served: Served) -> None:
    with served.lane(lane=0) as slow, served.lane(lane=1) as other:
        assert ask(slow, "dict", "set", ["a", "big", "x" * 5_000_000], 1)[0] == "#RETURN"
        slow.sendall(wire.frame(msgpack.packb(["dict", "get", ["a", "big"], {}])) * 200)
        for _ in range(50):
            assert ask(other, "manager", "ping", [])[0] == "#RETURN"
        assert sum(len(each.outbox) for each in served.server.connections()) <= 2 * 5_000_100
        assert sum(len(payload) > 5_000_000 for payload in read_frames(slow, 200)) == 200


def test_one_tick_runs_requests_of_all_that_are_ready(served: Served) -> None:
    socks = [served.lane(lane=i) for i in range(20)]
    for sock in socks:
        sock.sendall(wire.frame(msgpack.packb(["counter", "increment", ["c"], {}, 1])))
    assert sorted(msgpack.unpackb(receive(sock))[1] for sock in socks) == list(range(1, 21))
    for sock in socks:
        sock.close()


def test_who_waited_alone_is_answered_first_and_many_come_after_who_has_woken_them(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    send = server_module.StateServer._answer

    def answer(server: server_module.StateServer, connection: connection_module.Connection, reply: bytes) -> None:
        assert connection.lane is not None
        answered.append(connection.lane.id)
        send(server, connection, reply)

    teller, *readers = [served.lane(lane=number) for number in range(3)]
    monkeypatch.setattr(server_module.StateServer, "_answer", answer)
    for number, (waiting, order) in enumerate([(readers[:1], [1, 0]), (readers, [0, 1, 2])], 1):
        for sock in waiting:
            sock.sendall(wire.frame(msgpack.packb(["channel", "read", [f"c{number}", 0, 10.0], {}])))
        wait_until(lambda: served.server.service.lines.count == len(waiting))  # noqa: B023 - it is over within the loop
        answered.clear()
        ask(teller, "channel", "publish", [f"c{number}", "hello", 10], number)
        for sock in waiting:
            receive(sock)
        assert answered == order
    for sock in (teller, *readers):
        sock.close()


def test_attaching_a_lane_closes_its_former_connection(served: Served) -> None:
    first = served.lane()
    reply = ask(first, "counter", "increment", ["c"], 1)
    assert reply[:3] == ["#RETURN", 1, 1]
    second = served.lane()
    assert closed(first)
    assert ask(second, "counter", "increment", ["c"], 1) == reply
    assert ask(second, "counter", "increment", ["c"], 2)[:3] == ["#RETURN", 2, 2]
    second.close()


def test_another_protocol_is_refused_with_both_versions(served: Served) -> None:
    with served.raw() as sock:
        kind, (name, text) = ask(sock, None, "accept_connection", [[99, "9.9", b"s" * 16, 0]])
        assert (kind, name) == ("#ERROR", "Unavailable")
        assert "9.9" in text
        assert state_manager.__version__ in text


@pytest.mark.parametrize("hello", [[PROTOCOL], [PROTOCOL, "1", b"short", 0], [PROTOCOL, "1", b"s" * 16, "0"], []])
def test_a_hello_of_the_wrong_shape_is_an_error(served: Served, hello: list[Any]) -> None:
    with served.raw() as sock:
        assert ask(sock, None, "accept_connection", [hello])[0] in ("#ERROR", "#RETURN")
        assert served.server.service.sessions == {}


def test_too_many_open_files_do_not_make_the_loop_spin(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    accepts = 0
    listener = served.server._listener

    class Full:
        def accept(self) -> Any:
            nonlocal accepts
            accepts += 1
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return listener.fileno()

        def close(self) -> None:
            listener.close()

    monkeypatch.setattr(served.server, "_listener", Full())
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(served.path / SOCKET))
    wait_until(lambda: accepts == 2)  # the second one by housekeeping
    assert accepts <= 3
    monkeypatch.setattr(served.server, "_listener", listener)
    sock.settimeout(10)
    assert receive(sock).startswith(b"#CHALLENGE#")
    sock.close()


# -- sessions ----------------------------------------------------------------------------------------------------------


def child_with_a_lane(served: Served) -> tuple[int, Callable[[], None]]:
    """A forked process with a lane of its own that is closed again; it stays until it is told to end."""
    ready_read, ready_write = os.pipe()
    end_read, end_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            served.lane(session=b"c" * 16).close()
            os.write(ready_write, b"1")
            os.read(end_read, 1)
        finally:
            os._exit(0)
    os.read(ready_read, 1)

    def end() -> None:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for descriptor in (ready_read, ready_write, end_read, end_write):
            os.close(descriptor)

    return pid, end


def test_a_session_lasts_as_long_as_its_process_and_no_longer(served: Served) -> None:
    pid, end = child_with_a_lane(served)
    sessions = served.server.service.sessions
    assert sessions[b"c" * 16].pid == pid
    with served.lane() as sock:
        ask(sock, "manager", "ping", [])
        assert b"c" * 16 in sessions
        end()
        wait_until(lambda: b"c" * 16 not in sessions, 5)


def test_without_pidfd_a_session_ends_some_time_after_its_last_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(watch, "GRACE", 0.2)
    monkeypatch.setattr(server_module, "HOUSEKEEPING", 0.05)
    sessions = served.server.service.sessions
    with served.lane(session=b"u" * 16) as sock:
        assert ask(sock, "manager", "ping", [])[0] == "#RETURN"
        time_with_a_connection = time.monotonic() + 0.6
        wait_until(lambda: time.monotonic() > time_with_a_connection)
        assert b"u" * 16 in sessions
    wait_until(lambda: b"u" * 16 not in sessions)


class FailingLog:
    """Takes nothing while it fails."""

    def __init__(self) -> None:
        self.fails = False

    def append(self, now: float, changes: Any, lanes: Any) -> None:
        if self.fails:
            raise StoreFull("no room")


def test_a_session_whose_process_ended_before_its_hello_was_read_undoes_nobody_elses_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is a change of its own, after the tick: within it a refusal would take back what others were promised."""
    directory = StateDirectory.open(tmp_path / "state", create=True)
    lock = directory.lock()
    server = Manager(directory, lock).get_server()  # not running: this test makes the one tick
    lane, _ = server.service.attach(b"w" * 16, 0, os.getpid(), None)
    server.service.commit()
    pairs = [socket.socketpair() for _ in range(2)]
    hello: list[Any] = [None, "accept_connection", [[PROTOCOL, "test", b"l" * 16, 0]], {}]
    requests = [["dict", "set", ["a", "x", 1], {}, 1], hello]
    connections = deque(
        connection_module.Connection(pair[0], server._poller, handler)
        for pair, handler in zip(pairs, (server._request, server._hello), strict=True)
    )
    connections[0].lane = lane
    for connection, message in zip(connections, requests, strict=True):
        server._register(connection.fd, connection)
        connection.pending.append(msgpack.packb(message))

    def ended(pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", ended, raising=False)
    log = FailingLog()
    log.fails = True
    server.service.log = log
    server._run(connections)
    reply = msgpack.unpackb(receive(pairs[0][1]))
    assert reply == ["#ERROR", ["StoreFull", "no room"], 1]
    assert "a" not in server.service.store.spaces
    server._close_all()
    for pair in pairs:
        pair[1].close()
    os.close(lock)
    directory.close()


def test_many_sessions_of_one_process_take_one_descriptor(served: Served) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(50):
        served.lane(session=bytes([number]) * 16).close()
    assert len(served.server.service.sessions) == 50
    wait_until(lambda: served.server.connections() == [])
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_no_kind_of_request_leaves_a_cycle_behind(served: Served) -> None:
    """The manager runs without the collector of cycles: what it does not free by itself is never freed."""
    log = FailingLog()
    served.server.service.log = log
    with served.lane() as sock:
        requests: list[list[Any]] = [
            ["dict", "set", ["a", "x", "y" * 1_000]],
            ["dict", "increment", ["a", "x"]],
            ["dict", "get", ["a", True]],
            ["dict", "scan", ["a"]],
            ["dict", "scan", ["a", [1, 2]]],
            ["nonsense", "x", []],
            ["manager", "stats", []],
        ]
        gc.collect()
        gc.disable()
        try:
            number = 0
            for fails in (False, True):
                log.fails = fails
                for kind, name, args in requests * 3:
                    number += 1
                    ask(sock, kind, name, args, number)
            assert gc.collect() == 0
        finally:
            gc.enable()
            log.fails = False


def test_a_stock_client_owns_nothing(served: Served) -> None:
    with state_manager.connect(served.path) as ours:
        ours.dict("here", ephemeral=True)["ours"] = 1
        manager: Any = Stock(str(served.path / SOCKET), served.key, serializer="msgpack")
        manager.connect()
        manager.dict("here").set("stock", 1)
        assert [key for _, key in served.server.service.store._owned[1]] == ["ours"]


def test_a_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"st\xff")
    served = Served(Path(os.fsdecode(path)))
    with served.lane() as sock:
        assert "xff" in ask(sock, "manager", "stats", [])[1]["directory"]
        assert ask(sock, "manager", "ping", [])[0] == "#RETURN"
    served.stop()


def test_epochs_that_cannot_be_reserved_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path / "state")

    def refuse(epoch: int) -> None:
        raise StateError("no room")

    monkeypatch.setattr(served.server, "_reserve_epoch", refuse)
    served.server.service.store.last_epoch = served.server.service.store.epoch
    with served.lane() as sock:
        later = time.monotonic() + 1.2
        wait_until(lambda: time.monotonic() > later)
        assert ask(sock, "manager", "ping", [])[0] == "#RETURN"
    served.stop()


# -- stock clients -----------------------------------------------------------------------------------------------------


class Stock(BaseManager):
    """What anybody might write."""


Stock.register("dict")
Stock.register("counter")
Stock.register("list")


@pytest.fixture
def stock(served: Served) -> Any:
    manager: Any = Stock(str(served.path / SOCKET), served.key, serializer="msgpack")
    manager.connect()
    return manager


def test_a_stock_base_manager_with_an_autoproxy(served: Served, stock: Any) -> None:
    carts = stock.dict("carts")
    carts.set("a", {"n": [1, (2, 3)]})
    carts["b"] = b"bytes"
    assert carts.get("a") == carts["a"] == {"n": [1, (2, 3)]}
    assert carts["b"] == b"bytes"
    assert carts.get("x", 5) == 5
    assert len(carts) == 2
    assert "a" in carts
    assert carts.keys() == ["a", "b"]
    assert carts.increment("n", 3) == 3
    assert carts.pop("n") == 3
    assert carts.ttl("a") is None
    assert carts.delete("b")
    assert stock.counter("c").increment(5) == 5
    assert stock.counter("c").value() == 5
    with state_manager.connect(served.path) as ours:
        assert ours.dict("carts") == {"a": {"n": [1, (2, 3)]}}
        ours.dict("carts")["t"] = (1, 2**70)
        assert carts["t"] == (1, 2**70)


def test_a_stock_client_gets_errors_as_exceptions(stock: Any) -> None:
    carts = stock.dict("carts")
    with pytest.raises(KeyError):
        carts["x"]
    with pytest.raises(KeyError):
        carts.pop("x")
    carts["t"] = "text"
    with pytest.raises(TypeError, match="64-bit"):
        carts.increment("t")
    with pytest.raises(ValueError, match="secret"):
        stock.dict(":secrets")
    with pytest.raises(ValueError, match="counter, dict"):
        stock.list()
    with pytest.raises(ValueError, match="no method"):
        carts._callmethod("_ask", ("size",))


def test_a_pickle_speaking_client_is_told_what_to_do(served: Served) -> None:
    manager = BaseManager(str(served.path / SOCKET), served.key)
    with pytest.raises(TypeError, match="serializer='msgpack'"):
        manager.connect()


def test_a_stock_client_with_a_wrong_key(served: Served) -> None:
    with pytest.raises(AuthenticationError):
        Stock(str(served.path / SOCKET), b"wrong", serializer="msgpack").connect()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_shutdown_is_answered_and_everything_is_closed(tmp_path: Path) -> None:
    served = Served(tmp_path / "state")
    sock = served.lane()
    assert ask(sock, "manager", "shutdown", []) == ["#RETURN", None]
    assert closed(sock)
    served.stop()


def test_a_manager_whose_directory_was_taken_away_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HOUSEKEEPING", 0.05)
    served = Served(tmp_path / "state")
    served.path.rename(tmp_path / "elsewhere")
    served.thread.join(10)
    assert not served.thread.is_alive()
    served.stop()


def test_an_idle_server_sleeps(served: Served) -> None:
    with served.lane() as sock:
        ask(sock, "manager", "ping", [])

        before = os.times()
        assert not select.select([sock], [], [], 1.0)[0]
        spent = os.times()
        assert spent.user + spent.system - before.user - before.system < 0.2


def test_a_unix_socket_tells_credentials_in_the_form_that_is_read_here() -> None:
    if hasattr(socket, "SO_PEERCRED"):
        one, other = socket.socketpair()
        pid, uid, _ = struct.unpack("iII", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert (pid, uid) == (os.getpid(), os.geteuid())
        one.close()
        other.close()


class FakePoller:
    """Never finds anything, or always what ``found`` is, and notes how long it was to wait."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.timeouts: list[float] = []

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        return self.found

    def slept_at_once(self) -> bool:
        timeouts, self.timeouts = self.timeouts, []
        return timeouts == [1.0]


def test_spinning_is_left_out_where_it_was_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path / "state")
    served.stop()
    server, poller = served.server, FakePoller()
    monkeypatch.setattr(server, "_poller", poller)
    server.spin = 1e-9
    looks = [server._spin(1.0) == [] and poller.slept_at_once() for _ in range(12)]
    assert looks == [False, True, False, True, True, True, False, *[True] * 5]
    for _ in range(3 * server_module.SPINS_LEFT_OUT):
        server._spin(1.0)
    poller.timeouts.clear()
    vain = [server._spin(1.0) == [] and poller.slept_at_once() for _ in range(2 * server_module.SPINS_LEFT_OUT)]
    assert vain.count(False) in (1, 2), "it tries again now and then"
    poller.found = [(1, 1)]
    while server._spin(1.0) and poller.slept_at_once():
        pass
    assert [server._spin(1.0), server._spin(1.0)] == [poller.found] * 2
    assert poller.timeouts == [0.0, 0.0], "it pays again"
    poller.timeouts.clear()
    server._spin(0.0)
    assert poller.timeouts == [0.0]
