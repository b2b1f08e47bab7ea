"""Flask's session interface while the manager keeps the sessions: what the cookie says, and when it is set.

The cookie is signed as Flask signs its own, with the app's key, and those that were its key before are good as well.
It says which session it is for, and when it was signed:

* A session lives for PERMANENT_SESSION_LIFETIME after the last request that had its cookie, a hundredth of that less at
  the least. It is so long for a session that is not permanent too, whose cookie the browser forgets when it is closed.
  With SESSION_REFRESH_EACH_REQUEST False only a request that changes the session prolongs it.
* The cookie is set when its session is new, has a new token, is prolonged or becomes permanent, or a former key had
  signed it: so nobody is logged out by a rotated key who comes by between one rotation and another.
* What no session has been stored under is nobody's: such a cookie, or one without a good signature, is a new visitor's.
"""

from __future__ import annotations

import time
from typing import Any, Final

from flask import Flask, Request, Response
from flask.sessions import SecureCookieSessionInterface, SessionInterface, SessionMixin
from itsdangerous import BadData, URLSafeTimedSerializer
from markupsafe import Markup

from ..api import StateManager
from ..codec import allow
from ..errors import Unavailable
from .binding import Binding
from .config import check_user_key
from .keys import SharedKeyInterface
from .session import Answer, Rules, ServerSession, Ticket
from .session_records import SessionRecords

USER_KEYS: Final = ("_user_id", "user_id", "userid", "uid", "user", "username", "account_id")
"""Where an app that does not tell has its user: the first is Flask-Login's. When any of them changes the session gets a
new token, or a cookie that somebody has planted before would be good afterwards."""


def install(app: Flask, binding: Binding, sessions: bool | None, user_key: str | None) -> None:
    """Give the app its session interface. What is not None comes before the app's configuration.

    Raises ValueError for a bad key, RuntimeError if the manager is to keep the sessions of an app that has an interface
    of its own.
    """
    try:
        user_key = user_key if user_key is None else check_user_key(user_key)
    except ValueError as error:
        raise ValueError(f"session_user_key is {user_key!r}: {error}") from None
    keeps = binding.settings.sessions if sessions is None else sessions
    if type(app.session_interface) is SecureCookieSessionInterface:
        app.session_interface = ServerSessionInterface(binding, user_key) if keeps else SharedKeyInterface(binding.keys)
    elif keeps:
        raise RuntimeError(
            f"the app {app.name!r} keeps its sessions in a {type(app.session_interface).__name__}: "
            "remove that, or leave out sessions=True (STATE_MANAGER_SESSIONS)"
        )


class ServerSessionInterface(SessionInterface):
    """Sessions that the manager keeps, for one app."""

    def __init__(self, binding: Binding, user_key: str | None) -> None:
        self._binding = binding
        self._user_key = user_key
        self._signer = _Signer(binding.keys)
        self._opened: tuple[StateManager, SessionRecords] | None = None
        allow(Markup, encode=str, decode=Markup)  # Flask's own sessions take it, and flash() is given it

    @property
    def user_keys(self) -> tuple[str, ...]:
        """The keys under which a session may say whose it is: the app's, or those that are common."""
        key = self._user_key or self._binding.settings.session_user_key
        return USER_KEYS if key is None else (key,)

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        """Return the session, which is read when it is used: a page that needs none needs no manager."""
        serializer = self._signer.get_signing_serializer(app)
        if serializer is None:
            return self._signer.open_session(app, request)  # which says why
        return ServerSession(self._records(app), self._ticket(app, request, serializer))

    def _records(self, app: Flask) -> SessionRecords:
        manager = self._binding.manager(app)
        if self._opened is None or self._opened[0] is not manager:
            self._opened = manager, SessionRecords(manager._caller)
        return self._opened[1]

    def _ticket(self, app: Flask, request: Request, serializer: URLSafeTimedSerializer) -> Ticket | None:
        cookie = request.cookies.get(self.get_cookie_name(app))
        if not cookie:
            return None
        try:
            (sid, token), signed_at = serializer.loads(cookie, return_timestamp=True)
        except (BadData, TypeError, ValueError):
            return None
        age = time.time() - signed_at.timestamp()
        if age > _lifetime(app):
            return None
        return Ticket(sid, token, age, stale=_is_stale(cookie, serializer))

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Store what the request has changed. Raises Unavailable, NotStorable, TooLarge, StoreFull."""
        assert isinstance(session, ServerSession)
        if session.accessed:
            response.vary.add("Cookie")
        rules = Rules(
            lifetime=_lifetime(app),
            refresh=app.config["SESSION_REFRESH_EACH_REQUEST"],
            max_bytes=self._binding.settings.session_max_bytes,
            user_keys=self.user_keys,
        )
        try:
            answer = session.save(rules, time.time())
        except Unavailable:
            if session.accessed:
                raise
            return  # it was to be prolonged, which the next request does as well
        if answer is not Answer.LEAVE:
            self._set_cookie(app, session, response, answer)

    def _set_cookie(self, app: Flask, session: ServerSession, response: Response, answer: Answer) -> None:
        name = self.get_cookie_name(app)
        flags: dict[str, Any] = {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "httponly": self.get_cookie_httponly(app),
            "samesite": self.get_cookie_samesite(app),
            "partitioned": self.get_cookie_partitioned(app),
        }
        response.vary.add("Cookie")
        if answer is Answer.DELETE:
            response.delete_cookie(name, **flags)
            return
        serializer = self._signer.get_signing_serializer(app)
        assert serializer is not None  # there was one when the session was opened
        signed = str(serializer.dumps(list(session.ticket)))
        response.set_cookie(name, signed, expires=self.get_expiration_time(app, session), **flags)


class _Signer(SharedKeyInterface):
    salt = "state-manager-session"  # a cookie that holds a session itself is not one of these, nor the other way round


def _is_stale(cookie: str, serializer: URLSafeTimedSerializer) -> bool:
    """Return whether a former key has signed the cookie, whose signature is good."""
    if len(serializer.secret_keys) == 1:
        return False
    signed, _, signature = cookie.rpartition(".")
    return serializer.make_signer(serializer.salt).get_signature(signed).decode() != signature


def _lifetime(app: Flask) -> float:
    lifetime = app.permanent_session_lifetime.total_seconds()
    if lifetime <= 0:
        raise ValueError(f"PERMANENT_SESSION_LIFETIME is {lifetime:g} seconds: no session lives for less than one")
    return lifetime
