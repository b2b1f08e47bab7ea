"""gunicorn started as root, with workers of another user: the manager is that user's, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes.harness import (
    GUNICORN,
    RUN,
    Command,
    Server,
    environment,
    free_port,
    hello,
    processes_of,
    wait_for,
)

NOBODY = 65534
AS_NOBODY = ("--user", str(NOBODY), "--group", str(NOBODY))


@pytest.fixture
def public_home() -> Iterator[Path]:
    """A directory that the other user can enter, and cannot write to."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        program = ["env", sys.executable, "-c", "import web, state_manager.manager"]
        if subprocess.run(program, cwd=home, env=environment(home), user=NOBODY, check=False).returncode:
            pytest.skip("this interpreter, or this checkout, cannot be read by another user")
        yield home
        for process in processes_of(home):
            process.kill()
        wait_for(lambda: not processes_of(home), "the end of what was killed")


@pytest.mark.parametrize(
    "command",
    [(*RUN, "--", *AS_NOBODY), (*GUNICORN, "-c", "python:state_manager.gunicorn", *AS_NOBODY, "web:app")],
    ids=["run.py", "gunicorn"],
)
def test_the_manager_runs_as_the_workers_user(public_home: Path, command: Command) -> None:
    port = free_port()
    log = public_home / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, "--bind", f"127.0.0.1:{port}"],
            cwd=public_home,
            env=environment(public_home),
            stdout=output,
            stderr=output,
        )
    server = Server(child, log, public_home, port)
    server.wait_until_said("Booting worker")
    assert hello(server.browser()).number == 1
    (manager,) = (one for one in processes_of(public_home) if "serve" in one.cmdline())
    assert manager.uids() == (NOBODY, NOBODY, NOBODY)
    assert server.directory.stat().st_uid == NOBODY
    manager.kill()
    wait_for(lambda: not psutil.pid_exists(manager.pid), "its end")
    assert hello(server.browser()).number == 2  # who starts it again may not be root either
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
