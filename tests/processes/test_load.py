"""Requests all the time while the manager is killed or replaced or gunicorn reloaded: none fails, none counts twice."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.processes.harness import Server, Start, hello, run, wait_for

STATE_MANAGER = (sys.executable, "-P", "-m", "state_manager")


def kill_the_manager(server: Server) -> None:
    before = server.manager()
    os.kill(before, signal.SIGKILL)
    server.manager_after(before)


def restart_the_manager(server: Server) -> None:
    before = server.manager()
    done = run(server.home, STATE_MANAGER, "restart", "--dir", str(server.directory))
    assert done.returncode == 0, done.stderr
    assert server.manager() not in (0, before)


def reload_gunicorn(server: Server) -> None:
    workers = server.workers()
    server.signal(signal.SIGHUP)
    wait_for(lambda: server.workers() and not (workers & server.workers()), "new workers")


def each_in_turn(server: Server) -> None:
    for event in (kill_the_manager, restart_the_manager, reload_gunicorn, kill_the_manager):
        event(server)


@pytest.mark.parametrize("event", [kill_the_manager, restart_the_manager, reload_gunicorn, each_in_turn])
def test_no_request_fails(start: Start, event: Callable[[Server], None]) -> None:
    server = start("--workers", "2")
    stop = threading.Event()

    def ask() -> list[int]:
        browser = server.browser()
        numbers = []
        while not stop.is_set():
            numbers.append(hello(browser).number)  # fails for anything but 200 and a count
        return numbers

    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(ask) for _ in range(4)]
        try:
            wait_for(lambda: hello(server.browser()).number > 50, "some requests before it")
            event(server)
            last = hello(server.browser()).number
            wait_for(lambda: hello(server.browser()).number > last + 50, "some requests after it")
        finally:
            stop.set()
        numbers = [number for client in running for number in client.result()]
    assert len(numbers) == len(set(numbers)), "no number was given twice"
    assert hello(server.browser()).number > max(numbers)


def test_a_manager_that_was_replaced_ends_with_run_py(start: Start) -> None:
    server = start("--workers", "1")
    restart_the_manager(server)
    wait_for(lambda: hello(server.browser()).number, "an answer")
    server.wait_until_said("the manager is pid")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert server.manager() == 0
