"""How many of a process's reads were served from its own copies: those for which it asked nobody."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from state_manager.client import Client
from state_manager.versions import Page


class Asked(threading.local):
    """``asked.count`` is the number of requests that this thread has sent since ``count_requests``."""

    count = 0


asked = Asked()


def count_requests() -> None:
    """Begin to count the requests of this process."""
    exchange = Client.exchange

    def counting(
        self: Client, kind: str, name: str, args: Sequence[Any], numbered: bool
    ) -> tuple[Sequence[Any], Page | None]:
        asked.count += 1
        return exchange(self, kind, name, args, numbered)

    setattr(Client, "exchange", counting)  # noqa: B010  # mypy refuses to replace a method
