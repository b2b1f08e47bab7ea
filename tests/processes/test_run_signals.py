"""What run.py does when it gets a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.processes.harness import (
    RUN,
    Server,
    Start,
    environment,
    free_port,
    hello,
    processes_of,
    slow_app,
    wait_for,
)

SLOW_TO_IMPORT = """
import pathlib, time

here = pathlib.Path(__file__).parent
(here / "began").touch()
while not (here / "end").exists():
    time.sleep(0.02)

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"at last"]
"""


def test_hup_reloads_the_workers(start: Start) -> None:
    server = start("--workers", "2")
    last = hello(server.browser())
    master, manager, workers = server.master(), server.manager(), server.workers()
    server.signal(signal.SIGHUP)
    wait_for(lambda: len(server.workers()) == 2 and not workers & server.workers(), "new workers")
    assert hello(server.browser()).number == last.number + 1
    assert (server.master(), server.manager()) == (master, manager)


def test_hup_while_gunicorn_starts_does_not_kill_it(start: Start, home: Path) -> None:
    (home / "slow.py").write_text(SLOW_TO_IMPORT)
    server = start("--app", "slow:app", "--workers", "1", "--", "--preload")
    wait_for((home / "began").exists, "the import's beginning")
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGTTIN)
    (home / "end").touch()
    assert server.browser().get().text == "at last"
    assert "starting it again" not in server.text


def test_ttin_and_ttou_change_the_number_of_workers(start: Start) -> None:
    server = start("--workers", "1")
    hello(server.browser())
    server.signal(signal.SIGTTIN)
    wait_for(lambda: len(server.workers()) == 2, "a second worker")
    server.signal(signal.SIGTTOU)
    wait_for(lambda: len(server.workers()) == 1, "one worker less")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_comes_in_order(start: Start, home: Path, number: int) -> None:
    server = start("--app", slow_app(home), "--workers", "1")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.browser().get_once, "/slow")
        wait_for((home / "began").exists, "the request's beginning")
        server.signal(number)
        server.wait_until_said("Handling signal: term")
        (home / "end").touch()
        assert answer.result().status == 200  # it needed the manager at its end
    assert server.exit_code() == 0
    assert processes_of(home) == []


def test_a_second_signal_ends_it_faster(start: Start, home: Path) -> None:
    server = start("--app", slow_app(home), "--workers", "1", "--", "--graceful-timeout", "1000")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.browser().get_once, "/slow")
        wait_for((home / "began").exists, "the request's beginning")
        server.signal(signal.SIGTERM)
        server.wait_until_said("Handling signal: term")
        while server.popen.poll() is None:
            server.signal(signal.SIGINT)
            time.sleep(0.05)
        assert isinstance(answer.exception(), OSError)
    assert server.exit_code() == 0
    assert processes_of(home) == []


def test_ctrl_c_in_a_terminal_reaches_gunicorn_before_the_manager(home: Path) -> None:
    controller, terminal = os.openpty()
    port = free_port()
    take_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    # One worker, which is up when it answers: gunicorn waits half a minute for one that TERM meets while it is born.
    arguments = [*RUN, slow_app(home), "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    with open(home / "log", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", take_terminal, *arguments],
            stdin=terminal,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environment(home),
            start_new_session=True,
        )
    os.close(terminal)
    server = Server(child, home / "log", home, port)
    server.wait_until_said("Booting worker")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.browser().get_once, "/slow")
        wait_for((home / "began").exists, "the request's beginning")
        os.write(controller, b"\x03")
        server.wait_until_said("Handling signal: term")
        (home / "end").touch()
        assert answer.result().status == 200
    assert server.exit_code() == 0
    os.close(controller)
    assert "Handling signal: int" not in server.text
    assert processes_of(home) == []


def test_usr2_replaces_the_master_and_starts_nothing_twice(start: Start, home: Path) -> None:
    server = start("--workers", "1")
    last = hello(server.browser())
    old, manager = server.master(), server.manager()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(server.masters()) == 2 and server.workers(), "the new master's worker")
    new = server.master()
    assert psutil.Process(new).cmdline() == psutil.Process(old).cmdline()
    os.kill(old, signal.SIGTERM)
    server.wait_until_said(f"pid {new} goes on")
    wait_for(lambda: hello(server.browser()).pid in server.workers(), "an answer of the new master's worker")
    assert hello(server.browser()).number > last.number
    assert server.manager() == manager
    os.kill(new, signal.SIGKILL)  # and the new one is looked after as the old one was
    wait_for(lambda: len(server.masters()) == 3, "a third master")
    hello(server.browser())
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert len(server.masters()) == 3
    assert processes_of(home) == []
