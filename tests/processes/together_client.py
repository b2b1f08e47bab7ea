"""A worker of the tests of working together: a thread for each of the things that processes do together.

    python -m tests.processes.together_client NUMBER DIRECTORY LOG SEED AFTER

It says ``ready`` when it has begun and goes on until its standard input ends. What its threads do they write to LOG at
once, before they call anything and after its return, so that nothing is lost with a process that is killed: a JSON list
a line, ``[time, role, what, ...]``, in nanoseconds of the machine's monotonic clock, which all processes share. AFTER
says how far the worker before it had got in reading the channels, as JSON: ``{"news": id, "short": id}``.

Every value is made once only. What comes of all this is judged in ``together``.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import state_manager
from state_manager import Conflict, NotOwner, StateManager, TimedOut, Unavailable
from state_manager.proxies.channels import Subscription
from state_manager.proxies.locks import Held

TIMEOUT: Final = 20.0
"""Seconds for one operation: a busy machine may take long to start a manager, and that is not what is tested."""
WAIT: Final = 0.3
"""Seconds that one waits for something; then it says so, and waits again."""
LONG_WAIT: Final = 3.0
"""Longer than it may take until somebody else computes."""
LEASE: Final = 0.3
PLACES: Final = 2
ROOM: Final = 10
"""Items that may wait in the queue."""
DELIVERIES: Final = 4
"""How often an item is delivered, if whoever takes it for the last time does not acknowledge it."""
KEPT: Final = 10
"""Messages of the short channel that are kept."""
ACCOUNTS: Final = (("left", "a"), ("left", "b"), ("right", "a"), ("right", "b"))


class Worker:
    def __init__(self, manager: StateManager, number: int, log: str, seed: int, after: dict[str, int]) -> None:
        self.number = number
        self.stop = threading.Event()
        self._manager = manager
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._seed = seed
        self._count = itertools.count(1)
        self._leader = manager.leader("boss")
        exclusive = manager.lock("exclusive", timeout=WAIT)
        leased = manager.lock("leased", lease=LEASE, timeout=WAIT)
        places = manager.semaphore("places", PLACES, timeout=WAIT)
        self.roles: dict[str, Callable[[random.Random], None]] = {
            "lock": lambda draw: self._hold("lock", exclusive, draw),
            "leased": lambda draw: self._hold("leased", leased, draw),
            "places": lambda draw: self._hold("places", places, draw),
            "put": self._put,
            "take": self._take,
            "publish": self._publish,
            "compute": self._compute,
            "bank": self._transact,
        }
        self._news = manager.channel("news", history=100_000).subscribe(after["news"])
        self._short = manager.channel("short", history=KEPT).subscribe(after["short"])
        self.roles["news"] = lambda draw: self._read("news", self._news, 0.0)
        self.roles["short"] = lambda draw: self._read("short", self._short, draw.uniform(0, 0.1))

    def log(self, role: str, what: str, *more: Any) -> None:
        os.write(self._log, json.dumps([time.monotonic_ns(), role, what, *more]).encode() + b"\n")

    def work(self, role: str) -> None:
        """Do the same again and again, until told to stop."""
        draw = random.Random(f"{self._seed} {self.number} {role}")
        try:
            while not self.stop.wait(draw.uniform(0, 0.008)):
                self.roles[role](draw)
        except Exception as error:
            self.log(role, "error", f"{type(error).__name__}: {error}")

    def lead(self) -> None:
        """Stand for election. The loop asks the manager, or looks at its copy, before each beat."""

        def beat() -> None:
            token = self._leader.token
            self.log("lead", "begin", token)
            while not self.stop.wait(0.005) and self._leader.is_leader:
                self.log("lead", "beat", token)

        self._leader.run(beat)

    def _new(self) -> str:
        return f"{self.number}.{next(self._count)}"

    # -- what it does ------------------------------------------------------------------------------------------------

    def _hold(self, role: str, held: Held, draw: random.Random) -> None:
        self.log(role, "call", "acquire")
        blocking = draw.random() < 0.8
        if not held.acquire(blocking):
            self.log(role, "return", None)
            return
        token = held.token
        self.log(role, "return", token)
        time.sleep(draw.choice([0, 0, 0.001, 0.003]))
        self.log(role, "call", "release", token)
        try:
            held.release()
            self.log(role, "return", True)
        except NotOwner:
            self.log(role, "return", False)

    def _put(self, draw: random.Random) -> None:
        delay = draw.choice([0, 0, 0, 0.02])
        value = f"{self._new()}{' later' if delay else ''}"
        self.log("put", "call", value)
        try:
            self._manager.queue("jobs", maxsize=ROOM).put(value, delay=delay, timeout=WAIT)
            self.log("put", "return", value)
        except TimedOut:
            self.log("put", "full", value)

    def _take(self, draw: random.Random) -> None:
        queue = self._manager.queue("jobs", max_deliveries=DELIVERIES, lease=draw.choice([None, LEASE]))
        item = queue.get(timeout=WAIT)
        if item is None:
            return
        self.log("take", "got", item.value, item.deliveries)
        time.sleep(draw.choice([0, 0, 0.001, 0.005]))
        try:
            if draw.random() < 0.2:
                self.log("take", "refuses", item.value, item.deliveries)
                item.nack(draw.choice([0, 0, 0.01]))
            else:
                self.log("take", "acknowledges", item.value, item.deliveries)
                item.ack()
                self.log("take", "acknowledged", item.value, item.deliveries)
        except NotOwner:
            self.log("take", "lost", item.value, item.deliveries)

    def _publish(self, draw: random.Random) -> None:
        value = self._new()
        self.log("publish", "call", value)
        self.log("publish", "return", value, self._manager.channel("news", history=100_000).publish(value))

    def _read(self, role: str, subscription: Subscription, rest: float) -> None:
        for _ in range(20):
            message = subscription.get(timeout=WAIT)
            if message is None:
                break
            self.log(role, "message", *message)
        self.stop.wait(rest)

    def _compute(self, draw: random.Random) -> None:
        def function() -> str:
            value = self._new()
            self.log("compute", "begin", value)
            time.sleep(draw.choice([0.002, 0.01]))
            self.log("compute", "end", value)
            return value

        ttl = 0.015
        early = 0.005 if draw.random() < 0.1 else None
        value = self._manager.dict("computed").get_or_compute("hot", function, ttl, early=early, timeout=LONG_WAIT)
        self.log("compute", "got", value)

    def _transact(self, draw: random.Random) -> None:
        """Read some accounts and write some of those, or only read; or read and write one by itself."""
        kind = draw.choice(["transaction", "transaction", "snapshot", "get", "set"])
        if kind in ("get", "set"):
            name, key = place = draw.choice(ACCOUNTS)
            found, value = None, self._new()
            self.log("bank", "call", kind, [place, value][: 1 + (kind == "set")])
            if kind == "set":
                self._manager.dict(name)[key] = value
            else:
                found = self._manager.dict(name).get(key)
            self.log("bank", "return", found)
            return
        places = draw.sample(ACCOUNTS, draw.randint(2, 4))
        steps: list[tuple[str, tuple[str, str], Any]] = []
        self.log("bank", "begin")
        try:
            with self._manager.transaction() as tx:
                for name, key in places:
                    steps.append(("get", (name, key), tx.dict(name).get(key)))
                for name, key in places[: 0 if kind == "snapshot" else draw.randint(1, 2)]:
                    steps.append(("set", (name, key), self._new()))
                    tx.dict(name)[key] = steps[-1][2]
                self.log("bank", "call", "transaction", steps)
            self.log("bank", "return", True)
        except Conflict:
            self.log("bank", "return", False)


def reach(manager: StateManager) -> None:
    """Wait for the manager, which may be about to start again: one who never saw it gets Unavailable at once."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            manager.ping()
            return
        except Unavailable:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def main() -> None:
    number, directory, log, seed, after = sys.argv[1:]
    with state_manager.connect(directory, timeout=TIMEOUT) as manager:
        reach(manager)
        worker = Worker(manager, int(number), log, int(seed), json.loads(after))
        threads = [threading.Thread(target=worker.work, args=(role,)) for role in worker.roles]
        for thread in threads:
            thread.start()
        worker.lead()
        print("ready", flush=True)
        sys.stdin.read()
        worker.stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
