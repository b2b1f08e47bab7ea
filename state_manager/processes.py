"""Which process a pid means: a pid comes again, a pid and the time at which its process began do not."""

from __future__ import annotations


def start_time(pid: int) -> int | None:
    """Return when the process began, in clock ticks since boot; None if there is none, or no ``/proc`` to ask."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the command's name in parentheses, which may hold anything; the 22nd is the time.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
