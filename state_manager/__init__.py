"""State that all workers share and that outlives them: dicts, counters, locks, secrets, held by a process of its own.

import state_manager
manager = state_manager.connect()
manager.dict("carts")["alice"] = {"apples": 3}
"""

from __future__ import annotations

from . import serializer
from .api import Space, StateManager, connect
from .codec import allow
from .errors import (
    AuthenticationFailed,
    ComputeFailed,
    Conflict,
    NotOwner,
    NotStorable,
    OutcomeUnknown,
    StateError,
    StoreFull,
    TimedOut,
    TooLarge,
    Unavailable,
)
from .proxies.counters import Counter
from .proxies.dicts import SharedDict
from .proxies.locks import Lock, Owner, Semaphore
from .proxies.secrets import Secret
from .settings import VERSION as __version__  # noqa: N811  # the name that Python looks for

serializer.register()

__all__ = [
    "AuthenticationFailed",
    "ComputeFailed",
    "Conflict",
    "Counter",
    "Lock",
    "NotOwner",
    "NotStorable",
    "OutcomeUnknown",
    "Owner",
    "Secret",
    "Semaphore",
    "SharedDict",
    "Space",
    "StateError",
    "StateManager",
    "StoreFull",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "__version__",
    "allow",
    "connect",
]
