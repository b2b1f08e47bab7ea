"""The command table: every request is looked up here, and nothing else can be asked of a manager."""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import TAKEN, Key
from ..store import ABSENT, Change, Entry
from . import channels, entries, flights, leaders, limits, locks, many, options, queues, system, transactions
from .base import Command

FAMILIES = (entries, many, options, flights, transactions, locks, leaders, queues, channels, limits, system)

TABLE: dict[tuple[str, str], Command] = {
    (command.kind, command.name): command for family in FAMILIES for command in family.COMMANDS
}
"""By kind of object (the ident in a request) and name of the method."""

__all__ = ["TABLE", "Command", "ended"]


def ended(space: str, key: Key, entry: Entry, now: float) -> Sequence[Change]:
    """Return the changes that an entry's end makes, with its owner or after its deadline: an item goes back."""
    if space.startswith(TAKEN):
        return queues.returned(space, key, entry)
    return ((space, key, ABSENT),)
