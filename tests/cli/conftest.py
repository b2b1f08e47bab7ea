from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import cli
from tests.cli.harness import Answer, Run, Spawn, running


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a manager."""
    with running(tmp_path_factory.mktemp("cli") / "state") as path:
        yield path


@pytest.fixture
def manager(directory: Path) -> Iterator[state_manager.StateManager]:
    """The same manager, with no dict in it."""
    with state_manager.connect(directory) as manager:
        for space in manager.spaces():
            if space.kind == "dict":
                manager.drop(space.name)
        yield manager


@pytest.fixture
def run(directory: Path, manager: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against that manager."""
    monkeypatch.setenv("STATE_MANAGER_DIR", str(directory))

    def run(*argv: str) -> Answer:
        try:
            code = cli.main(argv)
        except SystemExit as end:  # argparse's own
            code = int(end.code or 0)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts the command as a process of its own, which has ended when the test has."""
    children = []

    def spawn(*argv: str, **options: Any) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "state_manager", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": ""},  # as a user's shell has it
            **options,
        )
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.kill()
        with child:  # closes its pipes and waits for it
            pass
