"""One suite, every way to reach a store: ``manager`` is each of them in turn, empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state_manager import StateManager, connect, sidecar


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a manager process that serves the whole session."""
    directory = tmp_path_factory.mktemp("contract") / "state"
    process = sidecar.start(directory)
    try:
        yield directory
    finally:
        process.terminate()
        assert process.wait(10) == 0


@pytest.fixture(params=["memory", "process", "process without near cache"])
def reach(request: pytest.FixtureRequest) -> Callable[[], StateManager]:
    """A function that connects anew to one and the same store, which is empty at the start."""
    if request.param == "memory":
        return lambda: connect(f"memory://{request.node.nodeid}")
    directory = request.getfixturevalue("served")
    manager = connect(directory)
    for name in [*(space.name for space in manager.spaces() if space.kind == "dict"), *manager.system(":options")]:
        manager.drop(str(name))
    manager.close()
    near_cache = request.param == "process"
    return lambda: connect(directory, near_cache=near_cache)


@pytest.fixture
def manager(reach: Callable[[], StateManager]) -> Iterator[StateManager]:
    with reach() as manager:
        yield manager
        if manager.stats()["directory"] is None:
            manager.shutdown()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test: the processes that serve the suite go on."""
    return f"{request.node.name}"
