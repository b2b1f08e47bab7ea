"""Whether this process serves requests: what runs by itself in one of all workers, such as a leader, begins only then.

An app is imported in many places that do not serve: gunicorn's master (``preload_app``), ``flask`` commands, tests. So
what is to begin waits there until

- gunicorn's worker says for the first time that it is alive, which all classes of workers do once they serve;
- or, with another server, a Flask app with a SharedState gets its first request, which is not a test's.

In any other process, such as a script that connects by itself, it begins at once. Nothing ever begins under pytest.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("state_manager")

_began_in: int | None = None
_waiting: list[Callable[[], object]] = []


def when_serving(begin: Callable[[], object], *, web: bool) -> None:
    """Call ``begin`` as soon as this process serves. ``web``: what asks belongs to a web app."""
    if _began_in == os.getpid() or not (web or _is_gunicorn() or _is_flask_command() or is_test()):
        begin()
        return
    _waiting.append(begin)
    if _is_gunicorn():
        _listen_to_gunicorn()
    elif not (web or is_test()):
        logger.warning("nothing is elected in a `flask` command: with a SharedState it begins at the first request")


def begin() -> None:
    """Say that this process serves."""
    global _began_in
    if _began_in != os.getpid():
        _began_in = os.getpid()
        waiting, _waiting[:] = list(_waiting), []
        for call in waiting:
            call()


def is_test() -> bool:
    """Return whether this process runs pytest. (One that a test has started does not.)"""
    return "_pytest" in sys.modules


def _is_gunicorn() -> bool:
    return "gunicorn.arbiter" in sys.modules


def _is_flask_command() -> bool:
    if "flask.cli" not in sys.modules:
        return False
    import click
    from flask.cli import FlaskGroup

    context = click.get_current_context(silent=True)
    return context is not None and isinstance(context.find_root().command, FlaskGroup)


def _listen_to_gunicorn() -> None:
    from gunicorn.workers.base import Worker

    notify = Worker.notify
    if getattr(notify, "__module__", None) == __name__:
        return  # from before a fork, or another app's

    def notify_and_begin(worker: Any) -> None:
        Worker.notify = notify
        notify(worker)
        begin()

    Worker.notify = notify_and_begin
