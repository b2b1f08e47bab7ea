"""A storage for the library limits, and so for Flask-Limiter, that all workers share and that outlives them.

    from state_manager.flask import limits    # makes limits know the address
    Limiter(get_remote_address, app=app, storage_uri="statemanager://")

Rules
- Every hit is one command in the manager (``commands.limits``), so no two workers can both get the last place, and a
  hit that is asked again after a break counts once.
- The manager's clock alone decides. Times that a strategy adds to this process's clock are told as seconds from now.
- A manager that cannot be reached is a StateError like any other: whether a request is then let through, refused or
  counted in the worker's own memory is what Flask-Limiter's ``swallow_errors`` and ``in_memory_fallback`` say.
"""

from __future__ import annotations

import hashlib
import time
import weakref
from pathlib import Path
from typing import Any, Final

from flask import current_app, has_app_context
from limits.errors import ConfigurationError
from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from ..api import StateManager, open_manager
from ..checks import Key
from ..errors import StateError
from ..settings import DEFAULT_TIMEOUT, KEY_LIMIT, DirectoryAddress
from .config import starts_manager
from .extension import EXTENSION, SharedState

SCHEME: Final = "statemanager"


class StateStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Rate limits in the manager, for every strategy of limits.

    ``uri``: ``statemanager:///absolute/directory``; ``statemanager://`` for the manager of the current app's
    ``SharedState`` or, without one, of the default address. ``timeout``: seconds for one operation, retries included
    (None: those of ``SharedState``, else 5). ``wrap_exceptions``: raise StateErrors as ``limits.errors.StorageError``.
    Raises ConfigurationError for another uri, ValueError for a bad timeout.
    """

    STORAGE_SCHEME = [SCHEME]  # noqa: RUF012  # limits reads it so

    def __init__(
        self, uri: str = f"{SCHEME}://", *, timeout: float | None = None, wrap_exceptions: bool = False
    ) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._directory = _directory(uri)
        self._timeout = timeout
        self._managers: dict[Path | str | None, StateManager] = {}
        self._own(self._directory)

    def __repr__(self) -> str:
        return f"<StateStorage of {self._directory or 'the app, or of the default address'}>"

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        return StateError

    def _manager(self) -> StateManager:
        """Return the manager that is the right one at this moment."""
        if self._directory is None and has_app_context():
            state: SharedState | None = current_app.extensions.get(EXTENSION)
            if state is not None:
                if self._timeout is None or not isinstance(address := state.address, DirectoryAddress):
                    return state
                return self._own(address.path)
        return self._own(self._directory)

    def _own(self, directory: Path | str | None) -> StateManager:
        """Return a manager with connections of this storage's own."""
        found = self._managers.get(directory)
        if found is None:
            timeout = DEFAULT_TIMEOUT if self._timeout is None else self._timeout
            made = open_manager(directory, timeout=timeout, near_cache=False, start=starts_manager())
            found = self._managers.setdefault(directory, made)
            # An app and its Limiter are a cycle: a collector may find the sockets in it before who would close them.
            weakref.finalize(self, found.close)
        return found

    def _hit(self, command: str, *args: Any) -> Any:
        return self._manager()._caller.call("limits", command, args, True)

    def _read(self, command: str, *args: Any) -> Any:
        return self._manager()._caller.call("limits", command, args, False)

    # -- fixed window ----------------------------------------------------------------------------------------------

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add to a key's count and return the sum; the first to do so begins a window of ``expiry`` seconds."""
        return int(self._hit("hit_fixed", _stored(key), expiry, amount))

    def get(self, key: str) -> int:
        """Return a key's count."""
        return int(self._read("fixed", _stored(key))[0])

    def get_expiry(self, key: str) -> float:
        """Return when a key's window ends, in seconds since 1970; now, if there is none."""
        return time.time() + float(self._read("fixed", _stored(key))[1])

    # -- moving window ---------------------------------------------------------------------------------------------

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count ``amount`` hits, unless there would be more than ``limit`` in the last ``expiry`` seconds."""
        return bool(self._hit("hit_moving", _stored(key), limit, expiry, amount))

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """Return when the first hit of the last ``expiry`` seconds was, in seconds since 1970, and how many there are.

        Now, if there are none.
        """
        count, age = self._read("moving", _stored(key), limit, expiry)
        return time.time() - age, count

    # -- sliding window counter ------------------------------------------------------------------------------------

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count ``amount`` hits, unless there would be more than ``limit`` with those of the former window, weighted.

        Windows begin at multiples of ``expiry``, as with ``memory://``.
        """
        return bool(self._hit("hit_sliding", _stored(key), limit, expiry, amount))

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return the former window's count, the seconds that it still counts, and both for the current window."""
        former, former_left, current, current_left = self._read("sliding", _stored(key), expiry)
        return former, former_left, current, current_left

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget all hits of a key."""
        self.clear(key)

    # -- all of them -----------------------------------------------------------------------------------------------

    def clear(self, key: str) -> None:
        """Forget all hits of a key, however they were counted."""
        self._hit("clear", _stored(key))

    def reset(self) -> int:
        """Forget all hits of all keys, which are those of every app that uses the manager; return how many keys."""
        return int(self._hit("reset"))

    def check(self) -> bool:
        """Return whether the manager answers."""
        try:
            self._manager().ping()
        except StateError:
            return False
        return True


def _directory(uri: str) -> str | None:
    """Return the directory that a uri names, None for the default address."""
    directory = uri.removeprefix(f"{SCHEME}://")
    if directory == uri or (directory and not directory.strip("/")) or directory[:1] not in ("", "/"):
        raise ConfigurationError(
            f"{uri!r} names no state directory: write '{SCHEME}:///absolute/directory', or '{SCHEME}://' alone"
        )
    return directory or None


def _stored(key: str) -> Key:
    """Return the key as the manager may have it. Part of it may come from a visitor: it may be anything, of any length.

    A digest is bytes, so no text can be mistaken for it.
    """
    try:
        if len(key.encode()) <= KEY_LIMIT:
            return key
    except UnicodeEncodeError:
        pass
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
