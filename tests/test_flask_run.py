"""Flask's own commands: ``flask run --debug`` brings a manager along, the others leave everything as it is."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from state_manager import connect, sidecar

ROOT = Path(__file__).parent.parent
SERVER_SECONDS = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A state directory; a manager that was started for it ends with the test."""
    yield tmp_path / "state"
    pid = sidecar.find(tmp_path / "state")
    if pid is not None:
        with connect(tmp_path / "state") as manager:
            manager.shutdown()
        deadline = time.monotonic() + 10
        while sidecar.find(tmp_path / "state") is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def environment(directory: Path) -> dict[str, str]:
    return os.environ | {"STATE_MANAGER_DIR": str(directory), "PYTHONPATH": str(ROOT), "FLASK_APP": "web"}


@pytest.fixture
def server(directory: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a development server with debugger and reloader."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "run", "--debug", "--port", str(port)],
            cwd=tmp_path,
            env=environment(directory),
            stdout=log,
            stderr=log,
            start_new_session=True,  # the reloader is two processes
        )
    deadline = time.monotonic() + SERVER_SECONDS
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                said = (tmp_path / "server.log").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(url: str) -> str:
    with urlopen(url, timeout=SERVER_SECONDS) as answer:
        return str(answer.read().decode())


def test_debug_mode_starts_one_manager_when_it_is_first_needed(server: str, directory: Path) -> None:
    assert sidecar.find(directory) is None, "listening needs no state"
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(get, [server + "/"] * 4))
    counts = sorted(int(count) for answer in answers for count in re.findall(r"World! (\d+),", answer))
    assert counts == [1, 2, 3, 4]
    assert sidecar.find(directory) is not None


@pytest.mark.parametrize("arguments", [["routes"], ["--debug", "routes"], ["shell"]], ids=" ".join)
def test_other_commands_start_nothing(arguments: list[str], directory: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flask", *arguments],
        cwd=tmp_path,
        env=environment(directory),
        input=b"app.test_request_context('/').push()\n" if arguments == ["shell"] else b"",
        capture_output=True,
        timeout=SERVER_SECONDS,
        check=True,
    )
    assert b"Traceback" not in done.stderr
    assert not directory.exists()
