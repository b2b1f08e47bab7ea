"""Starts the two processes, and says what a supervisor remembers about each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from state_manager import sidecar
from state_manager.settings import ADDRESS_VARIABLE, DIRECTORY_VARIABLE, START_VARIABLE
from state_manager.supervisor.arguments import Plan, command_line
from state_manager.supervisor.listeners import Wanted

STEADY = 5.0
"""A process that has lived so many seconds is not one that cannot live."""
LONGEST_DELAY = 16.0

MODULE = "state_manager.supervisor.application"


class Backoff:
    """How long to wait before something is started again: not at all, and longer with every short life in a row."""

    def __init__(self) -> None:
        self.failures = 0

    def delay(self, lived: float) -> float:
        """Return seconds; ``lived`` is how many seconds the last one lasted."""
        self.failures = 0 if lived >= STEADY else self.failures + 1
        return 0.0 if self.failures < 2 else min(2.0 ** (self.failures - 3), LONGEST_DELAY)


class Manager(NamedTuple):
    """The manager that is used."""

    pid: int
    ours: bool
    """Whether it was started here."""
    since: float


class Gunicorn:
    """One start of gunicorn: a process group of a master, or two while USR2 replaces it, and the workers."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.group = pid
        self.masters = [pid]
        self.channel = channel
        self.unread = b""
        self.configured = False
        """Whether it got so far that a signal does not kill it."""
        self.loaded = False
        """Whether a worker could import the app."""
        self.since = time.monotonic()


def start_manager(directory: Path) -> int:
    """Return the pid of a new manager that is ready. Raises StateError."""
    child = sidecar.start(directory)
    child.returncode = 0  # the supervisor waits for all its children; Popen must not
    return child.pid


def start_application(plan: Plan, channel: int, directory: Path) -> int:
    """Return the pid of a new gunicorn, which inherits its end of the channel. Raises OSError."""
    environ = {**os.environ, DIRECTORY_VARIABLE: str(directory), START_VARIABLE: "0"}  # the manager is our business
    for name in (ADDRESS_VARIABLE, "GUNICORN_PID", "GUNICORN_FD"):
        environ.pop(name, None)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, *command_line(plan, channel)],
        stdin=subprocess.DEVNULL,  # the terminal's would stop it: it is not in the foreground
        pass_fds=(channel,),
        env=environ,
        process_group=0,
    )
    child.returncode = 0  # as above
    return child.pid


def wanted(configuration: Mapping[str, Any]) -> Wanted:
    """Return what a gunicorn that has told its configuration wants to listen on."""
    addresses = configuration["addresses"]
    return Wanted(
        addresses=tuple((one[0], one[1]) if isinstance(one, list) else one for one in addresses),
        **{name: configuration[name] for name in ("backlog", "umask", "uid", "gid", "reuse_port")},
    )
