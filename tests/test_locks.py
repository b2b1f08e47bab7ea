"""Locks between real processes: kills, restarts, forks, greenlets, and waits that something breaks off."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from state_manager import Lock, NotOwner, OutcomeUnknown, StateManager, TimedOut, Unavailable, connect, sidecar
from state_manager import client as client_module
from state_manager.client import Client
from state_manager.lanes import Lane as ClientLane
from state_manager.proxies import locks as locks_module

FREED_WITHIN = 2.0
SECONDS = 20.0


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Managers:
    """The managers of one directory, one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = sidecar.start(directory)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def start(self) -> None:
        self.process = sidecar.start(self.directory)

    def end(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.terminate()
            self.process.wait(10)


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[Managers]:
    managers = Managers(tmp_path / "state")
    yield managers
    managers.end()


@pytest.fixture
def manager(managers: Managers) -> Iterator[StateManager]:
    with connect(managers.directory) as manager:
        yield manager


Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def child(managers: Managers) -> Iterator[Child]:
    """``child(code)`` runs code in a process that knows ``manager`` and ``lock``, and waits for its first line."""
    children = []

    def start(code: str, *args: str, line: bool = True) -> subprocess.Popen[str]:
        before = (
            "import sys, time, state_manager\nmanager = state_manager.connect(sys.argv[1])\nlock = manager.lock('m')"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{code}", str(managers.directory), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(process)
        assert process.stdout is not None
        if line:
            assert process.stdout.readline()
        return process

    yield start
    for process in children:
        process.kill()
        process.communicate()


HOLD = "lock.acquire(); print('held', flush=True); sys.stdin.read()"


def client_of(manager: StateManager) -> Client:
    caller = manager._caller
    assert isinstance(caller, Client)
    return caller


class Holder:
    """Somebody else in this process who holds the lock, in a thread of his own, until he is told to let go."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._held = threading.Event()
        self._let_go = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._lock:
            self._held.set()
            self._let_go.wait(SECONDS)

    def __enter__(self) -> Holder:
        self._thread.start()
        assert self._held.wait(SECONDS)
        return self

    def let_go(self) -> None:
        self._let_go.set()
        self._thread.join()

    def __exit__(self, *exception: object) -> None:
        self.let_go()


# -- kills and restarts ------------------------------------------------------------------------------------------------


def test_a_holder_that_is_killed_frees_it_at_once(manager: StateManager, child: Child) -> None:
    holder = child(HOLD)
    lock = manager.lock("m")
    assert lock.owner is not None
    assert lock.owner.pid == holder.pid
    killer = threading.Timer(0.1, holder.kill)
    killer.start()
    began = time.monotonic()
    assert lock.acquire()
    assert time.monotonic() - began < FREED_WITHIN
    lock.release()


def test_a_waiter_that_is_killed_leaves_the_line(manager: StateManager, child: Child) -> None:
    lock = manager.lock("m")
    with lock:
        waiter = child("print('begins', flush=True); lock.acquire()")
        wait_for(lambda: lock.waiters == 1)
        waiter.kill()
        wait_for(lambda: lock.waiters == 0)
    assert lock.acquire(blocking=False)


def test_it_is_kept_when_the_manager_is_killed_however_idle_the_holder(
    manager: StateManager, managers: Managers, child: Child
) -> None:
    code = "lock.acquire(); t = lock.token; print(t, flush=True); sys.stdin.readline(); lock.release(); print(t)"
    holder = child(code)
    lock = manager.lock("m")
    before = lock.owner
    managers.kill()
    managers.start()
    assert lock.owner == before
    assert not lock.acquire(blocking=False)
    out, _ = holder.communicate("let go\n", timeout=SECONDS)
    with lock:
        assert lock.token is not None
        assert lock.token > int(out)


def test_it_is_freed_if_the_holder_dies_while_there_is_no_manager(
    manager: StateManager, managers: Managers, child: Child
) -> None:
    holder = child(HOLD)
    managers.kill()
    holder.kill()
    holder.wait()
    managers.start()
    began = time.monotonic()
    assert manager.lock("m").acquire()
    assert time.monotonic() - began < FREED_WITHIN


def test_a_wait_goes_on_with_the_next_manager_for_what_is_left_of_its_time(
    manager: StateManager, managers: Managers
) -> None:
    lock = manager.lock("m")
    results: list[tuple[bool, float]] = []

    def wait(timeout: float) -> None:
        began = time.monotonic()
        results.append((lock.acquire(timeout=timeout), time.monotonic() - began))

    with Holder(lock) as holder:
        threads = [threading.Thread(target=wait, args=(timeout,)) for timeout in (1.0, 15.0)]
        for thread in threads:
            thread.start()
        wait_for(lambda: lock.waiters == 2)
        managers.kill()
        managers.start()
        threads[0].join()
        [(got, seconds)] = results
        assert not got
        assert 0.99 < seconds < 1.0 + client_of(manager).timeout
        wait_for(lambda: lock.waiters == 1)
        holder.let_go()
        threads[1].join()
    assert results[1][0]


CRITICAL = """
import os
log = os.open(sys.argv[2], os.O_RDWR | os.O_APPEND | os.O_CREAT)
print('begins', flush=True)
while True:
    try:
        with manager.lock('m', timeout=3):
            token = manager.lock('m').token
            os.write(log, b'+%d\\n' % token)
            time.sleep(0.002)
            os.write(log, b'-%d\\n' % token)
    except state_manager.StateError:
        pass
"""


def test_no_two_hold_it_whoever_is_killed(
    manager: StateManager, managers: Managers, child: Child, tmp_path: Path
) -> None:
    seed = int(os.environ.get("STATE_TEST_SEED", time.time_ns()))
    draw = random.Random(seed)
    log = tmp_path / "log"
    workers = [child(CRITICAL, str(log)) for _ in range(3)]
    for _ in range(8):
        size = log.stat().st_size
        wait_for(lambda size=size: log.stat().st_size > size + 40 * 8)  # type: ignore[misc]
        if draw.random() < 0.4:
            managers.kill()
            managers.start()
        else:
            victim = draw.randrange(len(workers))
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = child(CRITICAL, str(log))
    for worker in workers:
        worker.kill()
        worker.wait()
    lines = log.read_text().splitlines()
    tokens = [int(line[1:]) for line in lines if line[0] == "+"]
    assert tokens == sorted(set(tokens)), seed
    for before, line in pairwise(lines):
        # Who comes out was the last to go in. Who was killed inside never comes out.
        assert line[0] == "+" or before == f"+{line[1:]}", seed
    began = time.monotonic()
    with manager.lock("m"):
        assert time.monotonic() - began < FREED_WITHIN


# -- waiting costs nothing, and ends -----------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_thousand_that_wait_cost_the_manager_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    managers = Managers(tmp_path / "state")
    lanes: list[ClientLane] = []
    try:
        with connect(managers.directory) as manager, manager.lock("m"):
            client = client_of(manager)
            for _ in range(1_000):
                lane = client._new_lane()
                lanes.append(lane)
                client._greet(lane, client._open(SECONDS))
                assert lane.sock is not None
                request = lane.pack(("lock", "acquire", ("m", 1, 30.0, 0, 60.0), {}, 1))
                lane.sock.sendall(len(request).to_bytes(4, "big") + request)
            wait_for(lambda: manager.lock("m").waiters == 1_000)
            before = cpu_seconds(managers.process.pid)
            time.sleep(2.0)  # what is measured is that nothing happens
            assert cpu_seconds(managers.process.pid) - before <= 0.1
            for lane in lanes:
                lane.close()
            wait_for(lambda: manager.lock("m").waiters == 0)
    finally:
        for lane in lanes:
            lane.close()
        managers.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ctrl_c_ends_a_wait_and_leaves_the_line(manager: StateManager) -> None:
    lock = manager.lock("m")
    with Holder(lock):

        def interrupt() -> None:
            wait_for(lambda: manager.lock("m").waiters == 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        thread.join()
        assert lock.waiters == 0
    assert lock.acquire(blocking=False)


def test_a_grant_that_was_never_received_is_taken_back(manager: StateManager, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = manager.lock("m")
    lock.acquire()
    lock.release()
    ask = ClientLane.ask

    def interrupted(lane: ClientLane, request: bytes) -> Any:
        reply = ask(lane, request)
        if b"acquire" in request and b"abandon" not in request:
            raise SystemExit
        return reply

    monkeypatch.setattr(ClientLane, "ask", interrupted)
    with pytest.raises(SystemExit):
        lock.acquire()
    assert not lock.locked()
    assert lock.token is None


def test_what_the_manager_could_not_be_told_is_told_when_it_answers_again(
    managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ABANDON_SECONDS", 0.1)
    with connect(managers.directory, timeout=0.3) as manager, connect(managers.directory) as other:
        lock = manager.lock("m")
        ask = ClientLane.ask

        def stopped(lane: ClientLane, request: bytes) -> Any:
            """The answer has been given, and the manager stops before it is read."""
            reply = ask(lane, request)
            if b"acquire" in request and b"abandon" not in request:
                managers.process.send_signal(signal.SIGSTOP)
                raise KeyboardInterrupt
            return reply

        monkeypatch.setattr(ClientLane, "ask", stopped)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        managers.process.send_signal(signal.SIGCONT)
        assert other.lock("m").locked()
        client_of(manager).close()  # as its next call would find it after any break
        manager.ping()
        assert not other.lock("m").locked()


def test_a_manager_that_hangs_does_not_hang_who_waits(managers: Managers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ABANDON_SECONDS", 0.1)
    with connect(managers.directory, timeout=0.3) as manager:
        lock = manager.lock("m")
        lock.acquire()
        managers.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            lock.acquire(timeout=0.2)
        assert time.monotonic() - began < 3
        managers.process.send_signal(signal.SIGCONT)
        manager.ping()
        wait_for(lambda: lock.waiters == 0)
        lock.release()
        assert lock.acquire(blocking=False)


def test_without_a_manager_a_wait_fails_as_soon_as_any_call(tmp_path: Path) -> None:
    with connect(tmp_path / "nobody") as manager, pytest.raises(Unavailable):
        manager.lock("m").acquire()


def test_a_process_that_is_being_stopped_waits_for_nothing(
    manager: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_stopping", False)
    lock = manager.lock("m")
    with Holder(lock):

        def stop() -> None:
            wait_for(lambda: manager.lock("m").waiters == 1)
            client_module.end_waits()

        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(TimedOut, match="being stopped"):
            lock.acquire()
        thread.join()
        wait_for(lambda: lock.waiters == 0)
        began = time.monotonic()
        assert lock.acquire() is False
        assert time.monotonic() - began < 5
    assert lock.acquire(), "what is free is still had"


# -- who is who --------------------------------------------------------------------------------------------------------


def test_a_forked_child_is_somebody_else(manager: StateManager) -> None:
    lock = manager.lock("m", reentrant=True)
    lock.acquire()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                lock.release()
            except NotOwner:
                code = 2 if lock.acquire(timeout=0.05) else 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert lock.owner is not None
    assert lock.owner.pid == os.getpid()
    lock.release()
    assert not lock.locked()


GREENLETS = """
import gevent.monkey  # late, after all has been imported: the hard case
gevent.monkey.patch_all()
import gevent
from state_manager import NotOwner

def eventually(number):
    with gevent.Timeout(20):
        while lock.waiters != number:
            gevent.sleep(0.005)

def release():
    try:
        lock.release()
    except NotOwner:
        return "not the owner"

lock.acquire()
assert gevent.spawn(release).get() == "not the owner"
assert gevent.spawn(lambda: lock.token).get() is None
waiter = gevent.spawn(lock.acquire)
eventually(1)
waiter.kill()
eventually(0)

def with_timeout():
    try:
        with gevent.Timeout(0.1):
            lock.acquire()
    except gevent.Timeout:
        return "timeout"

assert gevent.spawn(with_timeout).get() == "timeout"
eventually(0)
assert lock.acquire(timeout=0.1) is False
waiters = [gevent.spawn(lambda: (lock.acquire(), lock.token, lock.release())[1]) for _ in range(20)]
eventually(20)
lock.release()
tokens = [waiter.get() for waiter in waiters]
assert len(set(tokens)) == 20, tokens  # they connect first, and so come in any order
assert not lock.locked()
print("well", flush=True)
"""


def test_greenlets_are_owners_of_their_own(child: Child) -> None:
    process = child(GREENLETS)
    assert process.wait(SECONDS) == 0


def test_the_numbers_of_a_thread_that_has_ended_mean_nothing(manager: StateManager) -> None:
    lock = manager.lock("m", reentrant=True)
    threading_ids = []

    def take() -> None:
        threading_ids.append(threading.get_ident())
        results.append(lock.acquire(blocking=False))

    results: list[bool] = []
    for _ in range(3):  # the same number each time, mostly
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert results == [True, False, False]


def test_what_is_not_held_leaves_no_note(tmp_path: Path) -> None:
    """Locks named after users are many."""
    with connect(f"memory://{tmp_path}") as manager:
        lock, semaphore = manager.lock("l", timeout=0.01), manager.semaphore("s", 1, timeout=0.01)
        for held in (lock, semaphore):
            assert held.token is None
            with held:
                assert not held.acquire(blocking=False)
                assert len(locks_module._grants(manager._caller)) == 1
            assert not locks_module._grants(manager._caller)


def test_a_grant_to_one_who_gave_up_is_given_back_whatever_he_asks_next(
    managers: Managers, manager: StateManager
) -> None:
    """The manager could not be told at once: a later number on that lane must not hide the abandoned one."""
    hurried = connect(managers.directory, timeout=0.5)
    shared, lock = hurried.dict("d"), hurried.lock("m", timeout=0.2)
    shared["a"] = 1
    os.kill(managers.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            lock.acquire()
    finally:
        os.kill(managers.process.pid, signal.SIGCONT)
    shared["a"] = 2
    wait_for(lambda: not manager.lock("m").locked())
    assert lock.acquire()
    lock.release()


def test_a_wait_that_always_breaks_off_ends(managers: Managers, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = connect(managers.directory, timeout=0.3)
    hurried.ping()
    ask = ClientLane.ask

    def breaking(lane: ClientLane, request: bytes) -> Any:
        if b"acquire" in request:
            lane.close()
            raise ConnectionResetError
        return ask(lane, request)

    monkeypatch.setattr(ClientLane, "ask", breaking)
    start = time.monotonic()
    with pytest.raises(Unavailable):
        hurried.lock("m", timeout=0.2).acquire()
    assert time.monotonic() - start < 5
