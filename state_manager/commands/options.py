"""The options of a dict: given ones are set, the others stay as they are, and the last who sets one wins."""

from __future__ import annotations

from typing import Any

from ..checks import OPTIONS, check_int, check_name, shown
from ..policies import EVICT, REFUSE, Options
from ..store import ABSENT
from .base import Done, View, row


def configure(view: View, now: float, space: str, given: list[Any]) -> Done:
    """Set options, ``[name, value, name, value, ...]``; return all of them from before, or ``[]`` for a new dict."""
    check_name(space)
    if type(given) is not list or len(given) % 2:
        raise TypeError("options are a list of names and values")
    found = view.get(OPTIONS, space)
    before = Options() if found is ABSENT else Options(*found)
    wanted = dict(zip(given[::2], given[1::2], strict=True))
    if unknown := set(wanted) - set(Options._fields):
        raise ValueError(f"a dict has no option {sorted(map(str, unknown))[0]!r}; it has {', '.join(Options._fields)}")
    after = before._replace(**wanted)
    for name in ("durable", "ephemeral"):
        if type(getattr(after, name)) is not bool:
            raise TypeError(f"{name} is True or False, not {shown(getattr(after, name))}")
    if after.max_bytes is not None and check_int(after.max_bytes, "max_bytes") <= 0:
        raise ValueError(f"max_bytes is above zero, or None for no bound, not {after.max_bytes}")
    if after.on_full not in (REFUSE, EVICT):
        raise ValueError(f"on_full is {REFUSE!r} or {EVICT!r}, not {shown(after.on_full)}")
    former = [] if found is ABSENT else list(before)
    return former, () if found is not ABSENT and after == before else ((OPTIONS, space, list(after)),)


COMMANDS = (row("dict", "configure", configure, writes=True),)
