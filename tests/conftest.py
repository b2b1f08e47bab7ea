"""What every test may use. Fixtures of one folder live in that folder's own conftest.

Rules: a test never sees the settings of the shell that started it, and a test whose program is missing says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

FOREIGN_SETTINGS = ("STATE_MANAGER_", "FLASK_", "GUNICORN_", "WEB_CONCURRENCY", "PORT", "SECRET_KEY")
PROCESSES = Path(__file__).parent / "processes"


def pytest_configure() -> None:
    """Forget the caller's settings before any fixture or child process can read them."""
    for name in [name for name in os.environ if name.startswith(FOREIGN_SETTINGS)]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts gunicorn, so that ``-m 'not processes'`` is the quick half."""
    for item in items:
        if item.path.is_relative_to(PROCESSES):
            item.add_marker(pytest.mark.processes)


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
