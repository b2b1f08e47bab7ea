"""What proxies call, and how: the manager through a socket (``client``), or a store in this process (``memory``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .nearcache import Copies
from .versions import Page


class Asker(Protocol):
    """Runs commands."""

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        """Run a command and return its result. ``numbered``: it writes, so a retry must count once."""


class Caller(Asker, Protocol):
    """What proxies call: a ``Client``, or the store in this process (``memory``)."""

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], Page | None]:
        """Do the same and return the whole reply, with the page under which copies of what it says may be kept."""

    def copies(self, space: str) -> Copies | None:
        """Return this process's copies of a space, None if it keeps none; and ``look``."""

    def lasting_copies(self, space: str) -> Copies | None:
        """Return them if they are the same for as long as this caller is used, else None."""

    def look(self) -> None:
        """See to it that copies are not used for ever that nobody can mark as out of date any more."""

    def wait(self, kind: str, name: str, args: Sequence[Any], timeout: float, numbered: bool = True) -> Any:
        """Run a command that may wait, up to ``timeout`` seconds, which it takes as its last argument."""

    def tell_later(self, kind: str, name: str, args: Sequence[Any]) -> None:
        """Run a command that writes as soon as the manager can be reached, and do not say what came of it."""

    def close(self) -> None: ...
