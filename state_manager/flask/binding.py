"""One app's manager and session key.

Nothing here holds the app: the app holds this, so that a test's apps can go.
"""

from __future__ import annotations

import contextlib
import os
from threading import Lock

from flask import Flask

from .. import sidecar
from ..api import StateManager
from ..directory import no_manager
from ..errors import StateError
from ..settings import ADDRESS_VARIABLE, DirectoryAddress
from . import own_key
from .config import FlaskSettings
from .keys import SessionKeys


class Binding:
    """Made in ``init_app`` with the settings of that moment. They are read again at the first use, and then they hold.

    The address alone may be changed at any time, as a test does that wants an empty store.
    """

    def __init__(self, app: Flask) -> None:
        self.keys = SessionKeys()
        self._lock = Lock()
        self._in_use = False
        self._compared_in: int | None = None
        self._connect(app, FlaskSettings.of(app))
        with contextlib.suppress(StateError):  # the first request meets it again, and can say so
            if self.settings.secret is not None and not self.keys.is_own(app):
                self._require_manager()
                self.keys.refresh(app, self._manager.secret(self.settings.secret))

    def _connect(self, app: Flask, settings: FlaskSettings) -> None:
        self._manager = settings.connect()
        self.settings = settings
        self._address = app.config.get(ADDRESS_VARIABLE)

    def manager(self, app: Flask) -> StateManager:
        """Return the app's manager; nothing is connected yet. Raises ValueError for a bad setting."""
        if not self._in_use or app.config.get(ADDRESS_VARIABLE) != self._address:
            with self._lock:
                self._read_settings_again(app)
        return self._manager

    def _read_settings_again(self, app: Flask) -> None:
        settings = FlaskSettings.of(app)
        if settings != self.settings:
            if (settings.address, settings.secret) != (self.settings.address, self.settings.secret):
                self.keys.take_back(app)
            self._manager.close()
            self._connect(app, settings)
        self._address = app.config.get(ADDRESS_VARIABLE)
        self._in_use = True

    def refresh_key(self, app: Flask) -> None:
        """See to the app's key before a request. Never raises: a page may need neither state nor session."""
        try:
            manager = self.manager(app)
            manager.look()
            if self.settings.secret is None:
                return
            if self.keys.is_own(app):
                self._compare_own_key(app, manager)
                return
            if not (app.secret_key or self.settings.start):
                self._require_manager()
            self.keys.refresh(app, manager.secret(self.settings.secret))
        except (StateError, ValueError) as error:
            if self.keys.error is None:
                app.logger.warning("Cannot read the session key from the manager: %s", error)
            self.keys.error = error

    def _compare_own_key(self, app: Flask, manager: StateManager) -> None:
        """Do it at the first request of a process that finds a manager. It is advice, so it costs one try."""
        if self._compared_in != os.getpid():
            with contextlib.suppress(StateError):
                self._require_manager()
                self._compared_in = os.getpid()
                own_key.compare(app, manager)

    def _require_manager(self) -> None:
        """Raise Unavailable at once if no manager runs, where asking it might wait for one that is being restarted."""
        address = self._manager.address
        if isinstance(address, DirectoryAddress) and sidecar.find(address.path) is None:
            raise no_manager(address.path)
