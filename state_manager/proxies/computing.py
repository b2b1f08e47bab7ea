"""A value that is computed once for all who want it at the same time: ``SharedDict.get_or_compute``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from ..caller import Caller
from ..checks import FLIGHT, Key, check_key, seconds
from ..checks import timeout as check_timeout
from ..codec import encode
from ..errors import StateError, TimedOut
from .near import MISSING, Near

logger = logging.getLogger("state_manager")

TIMEOUT: Final = 20.0
LEASE: Final = 60.0

Function = Callable[[], Any]


class Computing:
    """Single flight in one dict. ``lease``: after so many seconds of somebody's computing another one does it too."""

    def __init__(self, caller: Caller, near: Near, lease: float) -> None:
        self._caller = caller
        self._near = near
        self._flights = Near(caller, FLIGHT + near.name)
        self._lease = seconds(lease, "a lease")

    def get(self, key: Key, function: Function, ttl: float | None, timeout: float, early: float | None) -> Any:
        """Return the value that is there, else the one that ``function`` returns here or where it is running."""
        check_key(key)
        timeout = check_timeout(timeout)
        if early is not None and (ttl is None or not 0 < early < ttl):
            raise ValueError(f"early is above zero and below the ttl, so it needs one: not {early!r} of {ttl!r}")
        value = self._near.get(key, MISSING)
        if value is MISSING:
            return self._compute_or_wait(key, function, ttl, timeout)
        if early is not None and self._near.seconds_left(key) < early:
            return self._refreshed(key, function, ttl, value)
        return value

    def _compute_or_wait(self, key: Key, function: Function, ttl: float | None, timeout: float) -> Any:
        until = time.monotonic() + timeout
        while True:
            left = max(0.0, until - time.monotonic())
            found = self._caller.wait("dict", "compute", (self._near.name, key, self._lease), left)
            if found is None:
                raise TimedOut(f"{self._near.name}[{key!r}] was being computed by somebody else for {timeout:g} s")
            if found is not True:
                return self._compute(key, function, ttl, found)
            value = self._near.get(key, MISSING)
            if value is not MISSING:  # else it has gone again since
                return value

    def _refreshed(self, key: Key, function: Function, ttl: float | None, value: Any) -> Any:
        """Compute the value anew, unless somebody does, or has just failed: the one that is there is good enough."""
        if self._flights.holds(key):
            return value  # most often this process has a copy of that
        token = self._caller.call("dict", "refresh", (self._near.name, key, self._lease), True)
        if token is None:
            return value
        try:
            return self._compute(key, function, ttl, token)
        except Exception:
            logger.exception("%s[%r] could not be computed anew; its old value still holds", self._near.name, key)
            return value

    def _compute(self, key: Key, function: Function, ttl: float | None, token: int) -> Any:
        mine = (self._near.name, key, token)
        try:
            value = function()
            stored = encode(value)
        except Exception as error:
            self._tell("failed", *mine, f"{type(error).__name__}: {error}"[:1_000])
            raise
        except BaseException:  # the process is ending, or the request was killed: that says nothing about the value
            self._tell("give_up", *mine)
            raise
        try:
            if not self._caller.call("dict", "computed", (*mine, stored, ttl), True):
                logger.info("%s[%r] was written, deleted or taken over while it was computed", self._near.name, key)
        except StateError as error:  # there is no room, or no manager: the value is as good
            logger.warning("%s[%r] was computed and cannot be stored: %s", self._near.name, key, error)
            self._tell("give_up", *mine)
        return value

    def _tell(self, command: str, *args: Any) -> None:
        with contextlib.suppress(StateError):  # the lease will tell it
            self._caller.call("dict", command, args, True)
