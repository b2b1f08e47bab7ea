"""Finds the manager process of a directory, and starts one.

The idea: a manager is found by connecting to its socket, never by trusting a pid file. One that is started says on a
channel of its own whether it is ready: ``ready PID`` or ``error TEXT``.

The rules:
- A manager is a new process group, so that a Ctrl-C or a signal to its starter's group does not reach it.
- A detached one is nobody's child either: gunicorn's master reaps every child it has and takes it for a worker. A tiny
  launcher forks it and ends. Forking is safe there: the launcher is a fresh interpreter with one thread.
- Many may call ``ensure`` or ``replace`` at once: they take turns. Whoever starts a manager past them is settled by its
  lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from state_manager.directory import LOG, StateDirectory, peer_pid
from state_manager.errors import StateError, Unavailable

SERVE = ("-P", "-m", "state_manager", "serve")
"""What the interpreter is told. ``-P``: a ``state_manager.py`` in the working directory is not the manager."""

CONNECT_SECONDS = 1.0
LOADING_SECONDS = 10.0
"""How long a manager that is reading its journal may be silent."""
_LOADING = b"loading\n"
LAST_WORDS = 2048
"""Bytes of a dead manager's log that its error shows."""
_POLL = 0.02
_GRACE = 1.0

# Standard input and output are the null device and the channel, standard error the log; Popen has closed all others.
# It is the leader of a new session and its child is not, so the manager can never acquire a terminal.
_LAUNCHER = """
import os, sys
channel = os.dup(1)
os.set_inheritable(channel, True)
os.dup2(0, 1)
if os.fork() == 0:
    os.setpgid(0, 0)
    os.execv(sys.argv[1], [*sys.argv[1:], "--ready-fd", str(channel)])
os._exit(0)
"""


def find(directory: Path) -> int | None:
    """Return the pid of the manager that serves the directory, None if there is none.

    Raises StateError if the directory is not safe, AuthenticationFailed if the manager is another user's.
    """
    try:
        state = StateDirectory.open(directory, create=False)
    except FileNotFoundError:
        return None
    with contextlib.closing(state):
        return _find(state)


def _find(state: StateDirectory, *, speaking: bool = False) -> int | None:
    """Return the manager's pid; ``speaking``: only of one that greets, not of one that is about to end."""
    try:
        connection = state.connect(CONNECT_SECONDS)
    except Unavailable:
        return None
    with connection:
        if speaking:
            with contextlib.suppress(OSError):
                speaking = not connection.recv(1)
        return None if speaking else peer_pid(connection) or state.holder()


def start(directory: Path, *, timeout: float = 10.0) -> subprocess.Popen[bytes]:
    """Start a manager as a child of this process, with its standard error, and return it when it is ready.

    ``timeout`` in seconds. Raises StateError with what the manager said, Unavailable if it ended or hung and said
    nothing; then no process is left.
    """
    with _channel() as (reader, writer):
        child = _run(
            [*_command(directory), "--ready-fd", str(writer.fileno())],
            stdout=subprocess.DEVNULL,
            pass_fds=(writer.fileno(),),
            process_group=0,
        )
        writer.close()
        try:
            _ready(reader, time.monotonic() + timeout)
        except EOFError:
            code = _end(child)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise Unavailable(
                f"the manager for {directory} {how} before it was ready; its messages are above"
            ) from None
        except TimeoutError:
            _end(child)
            raise Unavailable(f"the manager for {directory} was not ready after {timeout:g} s and was ended") from None
        except BaseException:
            _end(child)
            raise
    return child


def ensure(directory: Path, *, timeout: float = 10.0) -> int:
    """Return the pid of the directory's manager; if there is none, start one that outlives this process.

    Its messages go to ``manager.log``. It keeps this process's environment and working directory: a relative entry of
    PYTHONPATH means the same to both. ``timeout`` in seconds. Raises as ``start`` does.
    """
    pid = find(directory)
    if pid is not None:
        return pid
    deadline = time.monotonic() + timeout
    with contextlib.closing(StateDirectory.open(directory, create=True)) as state, _turn(state, deadline):
        pid = _find(state)
        if pid is not None:
            return pid
        try:
            return _start_detached(state, deadline)
        except StateError:
            pid = _adopt(state, deadline)
            if pid is None:
                raise
            return pid


def replace(directory: Path, *options: str, timeout: float = 30.0) -> tuple[int | None, int]:
    """Start a detached manager that takes over from the one that runs, and return the pids of both.

    The first is None if there was none. ``options`` are further ones of ``serve``. Somebody who looks after the old one
    (run.py) may start its successor first: then that is it. ``timeout`` in seconds. Raises as ``start`` does.
    """
    deadline = time.monotonic() + timeout
    with contextlib.closing(StateDirectory.open(directory, create=True)) as state, _turn(state, deadline):
        old = _find(state)
        try:
            return old, _start_detached(state, deadline, "--takeover", *options)
        except StateError:
            new = _adopt(state, deadline) if old is None or _find(state) != old else old
            if new is None or new == old:
                raise
            return old, new


@contextlib.contextmanager
def _turn(state: StateDirectory, deadline: float) -> Iterator[None]:
    """Hold the lock of the directory itself, which only starters use."""
    while not _lock(state.fd):
        if time.monotonic() > deadline:
            raise Unavailable(f"another process is still starting a manager for {state.path}; try again")
        time.sleep(_POLL)
    try:
        yield
    finally:
        fcntl.flock(state.fd, fcntl.LOCK_UN)  # closing is not enough: a child that was forked meanwhile shares it


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _adopt(state: StateDirectory, deadline: float) -> int | None:
    """Wait for the manager that somebody else has started, as long as it holds the lock."""
    while (pid := _find(state, speaking=True)) is None and state.holder() is not None and time.monotonic() < deadline:
        time.sleep(_POLL)
    return pid


def _start_detached(state: StateDirectory, deadline: float, *options: str) -> int:
    log = state.open_log()
    try:
        said_before = os.fstat(log).st_size
        with _channel() as (reader, writer):
            launcher = _run(
                [sys.executable, "-P", "-S", "-c", _LAUNCHER, *_command(state.path), *options],
                stdout=writer,
                stderr=log,
                start_new_session=True,
            )
            writer.close()
            launcher.wait()
            try:
                return _ready(reader, deadline)
            except EOFError:
                problem = f"the manager for {state.path} ended before it was ready"
                raise Unavailable(f"{problem}. Its last words:\n{_last_words(log, said_before)}") from None
            except TimeoutError:
                raise Unavailable(f"the manager for {state.path} is not ready yet; see {state.path / LOG}") from None
    finally:
        os.close(log)


def _last_words(log: int, start: int) -> str:
    size = os.fstat(log).st_size
    words = os.pread(log, LAST_WORDS, max(start, size - LAST_WORDS))
    return words.decode(errors="replace").strip() or "none"


def _command(directory: Path) -> list[str]:
    return [sys.executable, *SERVE, "--dir", str(directory)]


def _run(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Run a command with no input and none of this process's descriptors but those in ``options``."""
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    except OSError as error:
        problem = f"cannot run the interpreter {sys.executable!r}: {error.strerror}"
        raise StateError(f"{problem}; start a manager with `state-manager serve`") from error


def _end(child: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a manager that has failed; one that does not end by itself is killed."""
    try:
        return child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


@contextlib.contextmanager
def _channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give the two ends that readiness is told on. Sockets: their timeouts work under gevent and for any descriptor."""
    reader, writer = socket.socketpair()
    with reader, writer:
        yield reader, writer


def _ready(reader: socket.socket, deadline: float) -> int:
    """Return the pid of a manager that says it is ready; raise StateError with its error.

    Raises EOFError if it ends and TimeoutError if it hangs without saying either.
    """
    said = b""
    while not (said.startswith(b"ready ") and said.endswith(b"\n")):
        reader.settimeout(max(deadline - time.monotonic(), 0.001))
        part = reader.recv(4096)
        if _LOADING in part:
            deadline = max(deadline, time.monotonic() + LOADING_SECONDS)
        said = (said + part).replace(_LOADING, b"")
        if not part:
            break
    word, _, text = said.decode(errors="replace").strip().partition(" ")
    if word == "ready":
        return int(text)
    if word == "error":
        raise StateError(text)
    raise EOFError
