"""What every test may use. Fixtures of one folder live in that folder's own conftest.

Rules: a test never sees the settings of the shell that started it, and a test whose program is missing says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state_manager import versions

FOREIGN_SETTINGS = ("STATE_MANAGER_", "FLASK_", "GUNICORN_", "WEB_CONCURRENCY", "PORT", "SECRET_KEY")
PROCESSES = Path(__file__).parent / "processes"


def pytest_configure() -> None:
    """Forget the caller's settings before any fixture or child process can read them."""
    for name in [name for name in os.environ if name.startswith(FOREIGN_SETTINGS)]:
        del os.environ[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts with `&`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts gunicorn, so that ``-m 'not processes'`` is the quick half."""
    for item in items:
        if item.path.is_relative_to(PROCESSES):
            item.add_marker(pytest.mark.processes)


@pytest.fixture(scope="session", autouse=True)
def no_pages_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pages outlive their managers: at the end those of this session's directories go, and nobody else's."""
    base = os.fsencode(tmp_path_factory.getbasetemp().resolve()) + b"/"
    yield
    for page in versions.SHARED_MEMORY.glob(f"state-manager-{os.geteuid()}-*"):
        with contextlib.suppress(OSError):  # gone already
            with page.open("rb") as file:
                header = file.read(4096)
            length, path = header[40:42], header[42:]
            if path[: int.from_bytes(length, sys.byteorder)].startswith(base):
                page.unlink()


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """``need_program("nginx")`` returns its path; where it is missing the test is skipped by name, and fails on CI."""

    def path_of(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            report = pytest.fail if os.environ.get("CI") else pytest.skip
            report(f"needs the program {name}, which is not installed")
        return path

    return path_of
