"""The sidecar process: takes the directory, makes the server, serves until it is told to end.

``Manager`` is a ``BaseManager`` whose server is ``StateServer``. It is used through ``get_server`` and never ``start``,
which would tie the sidecar's life to that of whoever started it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from functools import partial
from multiprocessing.managers import BaseManager
from pathlib import Path

from . import serializer
from .clock import Clock
from .directory import LOCK_PATIENCE, SOCKET, StateDirectory
from .durability import Compaction, Pins, load
from .errors import StateError
from .journal.log import Journal
from .server import StateServer
from .settings import VERSION, Durability, spin
from .stock import CounterObject, DictObject
from .versions import PageWriter, sweep

logger = logging.getLogger("state_manager")


class Manager(BaseManager):
    """A ``BaseManager`` of a checked, locked directory, with the objects that stock clients may ask for."""

    def __init__(self, directory: StateDirectory, lock: int, max_memory: int | None = None) -> None:
        self._key = directory.key(create=True)
        super().__init__(str(directory.path / SOCKET), self._key, serializer="msgpack")
        self._directory = directory
        self._lock = lock
        self._max_memory = max_memory

    def get_server(self) -> StateServer:
        """Return the server, for ``serve_forever``. Nobody can connect before all else is in place."""
        epoch = self._directory.next_epoch()
        return StateServer(
            self._registry,  # type: ignore[attr-defined]  # the stubs leave it out
            self._directory.bind(),
            self._key,
            epoch,
            directory=str(self._directory.path),
            max_memory=self._max_memory,
            reserve_epoch=self._directory.reserve_epoch,
            still_mine=lambda: self._directory.still_mine(self._lock),
            new_page=partial(PageWriter.create, self._directory.path, self._directory.fd),
        )


Manager.register("dict", DictObject, exposed=DictObject.exposed)
Manager.register("counter", CounterObject, exposed=CounterObject.exposed)


def serve(
    path: Path,
    *,
    ready_fd: int | None = None,
    durability: Durability = "process",
    recover: bool = False,
    patience: float = LOCK_PATIENCE,
    max_memory: int | None = None,
) -> int:
    """Serve a directory until SIGTERM, SIGINT or a shutdown request; return the exit code.

    ``ready_fd``: a descriptor that gets ``ready PID`` or ``error TEXT``, after ``loading`` every now and then, and is
    then closed. ``durability``: "process", "power" or "none". ``recover``: step over damage in the journal, and keep
    the damaged file. ``patience``: seconds to wait for another manager to end. ``max_memory``: bytes.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s state-manager[%(process)d] %(message)s")
    serializer.register()
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(contextlib.closing(StateDirectory.open(path, create=True)))
            lock = directory.lock(patience)
            stack.callback(os.close, lock)
            server = Manager(directory, lock, max_memory).get_server()
            stack.callback(_unlink_socket, directory, lock)
            if durability != "none":
                journal = Journal.open(directory, mode=durability, recover=recover)
                stack.callback(_close, journal)
                _load(server, journal, durability, ready_fd)
            sweep()
            server.show_page()
            server.spin = spin()
        except (StateError, OSError, ValueError) as error:
            logger.error("%s", error)
            _report(ready_fd, f"error {error}", last=True)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        logger.info("version %s serves %s, durability %s", VERSION, directory.path, durability)
        _report(ready_fd, f"ready {os.getpid()}", last=True)
        # Requests make no cycles, and a collection over a million entries would be a pause for everybody.
        gc.collect()
        gc.freeze()
        gc.disable()
        server.serve_forever()
    logger.info("ended")
    return 0


def _close(journal: Journal) -> None:
    """Close the journal; what it could not sync is with the kernel, and is lost only if the machine goes as well."""
    try:
        journal.close()
    except StateError as error:
        logger.error("%s", error)


def _load(server: StateServer, journal: Journal, durability: Durability, ready_fd: int | None) -> None:
    def breathe(progress: str) -> None:
        server.answer_while_loading(progress)
        _report(ready_fd, "loading")

    gc.disable()  # it would look through all that was read, again and again, and find nothing
    load(server.service, journal, breathe)
    server.clock = Clock(journal.last_now)
    server.durability = durability
    server.chores += [Compaction(server.service, journal).step, Pins(server.service, journal).step]
    server.loading = None
    server.watch_sessions()


def _unlink_socket(directory: StateDirectory, lock: int) -> None:
    if directory.still_mine(lock):
        directory.unlink_socket()


def _report(ready_fd: int | None, line: str, *, last: bool = False) -> None:
    if ready_fd is not None:
        with contextlib.suppress(OSError):  # who started us may have given up
            os.write(ready_fd, line.encode() + b"\n")
            if last:
                os.close(ready_fd)
