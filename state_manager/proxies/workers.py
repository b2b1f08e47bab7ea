"""``Worker``: a process that uses the manager, as the manager sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..checks import FLIGHT, LEADERS, LOCKS, SEMAPHORE, TAKEN

THINGS: Final = {LOCKS: "lock {}", LEADERS: "leader {}"}
FAMILIES: Final = {SEMAPHORE: "semaphore {}", TAKEN: "item of queue {}", FLIGHT: "computing {}[{!r}]"}
WAITS: Final = {
    ("queue", "get"): "item of queue {}",
    ("queue", "put"): "room in queue {}",
    ("channel", "read"): "message of channel {}",
    ("dict", "compute"): "value of {}",
}


class Worker(NamedTuple):
    """``since``: when it first asked for anything, in seconds since 1970. ``holds``, ``waits``: such as "lock migrate".

    ``pid`` is None where it cannot be seen. A process that has connected anew is one for each connection.
    """

    pid: int | None
    name: str
    since: float
    holds: tuple[str, ...]
    waits: tuple[str, ...]


def worker_of(
    pid: int | None, name: str, since: float, holds: Sequence[tuple[str, Any]], waits: Sequence[tuple[str, str, str]]
) -> Worker:
    """Return what the manager has said about a process, in words."""
    held = tuple(_thing(space, key) for space, key in holds)
    awaited = tuple(WAITS.get((kind, command), f"{kind} {{}}").format(name) for kind, command, name in waits)
    return Worker(pid, name, since, held, awaited)


def _thing(space: str, key: Any) -> str:
    if space in THINGS:
        return THINGS[space].format(key)
    for prefix, text in FAMILIES.items():
        if space.startswith(prefix):
            return text.format(space.removeprefix(prefix), key)
    return f"{space}[{key!r}]"
