"""What begins by itself begins where requests are served, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gunicorn.workers.base import Worker

from state_manager import serving


@pytest.fixture(autouse=True)
def unbegun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_began_in", None)
    monkeypatch.setattr(serving, "_waiting", [])
    monkeypatch.setattr(Worker, "notify", Worker.notify)


def test_nothing_begins_under_pytest_by_itself() -> None:
    begun: list[int] = []
    serving.when_serving(lambda: begun.append(1), web=False)
    serving.when_serving(lambda: begun.append(2), web=True)
    assert begun == []
    serving.begin()
    assert begun == [1, 2]
    serving.begin()
    serving.when_serving(lambda: begun.append(3), web=True)
    assert begun == [1, 2, 3]


def test_another_process_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    serving.begin()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    serving.when_serving(lambda: begun.append(1), web=True)
    assert begun == []
    serving.begin()
    assert begun == [1]


def test_a_gunicorn_worker_begins_when_it_first_says_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Worker, "notify", lambda worker: begun.append("alive"))
    alive = Worker.notify
    monkeypatch.setitem(sys.modules, "gunicorn.arbiter", sys)
    for _ in range(2):
        serving.when_serving(lambda: begun.append("begun"), web=True)
    worker = object.__new__(Worker)
    worker.notify()
    assert begun == ["alive", "begun", "begun"]
    assert Worker.notify is alive, "it costs nothing afterwards"


SCRIPT = """
import sys
from state_manager import serving
{before}
serving.when_serving(lambda: print("begun"), web={web})
print("end")
"""


def run(home: Path, before: str = "", web: bool = False, command: tuple[str, ...] = ()) -> list[str]:
    (home / "app.py").write_text(SCRIPT.format(before=before, web=web))
    done = subprocess.run(
        [sys.executable, *(command or ("app.py",))],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(Path(serving.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "end" in done.stdout, done.stderr
    return done.stdout.split()


def test_a_script_begins_at_once(tmp_path: Path) -> None:
    assert run(tmp_path) == ["begun", "end"]


def test_a_web_app_waits_for_a_request(tmp_path: Path) -> None:
    assert run(tmp_path, web=True) == ["end"]


def test_where_gunicorn_imports_an_app_nothing_begins(tmp_path: Path) -> None:
    assert run(tmp_path, "import gunicorn.arbiter") == ["end"]


@pytest.mark.parametrize("command", ["routes", "shell"])
def test_a_flask_command_begins_nothing(tmp_path: Path, command: str) -> None:
    before = "from flask import Flask\napp = Flask(__name__)"
    assert "begun" not in run(tmp_path, before, command=("-m", "flask", command))


def test_another_program_with_click_is_a_script(tmp_path: Path) -> None:
    before = "import click, flask.cli\nclick.Context(click.Command('x')).__enter__()"
    assert run(tmp_path, before) == ["begun", "end"]
