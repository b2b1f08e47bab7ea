"""What a check says."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["problem", "advice", "ok"]
"""Something is wrong; it may be, or could be better; it is well."""

ORDER: tuple[Severity, ...] = ("problem", "advice", "ok")


class Finding(NamedTuple):
    severity: Severity
    check: str
    """A word or two: what was looked at."""
    message: str
    """What is, and what happens because of it."""
    fix: str | None = None
    """What to write or to do instead."""
    file: str | None = None
    line: int | None = None
    """These two are a ``Place``."""
