"""Which descriptors are ready. epoll as it is where there is one, because ``selectors`` costs as much again; else that.

Masks are epoll's: ``READ`` and ``WRITE``, and whatever else the kernel reports (an error, a hang-up) counts as both.
"""

from __future__ import annotations

import contextlib
import select
import selectors
from typing import Final, Protocol

READ: Final = 1
WRITE: Final = 4


class Poller(Protocol):
    """A set of descriptors, each with what is awaited of it."""

    def register(self, fd: int, mask: int) -> None: ...

    def modify(self, fd: int, mask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Return the ready descriptors with their masks, after ``timeout`` seconds at the latest."""

    def close(self) -> None: ...


class SelectorsPoller:
    """The same over ``selectors``, which has a form for every system."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, mask: int) -> None:
        self._selector.register(fd, _events(mask))

    def modify(self, fd: int, mask: int) -> None:
        self._selector.modify(fd, _events(mask))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in self._selector.select(timeout)
        ]

    def close(self) -> None:
        self._selector.close()


def _events(mask: int) -> int:
    return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)


def new_poller() -> Poller:
    """Return the quickest poller that this system has."""
    with contextlib.suppress(AttributeError):
        return select.epoll()
    return SelectorsPoller()
