"""How long one operation takes, against the limit of a socket and against the standard library's manager.

Four peers, each a server in a process of its own behind a Unix socket:

echo           blocking sockets and nothing else, messages as large as ours: the least that Python can do
echo (epoll)   the same, by one thread that asks the system which connection is ready: the least for many clients
ours           ``state_manager``: ``get``, ``set``, ``increment`` of a dict, kept in memory only, as the others do
vanilla        a ``multiprocessing.managers.BaseManager``: a thread for each connection, pickle, ``increment`` locked

Rules: the peers take turns within each round, so that a change of the machine's mood meets all of them; a figure is the
median of the rounds, and a ratio is the median of the rounds' own ratios. README.md says how to read the output.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from multiprocessing.managers import BaseManager
from pathlib import Path
from statistics import median

from common import (
    VALUE,
    Operations,
    ended,
    line_from,
    managed,
    median_ratio,
    our_operations,
    pinned,
    print_goals,
    scratch_directory,
    started,
    timed,
    where,
)

from state_manager.poller import READ, new_poller

OPERATIONS = ("get", "set", "increment")
PEERS = ("echo", "echo (epoll)", "ours", "vanilla")
MANAGERS = ("ours", "vanilla")
SIZES = {"get": (26, 125), "set": (133, 19), "increment": (38, 19)}
"""Bytes of our request and its reply, as they were counted on the socket."""
CLIENTS = 4
THIS = str(Path(__file__).resolve())
ECHO_GOAL = 1.6
VANILLA_GOAL = 1.5


# The servers and the clients of the two peers


def serve_echo(path: str) -> None:
    """Answer each message with as many bytes as the connection's first four bytes asked for."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    print("ready", flush=True)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def answer(connection: socket.socket) -> None:
    reply = bytes(struct.unpack("!i", connection.recv(4))[0])
    while connection.recv(65536):
        connection.sendall(reply)


def serve_echo_epoll(path: str) -> None:
    """The same in one thread, which asks before it reads, with the poller that our manager has."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    poller = new_poller()
    poller.register(listener.fileno(), READ)
    connections: dict[int, tuple[socket.socket, bytes]] = {}
    print("ready", flush=True)
    while True:
        for fd, _ in poller.poll(60.0):
            if fd == listener.fileno():
                connection = listener.accept()[0]
                reply = bytes(struct.unpack("!i", connection.recv(4))[0])
                connection.setblocking(False)
                connections[connection.fileno()] = connection, reply
                poller.register(connection.fileno(), READ)
                continue
            connection, reply = connections[fd]
            if connection.recv(65536):
                connection.send(reply)
            else:
                poller.unregister(fd)
                del connections[fd]
                connection.close()


def echo_operations(path: str) -> Operations:
    operations: Operations = {}
    for name, (request, reply) in SIZES.items():
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        connection.sendall(struct.pack("!i", reply))
        operations[name] = partial(ask_echo, connection, bytes(request))
    return operations


def ask_echo(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    return connection.recv(65536)


class Store:
    """What the vanilla manager serves."""

    def __init__(self) -> None:
        self._entries: dict[str, object] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> object:
        return self._entries.get(key)

    def set(self, key: str, value: object) -> None:
        self._entries[key] = value

    def increment(self, key: str) -> int:
        with self._lock:
            total = self._entries.get(key, 0)
            assert type(total) is int
            self._entries[key] = total + 1
            return total + 1


class Vanilla(BaseManager):
    pass


STORE = Store()
Vanilla.register("store", callable=lambda: STORE, exposed=("get", "set", "increment"))
AUTHKEY = b"benchmark"


def serve_vanilla(path: str) -> None:
    server = Vanilla(path, AUTHKEY).get_server()
    print("ready", flush=True)
    server.serve_forever()


def vanilla_operations(path: str) -> Operations:
    manager = Vanilla(path, AUTHKEY)
    manager.connect()
    store = manager.store()  # type: ignore[attr-defined]  # register() adds it
    return {
        "get": partial(store.get, "key"),
        "set": partial(store.set, "key", VALUE),
        "increment": partial(store.increment, "n"),
    }


SERVERS = {"echo": serve_echo, "echo (epoll)": serve_echo_epoll, "vanilla": serve_vanilla}
CONNECT = {
    "echo": echo_operations,
    "echo (epoll)": echo_operations,
    "ours": our_operations,
    "vanilla": vanilla_operations,
}


def connected(peer: str, path: str) -> Operations:
    """Return a peer's operations, each of which has been shown to work."""
    operations = CONNECT[peer](path)
    operations["set"]()
    operations["increment"]()
    found = operations["get"]()
    if peer not in MANAGERS:
        assert len(found) == SIZES["get"][1]  # type: ignore[arg-type]
    else:
        assert found == VALUE
    return operations


# Processes


@contextlib.contextmanager
def served(peer: str) -> Iterator[str]:
    """Run a peer's server on the CPUs of this process; give the path that its clients connect to."""
    with scratch_directory("roundtrip-") as directory:
        path = os.path.join(directory, "peer")
        if peer == "ours":
            with managed(path, "none"):
                yield path
        else:
            with ended(started(sys.executable, THIS, "--serve", peer, path)) as process:
                line_from(process)
                yield path


# Measuring


def measure_one_client(title: str, rounds: int, number: int) -> bool:
    """Print the table of one client and one server at a time. Return whether ours reached its goal."""
    times: dict[tuple[str, str], list[float]] = {(peer, name): [] for peer in PEERS for name in OPERATIONS}
    with ExitStack() as stack:
        peers = {peer: connected(peer, stack.enter_context(served(peer))) for peer in PEERS}
        for number_now in (max(1, number // 10), *repeat(number, rounds)):  # the first round is to warm up
            for name in OPERATIONS:
                for peer in PEERS:
                    times[peer, name].append(timed(peers[peer][name], number_now))
    print(f"\n{title}: microseconds for one operation")
    titles = "".join(f"{peer:>14}" for peer in PEERS)
    print(f"{'':<12}{titles}{'ours / echo':>14}{'ours / epoll':>14}{'vanilla / ours':>16}")
    reached = True
    for name in OPERATIONS:
        echo, epoll, ours, vanilla = (times[peer, name][1:] for peer in PEERS)
        to_echo = median_ratio(ours, echo)
        reached &= to_echo <= ECHO_GOAL
        figures = "".join(f"{median(each):>14.1f}" for each in (echo, epoll, ours, vanilla))
        ratios = f"{to_echo:>14.2f}{median_ratio(ours, epoll):>14.2f}{median_ratio(vanilla, ours):>16.2f}"
        print(f"{name:<12}{figures}{ratios}")
    return reached


def be_a_client(peer: str, path: str) -> None:
    """For each line ``OPERATION SECONDS`` on standard input, do it for so long and print how often and how long."""
    operations = connected(peer, path)
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        operation, done = operations[name], 0
        start = now = time.perf_counter()
        end = start + float(seconds)
        while now < end:
            for _ in repeat(None, 20):
                operation()
            done += 20
            now = time.perf_counter()
        print(done, now - start, flush=True)


def measure_clients(rounds: int, seconds: float) -> bool:
    """Print the table of several clients at once. Return whether ours reached its goal and lost no increment."""
    rates: dict[tuple[str, str], list[float]] = {(peer, name): [] for peer in MANAGERS for name in OPERATIONS}
    expected = dict.fromkeys(MANAGERS, CLIENTS)  # each client incremented once when it connected
    found = {}
    with ExitStack() as stack:
        paths = {peer: stack.enter_context(served(peer)) for peer in MANAGERS}
        clients = {
            peer: [
                stack.enter_context(ended(started(sys.executable, THIS, "--client", peer, path)))
                for _ in range(CLIENTS)
            ]
            for peer, path in paths.items()
        }
        for process in (*clients["ours"], *clients["vanilla"]):
            line_from(process)
        for _ in range(rounds):
            for name in OPERATIONS:
                for peer in MANAGERS:
                    done, rate = run_together(clients[peer], name, seconds)
                    rates[peer, name].append(rate)
                    expected[peer] += done if name == "increment" else 0
        for peer, path in paths.items():
            found[peer] = int(str(CONNECT[peer](path)["increment"]())) - 1
    print(f"\n{CLIENTS} clients at once, all CPUs: operations per second, together")
    print(f"{'':<12}{'ours':>10}{'vanilla':>10}{'ours / vanilla':>32}")
    reached = True
    for name in OPERATIONS:
        ours, vanilla = rates["ours", name], rates["vanilla", name]
        ratio = median_ratio(ours, vanilla)
        reached &= ratio >= VANILLA_GOAL
        print(f"{name:<12}{median(ours):>10,.0f}{median(vanilla):>10,.0f}{ratio:>32.2f}")
    for peer, total in expected.items():
        print(f"increments of {peer}: {total:,} done, {found[peer]:,} counted")
        if found[peer] != total:
            raise SystemExit(f"{peer} has lost or repeated {abs(total - found[peer])} increments")
    return reached


def run_together(clients: list[subprocess.Popen[bytes]], name: str, seconds: float) -> tuple[int, float]:
    for process in clients:
        assert process.stdin
        process.stdin.write(f"{name} {seconds}\n".encode())
        process.stdin.flush()
    results = [line_from(process).split() for process in clients]
    return sum(int(done) for done, _ in results), sum(int(done) / float(took) for done, took in results)


def measure(options: argparse.Namespace) -> None:
    rounds, number, seconds = (3, 200, 0.1) if options.quick else (options.rounds, options.number, options.seconds)

    print(f"{where()}; values of {len(VALUE)} bytes; medians of {rounds} rounds")
    goals = {}
    with pinned() as one_cpu:
        if one_cpu:
            reached = measure_one_client("one client, one CPU for it and the server", rounds, number)
            goals[f"a round trip on one CPU is at most {ECHO_GOAL} x echo"] = reached
        else:
            print("\none client, one CPU: left out, because this system cannot pin a process to a CPU")
    measure_one_client("one client, all CPUs", rounds, number)
    reached = measure_clients(rounds, seconds)
    goals[f"{CLIENTS} clients do at least {VANILLA_GOAL} x the operations of vanilla"] = reached
    print_goals(goals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each figure is taken (15)")
    parser.add_argument("--number", type=int, default=2000, help="operations in one round of one client (2000)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one round of several clients (0.5)")
    parser.add_argument("--quick", action="store_true", help="a few seconds in all, to see that it works")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gc.disable()  # as timeit does
    if options.serve:
        peer, path = options.serve
        SERVERS[peer](path)
    elif options.client:
        be_a_client(*options.client)
    else:
        measure(options)


if __name__ == "__main__":
    main()
