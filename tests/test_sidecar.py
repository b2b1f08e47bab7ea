"""Finding and starting managers: mostly stand-ins, which can also die, hang or be slow; at the end the real one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import sidecar
from state_manager.directory import StateDirectory
from state_manager.errors import StateError, Unavailable

ROOT = Path(state_manager.__file__).parent.parent
SEARCH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
"""A PYTHONPATH with which every interpreter finds the package under test."""

STAND_IN = """
import contextlib, json, os, signal, sys
from state_manager import directory
from state_manager.errors import StateError

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

directory.LOCK_PATIENCE = 0.1
channel, how = int(option("--ready-fd")), os.environ["HOW"]
null = os.stat(os.devnull).st_rdev
facts = {
    "pid": os.getpid(),
    "group": os.getpgrp(),
    "session": os.getsid(0),
    "null": [os.fstat(fd).st_rdev == null for fd in (0, 1)],
    "cwd": os.getcwd(),
    "open": [fd for fd in range(64) if fd != channel and not directory._identity(fd) is None],
}
with open(os.environ["STARTS"], "a") as starts:
    starts.write(json.dumps(facts) + "\\n")
if how == "dies":
    sys.exit("the disk is on fire")
if how == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "refuses":
    os.write(channel, b"error for two\\nreasons\\n")
    sys.exit(1)
if how == "hangs":
    signal.pause()
state = directory.StateDirectory.open(option("--dir"), create=True)
try:
    lock = state.lock()
except StateError as error:
    os.write(channel, f"error {error}\\n".encode())
    sys.exit(1)
if how == "loads":
    print("loading", flush=True)
    sys.stdin.read()
listener = state.bind()
os.write(channel, f"ready {os.getpid()}\\n".encode())
print("serving", file=sys.stderr, flush=True)
listener.setblocking(True)
while True:
    with contextlib.suppress(OSError):
        listener.accept()[0].send(b"a greeting")
"""


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


class Starts:
    """The stand-ins that were started, as they told it themselves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """Let the stand-in be the manager's command, and end all that were started."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(sidecar, "SERVE", ("-P", str(script)))
    monkeypatch.setenv("HOW", "serves")
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    monkeypatch.setenv("PYTHONPATH", SEARCH)
    starts = Starts(tmp_path / "starts")
    yield starts
    for facts in starts():
        kill(facts["pid"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "the state"


@pytest.fixture
def state(path: Path) -> Iterator[StateDirectory]:
    with contextlib.closing(StateDirectory.open(path, create=True)) as state:
        yield state


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves no descriptors open and waits for every child that it starts."""
    children: list[subprocess.Popen[bytes]] = []
    run = sidecar._run

    def note(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        children.append(run(command, **options))
        return children[-1]

    before = len(os.listdir("/dev/fd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sidecar, "_run", note)
        yield
    assert len(os.listdir("/dev/fd")) == before
    assert all(child.returncode is not None for child in children)


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


# find


def test_nobody_is_found(path: Path) -> None:
    assert sidecar.find(path) is None
    assert not path.exists()


def test_a_manager_is_found_by_its_socket_and_not_by_its_pid_file(state: StateDirectory) -> None:
    (state.path / "lock").touch(0o600)
    (state.path / "lock").write_text("1\n")
    with nothing_left():
        assert sidecar.find(state.path) is None
        with state.bind():
            assert sidecar.find(state.path) == os.getpid()
        assert sidecar.find(state.path) is None  # its socket is still there


def test_where_the_platform_tells_no_pid_the_lock_does(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    monkeypatch.delattr(socket, "LOCAL_PEERCRED", raising=False)
    lock = state.lock()
    with state.bind():
        assert sidecar.find(state.path) == os.getpid()
    os.close(lock)


def test_an_unsafe_directory_is_refused_and_not_taken_for_an_empty_one(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)
    for function in (sidecar.find, sidecar.ensure):
        with pytest.raises(StateError, match="chmod 700"):
            function(path)


# start


def test_start_returns_a_child_that_is_ready(path: Path, starts: Starts) -> None:
    with nothing_left():
        child = sidecar.start(path)
        assert child.poll() is None
        assert sidecar.find(path) == child.pid
        end(child)
    (facts,) = starts()
    assert facts["group"] == facts["pid"] == child.pid  # a Ctrl-C in the terminal is not for it
    assert facts["null"] == [True, True]
    assert facts["open"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("refuses", StateError, "^for two\nreasons$"),
        ("dies", Unavailable, "ended with exit code 1 before it was ready"),
        ("is killed", Unavailable, "was killed by signal 9 before it was ready"),
        ("hangs", Unavailable, "was not ready after 0.5 s"),
    ],
)
def test_start_names_what_went_wrong_and_leaves_no_process(
    path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch, how: str, error: type[Exception], text: str
) -> None:
    monkeypatch.setenv("HOW", how)
    monkeypatch.setattr(sidecar, "_GRACE", 0.5)
    with nothing_left(), pytest.raises(error, match=text):
        sidecar.start(path, timeout=0.5 if how == "hangs" else 20.0)


def test_the_messages_of_a_started_manager_are_its_starters(path: Path, starts: Starts, capfd: Any) -> None:
    child = sidecar.start(path)
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "serving\n" in said

    until(heard)
    end(child)


@pytest.mark.parametrize("interpreter", ["", "/missing/python"])
def test_an_interpreter_that_does_not_run_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str
) -> None:
    monkeypatch.setattr(sys, "executable", interpreter)
    for function in (sidecar.start, sidecar.ensure):
        with nothing_left(), pytest.raises(StateError, match=f"cannot run the interpreter '{interpreter}'.*serve"):
            function(path)


# ensure


def test_ensure_starts_one_and_finds_it_again(path: Path, starts: Starts) -> None:
    reader, writer = os.pipe()  # gunicorn's listening sockets are inheritable, too
    os.set_inheritable(writer, True)
    with nothing_left():
        pid = sidecar.ensure(path)
        assert sidecar.ensure(path) == pid == sidecar.find(path)
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # it is nobody's child
    (facts,) = starts()
    assert facts["pid"] == pid
    assert facts["session"] not in (pid, os.getsid(0))  # in a session without a terminal, and unable to get one
    assert facts["group"] == pid
    assert facts["null"] == [True, True]
    assert facts["open"] == [0, 1, 2]
    assert facts["cwd"] == os.getcwd()
    until(lambda: (path / "manager.log").read_text() == "serving\n")
    os.close(reader)
    os.close(writer)


def test_the_manager_survives_its_starters_process_group(path: Path, starts: Starts) -> None:
    code = f"from state_manager import sidecar; sidecar.SERVE = {sidecar.SERVE}; import pathlib, signal\n"
    code += f"print(sidecar.ensure(pathlib.Path({str(path)!r})), flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        os.killpg(starter.pid, signal.SIGKILL)
    assert starter.returncode == -signal.SIGKILL
    assert sidecar.find(path) == pid


def test_eight_racers_end_with_one_manager(path: Path, starts: Starts) -> None:
    answers, answer = os.pipe()
    racers = []
    for _ in range(8):
        racer = os.fork()
        if racer == 0:
            text = "failed"
            with contextlib.suppress(BaseException):
                text = str(sidecar.ensure(path, timeout=30.0))
            os.write(answer, f"{text}\n".encode())
            os._exit(0)
        racers.append(racer)
    os.close(answer)
    with open(answers, encoding="utf-8") as lines:
        said = lines.read().split()
    for racer in racers:
        os.waitpid(racer, 0)
    (facts,) = starts()
    assert said == [str(facts["pid"])] * 8


def test_a_manager_that_was_started_by_hand_and_is_still_loading_is_adopted(
    path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, *sidecar.SERVE, "--dir", str(path), "--ready-fd", "1"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env={**os.environ, "HOW": "loads"}, **pipes) as other:
        wait, said = other.stdin, other.stdout
        assert wait
        assert said
        find = sidecar._find

        def look(state: StateDirectory, **options: bool) -> int | None:
            if len(starts()) == 2:  # ours was refused
                wait.close()
            return find(state, **options)

        monkeypatch.setattr(sidecar, "_find", look)
        try:
            assert said.readline() == b"loading\n"
            assert sidecar.ensure(path) == other.pid
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("refuses", StateError, "^for two\nreasons$"),
        ("dies", Unavailable, "ended before it was ready. Its last words:\nthe disk is on fire$"),
        ("is killed", Unavailable, "ended before it was ready. Its last words:\nnone$"),
        ("hangs", Unavailable, "is not ready yet; see .*/the state/manager.log"),
    ],
)
def test_ensure_names_what_went_wrong(
    path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch, how: str, error: type[Exception], text: str
) -> None:
    path.mkdir(0o700)
    (path / "manager.log").touch(0o600)
    (path / "manager.log").write_text("an older manager's words\n")
    monkeypatch.setenv("HOW", how)
    with nothing_left(), pytest.raises(error, match=text):
        sidecar.ensure(path, timeout=0.5 if how == "hangs" else 20.0)


def test_a_starter_that_takes_too_long_is_not_waited_for_without_end(state: StateDirectory) -> None:
    fcntl.flock(state.fd, fcntl.LOCK_EX)
    with nothing_left(), pytest.raises(Unavailable, match="another process is still starting a manager for"):
        sidecar.ensure(state.path, timeout=0.05)


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_turn(state: StateDirectory) -> None:
    reader, writer = os.pipe()
    with sidecar._turn(state, time.monotonic() + 5):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    with (
        contextlib.closing(StateDirectory.open(state.path, create=False)) as other,
        sidecar._turn(other, time.monotonic()),
    ):
        pass
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


def test_a_starter_that_reaps_every_child_itself(path: Path, starts: Starts) -> None:
    """As gunicorn's master does; it would stop for a child that ends with 3 or 4."""
    code = f"""
import contextlib, os, pathlib, signal
from state_manager import sidecar
codes = []
def reap(number, frame):
    with contextlib.suppress(ChildProcessError):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes.append(os.waitstatus_to_exitcode(status))
signal.signal(signal.SIGCHLD, reap)
sidecar.SERVE = {sidecar.SERVE}
pid = sidecar.ensure(pathlib.Path({str(path)!r}))
assert codes in ([], [0]), codes
print(pid)
"""
    assert int(subprocess.check_output([sys.executable, "-c", code], timeout=30)) == sidecar.find(path)


def test_under_gevent_others_go_on_meanwhile(path: Path, starts: Starts) -> None:
    pytest.importorskip("gevent")
    code = f"""
from gevent import monkey; monkey.patch_all()
import gevent, pathlib
from state_manager import sidecar
sidecar.SERVE = {sidecar.SERVE}
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.001)
gevent.spawn(tick)
pid = sidecar.ensure(pathlib.Path({str(path)!r}))
assert len(ticks) > 5, ticks
assert sidecar.ensure(pathlib.Path({str(path)!r})) == pid
print(pid)
"""
    assert int(subprocess.check_output([sys.executable, "-c", code], timeout=30)) == sidecar.find(path)


# The real manager


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where modules named like ours and the standard library's wait to be run by mistake."""
    monkeypatch.setenv("PYTHONPATH", SEARCH)
    monkeypatch.setenv("PYTHON_FROZEN_MODULES", "off")  # else ``os`` is never looked for
    directory = tmp_path / "project"
    directory.mkdir()
    for name in ("state_manager", "os", "subprocess", "selectors"):
        (directory / f"{name}.py").write_text("raise SystemExit('the wrong module was run')")
    monkeypatch.chdir(directory)
    return directory


def test_the_real_manager_as_a_child(path: Path, trap: Path) -> None:
    with nothing_left():
        child = sidecar.start(path)
        try:
            assert sidecar.find(path) == child.pid
            child.terminate()
            assert child.wait(10) == 0
        finally:
            end(child)
    assert sidecar.find(path) is None


def test_the_real_manager_detached(path: Path, trap: Path) -> None:
    pid = sidecar.ensure(path)
    try:
        assert sidecar.find(path) == pid
        with pytest.raises(StateError, match=rf"another manager \(pid {pid}\) serves {path}"):
            sidecar.start(path)
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not (path / "socket").exists())
    assert "serves" in (path / "manager.log").read_text()


def test_the_real_manager_is_replaced(path: Path, trap: Path) -> None:
    none, first = sidecar.replace(path)
    assert none is None
    try:
        old, second = sidecar.replace(path, "--durability", "power")
        assert (old, second) == (first, sidecar.find(path))
        assert second != first
        assert "durability power" in (path / "manager.log").read_text()
    finally:
        kill(sidecar.find(path) or first)


def test_a_real_manager_that_cannot_load_is_no_success(path: Path, trap: Path) -> None:
    """It listens while it reads its journal, and so may still be found after it has told its error."""
    child = sidecar.start(path)
    with state_manager.connect(path) as manager:
        manager.dict("carts").update({"a": 1})
    child.terminate()
    child.wait(20)
    journal = path / "journal.00000001"
    data = bytearray(journal.read_bytes())
    data[60] ^= 1
    journal.write_bytes(data)
    for begin in (sidecar.ensure, sidecar.replace):
        for _ in range(5):
            with pytest.raises(StateError, match="the journal is damaged"):
                begin(path)
    until(lambda: sidecar.find(path) is None)


def test_whoever_is_faster_is_the_successor(path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """As run.py may be, which starts a manager again when it ends."""
    first = sidecar.start(path)
    winners = []

    def lose(*_: object) -> int:
        end(first)
        winners.append(sidecar.start(path))
        raise StateError("another manager serves it")

    with monkeypatch.context() as patch:
        patch.setattr(sidecar, "_start_detached", lose)
        assert sidecar.replace(path) == (first.pid, winners[0].pid)
    monkeypatch.setenv("HOW", "refuses")
    with pytest.raises(StateError, match="for two"):  # the old one still serves: that is no success
        sidecar.replace(path)
    end(winners[0])


def test_the_real_manager_where_the_working_directory_is_gone(path: Path, trap: Path) -> None:
    shutil.rmtree(trap)
    pid = sidecar.ensure(path)
    kill(pid)
