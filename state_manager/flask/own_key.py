"""Tells an app with a key of its own when its workers do not have the same one.

That is the bug which the manager's key ends: a key made at import differs in every worker, so a session signed by one
is refused by the next. Processes compare a keyed fingerprint; the key itself never leaves them and is never logged.
"""

from __future__ import annotations

import hmac
import linecache
import os
import re
import sys
from pathlib import Path

from flask import Flask

from ..api import StateManager

SECRET = "fingerprints"
"""The secret that keys them. The sessions' secret is rotated, and then equal keys would look different."""
ONE_START = 60.0
"""Seconds in which the workers of one server start, and only the first of them to see it says so."""
DIFFERENCE = (
    "The SECRET_KEY of process %d differs from that of process %d: a session signed by one is refused by the other. "
    "Delete %s, and all processes get the same key from the manager."
)


def compare(app: Flask, manager: StateManager) -> None:
    """Log a warning, once a server, if a live process of this app has another key. Raises Unavailable."""
    mine = fingerprint(manager, app.secret_key or "")
    here = os.getpid()
    for pid, digest in manager.fingerprints(app.import_name, here, f"{mine} {started(here)}"):
        other, _, since = digest.partition(" ")
        if pid != here and other != mine and started(pid) == since:
            if manager.once(f"own key of {app.import_name} under {os.getppid()}", ONE_START):
                app.logger.warning(DIFFERENCE, here, pid, _line(app))
            return


def fingerprint(manager: StateManager, key: str | bytes) -> str:
    """Return what is the same for two keys only if they are the same, and says nothing about a key by itself."""
    secret = manager.secret(SECRET).current.encode()
    return hmac.new(secret, key.encode() if isinstance(key, str) else key, "sha256").hexdigest()


def started(pid: int) -> str | None:
    """Return what tells a live process from a later one with its pid, where it can be known; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass  # it has ended, or there is no /proc
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # somebody else's
    return "?"


def assignment_of(name: str) -> re.Pattern[str]:
    """Return what matches a line that may set this setting, in any of the ways that Flask has."""
    return re.compile(rf"""[^#]*\b{name}["'\]]*\s*[:=](?!=)""", re.IGNORECASE)


def _line(app: Flask) -> str:
    """Name the line that sets the key, by its place and not by its text, if it is in the app's own module."""
    file = getattr(sys.modules.get(app.import_name), "__file__", None) or ""
    assignment = assignment_of("SECRET_KEY")
    for number, text in enumerate(linecache.getlines(file), 1):
        if assignment.match(text):
            return f"the line that sets it ({file}:{number})"
    return "the line that sets it (secret_key or SECRET_KEY)"
