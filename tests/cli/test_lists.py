"""Who works together, as the command line shows it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import state_manager
from tests.cli.harness import DEADLINE, Run, Spawn


def test_locks(run: Run, manager: state_manager.StateManager) -> None:
    assert run("locks").out.split() == ["NAME", "KIND", "PID", "THREAD", "SINCE", "LEASE", "LEFT", "WAITING"]
    assert run("locks", "--json") == (0, "[]\n", "")
    with manager.lock("migrate"), manager.semaphore("mail", 2, lease=60) as semaphore:
        header, lock, mail = run("locks").out.splitlines()
        assert header.startswith("NAME")
        assert lock.split()[:3] == ["migrate", "lock", str(os.getpid())]
        assert lock.split()[-2:] == ["none", "0"]
        assert mail.split()[:2] == ["mail", "semaphore"]
        one, other = json.loads(run("locks", "--json").out)
        assert (one["kind"], one["name"], one["pid"], one["lease"]) == ("lock", "migrate", os.getpid(), None)
        assert (other["token"], other["waiters"]) == (semaphore.token, 0)
        assert 50 < other["lease"] <= 60


def test_leaders_are_listed_with_the_locks(run: Run, manager: state_manager.StateManager) -> None:
    token = manager._caller.wait("leader", "acquire", ("scheduler", 1, None, 0), 0.0)
    _, line = run("locks").out.splitlines()
    assert line.split()[:3] == ["scheduler", "leader", str(os.getpid())]
    manager._caller.call("leader", "release", ("scheduler", token), True)


def test_queues(run: Run, manager: state_manager.StateManager) -> None:
    assert run("queues").out.split() == ["NAME", "ITEMS", "TAKEN", "DEAD", "GETTERS", "PUTTERS"]
    assert run("queues", "--json") == (0, "[]\n", "")
    queue = manager.queue("jobs", max_deliveries=1)
    for value in range(3):
        queue.put(value)
    poison, item = queue.get(0), queue.get(0)
    assert poison is not None
    assert item is not None
    poison.nack()
    _, *lines = run("queues").out.splitlines()
    assert [line.split() for line in lines] == [
        ["jobs", "1", "1", "1", "0", "0"],
        ["jobs:dead", "1", "0", "0", "0", "0"],
    ]
    assert json.loads(run("queues", "--json").out)[0] == {
        "name": "jobs",
        "waiting": 1,
        "taken": 1,
        "dead": 1,
        "getters": 0,
        "putters": 0,
    }
    item.ack()
    queue.clear()
    manager.queue("jobs:dead").clear()


def test_a_queue_of_which_all_is_taken_is_listed(run: Run, manager: state_manager.StateManager) -> None:
    queue = manager.queue("jobs")
    queue.put(1)
    item = queue.get(0)
    assert item is not None
    assert run("queues").out.splitlines()[1].split() == ["jobs", "0", "1", "0", "0", "0"]
    item.ack()


def test_channels(run: Run, manager: state_manager.StateManager) -> None:
    assert run("channels").out.split() == ["NAME", "MESSAGES", "WAITING", "LAST", "ID"]
    channel = manager.channel("news")
    id_ = [channel.publish(number) for number in range(3)][-1]
    manager.channel("gone").publish(1)
    manager.channel("gone").drop()
    assert run("channels").out.splitlines()[1].split() == ["news", "3", "0", str(id_)]
    [found] = json.loads(run("channels", "--json").out)
    assert found == {"name": "news", "last": id_, "messages": 3, "waiting": 0}
    channel.drop()


def test_workers(run: Run, manager: state_manager.StateManager) -> None:
    with manager.lock("migrate"):
        header, *lines = run("workers").out.splitlines()
        assert re.split("  +", header) == ["NAME AND PID", "SINCE", "HOLDS", "WAITS FOR"]
        (line,) = [line for line in lines if "lock migrate" in line]
        assert str(os.getpid()) in line
        (found,) = [one for one in json.loads(run("workers", "--json").out) if one["holds"]]
        assert found["pid"] == os.getpid()
        assert found["holds"] == ["lock migrate"]
        assert found["waits"] == []


class Watching:
    """A `state-manager watch --json`, and what it prints when something is done."""

    def __init__(self, spawn: Spawn, directory: Path, *argv: str) -> None:
        self.child = spawn("--dir", str(directory), "watch", "--json", *argv)
        assert self.child.stderr is not None
        assert "Ctrl-C" in self.child.stderr.readline()

    def says(self, done: Callable[[], object]) -> dict[str, Any]:
        done()
        assert self.child.stdout is not None
        found: dict[str, Any] = json.loads(self.child.stdout.readline())
        del found["time"]
        return found

    def end(self) -> None:
        self.child.send_signal(signal.SIGINT)
        assert self.child.wait(DEADLINE) == 130


def test_watching_locks(spawn: Spawn, directory: Path, manager: state_manager.StateManager) -> None:
    watching = Watching(spawn, directory, ":locks", "--interval", "0.02")
    lock = manager.lock("migrate", lease=60)
    found = watching.says(lock.acquire)
    assert (found["kind"], found["name"], found["pid"]) == ("lock", "migrate", os.getpid())
    assert watching.says(lock.release) == {"name": "migrate", "gone": True}
    watching.end()


def test_watching_queues_and_channels(spawn: Spawn, directory: Path, manager: state_manager.StateManager) -> None:
    queue, channel = manager.queue("jobs"), manager.channel("news")
    for what, done, field in (
        (":queues", lambda: queue.put(1), "waiting"),
        (":channels", lambda: channel.publish(1), "messages"),
    ):
        watching = Watching(spawn, directory, what, "--interval", "0.02")
        assert watching.says(done)[field] == 1
        assert watching.says(done)[field] == 2
        watching.end()
    queue.clear()
    channel.drop()


def test_watching_workers(spawn: Spawn, directory: Path, manager: state_manager.StateManager) -> None:
    watching = Watching(spawn, directory, ":workers", "--interval", "0.02")
    lock = manager.lock("migrate")
    found = watching.says(lock.acquire)
    assert (found["pid"], found["holds"]) == (os.getpid(), ["lock migrate"])
    lock.release()
    watching.end()


def test_watching_a_channel_prints_its_messages(
    spawn: Spawn, directory: Path, manager: state_manager.StateManager
) -> None:
    channel = manager.channel("news")
    channel.publish("before")
    watching = Watching(spawn, directory, ":channel:news")
    published: list[int] = []
    found = watching.says(lambda: published.append(channel.publish({"n": (1, 2)})))
    assert found == {"id": published[0], "missed": 0, "value": {"n": {"python": "(1, 2)"}}}
    watching.end()
    channel.drop()


def test_watching_prints_text(spawn: Spawn, directory: Path, manager: state_manager.StateManager) -> None:
    child: subprocess.Popen[str] = spawn("--dir", str(directory), "watch", ":channel:news")
    assert child.stderr is not None
    assert child.stdout is not None
    child.stderr.readline()
    id_ = manager.channel("news").publish("hello")
    assert re.fullmatch(rf'\d\d:\d\d:\d\d  {id_}  "hello"\n', child.stdout.readline())
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE) == 130
    manager.channel("news").drop()


def test_a_slip_is_told(run: Run, manager: state_manager.StateManager) -> None:
    nothing = "state-manager: nothing is stored in {}; `state-manager spaces` lists what there is\n"
    for name in (":lokcs", "stoc"):
        assert run("keys", name) == (0, "", nothing.format(name))
    queue = manager.queue("jobs")
    queue.put(1)
    assert run("keys", "jobs").err.endswith("nothing is stored in jobs, but there is a queue of this name\n")
    queue.clear()
    manager.counter("visits").increment()
    assert "but there is a counter" in run("keys", "visits").err
    manager.dict("stock")["a"] = 1
    assert run("keys", "stock") == (0, "a\n", "")
