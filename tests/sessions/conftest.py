"""A shop of its own for each test, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from state_manager import connect
from state_manager.flask.session_records import NAME
from state_manager.memory import MemoryClient
from tests.sessions.harness import Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"memory://{request.node.nodeid}"
    yield name
    connect(name).shutdown()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that wrote to the sessions, as they are run."""
    names: list[str] = []
    original = MemoryClient.exchange

    def exchange(self: MemoryClient, kind: str, name: str, args: Any, numbered: bool) -> Any:
        if numbered and kind == "dict" and args[0] == NAME:
            names.append(name)
        return original(self, kind, name, args, numbered)

    monkeypatch.setattr(MemoryClient, "exchange", exchange)
    return names
