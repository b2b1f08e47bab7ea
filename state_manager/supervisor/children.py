"""What a supervisor asks of the kernel about processes.

The rules:
- A number is signalled only while it cannot be somebody else's: a child that was not waited for keeps its pid, and a
  process group keeps its number while such a child is in it. Orphaned grandchildren become children where the kernel
  offers it (Linux), so that this holds for the workers of a killed master, too.
- Where something is missing (``pidfd_open``, ``prctl``, ``waitid``) less can be told; nobody else is signalled.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_SET_CHILD_SUBREAPER = 36
"""From <linux/prctl.h>."""


def adopt_orphans() -> None:
    """Let orphaned descendants become children of this process, as those of PID 1 do. Only Linux can."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ended_children() -> list[tuple[int, int]]:
    """Return (pid, exit code; negative for a signal) of the children that have ended, waited for: no zombie is left."""
    ended = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append((found[0], os.waitstatus_to_exitcode(found[1])))
    return ended


def has_children_in(group: int) -> bool:
    """Tell whether a child of ours is in the process group. If so, the number is still that of the group we made."""
    try:
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # macOS has waitid from Python 3.13 on
        return False
    return True


def is_in(group: int, pid: int) -> bool:
    """Tell whether the process exists and is in the group."""
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def watch(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended, be it a child or not; None where none exists.

    Raises ProcessLookupError if it has ended already.
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):  # not Linux, or an old kernel
        os.kill(pid, 0)
        return None


def kill(pid: int, number: int) -> None:
    """Send a signal, or nothing to a process that has gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_group(group: int, number: int) -> None:
    """Send a signal to every process of a group, or to none if it is empty."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def ending(code: int | None) -> str:
    """Return in words how a process ended, from its exit code; None: it was not our child, so nobody told."""
    if code is None:
        return "ended"
    if code < 0:
        return "was ended by " + next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return f"ended with exit code {code}"
