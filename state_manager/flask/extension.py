"""``SharedState``: a ``StateManager`` that finds out at each use which app's manager it is.

So proxies may be made at import, before ``init_app``, and belong to whichever app is current when they are used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from flask import Flask, current_app, has_app_context

from .. import serving
from ..api import StateManager
from ..caller import Caller
from ..nearcache import Copies
from ..settings import Address
from ..versions import Page
from . import session_interface, unavailable, unsaved
from .binding import Binding
from .session_interface import ServerSessionInterface
from .session_list import Sessions
from .session_records import SessionRecords

if TYPE_CHECKING:
    from flask.ctx import RequestContext

EXTENSION = "state_manager"
BINDING = "state_manager.binding"


class SharedState(StateManager):
    """The shared state of one or more Flask apps, with all that ``StateManager`` has.

    ``SharedState(app)`` or ``init_app(app)`` also give the app its session key, answer 503 while no manager can be
    reached, and warn in debug mode about values that were changed and not stored. They start no manager, and wait for
    none to start.

    ``sessions`` True: the manager keeps the sessions too, and the cookie only says which one it is.
    ``session_user_key``: the key under which a session says whose it is. None: as the app's configuration has it.
    """

    _web = True

    def __init__(
        self, app: Flask | None = None, *, sessions: bool | None = None, session_user_key: str | None = None
    ) -> None:
        self._keeps_sessions = sessions
        self._session_user_key = session_user_key
        self._bindings: WeakKeyDictionary[Flask, Binding] = WeakKeyDictionary()
        self._caller = _CurrentCaller(self)
        if "flask_limiter" in sys.modules:
            with contextlib.suppress(ImportError):  # its limits may be too old, and its storage another one
                import_module(f"{__package__}.limits")  # so that it knows "statemanager://"
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        return f"<SharedState of {', '.join(app.name for app in self._bindings) or 'no app yet'}>"

    def init_app(self, app: Flask) -> None:
        """Make this the app's shared state. Raises ValueError for a bad setting.

        Raises RuntimeError if the app has one, or is to have sessions here and has them elsewhere.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(f"the app {app.name!r} has a SharedState already: call init_app once for an app")
        binding = Binding(app)
        session_interface.install(app, binding, self._keeps_sessions, self._session_user_key)
        flasks_own = app.request_context

        def request_context(environ: dict[str, Any]) -> RequestContext:
            """Refresh the key first: this is where every request begins, and test_request_context too."""
            binding.refresh_key(app)
            if app.debug:
                unsaved.watch(environ)
            return flasks_own(environ)

        def serve() -> None:
            """Only a real request comes here, and what waits for one may begin."""
            if not (app.testing or serving.is_test()):
                serving.begin()

        app.before_request(serve)
        unavailable.install(app, lambda: binding.settings.retry_after)
        unsaved.install(app)
        app.request_context = request_context  # type: ignore[method-assign]
        app.extensions[EXTENSION] = self
        app.extensions[BINDING] = binding
        self._bindings[app] = binding

    @property
    def manager(self) -> StateManager:
        """The manager of the current app or, outside of one, of the only app. Raises RuntimeError if there is none."""
        app, binding = self._current()
        return binding.manager(app)

    @property
    def sessions(self) -> Sessions:
        """The sessions, to list and to revoke. Raises RuntimeError at its use if the manager does not keep them."""
        return Sessions(SessionRecords(self._caller), self._user_keys)

    def _user_keys(self) -> tuple[str, ...]:
        app, _ = self._current()
        interface = app.session_interface
        if not isinstance(interface, ServerSessionInterface):
            raise RuntimeError(f"the app {app.name!r} keeps no sessions here: SharedState(app, sessions=True)")
        return interface.user_keys

    def _current(self) -> tuple[Flask, Binding]:
        if has_app_context():
            app = current_app._get_current_object()  # type: ignore[attr-defined]
            binding: Binding | None = app.extensions.get(BINDING)
            if binding is None or app.extensions.get(EXTENSION) is not self:
                raise RuntimeError(f"this SharedState does not know the app {app.name!r}: call init_app(app) first")
        else:
            apps = list(self._bindings)
            if len(apps) != 1:
                raise RuntimeError(f"which of {len(apps)} apps? Call init_app(app), or use `with app.app_context():`")
            (app,) = apps
            binding = self._bindings[app]
        return app, binding

    @property
    def address(self) -> Address:
        """Where the manager is."""
        return self.manager.address


def caller_now(proxy: HasCaller) -> Caller:
    """Return what a proxy calls at this moment, for a time when no app may be current."""
    caller = proxy.caller
    return caller.current if isinstance(caller, _CurrentCaller) else caller


class HasCaller(Protocol):
    """A proxy."""

    @property
    def caller(self) -> Caller: ...


class _CurrentCaller:
    """What the proxies call; it passes everything to the manager that is the right one at that moment."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def __repr__(self) -> str:
        return repr(self._state)

    @property
    def current(self) -> Caller:
        return self._state.manager._caller

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        return self.current.call(kind, name, args, numbered)

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], Page | None]:
        return self.current.exchange(kind, name, args, numbered)

    def wait(self, kind: str, name: str, args: Sequence[Any], timeout: float, numbered: bool = True) -> Any:
        return self.current.wait(kind, name, args, timeout, numbered)

    def copies(self, space: str) -> Copies | None:
        return self.current.copies(space)

    def lasting_copies(self, space: str) -> None:
        """There are none: which app's they are may change from one use to the next."""

    def look(self) -> None:
        self.current.look()

    def tell_later(self, kind: str, name: str, args: Sequence[Any]) -> None:
        self.current.tell_later(kind, name, args)

    def close(self) -> None:
        self._state.manager.close()
