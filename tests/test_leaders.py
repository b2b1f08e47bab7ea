"""Leaders: in this process, and in others that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from state_manager import Leader, StateManager, connect, patience, serving, sidecar
from state_manager.commands.leaders import DUE
from tests.test_parking import NOW, Room

SECONDS = 20.0


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    process = sidecar.start(tmp_path / "state")
    yield tmp_path / "state"
    process.kill()
    process.wait(10)
    if pid := sidecar.find(tmp_path / "state"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=["memory", "process"])
def manager(request: pytest.FixtureRequest) -> Iterator[StateManager]:
    address = "memory://" if request.param == "memory" else request.getfixturevalue("directory")
    with connect(address) as manager:
        yield manager


@pytest.fixture(autouse=True)
def serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process serves, as far as leaders are concerned."""
    monkeypatch.setattr(serving, "_began_in", os.getpid())


@pytest.fixture
def leader(manager: StateManager) -> Iterator[Leader]:
    leader = manager.leader("scheduler")
    yield leader
    leader.resign()
    wait_for(lambda: leader.owner is None)


def test_it_runs_in_a_thread_of_its_own_and_leads_on(leader: Leader, manager: StateManager) -> None:
    threads = []
    assert not leader.is_leader
    assert leader.owner is None
    assert leader.token is None
    leader.run(lambda: threads.append(threading.current_thread()))
    wait_for(lambda: threads)
    assert threads[0].daemon
    assert leader.is_leader
    assert manager.leader("scheduler").is_leader, "the leadership is the process's"
    assert leader.owner is not None
    assert leader.owner.pid == os.getpid()
    assert leader.token is not None
    assert [(one.kind, one.name) for one in manager.held()] == [("leader", "scheduler")]
    assert "scheduler" in repr(leader)
    later = threading.Event()
    leader.run(later.set)
    assert later.wait(SECONDS), "what is added later runs in the same term"


def test_who_resigns_leaves_it_to_others_and_may_stand_again(leader: Leader, manager: StateManager) -> None:
    calls: list[int] = []
    leader.run(lambda: calls.append(1))
    wait_for(lambda: calls == [1])
    first = leader.token
    leader.resign()
    assert not leader.is_leader
    wait_for(lambda: leader.owner is None)
    leader.run(lambda: calls.append(2))
    wait_for(lambda: calls == [1, 2])
    assert leader.is_leader
    assert first is not None
    assert leader.token is not None
    assert leader.token > first


def test_a_function_that_fails_is_called_again(
    leader: Leader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.01, 0.02))
    calls: list[int] = []
    done = threading.Event()

    def fail_at_first() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise LookupError("not yet")
        done.set()

    leader.run(fail_at_first)
    assert done.wait(SECONDS)
    assert leader.is_leader
    assert caplog.text.count("LookupError: not yet") == 3


def test_every(leader: Leader, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []

    @leader.every(0.1)
    def tick() -> None:
        calls.append(time.monotonic())
        if len(calls) == 2:
            raise LookupError("this once")

    assert callable(tick)
    wait_for(lambda: len(calls) >= 6)
    assert (calls[5] - calls[0]) / 5 > 0.05
    assert "LookupError: this once" in caplog.text


def test_it_never_overlaps_itself_and_leaves_out_what_it_missed(leader: Leader) -> None:
    running: list[int] = []
    most: list[int] = []
    release = threading.Event()

    @leader.every(0.05)
    def slow() -> None:
        running.append(1)
        most.append(len(running))
        if len(most) == 1:
            assert release.wait(SECONDS)
        running.pop()

    wait_for(lambda: most)
    began = time.monotonic()
    while time.monotonic() - began < 0.3:
        assert most == [1]
    release.set()
    wait_for(lambda: len(most) == 3)
    assert max(most) == 1
    assert time.monotonic() - began > 0.3 + 0.05


def test_resigning_waits_for_what_runs_periodically(leader: Leader) -> None:
    began, go_on = threading.Event(), threading.Event()

    @leader.every(60)
    def slow() -> None:
        began.set()
        assert go_on.wait(SECONDS)

    assert began.wait(SECONDS)
    leader.resign()
    assert not leader.is_leader
    assert leader.owner is not None, "nobody else begins before it has returned"
    go_on.set()
    wait_for(lambda: leader.owner is None)


def test_what_ends_its_thread_does_not_end_the_periodic_work(leader: Leader) -> None:
    calls: list[int] = []

    @leader.every(0.02)
    def leave() -> None:
        calls.append(1)
        raise SystemExit

    wait_for(lambda: len(calls) >= 3)


def test_two_functions_of_one_name(leader: Leader, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def made(what: str) -> Callable[[], None]:
        return lambda: calls.append(what)

    leader.every(0.02)(made("replaced"))
    leader.every(0.02)(made("last"))
    assert "the last one counts" in caplog.text
    leader.every(0.02, name="other")(made("other"))
    leader.every(0.02)(partial(calls.append, "partial"))
    wait_for(lambda: {"last", "other", "partial"} <= set(calls))
    del calls[:]
    wait_for(lambda: len(calls) > 10)
    assert "replaced" not in calls[3:]


def test_a_function_that_runs_on_is_not_started_a_second_time(leader: Leader, caplog: pytest.LogCaptureFixture) -> None:
    """As when the state directory was removed and made anew: the term is over, and its function does not know."""
    running: list[int] = []
    go_on = threading.Event()
    most: list[int] = []

    def work() -> None:
        running.append(1)
        most.append(len(running))
        assert go_on.wait(SECONDS)
        running.pop()

    leader.run(work)
    wait_for(lambda: most)
    first = leader._candidacy.current()
    assert first is not None
    leader._candidacy.lost(first)
    wait_for(lambda: (term := leader._candidacy.current()) is not None and term is not first)
    wait_for(lambda: "still runs" in caplog.text)
    assert most == [1]
    go_on.set()


def test_a_function_may_add_and_resign_from_within(leader: Leader) -> None:
    """Nothing is called while a lock is held: under gevent that would stop the whole worker."""
    done: list[str] = []

    def begin() -> None:
        leader.every(60)(lambda: done.append("periodic"))
        leader.run(lambda: done.append("added"))

    leader.run(begin)
    wait_for(lambda: sorted(done) == ["added", "periodic"])
    leader.run(leader.resign)
    wait_for(lambda: not leader.is_leader)


def test_a_process_stands_once_for_a_directory(directory: Path) -> None:
    with connect(directory) as one, connect(directory) as other:
        done: list[str] = []
        one.leader("s").run(lambda: done.append("one"))
        other.leader("s").run(lambda: done.append("other"))
        wait_for(lambda: sorted(done) == ["one", "other"])
        one.leader("s").resign()


def test_another_name_is_another_leader(manager: StateManager) -> None:
    names = ("a", "b")
    for name in names:
        manager.leader(name).run(lambda: None)
    wait_for(lambda: all(manager.leader(name).is_leader for name in names))
    for name in names:
        manager.leader(name).resign()
    wait_for(lambda: not list(manager.held()))


def test_what_is_refused(manager: StateManager) -> None:
    for bad in ("", ":x"):
        with pytest.raises(ValueError, match="no name"):
            manager.leader(bad)
    for period in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="a period is finite and above zero"):
            manager.leader("l").every(period)
    with pytest.raises(TypeError, match=r"write @leader\.every\(60\)"):
        manager.leader("l").every(lambda: None)  # type: ignore[arg-type]


# -- other processes ---------------------------------------------------------------------------------------------------

CHILD = """
import sys, time, threading, state_manager
manager = state_manager.connect(sys.argv[1])
leader = manager.leader("scheduler")
def lead():
    print("leads", leader.token, flush=True)
leader.run(lead)
print("stands", flush=True)
sys.stdin.read()
"""

Child = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def child(directory: Path) -> Iterator[Child]:
    children: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(directory)]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return children[-1]

    yield start
    for process in children:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def leads(process: subprocess.Popen[str]) -> int:
    """Wait until a process leads, and return its token."""
    words = line(process)
    return int(words[1]) if words[0] == "leads" else leads(process)


def test_it_moves_on_when_its_process_is_killed(directory: Path, child: Child) -> None:
    first = child(CHILD)
    token = leads(first)
    second = child(CHILD)
    assert line(second) == ["stands"]
    with connect(directory) as manager:
        wait_for(lambda: manager._caller.call("leader", "holders", ("scheduler",), False)[0] == 1)
        first.kill()
        began = time.monotonic()
        assert leads(second) > token
        assert time.monotonic() - began < 2
        owner = manager.leader("scheduler").owner
        assert owner is not None
        assert owner.pid == second.pid


def test_it_stays_when_only_the_manager_ends(directory: Path, child: Child) -> None:
    first, second = child(CHILD), child(CHILD)
    with connect(directory) as manager:
        wait_for(lambda: manager.leader("scheduler").owner)
        before = manager.leader("scheduler").owner
        pid = sidecar.find(directory)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: sidecar.find(directory) is None)
        again = sidecar.start(directory)
        try:
            assert manager.leader("scheduler").owner == before
            wait_for(lambda: manager._caller.call("leader", "holders", ("scheduler",), False)[0] == 1)
            assert before is not None
            leader, other = (first, second) if before.pid == first.pid else (second, first)
            leader.kill()
            assert leads(other)
        finally:
            again.kill()
            again.wait(10)


def test_while_no_manager_answers_a_leader_is_one(directory: Path, child: Child) -> None:
    code = CHILD.replace("connect(sys.argv[1])", "connect(sys.argv[1], timeout=0.2)")
    process = child(f"{code}\nprint(leader.is_leader, flush=True)\n")
    leads(process)
    pid = sidecar.find(directory)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    while (words := line(process)) == ["stands"]:
        pass
    assert words == ["True"]


def test_a_forked_child_leads_nothing_that_its_parent_leads(directory: Path, child: Child) -> None:
    code = CHILD.replace(
        "sys.stdin.read()",
        """
import os
while not leader.is_leader: time.sleep(0.005)
if os.fork() == 0:
    print("child", leader.is_leader, leader.token, flush=True)
    os._exit(0)
os.wait()
print("parent", leader.is_leader, flush=True)
""",
    )
    process = child(code)
    out, _ = process.communicate(timeout=SECONDS)
    assert "child False None" in out
    assert "parent True" in out


def test_periodic_work_goes_on_where_the_last_leader_stopped(directory: Path, child: Child) -> None:
    """The due time is the manager's: who takes over waits for it, and does not begin anew."""
    code = CHILD.replace("leader.run(lead)", "leader.every(1.0)(lead)")
    first = child(code)
    began = time.monotonic()
    leads(first)
    second = child(code)
    assert line(second) == ["stands"]
    first.kill()
    leads(second)
    assert 0.9 < time.monotonic() - began < 5


# -- the manager's side ------------------------------------------------------------------------------------------------


def test_turns() -> None:
    room = Room()
    a, waiting = room.lane(), room.lane()
    b = room.lane(session=waiting)
    token = room.ask(a, "leader", "acquire", "s", 1, None, 0, 20.0)
    room.ask(waiting, "leader", "acquire", "s", 1, None, 0, 200.0)

    def turn(who: int, token: int, period: float = 10.0) -> Any:
        return room.ask(who, "leader", "turn", "s", token, "job", period)

    assert turn(a, token) == [True, 10.0]
    assert turn(a, token) == [False, 10.0]
    room.at(4.0)
    assert turn(a, token) == [False, 6.0]
    assert turn(a, token, 2.0) == [False, 2.0], "the period was shortened"
    room.at(10.0)
    assert turn(a, token) == [True, 10.0]
    room.at(35.0)
    assert turn(a, token) == [True, 10.0], "those that were missed are left out"
    assert turn(b, token)[0] == "NotOwner"
    while not room.service.end(room.lanes[a].session):
        pass
    room.commit()
    [second] = room.answers[waiting]
    assert turn(a, token)[0] == "NotOwner"
    assert turn(b, second) == [False, 10.0]
    room.at(46.5)
    assert turn(b, second) == [True, 8.5], "in step with the last one"
    room.service.begin(NOW + 100.0)
    room.service.tidy()
    assert DUE not in room.service.store.spaces, "a job that is no more leaves nothing"


def test_turns_stay_in_step() -> None:
    room = Room()
    a = room.lane()
    token = room.ask(a, "leader", "acquire", "s", 1, None, 0, 20.0)
    assert room.ask(a, "leader", "turn", "s", token, "job", 10.0) == [True, 10.0]
    room.at(13.0)
    assert room.ask(a, "leader", "turn", "s", token, "job", 10.0) == [True, 7.0]


@pytest.mark.parametrize(
    "args", [["", 1, "job", 1.0], ["s", "1", "job", 1.0], ["s", None, 7, 1.0], ["s", None, "job", 0]], ids=repr
)
def test_bad_turns(args: list[Any]) -> None:
    room = Room()
    who = room.lane()
    token = room.ask(who, "leader", "acquire", "s", 1, None, 0, 20.0)
    args = [token if arg is None else arg for arg in args]
    assert room.ask(who, "leader", "turn", *args)[0] in ("ValueError", "TypeError")
