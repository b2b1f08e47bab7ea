"""The session key that the manager made, as an app's SECRET_KEY and SECRET_KEY_FALLBACKS.

Flask reads both settings whenever it opens or saves a session, in any thread. So they are changed, and read by Flask's
own session interface, under one lock, which is never held while the manager is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NoReturn

from flask import Flask, Request
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface
from itsdangerous import URLSafeTimedSerializer

from ..proxies.secrets import Secret

FALLBACKS = "SECRET_KEY_FALLBACKS"


class SessionKeys:
    """Gives one app its keys, and never older ones than it has."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.error: Exception | None = None  # why the app has no key yet
        self._current: str | None = None
        self._fallbacks: list[str] = []
        self._own_fallbacks: Sequence[str] = ()
        self._generation = 0
        self._changes = 0

    def is_own(self, app: Flask) -> bool:
        """Return whether the app has a key that did not come from here."""
        with self.lock:
            return bool(app.secret_key) and app.secret_key != self._current

    def refresh(self, app: Flask, secret: Secret) -> None:
        """Ask the manager for its keys and give them to the app, unless another thread has given it newer ones."""
        changes = self._changes
        generation, keys = secret.keys()
        with self.lock:
            # Only what was asked for before the last change can be older than it. After it, a lower number is another
            # manager's, which began anew.
            if changes == self._changes or generation >= self._generation:
                self._give(app, generation, keys)

    def _give(self, app: Flask, generation: int, keys: tuple[str, ...]) -> None:
        current, *former = keys
        self.error = None
        if current == app.secret_key and generation == self._generation:
            return
        if app.config[FALLBACKS] is not self._fallbacks:
            self._own_fallbacks = app.config[FALLBACKS] or ()  # from when it had a key of its own
        self._fallbacks = [*former, *self._own_fallbacks]
        self._current = current
        self._generation = generation
        self._changes += 1
        app.config[FALLBACKS] = self._fallbacks
        app.secret_key = current

    def take_back(self, app: Flask) -> None:
        """Leave the app without a key, because it changes to another manager."""
        with self.lock:
            if app.secret_key == self._current:
                app.secret_key = None


class SharedKeyInterface(SecureCookieSessionInterface):
    """Flask's own signed cookies, with the two settings read together."""

    def __init__(self, keys: SessionKeys) -> None:
        self.keys = keys

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer | None:
        with self.keys.lock:
            return super().get_signing_serializer(app)

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        session = super().open_session(app, request)
        if session is None and self.keys.error is not None:
            return UnopenedSession(self.keys.error)
        return session


class UnopenedSession(NullSession):
    """The session of a request that came before any key: it can only say why.

    Reading it raises as well, because an empty session would look like a visitor who has not logged in.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise type(self._error)(*self._error.args)  # a new one: a traceback belongs to one request

    __getitem__ = __contains__ = __iter__ = __len__ = get = keys = values = items = copy = _refuse
    __setitem__ = __delitem__ = clear = pop = popitem = update = setdefault = _refuse
