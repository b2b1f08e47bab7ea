"""The near cache at its edges: each test makes the worst moment happen, and then no read may be out of date.

``reader.asks(read)`` returns what a read gives and how often it asked the manager: 0 means that it was a copy.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import pytest

from state_manager import StateManager, connect, sidecar, versions, wire
from state_manager import client as client_module
from state_manager import server as server_module
from state_manager.client import Client
from state_manager.clock import boot_time
from state_manager.errors import StoreFull
from state_manager.lanes import receive
from state_manager.nearcache import Copies, NearCache
from state_manager.settings import PROTOCOL, SLOTS
from state_manager.versions import Page
from tests.test_server import FailingLog, Served, wait_until


class Process:
    """A manager's process."""

    def __init__(self, path: Path, *flags: str) -> None:
        self.path = path
        self.flags = flags
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "state_manager", "serve", "--dir", str(self.path), *self.flags]
        self.child = subprocess.Popen(command)
        wait_until(lambda: self.child.poll() is not None or sidecar.find(self.path) == self.child.pid)
        with connect(self.path, timeout=10.0) as manager:
            manager.ping()  # it may have been reading its journal

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


class Reader:
    """A process's manager that counts the requests."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.manager = connect(path, timeout=10.0, **options)
        self.asked = 0
        client = self.manager._caller
        exchange = client.exchange

        def counting(kind: str, name: str, args: Any, numbered: bool) -> Any:
            self.asked += 1
            return exchange(kind, name, args, numbered)

        client.exchange = counting  # type: ignore[method-assign]

    def asks(self, read: Callable[[], Any]) -> tuple[Any, int]:
        before = self.asked
        return read(), self.asked - before

    def reads(self) -> dict[str, Callable[[], Any]]:
        """One read of each kind, of what ``fill`` wrote."""
        d, counter, secret = self.manager.dict("d"), self.manager.counter("c"), self.manager.secret("s")
        return {
            "scalar": lambda: d.get("x"),
            "list": lambda: d.get("list"),
            "absent": lambda: d.get("absent"),
            "in": lambda: "absent" in d,
            "frozen": lambda: d.frozen("list"),
            "many": lambda: d.get_many(["x", "list", "absent"]),
            "copy": d.copy,
            "counter": lambda: counter.value,
            "secret": lambda: secret.current,
        }


def fill(manager: StateManager, number: int) -> None:
    manager.dict("d").update({"x": number, "list": [number]})
    if number > 1:
        manager.dict("d")["absent"] = number
        manager.secret("s").rotate()
    manager.counter("c").reset(number)


def filled(number: int) -> dict[str, Any]:
    """What the reads give then, but for the secret."""
    content: dict[Any, Any] = {"x": number, "list": [number]}
    if number > 1:
        content["absent"] = number
    return {
        "scalar": number,
        "list": [number],
        "absent": content.get("absent"),
        "in": number > 1,
        "frozen": (number,),
        "many": content,
        "copy": content,
        "counter": number,
    }


def warm(reader: Reader) -> dict[str, Any]:
    """Read everything until it comes from copies."""
    for read in [*reader.reads().values()] * 2:
        read()
    found = {name: reader.asks(read) for name, read in reader.reads().items()}
    assert all(asked == 0 for _, asked in found.values()), found
    return {name: value for name, (value, _) in found.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A manager for the tests that do it no harm."""
    process = Process(tmp_path_factory.mktemp("edges") / "state")
    yield process
    process.child.terminate()
    process.child.wait(10)


@pytest.fixture
def near(shared: Process) -> Iterator[Reader]:
    """A reader with copies, of an empty manager."""
    reader = Reader(shared.path)
    for name in ("d", "other"):
        reader.manager.drop(name)
    with reader.manager:
        yield reader


@pytest.fixture
def other(shared: Process) -> Iterator[StateManager]:
    """Somebody else, who keeps no copies."""
    with connect(shared.path, near_cache=False) as manager:
        yield manager


@pytest.fixture
def process(path: Path) -> Iterator[Process]:
    process = Process(path)
    yield process
    process.kill()


# -- between two steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", filled(1))
def test_a_write_between_a_reply_and_its_keeping(
    near: Reader, other: StateManager, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(other, 1)
    keep, keep_whole = Copies.keep, Copies.keep_whole

    def late(function: Callable[..., None]) -> Callable[..., None]:
        def keeping(*args: Any) -> None:
            monkeypatch.undo()
            fill(other, 2)  # acknowledged before the copy is kept
            function(*args)

        return keeping

    monkeypatch.setattr(Copies, "keep", late(keep))
    monkeypatch.setattr(Copies, "keep_whole", late(keep_whole))
    read = near.reads()[name]
    assert read() == filled(1)[name]
    assert read() == filled(2)[name]
    assert read() == filled(2)[name]


@pytest.mark.parametrize(
    "write",
    [
        lambda d: d.set("x", 1),
        lambda d: d.set("x", [1]),
        lambda d: d.increment("x"),
        lambda d: d.pop("x"),
        lambda d: d.transform("x", lambda value: value + 1),
    ],
)
def test_a_write_between_another_write_and_the_keeping_of_what_it_wrote(
    near: Reader, other: StateManager, write: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    near.manager.dict("d")["x"] = 0
    keep = Copies.keep

    def late(*args: Any) -> None:
        other.dict("d")["x"] = "theirs"
        keep(*args)

    monkeypatch.setattr(Copies, "keep", late)
    write(near.manager.dict("d"))
    monkeypatch.undo()
    assert near.manager.dict("d")["x"] == "theirs"
    assert near.manager.dict("d").get_many(["x"]) == {"x": "theirs"}


class Wire:
    """A lane without a client, and a near cache that keeps what arrives on it."""

    def __init__(self, path: Path) -> None:
        self.sock = Client(path, timeout=10, start=False)._connect(10)
        self.sock.settimeout(10)
        self.send(None, "accept_connection", [[PROTOCOL, "test", os.urandom(16), 0]])
        *_, self.path = self.receive()[1]
        self.page = Page.open(self.path)
        self.near = NearCache()
        self.near.turn_to(self.page)

    def send(self, kind: Any, name: str, args: Any, *number: int) -> None:
        self.sock.sendall(wire.frame(msgpack.packb([kind, name, args, {}, *number])))

    def receive(self) -> Any:
        return msgpack.unpackb(receive(self.sock))

    def keep(self, key: str) -> Any:
        """Keep the reply to a get; return the value if the copy may be used now, else None."""
        version, stored = self.receive()[1]
        assert self.page is not None
        copies = self.near.copies("d")
        copies.keep(key, self.page, version, stored)
        copy = copies.find(key)
        return copy and copy.read()


@pytest.mark.parametrize("get_first", [True, False])
def test_a_get_and_a_set_in_one_tick(shared: Process, other: StateManager, get_first: bool) -> None:
    other.dict("d")["x"] = "old"
    reader, writer = Wire(shared.path), Wire(shared.path)
    shared.child.send_signal(signal.SIGSTOP)
    os.waitpid(shared.child.pid, os.WUNTRACED)
    first: list[Callable[[], None]] = [
        lambda: reader.send("dict", "get", ["d", "x"]),
        lambda: writer.send("dict", "set", ["d", "x", "new"], 1),
    ]
    for send in first if get_first else reversed(first):
        send()
    shared.child.send_signal(signal.SIGCONT)
    assert writer.receive()[0] == "#RETURN"
    assert reader.keep("x") in (None, "new"), "the set was acknowledged before"
    reader.send("dict", "get", ["d", "x"])
    assert reader.keep("x") == "new"
    for each in (reader, writer):
        each.sock.close()


# -- a commit that fails -----------------------------------------------------------------------------------------------


class GatedLog(FailingLog):
    """Waits in its next ``append`` until it is let go, so that everything sent meanwhile is one tick."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = False
        self.reached, self.go = threading.Event(), threading.Event()

    def append(self, now: float, changes: Any, lanes: Any) -> None:
        if self.waits:
            self.waits = False
            self.reached.set()
            assert self.go.wait(10)
        super().append(now, changes, lanes)


@pytest.fixture
def served(path: Path) -> Iterator[Served]:
    """A server in a thread of this process."""
    served = Served(path)
    served.server.show_page()  # nobody has connected yet
    try:
        yield served
    finally:
        served.stop()


def test_no_copy_of_what_was_undone_can_be_used(served: Served, path: Path) -> None:
    log = GatedLog()
    served.server.service.log = log
    reader, writer = Reader(path), Reader(path)
    for who in (reader, writer):
        who.manager.dict("d")["x"] = "kept"
    assert reader.manager.dict("d")["x"] == "kept"

    wires = [Wire(path) for _ in range(3)]
    log.waits = True
    wires[0].send("counter", "increment", ["c"], 1)
    assert log.reached.wait(10)
    wires[1].send("dict", "set", ["d", "x", "undone"], 1)
    wires[2].send("dict", "get", ["d", "x"])
    log.fails = True
    log.go.set()
    assert wires[0].receive()[0] == wires[1].receive()[0] == "#ERROR"
    assert wires[2].keep("x") in (None, "kept")
    with pytest.raises(StoreFull):
        writer.manager.dict("d")["x"] = "undone"
    for who in (reader, writer):
        assert who.manager.dict("d")["x"] == "kept"
        assert who.asks(lambda: who.manager.dict("d")["x"]) == ("kept", 0)  # noqa: B023

    log.fails = False
    writer.manager.dict("d")["x"] = "new"
    assert reader.manager.dict("d")["x"] == "new"
    copy = wires[2].near.copies("d").find("x")
    assert copy is None
    for each in wires:
        each.sock.close()


# -- the manager's end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "none"])
def test_a_manager_that_was_killed_and_started_again(path: Path, durability: str) -> None:
    """The reader does nothing in between: at its next read its copies are another manager's."""
    process = Process(path, "--durability", durability)
    try:
        readers = {name: Reader(path) for name in filled(1)}
        fill(readers["copy"].manager, 1)
        secret = Reader(path)
        for reader in [secret, *readers.values()]:
            before = warm(reader)
        process.kill()
        for name, reader in readers.items():
            assert reader.asks(reader.reads()[name]) == (before[name], 0), "nothing can be written meanwhile"
        process.start()
        nothing: dict[str, Any] = {
            "scalar": None,
            "list": None,
            "absent": None,
            "in": False,
            "frozen": None,
            "many": {},
            "copy": {},
            "counter": 0,
        }
        for name, reader in readers.items():
            assert reader.asks(reader.reads()[name]) == ((nothing if durability == "none" else before)[name], 1)
        assert (secret.reads()["secret"]() == before["secret"]) is (durability == "process")
        assert secret.asked > 0
        assert warm(readers["copy"])
    finally:
        process.kill()


@pytest.mark.parametrize("killed", [False, True], ids=["alive", "killed"])
def test_a_directory_that_was_removed_and_made_anew(process: Process, path: Path, killed: bool) -> None:
    reader = Reader(path)
    fill(reader.manager, 1)
    before = warm(reader)
    first = process.child
    if killed:
        process.kill()
    shutil.rmtree(path)
    process.start()
    with connect(path, near_cache=False) as other:
        fill(other, 2)
    found: dict[str, Any] = {}

    def news() -> bool:
        found.update((name, read()) for name, read in reader.reads().items())
        return found.pop("secret") != before["secret"] and found == filled(2)

    try:
        wait_until(news, 3)
    finally:
        first.kill()
        first.wait()


@pytest.fixture
def no_tmpfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages are in the directory, and go with it: no successor finds them."""
    monkeypatch.setattr(versions, "SHARED_MEMORY", tmp_path / "none")


@pytest.mark.usefixtures("no_tmpfs")
@pytest.mark.parametrize(
    "name",
    [*filled(1), "secret"],
)
def test_a_page_that_nobody_could_mark(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manager was killed and its directory removed: the reader itself has to notice."""
    monkeypatch.setattr(client_module, "LOOK_SECONDS", 0.1)
    first = Served(path)
    first.server.show_page()
    reader = Reader(path)
    fill(reader.manager, 1)
    before = warm(reader)
    page = first.server.page
    assert page is not None
    monkeypatch.setattr(type(page), "poison", lambda self: None)  # as if it were killed
    shutil.rmtree(path)
    first.stop()
    second = Served(path)
    second.server.show_page()
    with connect(path, near_cache=False) as other:
        fill(other, 2)
    try:
        read = reader.reads()[name]
        wait_until(lambda: read() != before[name], 1)
    finally:
        reader.manager.close()
        second.stop()


def test_a_page_that_was_removed_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HOUSEKEEPING", 0.05)
    monkeypatch.setattr(client_module, "LOOK_SECONDS", 0.05)
    served = Served(path)
    served.server.show_page()
    try:
        reader = Reader(path)
        fill(reader.manager, 1)
        warm(reader)
        former = served.server.page
        assert former is not None
        os.unlink(former.path)
        d, other = reader.manager.dict("d"), connect(path, near_cache=False).dict("d")
        number = 0

        def hits() -> bool:
            nonlocal number
            number += 1
            other["x"] = number
            assert d["x"] == number
            found, asked = reader.asks(lambda: d["x"])
            assert found == number
            return asked == 0 and served.server.page is not former

        wait_until(hits)
        assert served.server.page is not None
        assert os.path.exists(served.server.page.path)
    finally:
        served.stop()


# -- what changes many keys, or one without a writer -------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 1_100], ids=["few keys", "a new epoch"])
@pytest.mark.parametrize("how", ["clear", "drop", "delete_many", "set_many"])
def test_what_changes_many_keys_reaches_every_copy(near: Reader, other: StateManager, size: int, how: str) -> None:
    theirs, d, bystander = other.dict("d"), near.manager.dict("d"), near.manager.dict("other")
    theirs.update({number: number for number in range(size)} | {"x": 1, "list": [1]})
    bystander["x"] = 5
    reads: list[Callable[[], Any]] = [
        lambda: d.get("x"),
        lambda: d.get("list"),
        lambda: d.get(0),
        lambda: d.get_many(["x", "list"]).get("x"),
        lambda: d.copy().get("x"),
    ]
    for read in reads:
        assert read() is not None
    actions: dict[str, Callable[[], Any]] = {
        "clear": theirs.clear,
        "drop": lambda: other.drop("d"),
        "delete_many": lambda: theirs.delete_many([*range(size), "x", "list"]),
        "set_many": lambda: theirs.set_many(dict.fromkeys([*range(size), "x", "list"])),
    }
    actions[how]()
    for read in reads:
        assert read() is None
    assert bystander["x"] == 5
    theirs["x"] = 2
    assert [read() for read in reads[::3]] == [2, 2]


def test_what_is_evicted_reaches_every_copy(near: Reader, other: StateManager) -> None:
    theirs, d = other.dict("d", max_bytes=5_000, on_full="evict"), near.manager.dict("d")
    theirs["x"] = 1
    assert d["x"] == 1
    number = 0
    while "x" in theirs:
        number += 1
        assert d["x"] == 1
        theirs[number] = "x" * 500
    assert number > 2
    assert "x" not in d
    assert d.get("x") is None


def test_the_end_of_an_owner_reaches_every_copy(near: Reader, shared: Process) -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            connect(shared.path).dict("other", ephemeral=True)["x"] = 1
            os.write(tell, b"1")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(told, 1) == b"1"
    d = near.manager.dict("other")
    assert d["x"] == 1
    assert near.asks(lambda: d["x"]) == (1, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: d.get("x") is None, 5)
    for descriptor in (told, tell):
        os.close(descriptor)


def test_another_key_of_the_same_slot_costs_a_fetch_and_no_more(near: Reader, other: StateManager) -> None:
    def slot(key: str) -> int:
        return crc32(key.encode(), crc32(b"d")) % SLOTS

    mate = next(key for number in range(10**7) if slot(key := f"mate {number}") == slot("x"))
    d = near.manager.dict("d")
    d["x"] = 1
    assert near.asks(lambda: d["x"]) == (1, 0)
    other.dict("d")[mate] = 2
    assert near.asks(lambda: d["x"]) == (1, 1)
    assert near.asks(lambda: d[mate]) == (2, 1)
    assert near.asks(lambda: (d["x"], d[mate])) == ((1, 2), 0)
    d[mate] = 3
    assert near.asks(lambda: (d["x"], d[mate])) == ((1, 3), 1)


@pytest.mark.parametrize("value", [1, [1]], ids=repr)
def test_nobody_reads_a_copy_after_its_deadline(near: Reader, other: StateManager, value: Any) -> None:
    theirs, d = other.dict("d"), near.manager.dict("d")
    hits = 0
    for _ in range(3):
        theirs.set("x", value, ttl=0.05)
        deadline = boot_time() + 0.05  # a little later than the real one
        while True:
            before = boot_time()
            found, asked = near.asks(lambda: d.get("x"))
            if found is None:
                break
            assert before < deadline
            hits += asked == 0
        assert boot_time() >= deadline - 0.05
    assert hits > 10


# -- who may have copies -----------------------------------------------------------------------------------------------


def test_a_forked_child_has_no_copies_and_a_session_of_its_own(near: Reader) -> None:
    fill(near.manager, 1)
    warm(near)
    client = near.manager._caller
    assert isinstance(client, Client)
    session = client.session
    pid = os.fork()
    if pid == 0:
        try:
            asked = [near.asks(read)[1] for name, read in near.reads().items() if name in ("scalar", "copy", "secret")]
            near.manager.dict("d")["x"] = 2
            good = asked == [1, 1, 1] and client.session != session and near.reads()["scalar"]() == 2
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert near.asks(near.reads()["scalar"]) == (2, 1)
    assert client.session == session


def test_without_a_near_cache_every_read_asks(shared: Process, near: Reader, other: StateManager) -> None:
    fill(other, 1)
    plain = Reader(shared.path, near_cache=False)
    for _ in range(2):
        for name, read in plain.reads().items():
            found, asked = plain.asks(read)
            assert asked == 1
            assert name == "secret" or found == filled(1)[name]
    plain.manager.close()


def test_threads_that_share_their_copies_never_read_what_is_older_than_an_answer(near: Reader, shared: Process) -> None:
    """All numbers grow. ``least`` is what somebody in this process was told before a read began."""
    keys = ["x", "y", "z"]
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            d = connect(shared.path).dict("d")
            os.write(tell, b"1")
            while True:
                for key in keys:
                    d.increment(key)
                time.sleep(0.001)  # or no copy would last
        finally:
            os._exit(1)
    assert os.read(told, 1) == b"1"
    d = near.manager.dict("d")
    least, lock, wrong = dict.fromkeys(keys, 0), threading.Lock(), list[str]()

    def work(number: int) -> None:
        for step in range(300):
            key = keys[(number + step) % 3]
            before = least[key]
            if step % 10 == number:
                got = d.increment(key)
            elif step % 3:
                got = d.get(key, 0)
            else:
                got = d.get_many(keys).get(key, 0)
            if got < before:
                wrong.append(f"{key!r} was {got} and {before} before")
            with lock:
                least[key] = max(least[key], got)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for descriptor in (told, tell):
            os.close(descriptor)
    assert wrong == []
    assert near.asked < 8 * 300, "some were copies"
    fresh = connect(shared.path, near_cache=False).dict("d").get_many(keys)  # first: a last request may be under way
    assert all(d[key] >= fresh[key] for key in keys)


def test_a_page_is_left_as_soon_as_another_manager_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not mark the former one, which is in another container, and its own cannot be opened from here."""
    first = Served(path)
    first.server.show_page()
    reader = Reader(path)
    d = reader.manager.dict("d")
    d["x"] = 1
    assert reader.asks(lambda: d["x"])[0] == 1
    page = first.server.page
    assert page is not None
    first.stop()
    second = Served(path)
    try:
        with connect(path, near_cache=False) as other:
            other.dict("d")["x"] = 2
        assert d["x"] == 1, "nobody could tell it"
        reader.manager.ping()
        assert d["x"] == 2
        assert d.transform("x", lambda number: number + 1) == 3
    finally:
        reader.manager.close()
        second.stop()


def test_a_manager_that_is_dropped_leaves_no_mapping(path: Path) -> None:
    served = Served(path)
    served.server.show_page()
    gc.collect()
    gc.disable()
    try:
        descriptors = 0
        for number in range(5):
            if number == 1:  # the server watches this process from now on
                descriptors = len(os.listdir("/proc/self/fd"))
            manager = connect(path)
            manager.dict("d")["x"] = 1
            assert manager.dict("d")["x"] == 1
            del manager
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, 5)
    finally:
        gc.enable()
        served.stop()


def test_a_copy_of_more_than_a_page_leaves_no_iteration_open(near: Reader, shared: Process) -> None:
    d = near.manager.dict("d")
    d.update(dict.fromkeys(range(1_300), 1))
    copied, asked = near.asks(d.copy)
    assert copied == dict.fromkeys(range(1_300), 1)
    assert asked == 3


def test_what_decoded_forms_take_is_counted(near: Reader) -> None:
    d = near.manager.dict("d")
    d["list"], d["tuple"] = list(range(10_000)), tuple(range(10_000))
    cache = near.manager._caller._near  # type: ignore[attr-defined]
    d.get("list")
    reads: list[Callable[[], Any]] = [lambda: d.frozen("list"), lambda: d.get("tuple")]
    for read in reads:
        before = cache.filled
        read()
        counted = cache.filled
        assert counted > before + 200_000
        read()
        assert cache.filled == counted
