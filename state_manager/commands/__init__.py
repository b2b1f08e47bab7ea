"""The command table: every request is looked up here, and nothing else can be asked of a manager."""

from __future__ import annotations

from . import entries, locks, many, options, system
from .base import Command

TABLE: dict[tuple[str, str], Command] = {
    (command.kind, command.name): command
    for family in (entries, many, options, locks, system)
    for command in family.COMMANDS
}
"""By kind of object (the ident in a request) and name of the method."""

__all__ = ["TABLE", "Command"]
