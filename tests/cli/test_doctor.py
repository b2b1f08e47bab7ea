"""`doctor` on whole apps, each put together as public ones are, with their mistakes; and what it tells a script."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import state_manager
import web
from state_manager import cli, cli_doctor
from state_manager.doctor import comparing
from state_manager.doctor.findings import Finding
from tests.cli.harness import Answer, running
from tests.processes.harness import wait_for


class Told(NamedTuple):
    code: int
    findings: dict[str, dict[str, Any]]
    """The problems and advice by what they are about."""


Write = Callable[[dict[str, str]], None]
Doctor = Callable[..., Answer]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """``write({"app/views.py": "..."})`` writes files in a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text))

    return write


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    def doctor(*arguments: str) -> Answer:
        return Answer(cli.main(["doctor", "--dir", str(tmp_path / ".state"), *arguments]), *capsys.readouterr())

    return doctor


def told(answer: Answer) -> Told:
    """Return what is not well, as ``--json`` says it."""
    document = json.loads(answer.out)
    found = [finding for finding in document["findings"] if finding["severity"] != "ok"]
    return Told(answer.code, {finding["check"]: finding for finding in found})


def places(found: Told) -> dict[str, tuple[str, str | None, int | None]]:
    """Return severity, file and line of each finding."""
    return {
        check: (one["severity"], one["file"] and os.path.relpath(one["file"]), one["line"])
        for check, one in found.findings.items()
    }


def test_a_package_with_a_random_key_and_a_scheduler_in_another_module(write: Write, doctor: Doctor) -> None:
    write(
        {
            "app/__init__.py": """
                import os
                from flask import Flask
                from flask_apscheduler import APScheduler
                app = Flask(__name__)
                # app.config["SECRET_KEY"] = "an old one"
                app.config["SECRET_KEY"] = os.environ.get("SECRET_KEY") or os.urandom(20).hex()
                scheduler = APScheduler()
                scheduler.init_app(app)
                from app import jobs, routes
            """,
            "app/jobs.py": """
                from app import scheduler
                @scheduler.task("interval", id="poll", seconds=60)
                def poll(): ...
                scheduler.start()
            """,
            "app/routes.py": """
                from flask import session
                from app import app
                queue = []
                @app.post("/add/<song>")
                def add(song):
                    queue.append(song)
                    return "", 204
            """,
        }
    )
    assert places(told(doctor("--json", "--app", "app:app"))) == {
        "SECRET_KEY": ("problem", "app/__init__.py", 7),
        "APScheduler": ("problem", "app/jobs.py", 5),
        "variable": ("problem", "app/routes.py", 4),
    }


def test_a_factory_with_its_configuration_and_extensions_in_modules_of_their_own(write: Write, doctor: Doctor) -> None:
    write(
        {
            "config.py": """
                import secrets
                class Config:
                    SECRET_KEY = secrets.token_hex(16)
                    JWT_SECRET_KEY = secrets.token_hex(16)
                    CACHE_TYPE = "SimpleCache"
                    RATELIMIT_STORAGE_URI = "memory://"
                    SESSION_TYPE = "filesystem"
            """,
            "extensions.py": """
                from flask_caching import Cache
                from flask_limiter import Limiter
                from flask_limiter.util import get_remote_address
                cache = Cache()
                limiter = Limiter(key_func=get_remote_address)
            """,
            "shop.py": """
                import threading
                from flask import Flask
                from flask_session import Session
                from extensions import cache, limiter
                def poll():
                    threading.Event().wait()
                def create_app(config="config.Config", name=None):
                    app = Flask(name or __name__)
                    app.config.from_object(config)
                    cache.init_app(app)
                    limiter.init_app(app)
                    Session(app)
                    threading.Thread(target=poll).start()
                    return app
            """,
        }
    )
    found = told(doctor("--json", "--app", "shop:create_app(name='shop')"))
    assert found.code == 1
    assert places(found) == {
        "SECRET_KEY": ("problem", "config.py", 4),
        "JWT_SECRET_KEY": ("problem", "config.py", 5),
        "Flask-Caching": ("problem", "config.py", 6),
        "Flask-Limiter": ("problem", "config.py", 7),
        "Flask-Session": ("advice", "config.py", 8),
        "thread": ("advice", "shop.py", 14),
    }
    assert "state_manager.flask.caching" in found.findings["Flask-Caching"]["fix"]
    assert "statemanager://" in found.findings["Flask-Limiter"]["fix"]


def test_a_chat_in_one_file_and_a_script_that_serves_itself(write: Write, doctor: Doctor) -> None:
    write(
        {
            "chat.py": """
                from flask import Flask
                from flask_socketio import SocketIO
                app = Flask(__name__)
                app.config["SECRET_KEY"] = "secret!"
                socketio = SocketIO(app, async_mode="threading")
                if __name__ == "__main__":
                    socketio.run(app)
            """,
            "counter.py": """
                from flask import Flask, session
                app = Flask(__name__)
                visits = 0
                @app.route("/")
                def index():
                    global visits
                    visits += 1
                    return str(visits)
                app.run(debug=True)
            """,
        }
    )
    assert places(told(doctor("--json", "--app", "chat:app"))) == {"Flask-SocketIO": ("problem", "chat.py", 6)}
    assert places(told(doctor("--json", "--app", "counter:app"))) == {
        "app.run": ("problem", "counter.py", 10),
        "variable": ("problem", "counter.py", 4),
        "SECRET_KEY": ("problem", "counter.py", 2),  # there is none, and the session is used
    }


CLEAN = """
import fcntl, os
from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask
from flask_apscheduler import APScheduler
from state_manager.flask import SharedState
app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = os.environ["KEY"]
state = SharedState(app)
print("to stdout", flush=True)
APScheduler().init_app(app)  # is started elsewhere
lock = open("scheduler.lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    BackgroundScheduler().start()  # in one process
except BlockingIOError:
    pass
"""


def test_an_app_without_mistakes(write: Write, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that a lock gives to one process is no mistake, and nothing is left of the app."""
    write({"clean.py": CLEAN})
    monkeypatch.setenv("KEY", "the same for all")
    answer = doctor("--app", "clean:app")
    assert answer.code == 0
    assert answer.out.endswith("0 problems, 0 advice\n")
    assert "SECRET_KEY: the manager makes one for all workers" in answer.out
    assert "JWT_SECRET_KEY: it is the same in two processes" in answer.out
    assert "to stdout" not in answer.out
    assert set(os.listdir()) <= {"__pycache__", "clean.py", "scheduler.lock"}


def test_our_own_app(monkeypatch: pytest.MonkeyPatch, doctor: Doctor) -> None:
    monkeypatch.chdir(Path(web.__file__).parents[1])
    answer = doctor("--app", "web:app")
    assert (answer.code, answer.out.splitlines()[-1]) == (0, "0 problems, 0 advice")


def test_no_key_is_shown(write: Write, doctor: Doctor) -> None:
    write({"shop.py": "from flask import Flask\napp = Flask(__name__)\napp.secret_key = 'hush-hush'\n"})
    for option in ((), ("--json",)):
        answer = doctor("--app", "shop:app", *option)
        assert answer.code == 0
        assert "hush" not in answer.out + answer.err


# What an app does while it is imported

CLEAN_END = "from flask import Flask\napp = Flask(__name__)\n"


def test_what_uses_the_state_at_import_touches_no_manager(write: Write, doctor: Doctor, tmp_path: Path) -> None:
    write(
        {
            "shop.py": """
                from flask import Flask
                import state_manager
                from state_manager.flask import SharedState
                app = Flask(__name__)
                state = SharedState(app)
                state_manager.connect(start=True).counter("n").increment()
                with app.app_context():
                    state.secret("session").current
                app.test_client().get("/")
            """
        }
    )
    with running(tmp_path / ".state"):
        found = told(doctor("--json", "--app", "shop:app"))
        assert found.code == 0
        assert places(found) == {"import": ("advice", "shop.py", 7)}
        with state_manager.connect(tmp_path / ".state") as manager:
            assert manager.counter("n").value == 0


def test_what_the_app_has_started_is_ended(write: Write, doctor: Doctor, tmp_path: Path) -> None:
    child = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    write({"shop.py": child + CLEAN_END})
    assert doctor("--app", "shop:app").code == 0
    wait_for(lambda: not any(runs_in(process, tmp_path) for process in psutil.process_iter()), "the child's end")


def runs_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.pid != os.getpid() and Path(process.cwd()) == directory
    except psutil.Error:
        return False


def test_a_second_process_that_cannot_import_it_is_a_problem(write: Write, doctor: Doctor) -> None:
    write({"shop.py": "import socket\nport = socket.create_server(('127.0.0.1', 0))\n" + CLEAN_END})
    assert doctor("--app", "shop:app").code == 0
    write({"shop.py": "import os\nos.open('pid', os.O_CREAT | os.O_EXCL)\n" + CLEAN_END})
    found = told(doctor("--json", "--app", "shop:app"))
    assert found.code == 1
    assert "FileExistsError" in found.findings["import"]["message"]
    assert found.findings["import"]["line"] == 2


@pytest.mark.parametrize(
    ("text", "app", "says"),
    [
        ("", "shop", "Failed to find attribute 'application' in 'shop'."),
        ("", "nosuch:app", "No module named 'nosuch'"),
        ("import nosuch\n", "shop:app", "shop.py:1: ModuleNotFoundError: No module named 'nosuch'"),
        ("def app():\n    1 / 0\n", "shop:app()", "shop.py:2: ZeroDivisionError"),
        ("def app(): ...\n", "shop:app", "shop:app is no Flask app but a function; if it makes one, write shop:app()"),
        ("input()\n", "shop:app", "shop.py:1: EOFError"),
        ("import sys\nsys.exit('usage: shop')\n", "shop:app", "shop.py:2: SystemExit: usage: shop"),
        (
            "import os\nprint('a last word', flush=True)\nos._exit(7)\n",
            "shop:app",
            "exit code 7, and said: a last word",
        ),
    ],
)
def test_an_app_that_cannot_be_imported_is_wrong_usage(
    write: Write, doctor: Doctor, text: str, app: str, says: str
) -> None:
    write({"shop.py": text})
    answer = doctor("--app", app)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"state-manager: cannot import {app}: ")
    assert says in answer.err
    assert answer.err.count("\n") == 1


def test_an_app_that_never_ends_its_import(write: Write, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "IMPORT_SECONDS", 0.3)
    write({"shop.py": "import threading\nthreading.Event().wait()\n"})
    answer = doctor("--app", "shop:app")
    assert answer.code == 2
    assert "longer than 0.3 s" in answer.err


# The directory, and the form of it all


def test_without_an_app_flask_is_not_needed(write: Write, doctor: Doctor, tmp_path: Path) -> None:
    write({})
    assert doctor().code == 0
    (tmp_path / ".state").mkdir(0o755)
    answer = doctor()
    assert answer.code == 1
    first, *_, last = answer.out.splitlines()
    assert first.startswith(f"problem  directory: {tmp_path}/.state is open to other users (mode 0755)")
    assert last == "1 problem, 0 advice"


def test_json_is_one_document(write: Write, doctor: Doctor, tmp_path: Path) -> None:
    write({})
    document = json.loads(doctor("--json").out)
    assert document["address"] == str(tmp_path / ".state")
    assert document["app"] is None
    assert document["counts"] == {"problem": 0, "advice": 0, "ok": 2}
    assert set(document["findings"][0]) == {"severity", "check", "message", "fix", "file", "line"}


def test_memory_is_a_problem(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--dir", "memory://"]) == 1
    assert "each worker has a state of its own" in capsys.readouterr().out


def test_a_finding_is_a_line_and_is_broken_for_a_terminal_only(write: Write, tmp_path: Path) -> None:
    write({})
    finding = Finding("advice", "thread", "one two " * 10, "three four", str(tmp_path / "shop.py"), 7)
    assert cli_doctor.lines_of(finding, None) == [
        f"advice   shop.py:7: thread: {'one two ' * 10}",
        "         fix: three four",
    ]
    lines = cli_doctor.lines_of(finding, 50)
    assert [line[:9] for line in lines] == ["advice   ", " " * 9, " " * 9, " " * 9]
    assert max(map(len, lines)) <= 50
    elsewhere = Finding("problem", "x", "y", None, "/srv/shop.py", 1)
    assert cli_doctor.lines_of(elsewhere, None) == ["problem  /srv/shop.py:1: x: y"]
