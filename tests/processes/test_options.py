"""Who decides a setting: each layer overrides those before it. Asked of gunicorn itself, with --print-config."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.processes.harness import RUN, run

CORES = os.cpu_count() or 1

FILE = """
workers = 11
threads = 12
bind = "127.0.0.1:1111"
wsgi_app = "plain:app"
"""


def settings(home: Path, *arguments: str, **variables: str) -> dict[str, str]:
    """Return gunicorn's settings."""
    (home / "plain.py").write_text("def app(environ, start_response): ...\n")
    shown = run(home, RUN, *arguments, *([] if "--" in arguments else ["--"]), "--print-config", **variables)
    assert shown.returncode == 0, shown.stderr
    return dict(re.findall(r"^(\w+) += (.*)$", shown.stdout, re.MULTILINE))


def chosen(found: dict[str, str]) -> tuple[str, str, str]:
    return found["workers"], found["threads"], found["bind"]


def test_the_defaults(home: Path) -> None:
    found = settings(home)
    assert chosen(found) == (str(CORES * 2 + 1), "8", "['127.0.0.1:8000']")
    assert (found["worker_class"], found["default_proc_name"]) == ("gthread", "web:app")


def test_each_layer_overrides_those_before(home: Path) -> None:
    (home / "gunicorn.conf.py").write_text(FILE.replace("plain:app", "plain:app"))
    layers: dict[str, str] = {}
    found = settings(home)
    assert chosen(found) == ("11", "12", "['127.0.0.1:1111']")
    assert found["default_proc_name"] == "plain:app"
    layers |= {"WEB_CONCURRENCY": "21", "PORT": "2222"}
    assert chosen(settings(home, **layers)) == ("21", "12", "['0.0.0.0:2222']")
    layers |= {"GUNICORN_CMD_ARGS": "--workers 31 --threads 32 --bind 127.0.0.1:3333"}
    assert chosen(settings(home, **layers)) == ("31", "32", "['127.0.0.1:3333']")
    flags = ("--workers", "41", "--threads", "42", "--bind", "127.0.0.1:4444", "--bind", "127.0.0.1:4445")
    assert chosen(settings(home, *flags, **layers)) == ("41", "42", "['127.0.0.1:4444', '127.0.0.1:4445']")
    rest = ("--", "--workers", "51", "--threads", "52", "-b", "127.0.0.1:5555")
    assert chosen(settings(home, *flags, *rest, **layers)) == ("51", "52", "['127.0.0.1:5555']")


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        (("--worker-class", "sync"), "1"),
        (("--worker-class", "gevent"), "1"),
        (("--threads", "3"), "3"),
        (("--", "-k", "sync"), "1"),
    ],
)
def test_threads_are_a_default_of_gthread_alone(home: Path, arguments: tuple[str, ...], threads: str) -> None:
    assert settings(home, *arguments)["threads"] == threads


def test_an_app_is_named_by_position_option_or_after_the_dashes(home: Path) -> None:
    for arguments in (("plain:app",), ("--app", "plain:app"), ("--app", "web:app", "--", "plain:app")):
        assert settings(home, *arguments)["default_proc_name"] == "plain:app"
