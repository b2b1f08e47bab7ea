"""`python run.py` and `state-manager run` begin to serve, or say in time why they do not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from state_manager.supervisor import arguments
from tests.processes.harness import (
    RUN,
    SECONDS,
    Browser,
    Start,
    environment,
    hello,
    processes_of,
    run,
    unreset,
    wait_for,
)

STATE_MANAGER_RUN = (sys.executable, "-m", "state_manager", "run")

ENVIRONMENT_APP = """
import os

def app(environ, start_response):
    start_response("200 OK", [])
    return [str(os.environ.get(environ["PATH_INFO"][1:])).encode()]
"""


def test_the_banner_does_not_wait_for_the_app(start: Start, home: Path) -> None:
    (home / "slow.py").write_text("import time\ntime.sleep(60)\napp = None\n")
    server = start("--app", "slow:app", "--workers", "2")
    first, second, third = (
        line for line in server.text.splitlines() if line.startswith(("slow", "manager ", "inspect"))
    )
    assert first == f"slow:app  http://127.0.0.1:{server.port}, 2 gthread workers of 8 threads"
    assert second == f"manager   pid {server.manager()}, directory {server.directory}"
    assert third.startswith("inspect ")
    command = third.removeprefix("inspect").strip()
    shown = subprocess.run(command, shell=True, cwd=home, env=environment(home), capture_output=True, text=True)
    assert re.search(rf"pid +{server.manager()}\b", shown.stdout), shown


def test_a_port_in_use_is_told_at_once_and_starts_nothing(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        failed = run(home, RUN, "--bind", f"127.0.0.1:{port}")
    assert failed.returncode == 1
    assert f"Connection in use: ('127.0.0.1', {port}): " in failed.stderr
    assert f"end process {os.getpid()}, which holds it" in failed.stderr
    assert failed.stdout == ""
    assert not (home / ".state").exists()


@pytest.mark.parametrize(
    ("source", "name", "code", "message"),
    [
        ("import nothing_of_that_name", "broken:app", 3, "No module named 'nothing_of_that_name'"),
        ("other = 1", "broken:app", 4, "Failed to find attribute 'app' in 'broken'"),
        ("", "missing:app", 3, "No module named 'missing'"),
    ],
)
def test_an_app_that_cannot_be_loaded_ends_it(home: Path, source: str, name: str, code: int, message: str) -> None:
    (home / "broken.py").write_text(source)
    failed = run(home, RUN, "--bind", "127.0.0.1:0", "--app", name)
    assert failed.returncode == code
    assert message in failed.stderr
    assert failed.stderr.count("Starting gunicorn") == 1
    assert processes_of(home) == []


def test_a_manager_that_cannot_start_ends_it(home: Path) -> None:
    (home / ".state").touch()
    failed = run(home, RUN, "--bind", "127.0.0.1:0")
    assert failed.returncode == 1
    assert f"{home}/.state is not a directory" in failed.stderr
    assert processes_of(home) == []


def test_a_gunicorn_that_leaves_for_the_background_is_refused(home: Path) -> None:
    (home / "gunicorn.conf.py").write_text("daemon = True")
    failed = run(home, RUN, "--bind", "127.0.0.1:0")
    assert failed.returncode == 1
    assert failed.stderr.strip().startswith("Error: daemon: this gunicorn is supervised")
    assert processes_of(home) == []


@pytest.mark.parametrize(("option", "code"), [("--check-config", 0), ("--print-config", 0), ("--no-such-option", 2)])
def test_what_needs_no_manager_starts_none(home: Path, option: str, code: int) -> None:
    assert run(home, RUN, "--", option).returncode == code
    assert not (home / ".state").exists()


def test_run_py_finds_its_own_app_wherever_it_is_called(start: Start, home: Path) -> None:
    (home / "web.py").write_text("raise RuntimeError('not this one')")
    hello(start("--workers", "1").browser())


def test_workers_get_the_absolute_directory(start: Start, home: Path) -> None:
    (home / "mine.py").write_text(ENVIRONMENT_APP)
    variables = {"STATE_MANAGER_ADDRESS": "memory://", "STATE_MANAGER_START": "1"}
    server = start("--app", "mine:app", "--dir", "some/where", "--workers", "1", **variables)
    assert server.browser().get("/STATE_MANAGER_DIR").text == str(home / "some/where")
    assert server.browser().get("/STATE_MANAGER_ADDRESS").text == "None"
    assert server.browser().get("/STATE_MANAGER_START").text == "0"  # it is run.py that starts it again


def test_several_addresses_and_a_unix_socket(start: Start, home: Path) -> None:
    path = home / "below" / "app.sock"
    path.parent.mkdir()
    server = start("--workers", "1", "--bind", "unix:app.sock", "--bind", "127.0.0.1:0", "--", "--chdir", "below")
    urls = re.findall(r"http://127\.0\.0\.1:(\d+)", server.text)
    assert [hello(Browser(int(port))).number for port in urls[:2]] == [1, 2]
    unreset(lambda: ask_unix(path))
    os.kill(server.master(), signal.SIGTERM)  # gunicorn takes the name along
    wait_for(lambda: len(server.masters()) == 2, "a new master")
    unreset(lambda: ask_unix(path))
    os.kill(server.master(), signal.SIGKILL)
    wait_for(lambda: len(server.masters()) == 3, "a third master")
    unreset(lambda: ask_unix(path))
    os.kill(server.master(), signal.SIGKILL)
    server.wait_until_said("starting it again", 3)
    server.signal(signal.SIGTERM)  # and now nobody but run.py can remove the name
    assert server.exit_code() == 0
    assert not path.exists()
    assert "Traceback" not in server.text


def test_state_manager_run_finds_the_app(start: Start, home: Path) -> None:
    (home / "app.py").write_text("import web\n\ndef create_app():\n    return web.app\n")
    server = start(command=STATE_MANAGER_RUN)
    assert hello(server.browser()).number == 1
    assert server.text.count("app:create_app()  http://") == 1


def test_state_manager_run_without_an_app_says_what_to_do(home: Path) -> None:
    failed = run(home, STATE_MANAGER_RUN)
    assert failed.returncode == 1
    assert failed.stderr.strip() == f"Error: {arguments.NO_APP}"


def ask_unix(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"Hello World!" in connection.makefile("rb").read()
