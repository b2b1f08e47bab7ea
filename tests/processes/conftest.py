"""Starts run.py and gunicorn with pytest-xprocess, and ends whatever is left of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from xprocess import ProcessStarter, XProcess

from tests.processes.harness import RUN, Command, Server, Start, environment, free_port, processes_of, wait_for

READY = "^inspect |Listening at"
"""What run.py and gunicorn print early: only the first 50 lines are looked at."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The working directory and the HOME of everything that the test starts; at the end nothing of it is left alive."""
    yield tmp_path

    def all_killed() -> bool:
        """One may have started another just before it was killed, as a worker does whose manager has gone."""
        for process in (alive := processes_of(tmp_path)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return not alive

    wait_for(all_killed, "the end of what was killed")


@pytest.fixture
def start(home: Path, xprocess: XProcess, request: pytest.FixtureRequest) -> Iterator[Start]:
    """``start(*arguments, command=RUN, port=..., cwd=home, **variables)`` returns a Server that has begun."""
    count = itertools.count()
    first = len(xprocess.resources)

    def start(
        *arguments: str,
        command: Command = RUN,
        port: int | None = None,
        cwd: Path = home,
        **variables: str,
    ) -> Server:
        port = port or free_port()

        class Starter(ProcessStarter):  # type: ignore[misc]  # without annotations
            args = (*command, "--bind", f"127.0.0.1:{port}", *arguments)
            env = environment(home, **variables)
            pattern = READY
            timeout = 20
            popen_kwargs = {"cwd": str(cwd)}  # noqa: RUF012

        # Nobody's name before: for a known one xprocess ends whoever has the pid that it wrote down then.
        name = f"{request.node.name}-{os.getpid()}-{next(count)}".replace("/", "_")
        xprocess.ensure(name, Starter, persist_logs=False)
        resource: Any = xprocess.resources[-1]
        return Server(resource.popen, Path(str(resource.info[0].logpath)), home, port)

    yield start
    for resource in xprocess.resources[first:]:
        resource.popen.kill()
        resource.popen.wait()
        shutil.rmtree(str(resource.info[0].controldir))
