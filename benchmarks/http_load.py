"""What shared state costs a web page: the same Flask routes under gunicorn, and wrk that asks as fast as it can.

constant    100 bytes that the worker has itself: what Flask, gunicorn and wrk cost, and what the others are measured by
read        the same 100 bytes, from the shared state
increment   adds one to a shared counter
session     reads who has logged in, from a cookie that is signed with the shared key

Peers: nothing (a plain Flask app that shares no state), ours, redis (append-only file, synced every second; redis-py
with hiredis), vanilla (a ``multiprocessing.managers.BaseManager``).

Rules: the goals are judged by the constant route of nothing, because what ``SharedState`` does before each request is
in our own constant route too. Each peer has a gunicorn of its own, of two sync workers, and all of them live all the
time. The peers take turns within each round; a rate is the median of the rounds, and a ratio the median of the rounds'
own ratios. Whoever is missing is named and left out.

This is not called http.py, because Python and mypy look for a module beside the script first: then the standard
library's ``http``, which Flask needs, would be this file, and for every other script of this folder too.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from statistics import median

import http_app
import roundtrip
from common import VALUE, ended, managed, median_ratio, print_goals, scratch_directory, where
from durable import Missing, redis

NOTHING = "nothing"
PEERS = (NOTHING, "ours", "redis", "vanilla")
CONSTANT = "constant"
ROUTES = (CONSTANT, "read", "increment", "session")
GOALS = {"read": 0.95, "increment": 0.85}
WORKERS = 2
CONNECTIONS = 8
CHECKS = 16
"""Requests to each route before anything is measured."""
PATIENCE = 30.0
"""Seconds to wait for a gunicorn's first answer."""
HERE = str(Path(__file__).resolve().parent)

Rates = dict[tuple[str, str], list[float]]


# Servers


@contextlib.contextmanager
def stored(peer: str, directory: str) -> Iterator[str]:
    """Run what keeps a peer's state; give where its workers find it."""
    with ExitStack() as stack:
        if peer == "ours":
            stack.enter_context(managed(directory, "process"))
            path = directory
        elif peer == "redis":
            stack.enter_context(redis(directory))
            path = os.path.join(directory, "socket")
        elif peer == "vanilla":
            path = stack.enter_context(roundtrip.served("vanilla"))
        else:
            path = ""
        http_app.prepare(peer, path)
        yield path


@contextlib.contextmanager
def served(peer: str, path: str, scratch: str) -> Iterator[int]:
    """Run a peer's gunicorn; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        options = ("--workers", str(WORKERS), "--log-level", "error", "--pythonpath", HERE)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", *options),
                *("--bind", f"fd://{listener.fileno()}", f"http_app:create({peer!r}, {path!r})"),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            # Newer releases make a control socket there, and none is to meet another's.
            env=os.environ | {"XDG_RUNTIME_DIR": scratch},
        )
    with ended(process):
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(port, CONSTANT)
                break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{process.args!r} does not answer: run it by hand to see why")
            time.sleep(0.02)
        yield port


def ask(port: int, route: str, cookie: str = "") -> tuple[str, str]:
    """Return the body of an answer and the cookie that came with it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", f"/{route}", headers={"Cookie": cookie})
        response = connection.getresponse()
        return response.read().decode(), response.getheader("Set-Cookie", "").partition(";")[0]


def check(peer: str, port: int) -> str:
    """Make sure that the workers do what they are to be measured at; return the cookie of a login."""
    _, cookie = ask(port, "login")
    for count in range(1, CHECKS + 1):  # most likely each of them answers some of these
        expected = {CONSTANT: VALUE, "read": VALUE, "increment": str(count), "session": http_app.USER}
        if peer == NOTHING:
            del expected["increment"]
        for route, body in expected.items():
            found, _ = ask(port, route, cookie)
            if found != body:
                raise SystemExit(f"{peer}: /{route} answered {found!r} instead of {body!r}")
    return cookie


# Measuring


def load(port: int, route: str, cookie: str, seconds: int) -> tuple[int, float]:
    """Ask for so long; return how many answers came, and how many a second."""
    command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "-H", f"Cookie: {cookie}"]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}/{route}"], capture_output=True, text=True, check=True)
    count = re.search(r"(\d+) requests in", done.stdout)
    rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    if count is None or rate is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"not every answer of /{route} was a good one; wrk says:\n{done.stdout}{done.stderr}")
    return int(count[1]), float(rate[1])


def measure(rounds: int, seconds: int) -> Rates:
    """Return the rates of each peer's routes, round by round. Ends if an increment was lost."""
    rates: Rates = {}
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory("http-"))
        pages: dict[str, tuple[int, str]] = {}
        for peer in PEERS:
            try:
                path = stack.enter_context(stored(peer, os.path.join(scratch, peer)))
            except Missing as missing:
                print(f"{peer}: left out, because {missing}")
                continue
            os.mkdir(runtime := os.path.join(scratch, f"{peer}-gunicorn"))
            port = stack.enter_context(served(peer, path, runtime))
            pages[peer] = port, check(peer, port)
        answered = dict.fromkeys(pages, CHECKS)
        for warm in (True, *repeat(False, rounds)):
            for peer, (port, cookie) in pages.items():
                for route in ROUTES if peer != NOTHING else (CONSTANT, "session"):
                    count, rate = load(port, route, cookie, 1 if warm else seconds)
                    answered[peer] += count if route == "increment" else 0
                    if not warm:
                        rates.setdefault((peer, route), []).append(rate)
        print()
        for peer, (port, _) in pages.items():
            if peer != NOTHING:
                compare(peer, answered[peer], int(ask(port, "increment")[0]) - 1, rounds + 1)
    return rates


def compare(peer: str, answered: int, counted: int, runs: int) -> None:
    """Make sure that what was answered was counted. When wrk stops it does not wait for the last answers."""
    print(f"increments of {peer}: {answered:,} answered, {counted:,} counted")
    if not answered <= counted <= answered + runs * CONNECTIONS:
        raise SystemExit(f"{peer} has lost increments, or counted some that nobody asked for")


def show(rates: Rates) -> dict[str, bool]:
    """Print the tables. Return the goals."""
    peers = tuple(dict.fromkeys(peer for peer, _ in rates))
    plain = rates[NOTHING, CONSTANT]
    print_table(peers, "requests a second", {each: f"{median(rates[each]):,.0f}" for each in rates})
    of_plain = {each: median_ratio(rates[each], plain) for each in rates}
    print_table(peers, "of nothing's constant", {each: f"{ratio:.2f}" for each, ratio in of_plain.items()})
    of_own = {(peer, route): median_ratio(rates[peer, route], rates[peer, CONSTANT]) for peer, route in rates}
    print_table(peers, "of its own constant", {each: f"{ratio:.2f}" for each, ratio in of_own.items()})
    return {
        f"the {route} route does at least {goal} of the constant route with nothing": of_plain["ours", route] >= goal
        for route, goal in GOALS.items()
    }


def print_table(peers: tuple[str, ...], title: str, figures: dict[tuple[str, str], str]) -> None:
    print(f"\n{title:<24}" + "".join(f"{peer:>12}" for peer in peers))
    for route in ROUTES:
        print(f"{route:<24}" + "".join(f"{figures.get((peer, route), '-'):>12}" for peer in peers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=14, help="how often each figure is taken (14)")
    parser.add_argument("--seconds", type=int, default=1, help="length of one load, in whole seconds (1)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures of every round to this file")
    parser.add_argument("--quick", action="store_true", help="half a minute in all, to see that it works")
    options = parser.parse_args()
    rounds, seconds = (1, 1) if options.quick else (options.rounds, options.seconds)
    if shutil.which("wrk") is None:
        raise SystemExit("nothing is measured, because the program wrk is not installed (apt-get install wrk)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    print(f"{where()}; medians of {rounds} rounds of {seconds} s; {WORKERS} sync workers, {CONNECTIONS} connections")
    print(f"gunicorn {version('gunicorn')}, Flask {version('flask')}, state-manager serve --durability process")
    rates = measure(rounds, seconds)
    goals = show(rates)
    print_goals(goals)
    if options.json:
        table = {peer: {route: rates[peer, route] for route in ROUTES if (peer, route) in rates} for peer, _ in rates}
        Path(options.json).write_text(json.dumps({"where": where(), "rates": table, "goals": goals}, indent=1))


if __name__ == "__main__":
    main()
