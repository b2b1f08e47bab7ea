"""When a leader's periodic work is due: kept here, so that the next leader goes on where the last one stopped.

Leadership itself is a lock by another name (``locks``). A due time is an entry of ":due", under the leader's name and
the function's. It is moved on before the work begins: who dies in the middle of it has had this turn.
"""

from __future__ import annotations

from math import floor
from typing import Final

from ..checks import LEADERS, check_int, check_key, check_name, seconds
from ..errors import NotOwner
from ..store import ABSENT, Entry
from .base import Done, View, row
from .locks import held_by

DUE: Final = ":due"


def turn(view: View, now: float, name: str, token: int, job: str, period: float) -> Done:
    """Return ``[whether the job is to run now, seconds until it is due again]``. Only the leader may ask."""
    check_name(name)
    check_int(token, "a token")
    if held_by(view, LEADERS, name, token) is None:
        raise NotOwner(f"this process is not the leader {name!r} any more")
    if type(job) is not str:
        raise TypeError("a job's name is a str")
    key = f"{name}\0{job}"
    check_key(key)
    period = seconds(period, "a period")
    found = view.get(DUE, key)
    due = now if found is ABSENT else min(found.value, now + period)  # the period may be shorter than it was
    if due > now:
        return [False, due - now], ()
    following = due + period * (floor((now - due) / period) + 1)
    # A period after that it is overdue, which is the same as not to be known.
    return [True, following - now], ((DUE, key, Entry(following, following + period)),)


COMMANDS = (row("leader", "turn", turn, writes=True),)
