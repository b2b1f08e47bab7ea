"""Imports an app in two processes that live at the same time, as two of gunicorn's workers do, and compares them.

What a lock or a port lets only one process do, the second one does not: so only what both tell counts. Both are given
a state directory that cannot exist, so that the app starts no manager, changes nothing and is elected for nothing. An
app that cannot be imported without a manager gets a ``memory://`` in each.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..settings import ADDRESS_VARIABLE, DIRECTORY_VARIABLE, MEMORY_SCHEME, START_VARIABLE
from .findings import Finding

NOWHERE = f"{os.devnull}/state"
IMPORT_SECONDS = 60.0
"""How long importing an app may take."""
POLL = 0.02
LAST_WORDS = 1000
"""Characters of what a process has printed that are shown if it ends without a report."""

DIFFERENT = {
    "SECRET_KEY": (
        "a session signed by one worker is refused by the next",
        "delete the line that sets it, and let `state = SharedState(app)` make one for all workers",
    )
}
OTHERWISE = (
    "what one worker has signed with it is refused by the next",
    "give all workers the same: set it in the environment, or delete that line if SECRET_KEY is used without it",
)


Report = dict[str, Any]
"""What a probe tells: ``findings`` and ``secrets``; or the ``error``, its ``place``, and whether it came for want of a
manager: ``stateless``."""


class ImportFailed(ValueError):
    """The app cannot be imported; ``report`` has the details."""

    def __init__(self, app: str, report: Report) -> None:
        place = "{}:{}: ".format(*report["place"]) if report["place"] else ""
        super().__init__(f"cannot import {app}: {place}{report['error']}")
        self.report = report


def look(app: str) -> list[Finding]:
    """Return what can be said about an app, named as gunicorn names it. Raises ImportFailed."""
    findings = []
    try:
        first, second = two_reports(app, memory=False)
    except ImportFailed as failed:
        if not failed.report["stateless"]:
            raise
        text = "the app uses the state while it is imported, and cannot be imported where no manager runs"
        fix = "use it in a request, or in a function: `flask routes`, tests and migrations import the app too"
        findings.append(Finding("advice", "import", text, fix, *(failed.report["place"] or ())))
        first, second = two_reports(app, memory=True)
    if "error" in second:
        text = f"a second process cannot import the app while the first one lives: {second['error']}"
        fix = "do that in one worker: `state.leader(NAME).run(FUNCTION)`, or if `state.once(NAME, ttl=SECONDS)`"
        findings.append(Finding("problem", "import", text, fix, *(second["place"] or ())))
        return findings + [Finding(**finding) for finding in first["findings"]]
    findings += [Finding(**finding) for finding in first["findings"] if finding in second["findings"]]
    return findings + list(compared(first["secrets"], second["secrets"]))


def compared(first: dict[str, Any], second: dict[str, Any]) -> Iterator[Finding]:
    """Compare what must be the same in all workers."""
    for name, one in first.items():
        if name in second and one["digest"] != second[name]["digest"]:
            happens, fix = DIFFERENT.get(name, OTHERWISE)
            text = f"it is another one in each process: {happens}"
            yield Finding("problem", name, text, fix, *(one["place"] or ()))
        elif name in second:
            yield Finding("ok", name, "it is the same in two processes")


def two_reports(app: str, *, memory: bool) -> tuple[Report, Report]:
    """Return what two processes tell. Raises ImportFailed if the first of them cannot import the app."""
    salt = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="state-doctor-") as folder, contextlib.ExitStack() as stack:
        first = stack.enter_context(probe(app, Path(folder), salt, memory))
        if "error" in first:
            raise ImportFailed(app, first)
        return first, stack.enter_context(probe(app, Path(folder), salt, memory))


@contextlib.contextmanager
def probe(app: str, folder: Path, salt: str, memory: bool) -> Iterator[Report]:
    """Give the report of a process that lives until the end of the block, and nothing that it has started after it."""
    report = folder / secrets.token_hex(8)
    environ = {**os.environ, DIRECTORY_VARIABLE: NOWHERE, START_VARIABLE: "0"}
    environ.pop(ADDRESS_VARIABLE, None)
    if memory:
        environ[ADDRESS_VARIABLE] = MEMORY_SCHEME
    with open(f"{report}.log", "w+b") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "state_manager.doctor.probe", app, str(report)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environ,
            start_new_session=True,
        )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(f"{salt}\n".encode())
                child.stdin.flush()
            yield wait_for(report, child, Path(log.name))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def wait_for(report: Path, child: subprocess.Popen[bytes], log: Path) -> Report:
    """Return the report; one that says what was wrong if none comes."""
    deadline = time.monotonic() + IMPORT_SECONDS
    while child.poll() is None and not report.exists():
        if time.monotonic() > deadline:
            error = f"it took longer than {IMPORT_SECONDS:g} s; does it serve, or wait for something, at import?"
            return {"error": error, "stateless": False, "place": None}
        time.sleep(POLL)
    if report.exists():
        found: Report = json.loads(report.read_bytes())
        return found
    said = " ".join(log.read_bytes().decode(errors="replace").split())[-LAST_WORDS:]
    error = f"the process ended with exit code {child.returncode}, and said: {said or 'nothing'}"
    return {"error": error, "stateless": False, "place": None}
