"""What the tests of the command line share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from state_manager import cli, sidecar

DEADLINE = 20.0

EXAMPLES = {
    "keys": ["d"],
    "get": ["d", "k"],
    "set": ["d", "k", "1"],
    "delete": ["d", "k"],
    "increment": ["d", "k"],
    "ttl": ["d", "k"],
    "watch": ["d"],
}
"""Arguments for the commands on a dict."""

ARGUMENTS = EXAMPLES | {"backup": ["/nowhere/backup"], "import": ["/dev/null"]}
"""Arguments for all commands that need some."""

NOT_ASKING = ("serve", "run", "restart", "restore", "doctor")
ASKING = [command.name for command in cli.COMMANDS if command.name not in NOT_ASKING]
"""The commands that ask a running manager."""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Answer]
Spawn = Callable[..., subprocess.Popen[str]]


@contextmanager
def running(directory: Path) -> Iterator[Path]:
    """A manager serves the directory meanwhile."""
    child = sidecar.start(directory)
    try:
        yield directory
    finally:
        child.terminate()
        child.wait(DEADLINE)
