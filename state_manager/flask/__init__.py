"""Shared state in a Flask app.

from state_manager.flask import SharedState
state = SharedState(app)
visits = state.counter("visits")
"""

from __future__ import annotations

from .extension import SharedState
from .streams import event_stream

__all__ = ["SharedState", "event_stream"]
