"""`python run.py` goes on, with every count and login, whatever is killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import state_manager
from state_manager import sidecar
from tests.processes.harness import (
    RUN,
    SECONDS,
    Hello,
    Start,
    environment,
    gone,
    hello,
    many_requests,
    processes_of,
    run,
    slow_app,
    wait_for,
)

WORKER_CLASSES = ["sync", "gthread", "gevent"]


def assert_consecutive(answers: Sequence[Hello], after: int) -> int:
    """Each number came once and none is missing, from two workers; return the last."""
    numbers = [answer.number for answer in answers]
    assert numbers == list(range(after + 1, after + 1 + len(numbers)))
    assert len(numbers) >= 40
    assert len({answer.pid for answer in answers}) > 1
    return numbers[-1]


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_counts_and_logins_survive_kill_9_of_gunicorns_master(start: Start, worker_class: str) -> None:
    server = start("--workers", "3", "--worker-class", worker_class)
    visitor = server.browser()
    visitor.post("/login", name="Ada")
    last = assert_consecutive(many_requests(server.port), 0)
    before, workers = server.master(), server.workers()
    os.kill(before, signal.SIGKILL)
    last = assert_consecutive(many_requests(server.port), last)
    assert "Hello, Ada" in visitor.get("/login").text
    wait_for(lambda: server.master() != before, "a new master")
    for worker in workers:
        wait_for(lambda worker=worker: gone(worker), "the orphaned workers' end")  # type: ignore[misc]
    assert_consecutive(many_requests(server.port), last)
    assert f"Using worker: {worker_class}" in server.text


def test_no_connection_is_refused_while_gunicorn_is_started_again(start: Start) -> None:
    server = start("--workers", "2")
    stop = threading.Event()

    def ask() -> int:
        browser, asked = server.browser(), 0
        while not stop.is_set():
            assert browser.get().status == 200
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(ask) for _ in range(4)]
        try:
            for _ in range(2):
                before = server.master()
                wait_for(lambda: len(server.workers()) == 2, "two workers")
                os.kill(before, signal.SIGKILL)
                wait_for(lambda before=before: server.master() != before, "a new master")  # type: ignore[misc]
                hello(server.browser())
        finally:
            stop.set()
        assert all(client.result() for client in running)


def test_an_orphaned_worker_finishes_its_request(start: Start, home: Path) -> None:
    server = start("--app", slow_app(home), "--workers", "1")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.browser().get_once, "/slow")
        wait_for((home / "began").exists, "the request's beginning")
        (worker,) = server.workers()
        os.kill(server.master(), signal.SIGKILL)
        wait_for(lambda: len(server.masters()) == 2, "a new master")
        (home / "end").touch()
        assert answer.result() == (200, f"done by {worker}")
    wait_for(lambda: gone(worker), "the orphan's end")


def test_an_idle_orphaned_worker_ends_at_once(start: Start) -> None:
    server = start("--workers", "1", "--worker-class", "sync", "--", "--timeout", "1000")  # it looks itself in 500 s
    worker = hello(server.browser()).pid
    os.kill(server.master(), signal.SIGKILL)
    wait_for(lambda: gone(worker), "the orphan's end")


def test_an_orphaned_worker_that_hangs_is_killed(start: Start, home: Path) -> None:
    server = start("--app", slow_app(home), "--workers", "1", "--", "--graceful-timeout", "1")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(server.browser().get_once, "/slow")
        wait_for((home / "began").exists, "the request's beginning")
        (worker,) = server.workers()
        os.kill(server.master(), signal.SIGKILL)
        wait_for(lambda: gone(worker), "the orphan's end")
        assert isinstance(answer.exception(), OSError)


def test_a_killed_worker_is_replaced_and_the_count_goes_on(start: Start) -> None:
    server = start("--workers", "1")
    first = hello(server.browser())
    os.kill(first.pid, signal.SIGKILL)
    second = hello(server.browser())
    assert second.number == 2
    assert second.pid != first.pid


def test_a_killed_manager_is_started_again(start: Start) -> None:
    server = start("--workers", "1")
    assert hello(server.browser()).number == 1
    before = server.manager()
    os.kill(before, signal.SIGKILL)
    after = server.manager_after(before)
    assert hello(server.browser()).number == 2
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert f"the manager (pid {before}) was ended by SIGKILL; starting it again" in server.text
    assert gone(after)


def test_a_stopped_manager_is_started_again(start: Start) -> None:
    server = start("--workers", "1")
    assert hello(server.browser()).number == 1
    before = server.manager()
    with state_manager.connect(server.directory) as manager:
        manager.shutdown()
    server.manager_after(before)
    assert hello(server.browser()).number == 2


def test_a_manager_that_was_there_is_used_and_left(start: Start, home: Path) -> None:
    child = sidecar.start(home / ".state")
    try:
        with state_manager.connect(home / ".state") as manager:
            manager.counter("visits").increment(by=41)
        server = start("--workers", "1")
        assert f"pid {child.pid} (was running)" in server.text
        assert hello(server.browser()).number == 42
        server.signal(signal.SIGINT)
        assert server.exit_code() == 0
        assert f"the manager (pid {child.pid}) was running before and goes on" in server.text
        assert server.manager() == child.pid
    finally:
        child.terminate()
        child.wait(SECONDS)


def test_an_adopted_manager_that_dies_is_replaced(start: Start, home: Path) -> None:
    child = sidecar.start(home / ".state")
    server = start("--workers", "1")
    child.kill()
    child.wait(SECONDS)
    after = server.manager_after(child.pid)
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert gone(after)  # this one was run.py's own


def test_the_next_run_after_kill_9_names_who_holds_the_port_and_uses_the_manager(start: Start, home: Path) -> None:
    server = start("--workers", "1")
    last = hello(server.browser())
    manager = server.manager()
    server.signal(signal.SIGKILL)
    server.exit_code()
    assert hello(server.browser()).number == last.number + 1  # gunicorn serves on
    failed = run(home, RUN, "--bind", f"127.0.0.1:{server.port}")
    assert failed.returncode == 1
    assert f"Connection in use: ('127.0.0.1', {server.port}): " in failed.stderr
    assert f"end process {server.master()}, which holds it" in failed.stderr
    assert f"The manager (pid {manager}) goes on" in failed.stderr
    os.kill(server.master(), signal.SIGTERM)
    wait_for(lambda: gone(server.master()), "the end of the old gunicorn")
    again = start("--workers", "1", port=server.port)
    assert again.manager() == manager
    assert hello(again.browser()).number == last.number + 2


def test_an_app_that_was_served_and_is_broken_by_a_reload_is_tried_again(start: Start, home: Path) -> None:
    source = home / "mine.py"
    app = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'fine']\n"
    source.write_text(app)
    server = start("--app", "mine:app", "--workers", "1")
    assert server.browser().get().text == "fine"
    source.write_text("import nothing_of_that_name")
    server.signal(signal.SIGHUP)
    wait_for(lambda: len(server.masters()) > 2, "a second try")
    source.write_text(app.replace("fine", "mended"))
    assert server.browser().get().text == "mended"


WITHOUT_LINUX = """
import ctypes, os
del os.pidfd_open, os.waitid
ctypes.CDLL = lambda name: None
"""


def test_it_needs_nothing_that_only_linux_has(start: Start, home: Path) -> None:
    """Elsewhere the orphaned workers, an adopted manager and the master after USR2 are not its children."""
    (home / "sitecustomize.py").write_text(WITHOUT_LINUX)
    path = f"{home}{os.pathsep}{environment(home)['PYTHONPATH']}"
    child = sidecar.start(home / ".state")
    server = start("--workers", "1", PYTHONPATH=path)
    assert hello(server.browser()).number == 1
    (worker,), master = server.workers(), server.master()
    os.kill(master, signal.SIGKILL)
    wait_for(lambda: gone(worker), "the orphan's end")
    assert hello(server.browser()).number == 2
    child.kill()
    child.wait(SECONDS)
    server.manager_after(child.pid)
    old = server.master()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(server.masters()) == 3 and server.workers(), "the new master's worker")
    os.kill(old, signal.SIGTERM)
    server.wait_until_said(f"pid {server.master()} goes on")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    wait_for(lambda: not processes_of(home), "everybody's end")
