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
from multiprocessing.managers import BaseManager
from pathlib import Path

from . import serializer
from .directory import SOCKET, StateDirectory
from .errors import StateError
from .server import StateServer
from .settings import VERSION
from .stock import CounterObject, DictObject

log = logging.getLogger("state_manager")


class Manager(BaseManager):
    """A ``BaseManager`` of a checked, locked directory, with the objects that stock clients may ask for."""

    def __init__(self, directory: StateDirectory, lock: int) -> None:
        self._key = directory.key(create=True)
        super().__init__(str(directory.path / SOCKET), self._key, serializer="msgpack")
        self._directory = directory
        self._lock = lock

    def get_server(self) -> StateServer:
        """Return the server, for ``serve_forever``. Nobody can connect before all else is in place."""
        epoch = self._directory.next_epoch()
        return StateServer(
            self._registry,  # type: ignore[attr-defined]  # the stubs leave it out
            self._directory.bind(),
            self._key,
            epoch,
            directory=str(self._directory.path),
            reserve_epoch=self._directory.reserve_epoch,
            still_mine=lambda: self._directory.still_mine(self._lock),
        )


Manager.register("dict", DictObject, exposed=DictObject.exposed)
Manager.register("counter", CounterObject, exposed=CounterObject.exposed)


def serve(path: Path, *, ready_fd: int | None = None) -> int:
    """Serve a directory until SIGTERM, SIGINT or a shutdown request; return the exit code.

    ``ready_fd``: a descriptor that gets one line, ``ready PID`` or ``error TEXT``, and is then closed.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s state-manager[%(process)d] %(message)s")
    serializer.register()
    try:
        directory = StateDirectory.open(path, create=True)
        lock = directory.lock()
        server = Manager(directory, lock).get_server()
    except StateError as error:
        log.error("%s", error)
        _report(ready_fd, f"error {error}")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    log.info("version %s serves %s", VERSION, directory.path)
    _report(ready_fd, f"ready {os.getpid()}")
    # Requests make no cycles, and a collection over a million entries would be a pause for everybody.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        server.serve_forever()
    finally:
        if directory.still_mine(lock):
            directory.unlink_socket()
        os.close(lock)
        directory.close()
    log.info("ended")
    return 0


def _report(ready_fd: int | None, line: str) -> None:
    if ready_fd is not None:
        with contextlib.suppress(OSError):  # who started us may have given up
            os.write(ready_fd, line.encode() + b"\n")
            os.close(ready_fd)
