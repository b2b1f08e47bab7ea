"""Which manager the extensions of an app use, whether the app has a SharedState or not."""

from __future__ import annotations

from threading import Lock
from typing import Any

from flask import Flask

from ..api import StateManager
from ..settings import ADDRESS_VARIABLE
from .binding import Binding
from .config import FlaskSettings
from .extension import BINDING

WITHOUT_STATE = "state_manager.manager"
"""In ``app.extensions`` of an app without a SharedState: ``(address in app.config, its manager)``."""
_lock = Lock()


def manager_of(app: Flask) -> StateManager:
    """Return the manager of the app's SharedState or, without one, that of its STATE_MANAGER_ settings.

    Ask at each use: a SharedState may come later than its app's other extensions, and a test may change the address.
    Raises ValueError for a bad setting.
    """
    binding: Binding | None = app.extensions.get(BINDING)
    if binding is not None:
        return binding.manager(app)
    address = app.config.get(ADDRESS_VARIABLE)
    with _lock:
        held: tuple[Any, StateManager] | None = app.extensions.get(WITHOUT_STATE)
        if held is None or held[0] != address:
            held = app.extensions[WITHOUT_STATE] = address, FlaskSettings.of(app).connect()
        return held[1]
