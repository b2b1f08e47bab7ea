"""run.py as the first process of a container: it gets every orphan, and no signal has a default action."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.processes.harness import RUN, Start, gone, hello, processes_of, wait_for

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")

ORPHAN_APP = """
import os
from web import app

@app.get("/orphan")
def orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "0.2"])
        os._exit(0)
    os.wait()
    return "made"
"""


def needs_unshare() -> None:
    if shutil.which(UNSHARE[0]) is None:
        pytest.skip("needs the program unshare")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare is not permitted to this user")


def master_among(processes: list[psutil.Process]) -> psutil.Process | None:
    """Return the one that leads its group; orphaned workers, which have its command line, do not."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if "application" in " ".join(process.cmdline()) and os.getpgid(process.pid) == process.pid:
                return process
    return None


def test_it_reaps_orphans_and_ends_in_order(start: Start, home: Path) -> None:
    needs_unshare()
    (home / "orphans.py").write_text(ORPHAN_APP)
    server = start("--app", "orphans:app", "--workers", "2", command=(*UNSHARE, *RUN))
    (first,) = psutil.Process(server.pid).children()
    assert hello(server.browser()).number == 1
    for count in (2, 3):
        for _ in range(5):
            assert server.browser().get("/orphan").text == "made"
        gunicorn = wait_for(lambda: master_among(first.children()), "gunicorn's master")
        workers = [worker.pid for worker in gunicorn.children()]
        gunicorn.kill()
        assert hello(server.browser()).number == count
        wait_for(lambda workers=workers: all(map(gone, workers)), "the orphaned workers' end")  # type: ignore[misc]
    wait_for(lambda: len(first.children()) == 2, "nothing but gunicorn and the manager, no zombie among them")
    os.kill(first.pid, signal.SIGTERM)
    assert server.exit_code() == 0
    assert processes_of(home) == []
