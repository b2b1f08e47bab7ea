"""Ends what a gunicorn worker waits for when the worker is stopped, which otherwise would wait as long as its requests.

gunicorn's handler of TERM only sets a flag, so that requests can end, and Python goes on with an interrupted ``recv``
(PEP 475): a request that waits for a lock would keep the worker until the lock is free or its own time is up. So behind
gunicorn's handlers stands ours, which shuts down the sockets that wait. Such a call raises TimedOut, and the manager
takes back what it might still be granted.

Why ``load_wsgi`` is wrapped: it comes after gunicorn has set its handlers, in every class of worker, and in the worker
alone; a hook is a setting, which a line of the user's own file would replace.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from gunicorn.workers.base import Worker

from .client import call_process, end_waits

_load_wsgi = Worker.load_wsgi


def _load_and_handle(worker: Any) -> None:
    call_process(f"gunicorn worker of {worker.cfg.proc_name}")
    _load_wsgi(worker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, _then_end_waits(handler))
    # ``signal.signal`` has undone what gunicorn asks for here; a ``recv`` with a timeout is interrupted all the same.
    signal.siginterrupt(signal.SIGTERM, False)


def _then_end_waits(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
    def handle(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        finally:
            end_waits()

    return handle


def install() -> None:
    """Do it in every worker that is started from now on."""
    Worker.load_wsgi = _load_and_handle
