"""Real run.py and gunicorn processes, and what a test wants to know about them and do to them.

Every process that a test starts, at whatever remove, has the test's own directory as its HOME: that is how the fixture
finds what is left at the end, whoever its parent is by then.
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlencode

import gunicorn
import psutil

import state_manager
from state_manager import sidecar

ROOT = Path(__file__).parents[2]
RUN = (sys.executable, str(ROOT / "run.py"))
GUNICORN = (sys.executable, str(Path(sys.executable).with_name("gunicorn")))
"""Its script: after USR2 it cannot start itself as a module."""
RESETS = gunicorn.version_info < (24,)
"""Whether a gthread worker that stops resets the connections that it has accepted and not read yet."""
SECONDS = 20.0
"""How long anything may take before the test fails: much longer than it takes."""

SLOW_APP = """
import os, pathlib, time
from flask import Flask
from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
here = pathlib.Path(__file__).parent

@app.get("/slow")
def slow():
    (here / "began").touch()
    while not (here / "end").exists():
        time.sleep(0.02)
    state.counter("ended").increment()
    return f"done by {os.getpid()}"
"""

Command = tuple[str, ...]
T = TypeVar("T")


def slow_app(home: Path) -> str:
    """Write an app whose request /slow makes a file `began` and ends when there is a file `end`; return its name."""
    (home / "slow.py").write_text(SLOW_APP)
    return "slow:app"


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = SECONDS) -> T:
    """Return the condition's first true value; fail with ``what`` if it does not come in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for this: {what}"
        time.sleep(0.02)
    return value


def free_port() -> int:
    """Return a TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a process under test: the package, and nothing of the shell that runs the tests."""
    package = Path(state_manager.__file__).parent.parent
    path = os.pathsep.join([str(package), str(ROOT)])
    kept = {name: value for name, value in os.environ.items() if name not in ("XDG_RUNTIME_DIR", "PYTHONPATH")}
    return {**kept, "HOME": str(home), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables}


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the living processes that were started with this HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def unreset(ask: Callable[[], T]) -> T:
    """Return ``ask()``; ask again where gunicorn itself may reset the connection."""
    while True:
        try:
            return ask()
        except (ConnectionResetError, BrokenPipeError):
            if not RESETS:
                raise


def run(home: Path, command: Command, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run something that ends by itself."""
    return subprocess.run(
        [*command, *arguments],
        cwd=home,
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


class Answer(NamedTuple):
    status: int
    text: str


class Browser:
    """Sends requests, each on a new connection, and keeps cookies."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: SimpleCookie = SimpleCookie()

    def get(self, path: str = "/") -> Answer:
        return unreset(lambda: self.get_once(path))

    def get_once(self, path: str) -> Answer:
        return self._send("GET", path, None)

    def post(self, path: str, **form: str) -> Answer:
        return self._send("POST", path, urlencode(form))

    def _send(self, method: str, path: str, body: str | None) -> Answer:
        headers = {"Cookie": "; ".join(f"{one.key}={one.coded_value}" for one in self.cookies.values())}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            for cookie in response.headers.get_all("Set-Cookie") or ():
                self.cookies.load(cookie)
            return Answer(response.status, response.read().decode())
        finally:
            connection.close()


class Hello(NamedTuple):
    """What ``/`` of the app in web/ says."""

    number: int
    pid: int


def hello(browser: Browser) -> Hello:
    """Ask for ``/`` and return the count and the worker's pid."""
    answer = browser.get("/")
    match = re.fullmatch(r"Hello World! (\d+), Process (\d+)", answer.text)
    assert match, answer
    return Hello(int(match[1]), int(match[2]))


def many_requests(port: int, clients: int = 5, each: int = 8) -> list[Hello]:
    """Ask for ``/`` from several clients at once until two workers have answered; return the answers, sorted."""

    def ask(_: int) -> list[Hello]:
        browser = Browser(port)
        return [hello(browser) for _ in range(each)]

    answers: list[Hello] = []
    deadline = time.monotonic() + SECONDS
    with ThreadPoolExecutor(clients) as pool:
        while len({answer.pid for answer in answers}) < 2:
            assert time.monotonic() < deadline, "the answers of a second worker"
            answers += itertools.chain.from_iterable(pool.map(ask, range(clients)))
    return sorted(answers)


@dataclass
class Server:
    """A run.py or a gunicorn, started by pytest-xprocess, and its log."""

    popen: subprocess.Popen[bytes]
    log: Path
    home: Path
    port: int

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def directory(self) -> Path:
        return self.home / ".state"

    @property
    def text(self) -> str:
        return self.log.read_text()

    def browser(self) -> Browser:
        return Browser(self.port)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait until it has ended."""
        return self.popen.wait(SECONDS)

    def masters(self) -> list[int]:
        """Return the pids of all gunicorn masters that have started so far."""
        return [int(pid) for pid in re.findall(r"\[(\d+)\] \[INFO\] Starting gunicorn", self.text)]

    def master(self) -> int:
        """Return gunicorn's master, once it has begun to serve."""
        return wait_for(self.masters, f"a gunicorn in {self.text}")[-1]

    def workers(self) -> set[int]:
        """Return the workers of the last master."""
        try:
            return {child.pid for child in psutil.Process(self.master()).children()}
        except psutil.NoSuchProcess:
            return set()

    def manager(self) -> int:
        """Return the pid of the living manager, 0 if there is none."""
        return sidecar.find(self.directory) or 0

    def manager_after(self, before: int) -> int:
        """Return the pid of the next manager, once it lives."""
        return wait_for(lambda: {self.manager()} - {0, before}, "another manager").pop()

    def wait_until_said(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.text.count(text) >= times, f"{text!r} in the log")


def alive(pid: int) -> bool:
    """Tell whether the process exists and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> bool:
    return not alive(pid)


Start = Callable[..., Server]
"""What the fixture ``start`` is; see there."""
