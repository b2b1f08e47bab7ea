"""One loop for everything that can happen to a supervisor: signals, descriptors, timers.

A signal handler does nothing: the interpreter itself writes the signal's number into a socket that the loop reads. So
no action is ever interrupted by another, and nothing waits by looking again and again.
"""

from __future__ import annotations

import heapq
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from types import FrameType

Action = Callable[[], None]


class Loop:
    """``on_signal`` is called with the number of each of ``signals`` that arrives inside the ``with`` block."""

    def __init__(self, signals: Iterable[int], on_signal: Callable[[int], None]) -> None:
        self._signals = tuple(signals)
        self._on_signal = on_signal
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Action]] = []
        self._count = 0

    def __enter__(self) -> Loop:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.read(self._reader.fileno(), self._read_signals)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            signal.signal(number, _handler)
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(-1)
        for number in self._signals:  # the process is about to end: one more Ctrl-C must not end it in another way
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        self._selector.close()
        self._reader.close()
        self._writer.close()

    def read(self, descriptor: int, action: Action) -> None:
        """Call ``action`` whenever there is something to read."""
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def forget(self, descriptor: int) -> None:
        """End ``read``; before the descriptor is closed."""
        self._selector.unregister(descriptor)

    def after(self, seconds: float, action: Action) -> None:
        """Call ``action`` once, later."""
        self._count += 1  # between equal times the first one wins; actions have no order
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, action))

    def turn(self) -> None:
        """Wait until something happens, and act on it."""
        timeout = max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None
        for key, _ in self._selector.select(timeout):
            if self._selector.get_map().get(key.fd) is key:  # else an action before it has closed it
                key.data()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _read_signals(self) -> None:
        for number in self._reader.recv(4096):
            self._on_signal(number)


def _handler(number: int, frame: FrameType | None) -> None:
    """Exist: without a handler the signal would not be written into the socket."""
