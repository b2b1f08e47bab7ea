"""The manager's process and its journal: restarts, options, ephemeral entries, a disk that fills up, damage."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from state_manager import StateError, StateManager, connect, sidecar
from state_manager.directory import StateDirectory
from state_manager.durability import load
from state_manager.journal.log import Journal
from state_manager.service import Service
from state_manager.store import Store


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(path: Path, *flags: str) -> Iterator[None]:
    """A manager with these flags, which is killed at the end."""
    process = subprocess.Popen([sys.executable, "-P", "-m", "state_manager", "serve", "--dir", str(path), *flags])
    try:
        wait_until(lambda: sidecar.find(path) == process.pid)
        yield
    finally:
        process.kill()
        process.wait(10)


class Manager:
    """A manager's process that can be killed and started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = sidecar.start(path)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def again(self) -> None:
        self.process = sidecar.start(self.path)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Manager]:
    process = Manager(tmp_path / "state")
    yield process
    if process.process.poll() is None:
        process.process.terminate()
        assert process.process.wait(10) == 0


@pytest.fixture
def manager(process: Manager) -> Iterator[StateManager]:
    with connect(process.path) as manager:
        yield manager


def test_everything_is_there_after_a_kill(process: Manager, manager: StateManager) -> None:
    carts = manager.dict("carts")
    carts.update({"a": {"n": (1, 2)}, 5: None, b"k": b"bytes"})
    carts.set("short", 1, ttl=0.2)
    set_at = time.time()
    carts.set("long", 1, ttl=1_000)
    carts["gone"] = 1
    del carts["gone"]
    manager.dict("emptied")["a"] = 1
    manager.dict("emptied").clear()
    manager.counter("c").increment(5)
    key = manager.secret("s").current
    assert manager.once("mail", 1_000)
    process.kill()
    wait_until(lambda: time.time() > set_at + 0.2)
    process.again()
    assert carts == {"a": {"n": (1, 2)}, 5: None, b"k": b"bytes", "long": 1}
    assert 990 < (carts.ttl("long") or 0) <= 1_000
    assert manager.dict("emptied") == {}
    assert manager.counter("c").increment() == 6
    assert manager.secret("s").current == key
    assert not manager.once("mail", 1_000)


def test_options_outlive_a_kill_and_what_is_not_durable_does_not(process: Manager, manager: StateManager) -> None:
    cache = manager.dict("cache", durable=False, max_bytes=5_000, on_full="evict")
    for i in range(20):
        cache[i] = "x" * 1_000
    assert 3 <= len(cache) <= 4
    size = (process.path / "journal.00000001").stat().st_size
    assert size < 2_000
    process.kill()
    process.again()
    assert len(cache) == 0
    for i in range(20):
        cache[i] = "x" * 1_000
    assert 3 <= len(cache) <= 4


CHILD = """
import sys, state_manager
here = state_manager.connect({path!r}).dict("here", ephemeral=True)
here["child"] = 1
here.increment("n")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child(process: Manager) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written two ephemeral entries, and rests."""
    program = CHILD.format(path=str(process.path))
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


def test_an_ephemeral_entry_lives_as_long_as_its_writer(
    process: Manager, manager: StateManager, child: subprocess.Popen[bytes]
) -> None:
    here = manager.dict("here", ephemeral=True)
    here["parent"] = 2
    process.kill()
    process.again()
    # The child is idle and has no connection now. It lives, so what it wrote stays.
    wait_until(lambda: manager.stats()["uptime"] > 1.5)
    assert here == {"child": 1, "n": 1, "parent": 2}
    child.kill()
    child.wait()
    wait_until(lambda: here == {"parent": 2}, 2)


def test_a_writer_that_died_while_no_manager_ran_is_noticed(
    process: Manager, manager: StateManager, child: subprocess.Popen[bytes]
) -> None:
    process.kill()
    child.kill()
    child.wait()
    process.again()
    assert manager.dict("here") == {}
    assert manager.stats()["sessions"] == 1


def test_a_repeat_after_a_restart_counts_once(process: Manager, manager: StateManager) -> None:
    """The reply to a write is lost with the manager: the client sends it again, to one that has it in its journal."""
    counter = manager.counter("c")
    counter.increment()
    caller: Any = manager._caller
    [lane] = caller._lanes
    process.kill()
    process.again()
    lane.number -= 1  # as if the reply to number 1 had not come
    assert counter.increment() == 1
    assert counter.value == 1
    assert counter.increment() == 2


def test_compaction_bounds_the_journal_and_loses_nothing(process: Manager, manager: StateManager) -> None:
    churn, kept = manager.dict("churn"), manager.dict("kept")
    kept.update({i: f"value {i}" for i in range(2_000)})
    counter = manager.counter("c")
    for _ in range(60):
        churn.set_many({j: os.urandom(500) for j in range(1_000)})
        counter.increment()
    wait_until(lambda: sum(file.stat().st_size for file in process.path.glob("journal.0*")) < 25_000_000, 20)
    assert counter.increment() == 61
    process.kill()
    process.again()
    assert len(kept) == 2_000
    assert kept[1_999] == "value 1999"
    assert len(churn) == 1_000
    assert counter.value == 61


def test_damage_is_named_and_refused_until_told_otherwise(process: Manager, manager: StateManager) -> None:
    counter = manager.counter("c")
    for _ in range(100):
        counter.increment()
    process.process.terminate()
    process.process.wait(10)
    journal = process.path / "journal.00000001"
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    with pytest.raises(StateError, match=r"journal\.00000001.*(offset|byte)") as caught:
        sidecar.start(process.path)
    assert "--recover" in str(caught.value)
    assert journal.read_bytes() == content


@pytest.mark.parametrize(("durability", "after"), [("none", 1), ("process", 2), ("power", 2)])
def test_what_is_kept_is_a_choice(tmp_path: Path, durability: str, after: int) -> None:
    path = tmp_path / "state"
    with connect(path) as manager:
        for expected in (1, after):
            with serving(path, "--durability", durability):
                assert manager.counter("c").increment() == expected
    assert bool(list(path.glob("journal*"))) is (durability != "none")


def test_recovery_keeps_the_damaged_file_and_what_can_be_read(process: Manager, manager: StateManager) -> None:
    counter = manager.counter("c")
    for _ in range(100):
        counter.increment()
    process.process.terminate()
    process.process.wait(10)
    journal = process.path / "journal.00000001"
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    with serving(process.path, "--recover"):
        manager.ping()  # a copy of the counter is right until it has recovered
        assert 40 < counter.value <= 100
    assert any(file.read_bytes() == content for file in process.path.glob("journal*damaged*"))


def test_clients_wait_while_a_large_journal_is_read(process: Manager, manager: StateManager) -> None:
    big = manager.dict("big")
    for start in range(0, 200_000, 20_000):
        big.set_many({i: i for i in range(start, start + 20_000)})
    process.kill()
    command = [sys.executable, "-P", "-m", "state_manager", "serve", "--dir", str(process.path)]
    process.process = subprocess.Popen(command)
    assert len(big) == 200_000


def test_a_compaction_keeps_the_order_of_a_dict(tmp_path: Path) -> None:
    """A key that is written while a compaction runs comes before its slice, and must not come before its elders."""
    directory = StateDirectory.open(tmp_path / "state", create=True)
    journal = Journal.open(directory, mode="process")
    service = Service(Store(1), token=lambda: "")
    load(service, journal, lambda progress: None)
    service.begin(1_000.0)

    def write(command: str, *args: Any) -> None:
        service.call("dict", command, ["d", *args])
        service.commit()

    for key in "abcxd":
        write("set", key, 1)
    journal.begin_compaction()
    write("set", "c", 2)
    write("set", "new", 2)
    for changes, lanes in service.snapshot(1):
        journal.append_slice(1_000.0, changes, lanes)
    write("delete", "x")
    write("set", "x", 3)
    write("set", "a", 3)
    journal.complete(1_000.0)
    expected = list(service.store.spaces["d"].entries.items())
    assert [key for key, _ in expected] == ["a", "b", "c", "d", "new", "x"]
    journal.close()
    journal = Journal.open(directory, mode="process")
    again = Service(Store(2), token=lambda: "")
    load(again, journal, lambda progress: None)
    assert list(again.store.spaces["d"].entries.items()) == expected
    again.store.check()
    journal.close()
    directory.close()


FULL_DISK = """
import sys, time
from pathlib import Path
import state_manager
from state_manager import sidecar

path = Path(sys.argv[1]) / "state"
process = sidecar.start(path)
try:
    manager = state_manager.connect(path)
    big, count = manager.dict("big"), 0
    try:
        while count < 10_000:
            big[count] = "x" * 10_000
            count += 1
    except state_manager.StoreFull as error:
        assert "deletes still work" in str(error), error
    assert 100 < count < 1_000, count
    assert len(big) == count
    assert big[0] == "x" * 10_000
    assert state_manager.connect(path).dict("big").get(1), "a new process can read"
    for key in range(count - 5):
        del big[key]
    deadline = time.monotonic() + 20
    while True:
        try:
            big["new"] = "y" * 10_000
            break
        except state_manager.StoreFull:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    process.kill()
    process.wait()
    process = sidecar.start(path)
    assert len(big) == 6
    assert big["new"] == "y" * 10_000
finally:
    process.kill()
    process.wait()
print("good")
"""


def test_a_full_disk(tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """A real one, of four megabytes, in a mount namespace of its own, for which nobody needs to be root."""
    unshare = [need_program("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody make a namespace")
    script = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = [*unshare, script, "sh", str(tmp_path), sys.executable, FULL_DISK]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.stdout == "good\n", done.stderr
