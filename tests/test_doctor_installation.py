"""What the doctor says about versions, a state directory, its disk and its manager."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from state_manager import connect, sidecar
from state_manager.directory import StateDirectory
from state_manager.doctor import installation
from state_manager.doctor.findings import Finding
from state_manager.settings import VERSION, DirectoryAddress, MemoryAddress


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "state"
    child = sidecar.start(path)
    child.terminate()
    child.wait(20)
    return path


@pytest.fixture
def directory(former: Path, tmp_path: Path) -> Path:
    """A directory that a manager has had."""
    return shutil.copytree(former, tmp_path / "state")


def look(path: Path) -> dict[str, Finding]:
    """Return the findings about a directory by what they are about; versions aside."""
    found = list(installation.look(DirectoryAddress(path)))
    return {finding.check: finding for finding in found if finding.check != "versions"}


def severities(path: Path) -> dict[str, str]:
    return {check: finding.severity for check, finding in look(path).items()}


@pytest.fixture(autouse=True)
def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, their files are on a disk that stays and has room."""
    monkeypatch.setattr(installation, "file_system", lambda path: "ext4")
    give_room(monkeypatch, 2**40)


def give_room(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=size, f_frsize=1))


def test_all_is_well_with_a_manager(tmp_path: Path) -> None:
    child = sidecar.start(tmp_path / "state")
    try:
        found = look(tmp_path / "state")
        assert {finding.severity for finding in found.values()} == {"ok"}
        assert list(found) == ["permissions", "disk space", "manager", "durability"]
        assert f"pid {child.pid}" in found["manager"].message
        with connect(tmp_path / "state") as manager:
            assert [space for space in manager.spaces() if space.name != ":sessions"] == [], "it only looks"
    finally:
        child.terminate()
        child.wait(20)


def test_a_manager_that_keeps_nothing_or_is_another_version(tmp_path: Path) -> None:
    numbers = {"pid": 7, "version": VERSION, "entries": 1, "bytes": 95, "durability": "none", "max_memory": 100}
    found = list(installation.about(numbers))
    assert [(finding.severity, finding.check) for finding in found] == [
        ("ok", "manager"),
        ("advice", "durability"),
        ("advice", "memory"),
    ]
    (other, *_) = installation.about(numbers | {"version": "0.0.9"})
    assert other.severity == "advice"
    assert f"is version 0.0.9, and this is {VERSION}" in other.message


def test_no_manager_is_advice_and_no_directory_is_well(directory: Path, tmp_path: Path) -> None:
    assert severities(directory) == {"permissions": "ok", "disk space": "ok", "manager": "advice"}
    assert f"serve --dir {directory}" in str(look(directory)["manager"].fix)
    assert severities(tmp_path / "none" / "yet") == {"directory": "ok"}
    assert not (tmp_path / "none").exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    assert severities(tmp_path / "none" / "yet") == {"directory": "problem"}


def test_a_lock_without_an_answer(directory: Path) -> None:
    state = StateDirectory.open(directory, create=False)
    lock = state.lock()
    try:
        found = look(directory)["manager"]
        assert found.severity == "problem"
        assert f"process {os.getpid()} holds the lock" in found.message
    finally:
        os.close(lock)
        state.close()


def test_a_manager_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "MANAGER_TIMEOUT", 0.2)
    child = sidecar.start(tmp_path / "state")
    try:
        child.send_signal(signal.SIGSTOP)
        found = look(tmp_path / "state")["manager"]
        assert found.severity == "problem"
        assert "did not answer" in found.message
    finally:
        child.kill()
        child.wait(20)


@pytest.mark.parametrize("name", ["", "key", "journal.00000001"])
def test_what_others_may_read_is_a_problem(directory: Path, name: str) -> None:
    (directory / name).chmod(0o755)
    (found,) = (finding for finding in look(directory).values() if finding.severity == "problem")
    assert f"{directory / name} is open to other users (mode 0755)" in found.message
    assert "chmod" in found.message


def test_a_link_and_a_broken_key_are_problems(directory: Path, tmp_path: Path) -> None:
    (directory / "key").write_text("x")
    assert "does not hold a key" in look(directory)["permissions"].message
    (directory / "key").unlink()
    (directory / "key").symlink_to(tmp_path)
    assert "symbolic link" in look(directory)["permissions"].message


def test_somebody_elses_files_in_the_directory_are_no_business(directory: Path) -> None:
    (directory / "notes.txt").touch(0o777)
    assert severities(directory)["permissions"] == "ok"


@pytest.mark.parametrize(("free", "severity"), [(2**40, "ok"), (2**25, "advice"), (2**20, "problem")])
def test_room_on_the_disk(directory: Path, monkeypatch: pytest.MonkeyPatch, free: int, severity: str) -> None:
    give_room(monkeypatch, free)
    found = look(directory)["disk space"]
    assert found.severity == severity
    assert re.search(r"free on the disk of .*, 1\.0 MiB of journal", found.message)


def test_a_large_journal_needs_more_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch, 2**30)
    os.truncate(directory / "journal.00000001", 2**31)
    assert look(directory)["disk space"].severity == "advice"


@pytest.mark.parametrize(("kind", "word"), [("tmpfs", "reboot"), ("overlay", "container")])
def test_a_place_that_does_not_stay(directory: Path, monkeypatch: pytest.MonkeyPatch, kind: str, word: str) -> None:
    monkeypatch.setattr(installation, "file_system", lambda path: kind)
    found = look(directory)["durability"]
    assert found.severity == "advice"
    assert word in found.message


def test_memory_is_no_place_for_several_workers() -> None:
    *_, found = installation.look(MemoryAddress("x"))
    assert (found.severity, found.check) == ("problem", "address")


MOUNTS = """\
1 0 0:1 / / rw - overlay overlay rw
2 1 0:2 / /var rw,relatime shared:1 - ext4 /dev/sda rw
3 2 0:3 / /var/lib/with\\040späce rw - tmpfs none rw
4 1 0:4 / /run rw - ext4 /dev/sda rw
5 1 0:5 / /run rw - tmpfs none rw
broken
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.undo()
    monkeypatch.setattr(installation, "MOUNTS", tmp_path / "mounts")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv", "overlay"),
        ("/var/lib/shop", "ext4"),
        ("/variable", "overlay"),
        ("/var/lib/with späce/x", "tmpfs"),
        ("/run/shop", "tmpfs"),
    ],
)
def test_the_kind_of_file_system(mounts: None, path: str, kind: str) -> None:
    assert installation.file_system(Path(path)) == kind


def test_without_proc_it_is_not_known(mounts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "MOUNTS", Path("/nowhere"))
    assert installation.file_system(Path("/")) is None


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = installation.versions()
    assert found.severity == "ok"
    assert f"flask {metadata.version('flask')}" in found.message
    installed = {"flask": "3.1.0", "gunicorn": "23.0.0rc1"}

    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    *problems, _ = installation.versions()
    assert [problem.message for problem in problems] == ["flask 3.1.0 is too old", "msgpack is not installed"]


def test_versions_are_those_of_pyproject() -> None:
    file = Path(__file__).parents[1] / "pyproject.toml"
    needed = tomllib.loads(file.read_text())["project"]["dependencies"]
    assert needed == [f"{name}>={version}" for name, version in installation.NEEDED.items()]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert installation.size_text(size) == text
