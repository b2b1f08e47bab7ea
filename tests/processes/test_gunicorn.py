"""gunicorn on its own command line, with ``state_manager.gunicorn``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import state_manager
from tests.processes.harness import (
    GUNICORN,
    Server,
    Start,
    gone,
    hello,
    many_requests,
    processes_of,
    run,
    wait_for,
)

WITH = ("-c", "python:state_manager.gunicorn")
MANAGER = "state_manager serve"

OWN_FILE = """
from state_manager.gunicorn import *

workers = 2
raw_env = ["MINE=1"]

def on_starting(server):
    server.log.info("the file's own on_starting")

def nworkers_changed(server, new, old):
    pass
"""

APP_THAT_USES_STATE_AS_IT_IS_IMPORTED = """
import os
import state_manager

imports = state_manager.connect().counter("imports").increment()

def app(environ, start_response):
    start_response("200 OK", [])
    name = environ["PATH_INFO"][1:]
    return [(os.environ.get(name, "") if name else str(imports)).encode()]
"""


def managers(home: Path) -> list[int]:
    return [process.pid for process in processes_of(home) if MANAGER in " ".join(process.cmdline())]


def stop(server: Server) -> None:
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_all_workers_count_together(start: Start, home: Path, worker_class: str) -> None:
    server = start(*WITH, "-w", "3", "-k", worker_class, "web:app", command=GUNICORN)
    answers = many_requests(server.port)
    assert [answer.number for answer in answers] == list(range(1, len(answers) + 1))
    assert managers(home) == [server.manager()]


def test_the_manager_outlives_gunicorn_and_the_next_one_finds_it(start: Start, home: Path) -> None:
    server = start(*WITH, "web:app", command=GUNICORN)
    assert hello(server.browser()).number == 1
    (worker,), (manager,) = server.workers(), managers(home)
    os.kill(server.pid, signal.SIGKILL)
    server.exit_code()
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: gone(worker), "the worker's end")
    again = start(*WITH, "web:app", command=GUNICORN)
    assert hello(again.browser()).number == 2
    stop(again)
    assert managers(home) == [manager]


def test_it_is_there_before_a_preloaded_app(start: Start, home: Path) -> None:
    (home / "early.py").write_text(APP_THAT_USES_STATE_AS_IT_IS_IMPORTED)
    server = start(*WITH, "--preload", "-w", "2", "early:app", command=GUNICORN)
    assert server.browser().get("/").text == "1"


def test_a_file_of_ones_own_takes_nothing_away(start: Start, home: Path) -> None:
    (home / "gunicorn.conf.py").write_text(OWN_FILE)
    server = start("web:app", command=GUNICORN)
    assert hello(server.browser()).number == 1
    assert "the file's own on_starting" in server.text
    assert managers(home) == [server.manager()]


@pytest.mark.parametrize("option", ["--check-config", "--print-config"])
def test_looking_at_the_configuration_starts_nothing(home: Path, option: str) -> None:
    assert run(home, GUNICORN, *WITH, option, "web:app").returncode == 0
    assert not (home / ".state").exists()


def test_the_new_master_after_usr2_finds_the_manager(start: Start, home: Path) -> None:
    server = start(*WITH, "web:app", command=GUNICORN)
    last = hello(server.browser())
    (manager,) = managers(home)
    server.signal(signal.SIGUSR2)
    wait_for(lambda: len(server.masters()) == 2 and server.workers(), "the new master's worker")
    stop(server)
    assert hello(server.browser()).number == last.number + 1
    assert managers(home) == [manager]


def test_a_reload_finds_the_manager_or_starts_it(start: Start, home: Path) -> None:
    server = start(*WITH, "web:app", command=GUNICORN, STATE_MANAGER_START="0")
    last = hello(server.browser())
    (manager,) = managers(home)
    workers = server.workers()
    server.signal(signal.SIGHUP)
    wait_for(lambda: server.workers() and not workers & server.workers(), "new workers")
    assert hello(server.browser()).number == last.number + 1
    assert managers(home) == [manager]
    os.kill(manager, signal.SIGKILL)
    server.signal(signal.SIGHUP)
    wait_for(lambda: managers(home) not in ([], [manager]), "a new manager")
    assert hello(server.browser()).number == last.number + 2


def test_workers_start_a_manager_that_died(start: Start, home: Path) -> None:
    server = start(*WITH, "web:app", command=GUNICORN)
    assert hello(server.browser()).number == 1
    (manager,) = managers(home)
    os.kill(manager, signal.SIGKILL)
    assert hello(server.browser()).number == 2
    assert managers(home) not in ([], [manager])


@pytest.mark.parametrize(
    "variables", [{"STATE_MANAGER_DIR": "here"}, {"STATE_MANAGER_ADDRESS": "here", "STATE_MANAGER_DIR": "there"}]
)
def test_workers_get_the_absolute_directory(start: Start, home: Path, variables: dict[str, str]) -> None:
    (home / "early.py").write_text(f"import os\nos.chdir('/')\n{APP_THAT_USES_STATE_AS_IT_IS_IMPORTED}")
    server = start(*WITH, "early:app", command=GUNICORN, **variables)
    assert server.browser().get("/").text == "1"
    name = "STATE_MANAGER_ADDRESS" if "STATE_MANAGER_ADDRESS" in variables else "STATE_MANAGER_DIR"
    assert server.browser().get(f"/{name}").text == str(home / "here")
    assert (home / "here" / "socket").exists()
    assert not (home / "there").exists()


def test_a_directory_in_gunicorns_own_settings_counts(start: Start, home: Path) -> None:
    server = start(*WITH, "--env", "STATE_MANAGER_DIR=mine", "web:app", command=GUNICORN)
    assert hello(server.browser()).number == 1
    with state_manager.connect(home / "mine") as manager:
        assert manager.counter("visits").value == 1


def test_a_directory_that_is_not_safe_ends_it_in_one_line(home: Path) -> None:
    (home / ".state").touch()
    failed = run(home, GUNICORN, *WITH, "-b", "127.0.0.1:0", "web:app")
    assert failed.returncode == 1
    assert failed.stderr.strip().startswith(f"Error: {home}/.state is not a directory")
    assert "Traceback" not in failed.stderr


def test_under_run_py_it_starts_nothing_of_its_own(start: Start, home: Path) -> None:
    (home / "gunicorn.conf.py").write_text(OWN_FILE + "from state_manager import sidecar\ndel sidecar.ensure\n")
    server = start()
    assert hello(server.browser()).number == 1
    assert "2 gthread workers" in server.text
    (manager,) = managers(home)
    os.kill(manager, signal.SIGKILL)
    server.manager_after(manager)
    stop(server)
    assert managers(home) == []


def test_it_has_no_settings_that_a_file_could_replace() -> None:
    from gunicorn.config import KNOWN_SETTINGS

    import state_manager.gunicorn as module

    assert not set(vars(module)) & {setting.name for setting in KNOWN_SETTINGS}
    assert module.__all__ == []


PLAIN_APP = """
from flask import Flask
import state_manager

app = Flask(__name__)
visits = state_manager.connect().counter("visits")

@app.get("/")
def index():
    return str(visits.increment())
"""


def test_a_plain_connect_in_a_worker_gets_its_manager_back_too(start: Start, home: Path) -> None:
    (home / "plain.py").write_text(PLAIN_APP)
    server = start("-c", "python:state_manager.gunicorn", "-w", "1", "plain:app", command=GUNICORN)
    assert server.browser().get("/").text == "1"
    before = server.manager()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: server.manager() != before, "the end of the manager")
    assert server.browser().get("/").text == "2"
