"""Which directory, which address: one answer for everything that asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from state_manager import settings
from state_manager.settings import DirectoryAddress, MemoryAddress, resolve_address, state_directory

HERE = Path.cwd()


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        (None, {}, HERE / ".state"),
        (None, {"STATE_MANAGER_DIR": "there"}, HERE / "there"),
        (None, {"STATE_MANAGER_DIR": "/abs"}, Path("/abs")),
        (None, {"STATE_MANAGER_DIR": ""}, HERE / ".state"),
        ("given", {"STATE_MANAGER_DIR": "there"}, HERE / "given"),
        (Path("/a/../b"), {}, Path("/b")),
    ],
)
def test_the_state_directory_is_absolute(given: Any, environ: dict[str, str], expected: Path) -> None:
    assert state_directory(given, environ) == expected


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        (None, {}, DirectoryAddress(HERE / ".state")),
        (None, {"STATE_MANAGER_DIR": "/d"}, DirectoryAddress(Path("/d"))),
        (None, {"STATE_MANAGER_DIR": "/d", "STATE_MANAGER_ADDRESS": "/a"}, DirectoryAddress(Path("/a"))),
        (None, {"STATE_MANAGER_ADDRESS": "memory://"}, MemoryAddress(None)),
        ("memory://", {"STATE_MANAGER_ADDRESS": "/a"}, MemoryAddress(None)),
        ("memory://one", {}, MemoryAddress("one")),
        ("/d", {}, DirectoryAddress(Path("/d"))),
        (Path("/d"), {}, DirectoryAddress(Path("/d"))),
    ],
)
def test_an_address(given: Any, environ: dict[str, str], expected: object) -> None:
    assert resolve_address(given, environ) == expected


@pytest.mark.parametrize("text", ["redis://localhost", "http://x", ""])
def test_an_address_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        resolve_address(text, {})


def test_bytes_are_no_address() -> None:
    with pytest.raises(TypeError, match="address"):
        resolve_address(b"/d", {})  # type: ignore[arg-type]


def test_an_address_reads_as_it_is_written() -> None:
    assert str(MemoryAddress("one")) == "memory://one"
    assert str(MemoryAddress(None)) == "memory://"
    assert str(DirectoryAddress(Path("/d"))) == "/d"


@pytest.mark.parametrize(
    ("given", "cpus", "expected"),
    [(None, {0, 1}, settings.DEFAULT_SPIN), (None, {5}, 0.0), ("0", {0, 1}, 0.0), ("200", {5}, 200e-6)],
)
def test_how_long_a_manager_looks_for_work(
    given: str | None, cpus: set[int], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus, raising=False)
    assert settings.spin({} if given is None else {"STATE_MANAGER_SPIN": given}) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["-1", "1.5", "fast", "1000001"])
def test_it_looks_for_a_number_of_microseconds(text: str) -> None:
    with pytest.raises(ValueError, match=f"microseconds.*{text}"):
        settings.spin({"STATE_MANAGER_SPIN": text})
