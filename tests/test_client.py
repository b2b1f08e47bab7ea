"""Lanes, deadlines, retries and forks: against a real manager, and against one that fails at the worst moment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from state_manager import AuthenticationFailed, OutcomeUnknown, StateManager, TooLarge, Unavailable, connect, sidecar
from state_manager import client as client_module
from state_manager.client import Client
from state_manager.directory import StateDirectory
from state_manager.lanes import Lane
from state_manager.settings import FRAME_LIMIT
from state_manager.wire import Frames, Handshake, frame


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def process(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = sidecar.start(directory)
    yield process
    if process.poll() is None:
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        process.wait(10)


@pytest.fixture
def manager(directory: Path, process: subprocess.Popen[bytes]) -> Iterator[StateManager]:
    with connect(directory) as manager:
        yield manager


def client_of(manager: StateManager) -> Client:
    caller = manager._caller
    assert isinstance(caller, Client)
    return caller


# -- a manager that does as it is told ---------------------------------------------------------------------------------

Script = Callable[[socket.socket, Any], bool]
"""What to do with a request: answer it and return True, or do something else and return False to close."""


def returns(value: Any) -> Script:
    """Answer with this value."""

    def answer(sock: socket.socket, message: Any) -> bool:
        sock.sendall(frame(msgpack.packb(["#RETURN", value, *message[4:]])))
        return True

    return answer


def hang_up(sock: socket.socket, message: Any) -> bool:
    """Close without an answer."""
    return False


def read_payloads(sock: socket.socket) -> Iterator[bytes]:
    """Payloads of frames, until the other side closes."""
    frames = Frames(FRAME_LIMIT)
    while data := sock.recv(65_536):
        for payload in frames.feed(data):
            assert isinstance(payload, bytes)
            yield payload


class FakeManager:
    """Takes connections one after the other, in a thread; each request gets the next script of the list."""

    def __init__(self, path: Path, scripts: list[Script], *, known: bool, loading: int) -> None:
        self.directory = StateDirectory.open(path, create=True)
        self.key = self.directory.key(create=True)
        self.listener = self.directory.bind()
        self.listener.setblocking(True)
        self.scripts = scripts
        self.known = known
        self.loading = loading
        self.hellos: list[Any] = []
        self.requests: list[Any] = []
        self.socks: list[socket.socket] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.socks.append(sock)
            with sock, contextlib.suppress(OSError):  # the client may not have waited
                self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        handshake, payloads = Handshake(self.key), read_payloads(sock)
        sock.sendall(frame(handshake.first))
        while not handshake.done:
            for answer in handshake.receive(next(payloads)):
                sock.sendall(frame(answer))
        self.hellos.append(msgpack.unpackb(next(payloads))[2][0])
        if self.loading:
            self.loading -= 1
            sock.sendall(frame(msgpack.packb(["#LOADING", "reading (50 %)"])))
            return
        sock.sendall(frame(msgpack.packb(["#RETURN", [1, "0", 1, self.known, b"b" * 16, None]])))
        for payload in payloads:
            message = msgpack.unpackb(payload)
            self.requests.append(message)
            if not self.scripts.pop(0)(sock, message):
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.socks:
            with contextlib.suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.directory.close()


@pytest.fixture
def fake(directory: Path) -> Iterator[Callable[..., FakeManager]]:
    made: list[FakeManager] = []

    def make(*scripts: Script, known: bool = True, loading: int = 0) -> FakeManager:
        made.append(FakeManager(directory, list(scripts), known=known, loading=loading))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_write_that_broke_off_is_asked_again_with_its_number(
    fake: Callable[..., FakeManager], directory: Path
) -> None:
    there = fake(returns(1), hang_up, returns(2))
    counter = connect(directory).counter("c")
    assert counter.increment() == 1
    assert counter.increment() == 2
    assert [request[4] for request in there.requests] == [1, 2, 2]
    assert there.hellos[0] == there.hellos[1]


def test_a_write_that_a_new_manager_cannot_know_of_has_an_unknown_outcome(
    fake: Callable[..., FakeManager], directory: Path
) -> None:
    there = fake(hang_up, returns(7), known=False)
    counter = connect(directory).counter("c")
    with pytest.raises(OutcomeUnknown, match="may have been applied") as caught:
        counter.increment()
    assert caught.value.applied is None
    assert len(there.requests) == 1
    assert counter.increment() == 7
    assert there.requests[1][4] == 2


def test_a_read_is_simply_asked_again(fake: Callable[..., FakeManager], directory: Path) -> None:
    there = fake(hang_up, hang_up, returns([1, 5]), known=False)
    assert connect(directory).counter("c").value == 5
    assert len(there.requests) == 3


def test_an_answer_that_does_not_come_is_not_waited_for_longer_than_the_deadline(
    fake: Callable[..., FakeManager], directory: Path
) -> None:
    release = threading.Event()

    def silence(sock: socket.socket, message: Any) -> bool:
        release.wait(10)
        return False

    fake(returns(1), silence, returns(3))
    counter = connect(directory, timeout=0.3).counter("c")
    counter.increment()
    start = time.monotonic()
    with pytest.raises(OutcomeUnknown) as caught:
        counter.increment()
    waited = time.monotonic() - start
    assert 0.25 < waited < 2
    named = re.search(r"within ([\d.]+) s", str(caught.value))
    assert named
    assert 0.3 <= float(named[1]) <= waited + 0.05  # it is rounded
    release.set()
    assert counter.increment() == 3


def test_a_reply_that_comes_late_is_never_taken_for_the_next_one(
    fake: Callable[..., FakeManager], directory: Path
) -> None:
    asked = threading.Event()

    def late(sock: socket.socket, message: Any) -> bool:
        asked.wait(10)
        return returns([1, "late"])(sock, message)

    fake(late, returns([1, 3]))
    counter = connect(directory, timeout=0.3).counter("c")
    with pytest.raises(Unavailable):
        counter.value  # noqa: B018
    asked.set()
    assert counter.value == 3


def test_an_interrupted_call_leaves_no_reply_behind(fake: Callable[..., FakeManager], directory: Path) -> None:
    """A KeyboardInterrupt, or a greenlet that is killed, between send and receive."""

    def interrupt(sock: socket.socket, message: Any) -> bool:
        os.kill(os.getpid(), signal.SIGUSR1)
        return True

    def handler(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, handler)
    try:
        fake(interrupt, returns([1, 3]))
        counter = connect(directory).counter("c")
        with pytest.raises(KeyboardInterrupt):
            counter.value  # noqa: B018
        assert counter.value == 3
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_manager_that_reads_its_journal_is_waited_for_beyond_the_deadline(
    fake: Callable[..., FakeManager], directory: Path
) -> None:
    fake(returns([1, 3]), loading=8)
    start = time.monotonic()
    assert connect(directory, timeout=0.2).counter("c").value == 3
    assert time.monotonic() - start > 0.3


def test_but_not_for_ever(fake: Callable[..., FakeManager], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LOAD_SECONDS", 0.3)
    fake(loading=10_000)
    start = time.monotonic()
    with pytest.raises(Unavailable, match="50 %"):
        connect(directory, timeout=0.2).counter("c").value  # noqa: B018
    assert 0.4 < time.monotonic() - start < 3


def test_the_retries_share_one_deadline(fake: Callable[..., FakeManager], directory: Path) -> None:
    there = fake(*[hang_up] * 10_000)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"0\.5\d? s"):
        connect(directory, timeout=0.5).counter("c").value  # noqa: B018
    assert time.monotonic() - start < 3
    assert len(there.requests) < 200


# -- a real one --------------------------------------------------------------------------------------------------------


def test_nothing_is_connected_before_the_first_use(directory: Path) -> None:
    manager = connect(directory)
    carts = manager.dict("carts")
    start = time.monotonic()
    with pytest.raises(Unavailable, match="state-manager serve") as caught:
        carts["a"]
    assert caught.value.applied is False
    assert time.monotonic() - start < 1, "nobody was ever here: there is no restart to wait for"


def test_a_manager_that_is_started_again_is_found_again(directory: Path, manager: StateManager) -> None:
    counter = manager.counter("c")
    counter.increment()
    pid = manager.stats()["pid"]
    os.kill(pid, signal.SIGKILL)
    restarted: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: restarted.append(sidecar.start(directory)))
    thread.start()
    manager.ping()
    value = counter.value
    thread.join()
    try:
        assert value == 1
        assert manager.stats()["pid"] != pid
        assert counter.increment() == 2
    finally:
        restarted[0].terminate()
        restarted[0].wait(10)


def test_once_the_deadline_has_passed_each_call_tries_once(directory: Path, process: subprocess.Popen[bytes]) -> None:
    manager = connect(directory, timeout=0.5)
    manager.ping()
    process.kill()
    process.wait()
    start = time.monotonic()
    with pytest.raises(Unavailable, match="no manager runs"):
        manager.ping()
    assert 0.4 < time.monotonic() - start < 3
    start = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unavailable):
            manager.ping()
    assert time.monotonic() - start < 0.4
    again = sidecar.start(directory)
    try:
        assert manager.ping() > 0
    finally:
        again.terminate()
        again.wait(10)


def test_a_stopped_manager_times_out_and_recovers(directory: Path, process: subprocess.Popen[bytes]) -> None:
    manager = connect(directory, timeout=0.3)
    counter = manager.counter("c")
    counter.increment()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(OutcomeUnknown):
        counter.increment()
    os.kill(process.pid, signal.SIGCONT)
    manager = connect(directory)
    assert manager.counter("c").value in (1, 2)
    assert counter.value in (1, 2)


def test_a_wait_leaves_its_long_timeout_to_nobody(directory: Path, process: subprocess.Popen[bytes]) -> None:
    manager = connect(directory, timeout=0.3)
    queue, counter = manager.queue("jobs"), manager.counter("c")
    queue.put("work")
    assert queue.get(timeout=60.0) is not None
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        counter.increment()
    assert time.monotonic() - began < 5.0
    os.kill(process.pid, signal.SIGCONT)


def test_threads_share_a_client(manager: StateManager) -> None:
    counter = manager.counter("c")
    threads = [threading.Thread(target=lambda: [counter.increment() for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 1600
    assert len(client_of(manager)._lanes) <= 8
    assert manager.stats()["sessions"] == 1


def test_a_forked_child_has_lanes_of_its_own(manager: StateManager) -> None:
    """gunicorn forks without multiprocessing's hooks: children sharing a connection would read each other's replies."""
    carts = manager.dict("carts")
    carts["parent"] = "parent"
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                good = carts["parent"] == "parent"
                for i in range(200):
                    carts[str(number)] = i
                    good = good and carts[str(number)] == i
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        children.append(pid)
    for i in range(200):
        carts["p"] = i
        assert carts["p"] == i
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    assert carts["parent"] == "parent"


def test_a_forked_child_leaves_the_parents_connection_open(manager: StateManager) -> None:
    manager.ping()
    before = client_of(manager)._lanes[0].sock
    pid = os.fork()
    if pid == 0:
        manager.ping()
        manager.close()
        os._exit(0)
    os.waitpid(pid, 0)
    manager.ping()
    assert client_of(manager)._lanes[0].sock is before


def test_start_starts_one_that_outlives_us(directory: Path) -> None:
    program = f"import state_manager; print(state_manager.connect({str(directory)!r}, start=True).stats()['pid'])"
    pids = {int(subprocess.check_output([sys.executable, "-c", program])) for _ in range(2)}
    assert len(pids) == 1
    manager = connect(directory)
    assert manager.stats()["pid"] in pids
    manager.shutdown()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "5", None, True])
def test_a_timeout_is_a_number_above_zero(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        connect("memory://", timeout=timeout)


def test_a_key_that_changed_is_an_error_that_says_so(directory: Path, process: subprocess.Popen[bytes]) -> None:
    (directory / "key").write_text("0" * 64)
    with pytest.raises(AuthenticationFailed, match="key"):
        connect(directory).ping()


def test_a_message_over_the_limit_is_refused_before_it_is_sent(
    manager: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "FRAME_LIMIT", 10_000)
    with pytest.raises(TooLarge, match="10,000"):
        manager.dict("d").set_many(dict.fromkeys(range(20), "x" * 1000))
    assert manager.ping() > 0
    assert len(manager.dict("d")) == 0


def test_large_values(manager: StateManager) -> None:
    value = os.urandom(20_000_000)
    manager.dict("d")["big"] = value
    assert manager.dict("d")["big"] == value


def test_a_large_reply_is_not_kept_for_a_retry_that_will_not_come(manager: StateManager) -> None:
    dict_ = manager.dict("d")
    dict_["big"] = "x" * 5_000_000
    assert len(dict_.pop("big")) == 5_000_000
    assert manager.stats()["replies"] < 1_000
    assert dict_.increment("n") == 1


def test_many_keys_are_cleared_without_a_pause_for_others(directory: Path, process: subprocess.Popen[bytes]) -> None:
    manager = connect(directory, timeout=30.0)  # to write so many takes a busy machine long
    big = manager.dict("big")
    for start in range(0, 300_000, 20_000):
        big.set_many({i: i for i in range(start, start + 20_000)})
    assert len(big) == 300_000
    longest = 0.0
    done = threading.Event()

    def others() -> None:
        nonlocal longest
        with connect(directory) as other:
            while not done.is_set():
                longest = max(longest, other.ping())

    thread = threading.Thread(target=others)
    thread.start()
    big.clear()
    assert len(big) == 0
    for _ in range(200):
        manager.ping()
    done.set()
    thread.join()
    assert [space.name for space in manager.spaces()] == [":sessions"]
    assert longest < 1


def test_it_says_how_it_is(manager: StateManager, directory: Path) -> None:
    manager.ping()
    assert "1 lanes, 1 idle" in repr(manager)
    assert str(directory) in repr(manager)


def test_gevent_greenlets_share_a_client(directory: Path, process: subprocess.Popen[bytes]) -> None:
    pytest.importorskip("gevent")
    program = f"""
import state_manager
from gevent import monkey; monkey.patch_all()
import gevent, time
manager = state_manager.connect({str(directory)!r})
counter, beats = manager.counter("c"), []
def beat():
    while True:
        beats.append(time.monotonic()); gevent.sleep(0.001)
heart = gevent.spawn(beat)
jobs = [gevent.spawn(lambda: [counter.increment() for _ in range(100)]) for _ in range(10)]
gevent.joinall(jobs, raise_error=True)
heart.kill()
assert counter.value == 1000, counter.value
assert len(beats) > 10, "the loop stood still"
impatient = gevent.spawn(lambda: [counter.increment() for _ in range(10**6)])
gevent.sleep(0.05); impatient.kill()
manager.ping()  # the increment that was cut off may still be under way, which a cached read does not wait for
before = counter.value
assert counter.increment() == before + 1
print("good")
"""
    environment = {**os.environ}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, env=environment)
    assert done.stdout == "good\n", done.stderr


def test_a_manager_that_hangs_costs_its_deadline_once(directory: Path, process: subprocess.Popen[bytes]) -> None:
    manager = connect(directory, timeout=1.0)
    threads = [threading.Thread(target=manager.ping) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        manager.ping()
    start = time.monotonic()
    for _ in range(4):
        with pytest.raises(Unavailable):
            manager.ping()
    assert time.monotonic() - start < 1.0
    os.kill(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + 5
    while True:
        try:
            manager.ping()
            break
        except Unavailable:
            assert time.monotonic() < deadline


def test_no_two_threads_get_the_same_lane(manager: StateManager) -> None:
    client = client_of(manager)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            start = threading.Barrier(8)

            def make(start: threading.Barrier = start) -> None:
                start.wait()
                client._new_lane()

            threads = [threading.Thread(target=make) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    ids = [lane.id for lane in client._lanes]
    assert len(ids) == len(set(ids)) >= 400


def test_a_reply_to_another_number_is_never_taken(fake: Callable[..., FakeManager], directory: Path) -> None:
    def wrong(sock: socket.socket, message: Any) -> bool:
        sock.sendall(frame(msgpack.packb(["#RETURN", 5, message[4] + 1])))
        return True

    fake(wrong, returns(2))
    counter = connect(directory).counter("c")
    with pytest.raises(OutcomeUnknown, match="another request"):
        counter.increment()
    assert counter.increment() == 2


def test_a_fork_in_the_middle_of_a_call_leaves_the_child_its_own_lanes(
    manager: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with gevent, where greenlets that were waiting in the parent go on in the child."""
    client, counter = client_of(manager), manager.counter("c")
    counter.increment()
    [before] = client._lanes
    ask = Lane.ask

    def ask_and_fork(lane: Lane, request: bytes) -> Any:
        reply = ask(lane, request)
        client._after_fork()
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "ask", ask_and_fork)
        assert counter.increment() == 2
    assert list(client._idle) == []
    assert counter.increment() == 3
    [fresh] = client._lanes
    assert fresh.session == client.session != before.session


def test_closing_while_others_work_does_no_harm(manager: StateManager) -> None:
    counter = manager.counter("c")
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            for _ in range(300):
                counter.increment()
        except BaseException as error:
            errors.append(error)

    def close() -> None:
        while not done.is_set():
            manager.close()

    closer = threading.Thread(target=close)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in [closer, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    closer.join()
    assert errors == []
    assert counter.value == 1_200
