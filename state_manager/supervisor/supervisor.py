"""Keeps one manager and one gunicorn running until it is told to stop.

The rules:
- The listening sockets are this process's. A gunicorn that dies is started again on them: connections wait, none is
  refused. Its orphaned workers finish their requests and end.
- gunicorn and the manager are process groups of their own, so that Ctrl-C reaches only this process. It stops gunicorn
  first and then the manager.
- A manager that was there before is used and left running; one that was started here ends here.
- A gunicorn that ends with an error before it has loaded the app would do so again: its exit code becomes ours. Once
  an app was served, it is tried again for a while.
- After USR2 there are two masters. When one ends the other one is the gunicorn, and nothing is started.
- If this process is killed, gunicorn and the manager go on. The next one uses the manager, and names the pid that holds
  the port.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from state_manager import sidecar, users
from state_manager.errors import StateError
from state_manager.supervisor import banner, children
from state_manager.supervisor.arguments import Plan
from state_manager.supervisor.listeners import CannotListen, InUse, Listeners, command_of
from state_manager.supervisor.loop import Loop
from state_manager.supervisor.starting import Backoff, Gunicorn, Manager, start_application, start_manager, wanted

FAILED = 1
"""The exit code if it was not gunicorn that failed."""
LAST_TRY = 8
"""So many times in a row gunicorn may fail to load an app that it has served before."""
LOOK_SECONDS = 1.0
"""How often to look at a process that cannot be watched."""
SUCCESSOR_SECONDS = 0.25
"""How long a manager that ended in order may take to be followed by one that was waiting for it."""
MANAGER_SECONDS = 10.0
"""How long the manager may take to end in order."""
SPARE_SECONDS = 5.0
"""What gunicorn may take beyond its own graceful timeout."""

ECHO_SECONDS = 0.3
"""One Ctrl-C may arrive twice: from the terminal, and from a program around us that passes it on, as `timeout` does."""

GRACEFUL, QUICK, KILL = 1, 2, 3
"""How urgently it must end; every further signal raises it."""

STOPPING: Mapping[int, int] = {signal.SIGTERM: GRACEFUL, signal.SIGINT: GRACEFUL, signal.SIGQUIT: QUICK}
FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)

log = logging.getLogger(__name__)


class Supervisor:
    """Everything that happens is a call of one of these methods by the loop."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._plan = plan
        self._loop = Loop((*STOPPING, *FORWARDED, signal.SIGCHLD), self._on_signal)
        self._configuration: dict[str, Any] = {}
        self._listeners: Listeners | None = None
        self._manager: Manager | None = None
        self._manager_backoff = Backoff()
        self._gunicorn: Gunicorn | None = None
        self._gunicorn_backoff = Backoff()
        self._orphaned: list[int] = []
        """Process groups without a master, whose workers are ending."""
        self._tries_left = 0
        """How often gunicorn may still end without having loaded the app: never before the first time."""
        self._urgency = 0
        self._asked_to_stop = -ECHO_SECONDS
        self._leaving = False
        """Whether gunicorn has ended and it is the manager's turn."""
        self._done = False
        self._code = 0

    def run(self) -> int:
        """Run until told to stop, or until gunicorn turns out to be hopeless; return the exit code."""
        with self._loop:
            children.adopt_orphans()
            self._start_gunicorn()
            while not self._done:
                self._loop.turn()
        if self._listeners:
            self._listeners.unlink()
        if self._manager:
            end = banner.command("stop", self._directory)
            log.info("the manager (pid %d) was running before and goes on; to end it: %s", self._manager.pid, end)
        return self._code

    # What happens

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number in STOPPING:
            if time.monotonic() - self._asked_to_stop > ECHO_SECONDS:
                self._asked_to_stop = time.monotonic()
                self._stop(max(STOPPING[number], min(self._urgency + 1, KILL)))
        elif self._gunicorn and self._gunicorn.configured:
            children.kill(self._gunicorn.masters[0], number)

    def _reap(self) -> None:
        for pid, code in children.ended_children():
            self._ended(pid, code)
        self._leave()

    def _ended(self, pid: int, code: int | None) -> None:
        """Note the end of any process; ``code`` is None if it was not a child of ours."""
        if self._manager and pid == self._manager.pid:
            self._manager_ended(self._manager, code)
        elif self._gunicorn and pid in self._gunicorn.masters:
            self._master_ended(self._gunicorn, pid, code)

    def _watch(self, pid: int) -> None:
        """Notice the end of a process that may not be a child."""
        try:
            descriptor = children.watch(pid)
        except ProcessLookupError:
            self._gone(pid)
            return
        if descriptor is None:
            self._loop.after(LOOK_SECONDS, lambda: self._watch(pid))
        else:
            self._loop.read(descriptor, lambda: self._watched_end(pid, descriptor))

    def _watched_end(self, pid: int, descriptor: int) -> None:
        self._loop.forget(descriptor)
        os.close(descriptor)
        self._gone(pid)

    def _gone(self, pid: int) -> None:
        self._reap()  # if it was a child after all, that knows its exit code
        self._ended(pid, None)
        self._leave()

    # The manager

    def _find_manager(self) -> int:
        """Return its pid, 0 if there is none. Raises StateError."""
        uid, gid = self._configuration["uid"], self._configuration["gid"]
        return users.run_as(uid, gid, lambda: sidecar.find(self._directory) or 0)

    def _find_or_start_manager(self, *, ours: bool = False) -> Manager:
        """Return the manager there is, or a new one. ``ours``: even one that is found is, and ends with this process.

        Raises StateError.
        """
        uid, gid, directory = self._configuration["uid"], self._configuration["gid"], self._directory
        pid = self._find_manager()
        started = pid == 0
        if started:
            users.make_directory_for(uid, gid, directory)
            pid = users.run_as(uid, gid, lambda: start_manager(directory))
        self._manager = manager = Manager(pid, started or ours, time.monotonic())
        if not started or uid != os.geteuid():
            self._watch(pid)
        return manager

    def _manager_ended(self, manager: Manager, code: int | None) -> None:
        self._manager = None
        if self._leaving:
            self._done = True
            return
        log.warning("the manager (pid %d) %s; starting it again", manager.pid, children.ending(code))
        delay = self._manager_backoff.delay(time.monotonic() - manager.since)
        if code == 0:  # somebody asked it to end: perhaps another one that takes its place
            delay = max(delay, SUCCESSOR_SECONDS)
        self._loop.after(delay, lambda: self._start_manager_again(manager.ours))

    def _start_manager_again(self, ours: bool) -> None:
        """``ours``: the one before was, so one that took its place in between (``restart``) is ours as well."""
        if self._leaving:
            return
        try:
            manager = self._find_or_start_manager(ours=ours)
            log.info("the manager is pid %d now", manager.pid)
        except (StateError, OSError) as error:
            delay = max(self._manager_backoff.delay(0.0), LOOK_SECONDS)
            log.error("%s; trying again in %g s", error, delay)
            self._loop.after(delay, lambda: self._start_manager_again(ours))

    # gunicorn

    def _start_gunicorn(self) -> None:
        if self._urgency:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                gunicorn = Gunicorn(start_application(self._plan, theirs.fileno(), self._directory), ours)
        except OSError as error:
            ours.close()
            delay = max(self._gunicorn_backoff.delay(0.0), LOOK_SECONDS)
            log.error("cannot start gunicorn: %s; trying again in %g s", error, delay)
            self._loop.after(delay, self._start_gunicorn)
            return
        self._gunicorn = gunicorn
        self._loop.read(ours.fileno(), lambda: self._read_channel(gunicorn))

    def _read_channel(self, gunicorn: Gunicorn) -> None:
        if gunicorn.channel.fileno() < 0:
            return
        try:
            data = gunicorn.channel.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._hang_up(gunicorn)
        *lines, gunicorn.unread = (gunicorn.unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["event"] == "loaded":
                gunicorn.loaded = True
                self._tries_left = LAST_TRY
            elif message["successor"]:
                log.info("gunicorn has a second master (pid %d)", message["pid"])
                gunicorn.masters.append(message["pid"])
            elif not self._urgency:
                self._serve(gunicorn, message)

    def _hang_up(self, gunicorn: Gunicorn) -> None:
        """Close the channel; a gunicorn that waits for its sockets ends then."""
        if gunicorn.channel.fileno() >= 0:
            self._loop.forget(gunicorn.channel.fileno())
            gunicorn.channel.close()

    def _serve(self, gunicorn: Gunicorn, configuration: dict[str, Any]) -> None:
        """Give a configured gunicorn its sockets; the first time they are made now, and a manager found or started."""
        first = not self._configuration
        self._configuration = configuration
        gunicorn.configured = True
        try:
            if self._listeners is None:
                self._listeners = Listeners(wanted(configuration))
            if first:
                self._show_banner(self._listeners, self._find_or_start_manager())
            with contextlib.suppress(ConnectionError):  # it has been killed meanwhile
                socket.send_fds(gunicorn.channel, [b"+"], self._listeners.filenos())
        except (CannotListen, StateError, OSError) as error:
            log.error("%s", self._explain(error))
            self._give_up(FAILED)
            self._hang_up(gunicorn)

    def _show_banner(self, listeners: Listeners, manager: Manager) -> None:
        urls = listeners.urls(self._configuration["scheme"])
        found = f"pid {manager.pid}" + ("" if manager.ours else " (was running)")
        with contextlib.suppress(OSError):  # nobody reads it
            print(banner.text(self._configuration, urls, found, self._directory), flush=True)

    def _explain(self, error: Exception) -> str:
        """Say what can be done about an address in use."""
        words = str(error)
        if not isinstance(error, InUse):
            return words
        words += ": choose another --bind"
        if error.holder is not None:
            words += f", or end process {error.holder}, which holds it ({command_of(error.holder)})"
        with contextlib.suppress(StateError):
            manager = self._find_manager()
            if manager:
                words += f". The manager (pid {manager}) goes on and keeps its state for the next run"
        return words

    def _master_ended(self, gunicorn: Gunicorn, pid: int, code: int | None) -> None:
        others = [other for other in gunicorn.masters if other != pid and children.is_in(gunicorn.group, other)]
        if others:
            gunicorn.masters = others
            log.info("gunicorn's master (pid %d) %s; pid %d goes on", pid, children.ending(code), others[0])
            self._watch(others[0])
            return
        self._read_channel(gunicorn)  # its last words
        self._hang_up(gunicorn)
        self._gunicorn = None
        self._end_orphans(gunicorn.group)
        if self._urgency:
            return
        failed = not gunicorn.loaded and code is not None and code >= 0
        if failed and self._tries_left == 0:
            if self._configuration:  # else its own message is the last line
                log.error("gunicorn (pid %d) %s before it could serve", pid, children.ending(code))
            self._give_up(code or 0)
            return
        self._tries_left -= failed
        log.warning("gunicorn (pid %d) %s; starting it again", pid, children.ending(code))
        self._loop.after(self._gunicorn_backoff.delay(time.monotonic() - gunicorn.since), self._start_gunicorn)

    def _end_orphans(self, group: int) -> None:
        """Let the workers of a master that has gone finish their requests, but not for ever."""
        children.kill_group(group, signal.SIGTERM)  # a moment after its leader's end nobody else can have the number
        self._orphaned.append(group)
        self._loop.after(
            self._configuration.get("graceful_timeout", 0), lambda: self._kill_orphans(group, signal.SIGKILL)
        )

    def _kill_orphans(self, group: int, number: int) -> None:
        if group in self._orphaned and children.has_children_in(group):
            children.kill_group(group, number)

    # The end

    def _stop(self, urgency: int) -> None:
        self._urgency = urgency
        if self._listeners:
            self._listeners.close()  # or clients would wait for a server that is about to end
        number = {GRACEFUL: signal.SIGTERM, QUICK: signal.SIGQUIT, KILL: signal.SIGKILL}[urgency]
        gunicorn = self._gunicorn
        if gunicorn and urgency == GRACEFUL:
            for master in gunicorn.masters:
                children.kill(master, number)
            patience = self._configuration.get("graceful_timeout", 0) + SPARE_SECONDS
            self._loop.after(patience, lambda: self._stop(KILL) if self._gunicorn else None)
        elif gunicorn:
            children.kill_group(gunicorn.group, number)
        for group in self._orphaned:
            self._kill_orphans(group, number)
        self._leave()
        if self._leaving and self._manager and urgency == KILL:
            children.kill(self._manager.pid, number)

    def _give_up(self, code: int) -> None:
        self._code = code
        self._urgency = self._urgency or GRACEFUL
        self._leave()

    def _leave(self) -> None:
        """Once gunicorn and its workers have ended let our manager end, too."""
        self._orphaned = [group for group in self._orphaned if children.has_children_in(group)]
        if not self._urgency or self._leaving or self._gunicorn or self._orphaned:
            return
        self._leaving = True
        if self._manager and self._manager.ours:
            pid = self._manager.pid
            children.kill(pid, signal.SIGTERM)
            self._loop.after(MANAGER_SECONDS, lambda: children.kill(pid, signal.SIGKILL))
        else:
            self._done = True
