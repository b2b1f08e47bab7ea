"""The gunicorn that a supervisor runs, as a process of its own: ``python -m state_manager.supervisor.application``.

The idea: gunicorn itself, with two differences. Its settings come in the order that `run.py --help` tells, and its
listening sockets come from the supervisor, which keeps them when this process is killed.

The channel is a stream socket that every process of this gunicorn inherits. One JSON object a line goes up:
``configured`` (once a master: what it will do, and what it wants to listen on) and ``loaded`` (the app was imported).
The only answer is the listening sockets; end of file instead means that the supervisor has told why there are none.

The sockets are fixed for the life of the supervisor: a reload (HUP) that binds elsewhere is told and not followed.
After USR2 the new master has inherited them from the old one, and only tells its pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.config import get_default_config_file
from gunicorn.errors import ConfigError, HaltServer

from state_manager import stopping
from state_manager.supervisor import arguments

ANSWER_SECONDS = 60.0
"""The supervisor starts the manager before it hands out the sockets."""
MAX_SOCKETS = 64

DEFAULT_CLASS = "gthread"
DEFAULT_THREADS = 8

_HANDLED_LATER = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
"""Signals that would kill this process until gunicorn handles them."""


class Application(WSGIApplication):  # type: ignore[misc]  # gunicorn has no annotations
    """Loads the settings in our order and gets the sockets from the supervisor."""

    app_uri: str | None
    supervised = True
    """Tells ``state_manager.gunicorn``, which a user's own settings may import, that a manager is taken care of."""

    def __init__(self, plan: arguments.Plan, channel: Channel) -> None:
        self._plan = plan
        self._channel = channel
        self._binds: list[str] | None = None
        self._asked: list[Any] = []
        super().__init__("%(prog)s [OPTIONS] -- [GUNICORN OPTIONS]", prog=plan.prog)

    def load_config(self) -> None:
        """Set the defaults, then what the file, the environment, our options and gunicorn's own say, in this order."""
        cfg = self.cfg
        parser = cfg.parser()
        last = parser.parse_args(self._plan.rest)
        flags = parser.parse_args(self._plan.flags)
        from_env = parser.parse_args(cfg.get_cmd_args_from_env())
        self.init(parser, last, last.args)
        self.chdir()
        cfg.set("workers", (os.cpu_count() or 1) * 2 + 1)
        cfg.set("worker_class", DEFAULT_CLASS)
        given = set()
        file = last.config or from_env.config or get_default_config_file()
        if file:
            given.update(self.load_config_from_file(file))
        for layer in (_platform_settings(os.environ), vars(from_env), vars(flags), vars(last)):
            for name, value in layer.items():
                if value is not None and name != "args":
                    cfg.set(name, value)
                    given.add(name)
        if cfg.settings["worker_class"].get() == DEFAULT_CLASS and "threads" not in given:
            cfg.set("threads", DEFAULT_THREADS)  # not before: gunicorn takes sync with threads for gthread
        app = self.app_uri or self._plan.app or cfg.wsgi_app or self._plan.default_app
        if app is None:
            raise ConfigError(arguments.NO_APP)
        self.app_uri = app
        cfg.set("default_proc_name", app)
        self.chdir()
        if not (cfg.check_config or cfg.print_config):
            self._take_sockets()

    def chdir(self) -> None:
        """Go where the settings say. The app's own directory stays the first to import from."""
        super().chdir()
        path = self._plan.path
        if path:
            sys.path[:] = [path, *(entry for entry in sys.path if entry != path)]

    def wsgi(self) -> Any:
        """Load the app, and tell that it could be loaded."""
        loaded = super().wsgi()
        self._channel.send({"event": "loaded"})
        return loaded

    def _take_sockets(self) -> None:
        cfg = self.cfg
        if cfg.daemon:
            raise ConfigError("daemon: this gunicorn is supervised and stays in the foreground; remove that setting")
        wanted = [os.path.abspath(address) if isinstance(address, str) else address for address in cfg.address]
        if self._binds is None:
            self._asked = wanted
            inherited = "GUNICORN_FD" in os.environ  # gunicorn itself will take them up
            self._channel.send(self._description(wanted, successor=inherited))
            self._binds = [] if inherited else [f"fd://{fd}" for fd in self._channel.receive_sockets()]
        elif wanted != self._asked:
            print("Warning: bind has changed; that takes effect when the supervisor is started again", file=sys.stderr)
        cfg.set("bind", self._binds)

    def _description(self, wanted: list[Any], *, successor: bool) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "event": "configured",
            "pid": os.getpid(),
            "successor": successor,
            "app": self.app_uri,
            "workers": cfg.workers,
            "threads": cfg.threads,
            "worker_class": cfg.worker_class_str,
            "scheme": "https" if cfg.is_ssl else "http",
            "graceful_timeout": cfg.graceful_timeout,
            "addresses": wanted,
            "backlog": cfg.backlog,
            "umask": cfg.umask,
            "uid": cfg.uid,
            "gid": cfg.gid,
            "reuse_port": cfg.reuse_port,
        }


class Channel:
    """This end of the channel. A supervisor that was killed is no reason to stop serving."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one line, or nothing if nobody listens any more."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)

    def receive_sockets(self) -> list[int]:
        """Return the descriptors of the listening sockets; end this process if there are none."""
        self._socket.settimeout(ANSWER_SECONDS)
        _, fds, _, _ = socket.recv_fds(self._socket, 1, MAX_SOCKETS)
        self._socket.settimeout(None)
        if not fds:
            sys.exit(1)
        return fds


def _platform_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what hosting platforms say in variables of their own."""
    found: dict[str, Any] = {}
    if environ.get("WEB_CONCURRENCY"):
        found["workers"] = environ["WEB_CONCURRENCY"]
    if environ.get("PORT"):
        found["bind"] = f"0.0.0.0:{environ['PORT']}"
    return found


def main() -> None:
    """Run gunicorn until it ends; it ends this process itself, with its own exit code."""
    for number in _HANDLED_LATER:
        signal.signal(number, signal.SIG_IGN)
    plan, channel = arguments.parse_command_line(sys.argv[1:])
    sys.argv = ["-P", "-m", __spec__.name, *sys.argv[1:]]  # what gunicorn gives the interpreter after USR2
    try:
        stopping.install()
        Application(plan, Channel(channel)).run()
    except HaltServer as halt:  # gunicorn raises it again while it halts, if a second worker has failed like the first
        sys.exit(halt.exit_status)


if __name__ == "__main__":
    main()
