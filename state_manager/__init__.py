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
from .proxies.channels import Channel, Message, Subscription
from .proxies.counters import Counter
from .proxies.dicts import SharedDict
from .proxies.leaders import Leader
from .proxies.locks import Lock, Owner, Semaphore
from .proxies.queues import Item, Queue
from .proxies.secrets import Secret
from .proxies.transactions import Transaction
from .proxies.workers import Worker
from .settings import VERSION as __version__  # noqa: N811  # the name that Python looks for

serializer.register()

__all__ = [
    "AuthenticationFailed",
    "Channel",
    "ComputeFailed",
    "Conflict",
    "Counter",
    "Item",
    "Leader",
    "Lock",
    "Message",
    "NotOwner",
    "NotStorable",
    "OutcomeUnknown",
    "Owner",
    "Queue",
    "Secret",
    "Semaphore",
    "SharedDict",
    "Space",
    "StateError",
    "StateManager",
    "StoreFull",
    "Subscription",
    "TimedOut",
    "TooLarge",
    "Transaction",
    "Unavailable",
    "Worker",
    "__version__",
    "allow",
    "connect",
]
