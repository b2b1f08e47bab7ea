"""The page of versions: where it is put, who may map it, and that no reader is left with a page that looks right.

Every test has a place of its own for shared memory, so that none leaves a page in the machine's.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_manager import versions
from state_manager.errors import StateError
from state_manager.settings import SLOTS
from state_manager.versions import POISON, Page, PageWriter, number_of, sweep, word_of

BOOT = secrets.token_bytes(16)
EPOCH = 1_800_000_000 << 32
REAL = versions.SHARED_MEMORY
NOBODY = 65534
HEADER, SIZE = 4096, 4096 + 8 * SLOTS

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for pages, on the real tmpfs where there is one, and believed to be one where there is none."""
    real = versions._is_tmpfs(REAL)
    with tempfile.TemporaryDirectory(prefix="test-", dir=REAL if real else tmp_path) as place:
        monkeypatch.setattr(versions, "SHARED_MEMORY", Path(place))
        if not real:
            monkeypatch.setattr(versions, "_is_tmpfs", Path.is_dir)
        yield Path(place)


class Manager:
    """What a manager has of its page."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(0o700, exist_ok=True)
        self.directory = directory
        self.versions = array("Q", range(EPOCH, EPOCH + SLOTS))

    def create(self, *, boot: bytes = BOOT) -> PageWriter | None:
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            return PageWriter.create(self.directory, fd, boot, 12.5, self.versions)
        finally:
            os.close(fd)

    def page(self) -> PageWriter:
        page = self.create()
        assert page is not None
        return page


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path / "state")


@pytest.fixture(params=["shared", "directory"])
def anywhere(request: pytest.FixtureRequest, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Manager:
    """A manager whose page is in either place."""
    if request.param == "directory":
        monkeypatch.setattr(versions, "_is_tmpfs", lambda path: False)
    return manager


def opened(page: PageWriter) -> Page:
    found = Page.open(page.path)
    assert found is not None
    return found


def numbers(page: Page) -> list[int]:
    return page.words.cast("B").cast("Q").tolist()


def poisoned(page: Page) -> bool:
    return set(numbers(page)) == {POISON}


# The page


def test_a_page_has_all_versions_and_says_whose_it_is(anywhere: Manager) -> None:
    writer = anywhere.page()
    page = opened(writer)
    assert (page.boot, page.offset) == (BOOT, 12.5)
    assert numbers(page) == anywhere.versions.tolist()
    assert page.words[7] == word_of(EPOCH + 7)
    assert page.words.readonly


def test_the_layout(manager: Manager) -> None:
    """What another version of this package must be able to rely on, or change the magic."""
    data = Path(manager.page().path).read_bytes()
    real = os.fsencode(manager.directory)
    start = b"state-versions 1" + BOOT + array("d", [12.5]).tobytes() + array("H", [len(real)]).tobytes() + real
    assert data == start.ljust(HEADER, b"\0") + manager.versions.tobytes()


def test_a_page_is_this_users_alone_and_has_no_holes(anywhere: Manager) -> None:
    before = os.umask(0o277)  # takes away what the owner needs, too
    try:
        found = os.stat(anywhere.page().path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_size == SIZE
    assert found.st_blocks * 512 >= SIZE


def test_nothing_else_is_left_behind(shared: Path, manager: Manager) -> None:
    first = manager.page()
    second = manager.page()
    assert first.path == second.path
    assert [str(path) for path in shared.iterdir()] == [second.path]
    assert list(manager.directory.iterdir()) == []


def test_closing_leaves_the_page(manager: Manager) -> None:
    writer = manager.page()
    page = opened(writer)
    writer.close()
    assert page.still_there()
    assert numbers(page) == manager.versions.tolist()


READER = """
import sys, time
from state_manager.versions import Page, number_of, word_of
page = Page.open(sys.argv[1])
old = page.words[5]
print("mapped", flush=True)
deadline = time.monotonic() + 20
while page.words[5] == old:
    assert time.monotonic() < deadline
print(number_of(page.words[4]), number_of(page.words[5]), number_of(page.words[6]))
"""


def test_another_process_sees_what_is_published(anywhere: Manager) -> None:
    writer = anywhere.page()
    anywhere.versions[4] += 10
    anywhere.versions[5] += 10
    anywhere.versions[6] += 10  # changed, and not published
    command = [sys.executable, "-c", READER, writer.path]
    root = Path(versions.__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "mapped\n"
        writer.publish(anywhere.versions, (4, 5))
        assert reader.stdout.read().split() == [str(EPOCH + 14), str(EPOCH + 15), str(EPOCH + 6)]
    assert reader.returncode == 0


def test_publishing_all(anywhere: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = anywhere.page()
    page = opened(writer)
    seen = []
    poison = writer.poison

    def look() -> None:
        poison()
        seen.append(poisoned(page))

    monkeypatch.setattr(writer, "poison", look)
    fresh = array("Q", [EPOCH + (1 << 32)]) * SLOTS
    writer.publish_all(fresh)
    assert numbers(page) == fresh.tolist()
    assert seen == [True], "no byte of an old version meets one of a new"


def test_poison(anywhere: Manager) -> None:
    writer = anywhere.page()
    page = opened(writer)
    writer.poison()
    assert poisoned(page)
    writer.publish(anywhere.versions, [3])
    assert page.words[3] == word_of(EPOCH + 3)


# Predecessors


def test_a_new_page_poisons_its_predecessor(anywhere: Manager) -> None:
    old = opened(anywhere.page())
    assert not poisoned(old)
    new = anywhere.create(boot=b"another life's  ")
    assert new is not None
    assert poisoned(old)
    assert not old.still_there()
    assert opened(new).boot == b"another life's  "
    assert numbers(opened(new)) == anywhere.versions.tolist()


def test_a_predecessor_in_the_other_place_is_poisoned(
    shared: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(versions, "_is_tmpfs", lambda path: False)
        in_directory = opened(manager.page())
    in_shared = opened(manager.page())
    assert Path(in_shared.path).parent == shared
    assert poisoned(in_directory)
    assert not in_directory.still_there()
    monkeypatch.setattr(versions, "_is_tmpfs", lambda path: False)
    back = opened(manager.page())
    assert Path(back.path).parent == manager.directory
    assert poisoned(in_shared)
    assert not poisoned(back)


def test_a_predecessor_that_cannot_be_poisoned_is_not_ignored(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = opened(manager.page())

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(StateError, match=f"cannot use {old.path}: Input/output error"):
        manager.create()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_page_that_has_lost_its_name(anywhere: Manager, replaced: bool) -> None:
    """What the manager does when a cleaner has been here: it finds out, poisons its page and makes another."""
    writer = anywhere.page()
    page = opened(writer)
    assert writer.still_there()
    assert page.still_there()
    os.unlink(writer.path)
    if replaced:
        Path(writer.path).write_bytes(b"")
    assert not writer.still_there()
    assert not page.still_there()
    writer.poison()
    writer.close()
    assert poisoned(page)
    again = anywhere.page()
    assert again.still_there()
    assert again.path == writer.path
    assert numbers(opened(again)) == anywhere.versions.tolist()


# Places


def test_each_directory_has_its_own_page(tmp_path: Path, shared: Path, manager: Manager) -> None:
    other = Manager(tmp_path / "other")
    pages = [opened(manager.page()), opened(other.page())]
    assert len({page.path for page in pages}) == 2
    assert all(page.still_there() and not poisoned(page) for page in pages)
    assert all(Path(page.path).parent == shared for page in pages)


@pytest.mark.skipif(not versions._is_tmpfs(REAL), reason="there is no tmpfs here")
def test_what_is_a_tmpfs(shared: Path, tmp_path: Path) -> None:
    assert versions._is_tmpfs(shared)
    assert not versions._is_tmpfs(Path("/proc"))
    assert not versions._is_tmpfs(tmp_path / "missing")
    (tmp_path / "link").symlink_to(shared)
    assert versions._is_tmpfs(tmp_path / "link")


def test_a_disk_is_not_taken_for_shared_memory(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_is_tmpfs", lambda path: False)
    assert manager.page().path == str(manager.directory / "versions")


@pytest.mark.parametrize("file", [False, True])
def test_shared_memory_that_cannot_be_used(
    file: bool, shared: Path, manager: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_is_tmpfs", lambda path: True)
    monkeypatch.setattr(versions, "SHARED_MEMORY", shared / "missing")
    if file:
        (shared / "missing").touch()
    writer = manager.page()
    assert writer.path == str(manager.directory / "versions")
    assert not poisoned(opened(writer))
    assert "cannot hold the versions: No" in caplog.text


def name_of_page(manager: Manager) -> Path:
    path = Path(manager.page().path)
    path.unlink()
    return path


def test_a_directory_under_the_pages_name(shared: Path, manager: Manager) -> None:
    path = name_of_page(manager)
    (path / "in it").mkdir(parents=True)
    assert manager.page().path == str(manager.directory / "versions")
    assert os.listdir(shared) == [path.name], "nothing unfinished is left"


def test_a_link_under_the_pages_name_is_replaced_and_not_followed(tmp_path: Path, manager: Manager) -> None:
    path = name_of_page(manager)
    (tmp_path / "precious").write_bytes(b"x" * SIZE)
    path.symlink_to(tmp_path / "precious")
    writer = manager.page()
    assert writer.path == str(path)
    assert not path.is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"x" * SIZE


def as_nobody(function: Callable[[], object]) -> None:
    """Call the function in a child without root's rights, which may not do what the sticky bit forbids."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@needs_root
def test_another_users_file_under_the_pages_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not replace it keeps the page elsewhere; and it is not written to, although it could be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as above:  # not tmp_path, whose parents are closed to others
        os.chmod(above, 0o755)
        sticky = Path(above, "shm")
        sticky.mkdir()
        sticky.chmod(0o1777)
        state = Path(above, "state")
        state.mkdir(0o700)
        os.chown(state, NOBODY, NOBODY)
        monkeypatch.setattr(versions, "SHARED_MEMORY", sticky)
        monkeypatch.setattr(versions, "_is_tmpfs", lambda path: True)
        as_nobody(lambda: Manager(state).page())
        [squatter] = sticky.iterdir()
        os.chown(squatter, 0, 0)
        squatter.chmod(0o666)
        before = squatter.read_bytes()
        as_nobody(lambda: Manager(state).page())
        assert (state / "versions").exists()
        assert squatter.read_bytes() == before


def test_no_place_at_all(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    path = name_of_page(manager)
    path.mkdir()
    (manager.directory / "versions").mkdir()
    assert manager.create() is None
    assert f"workers of {manager.directory} will cache nothing" in caplog.text
    assert os.listdir(manager.directory) == ["versions"]


def test_what_a_killed_manager_was_writing_in_the_directory(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_is_tmpfs", lambda path: False)
    (manager.directory / ".versions").write_bytes(b"x" * 5000)
    manager.page()
    assert os.listdir(manager.directory) == ["versions"]


FULL = """
import logging, os, sys
from array import array
from pathlib import Path
from state_manager import versions
logging.basicConfig(stream=sys.stdout, format="%(message)s")
versions.SHARED_MEMORY = Path(sys.argv[1])
numbers = array("Q", [1_800_000_000 << 32]) * versions.SLOTS
pages = []
for name in ("a", "b"):
    directory = Path(sys.argv[2], name)
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    page = versions.PageWriter.create(directory, fd, b"boot", 0.0, numbers)
    page.publish_all(numbers)
    page.poison()
    pages.append(page)
assert [Path(page.path).parent for page in pages] == [versions.SHARED_MEMORY, directory]
assert len(os.listdir(versions.SHARED_MEMORY)) == 1
"""


def test_a_full_tmpfs(tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """A real one, with room for one page and a half: a hole in a page would kill with SIGBUS."""
    unshare = [need_program("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody make a namespace")
    place = tmp_path / "shm"
    place.mkdir()
    script = 'mount -t tmpfs -o size=800k tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = [*unshare, script, "sh", str(place), sys.executable, FULL, str(tmp_path)]
    root = Path(versions.__file__).parent.parent
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cannot hold the versions: No space left on device") == 1


# Readers


@pytest.mark.parametrize("damage", ["longer", "shorter", "magic", "link", "directory", "fifo", "missing"])
def test_what_is_no_page_is_refused(manager: Manager, damage: str) -> None:
    path = Path(manager.page().path)
    data = path.read_bytes()
    path.unlink()
    if damage == "longer":
        path.write_bytes(data + b"x")
    elif damage == "shorter":
        path.write_bytes(data[:-1])
    elif damage == "magic":
        path.write_bytes(b"S" + data[1:])
    elif damage == "link":
        path.with_name("page").write_bytes(data)
        path.symlink_to("page")
    elif damage == "directory":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    assert Page.open(str(path)) is None


def test_another_users_page_is_refused(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = manager.page()
    assert Page.open(writer.path)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert Page.open(writer.path) is None


def test_the_words_outlive_their_page(manager: Manager) -> None:
    words = opened(manager.page()).words
    assert words[9] == word_of(EPOCH + 9)


# Sweeping


def test_sweep(tmp_path: Path, shared: Path, manager: Manager) -> None:
    kept = opened(manager.page())
    gone = Manager(tmp_path / "gone")
    orphan = opened(gone.page())
    gone.directory.rmdir()
    foreign = shared / f"state-manager-{os.geteuid()}-foreign"
    foreign.write_bytes(b"S" + Path(orphan.path).read_bytes()[1:])
    (shared / f"state-manager-{os.geteuid()}-short").write_text("somebody else's")
    other = shared / "another-program"
    other.write_bytes(Path(orphan.path).read_bytes())
    fresh, stale = (Path(f"{kept.path}.{name}") for name in ("fresh", "stale"))
    fresh.touch()
    stale.touch()
    os.utime(stale, (time.time() - 3600,) * 2)
    (shared / f"state-manager-{os.geteuid()}-folder").mkdir()
    sweep()
    assert poisoned(orphan)
    assert not orphan.still_there()
    assert kept.still_there()
    assert not poisoned(kept)
    assert not stale.exists()
    assert fresh.exists()
    assert foreign.exists()
    assert other.exists()


def test_a_directory_that_was_moved_leaves_no_page_behind(tmp_path: Path, shared: Path) -> None:
    """Its next manager has another real path, so it would not find this page, and readers would trust it for ever."""
    old = Manager(tmp_path / "old")
    page = opened(old.page())
    old.directory.rename(tmp_path / "new")
    (tmp_path / "old").symlink_to("new")
    new = opened(Manager(tmp_path / "new").page())
    assert poisoned(page)
    assert not poisoned(new)
    assert not page.still_there()


def test_sweep_is_no_judge_of_a_path_that_did_not_fit(tmp_path: Path, manager: Manager) -> None:
    manager.directory = Path("/" + "x/" * 3000)
    fd = os.open(tmp_path, os.O_RDONLY)
    writer = PageWriter.create(manager.directory, fd, BOOT, 0.0, manager.versions)
    os.close(fd)
    assert writer is not None
    assert numbers(opened(writer)) == manager.versions.tolist()
    sweep()
    assert writer.still_there()


def test_sweep_leaves_alone_what_it_cannot_look_into(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = manager.page()

    def denied(path: object, *, strict: bool) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os.path, "realpath", denied)
    sweep()
    assert writer.still_there()


def test_sweep_is_quiet_where_there_is_no_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(versions, "SHARED_MEMORY", tmp_path / "missing")
    sweep()


# Words

EPOCHS = st.integers(2**30, 0x7FEFFFFF) | st.integers(2**31 + 2**20, 0xFFEFFFFF)
VERSIONS = st.builds(lambda epoch, count: epoch << 32 | count, EPOCHS, st.integers(0, 2**32 - 1))


@given(VERSIONS, VERSIONS | st.none())
def test_words_are_equal_if_the_versions_are(version: int, other: int | None) -> None:
    assert number_of(word_of(version)) == version
    other = version ^ 1 if other is None else other
    assert (word_of(version) == word_of(other)) is (version == other)


@given(VERSIONS.filter(lambda version: version < 2**63), VERSIONS.filter(lambda version: version < 2**63))
def test_words_have_the_order_of_the_versions_until_2038(version: int, other: int) -> None:
    assert (word_of(version) < word_of(other)) is (version < other)


@given(st.integers(0, 2**64 - 1))
def test_the_poison_equals_no_version(version: int) -> None:
    assert word_of(POISON) != word_of(version)


@given(st.integers(0x7FF00000, 0x7FFFFFFF) | st.integers(0xFFF00000, 0xFFFFFFFF), st.integers(1, 2**32 - 1))
def test_a_version_that_is_no_number_is_a_miss(epoch: int, count: int) -> None:
    assert word_of(epoch << 32 | count) != word_of(epoch << 32 | count)
