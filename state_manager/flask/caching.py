"""``StateCache``: a cache of the library cachelib that all workers share, and so one for whatever takes those.

    app.config["CACHE_TYPE"] = "state_manager.flask.caching"                       # Flask-Caching
    app.config["SESSION_CACHELIB"] = StateCache(name="sessions", durable=True)     # Flask-Session

It is one dict of the manager, which nobody else should use. Rules:

* What cachelib's own caches answer this one answers: its tests run against ``cachelib.SimpleCache`` too. Only errors
  are not hidden: where those may answer False, this one raises.
* A cache may forget, and must never grow without end: it is not written to disk, has a bound, and gives up its oldest
  entries. With ``durable=True`` it keeps everything.
* Nothing is pickled unless the app says so, and then only here, in the worker. The manager sees bytes.
* An int is stored as it is, whatever the serializer: the manager adds to it, so ``inc`` and ``dec`` are atomic.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from hashlib import sha256
from types import ModuleType
from typing import Any, Final, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

from cachelib import BaseCache
from flask import Flask, current_app, has_app_context
from markupsafe import Markup

from ..api import StateManager, connect
from ..checks import SHORT, Key, check_name, shown
from ..classes import BY_CLASS, allow
from ..errors import NotStorable
from ..proxies.dicts import SharedDict
from ..proxies.options import UNSET
from ..proxies.unsaved import watched
from ..settings import KEY_LIMIT
from .extension import SharedState
from .managers import manager_of

P = ParamSpec("P")
T = TypeVar("T")

CACHE_BYTES: Final = 64 * 2**20
"""The bound of a cache that is not durable, in the manager's memory."""
FLASK_CACHINGS_PREFIX: Final = "flask_cache_"
"""What CACHE_KEY_PREFIX is in an app that does not set it."""
WAY_OUT: Final = """or give this cache serializer="pickle" (Flask-Caching: CACHE_OPTIONS = {"serializer": "pickle"})"""

logger = logging.getLogger("state_manager")

if Markup not in BY_CLASS:  # what ``{% cache %}`` of a template stores; the app may have allowed it in its own way
    allow(Markup, encode=str, decode=Markup)


class Serializer(Protocol):
    """What turns values into bytes or text and back; cachelib's serializers and the module ``json`` do."""

    def dumps(self, value: Any, /) -> Any: ...

    def loads(self, dumped: Any, /) -> Any: ...


class StateCache(BaseCache):
    """A cache that all processes share which use the manager.

    ``address``: what ``connect`` takes, or a StateManager, a SharedState included. None: the manager of the current app
    (its SharedState's, or what its STATE_MANAGER_ settings say) and, outside of any app, what ``connect()`` finds.
    ``name``: the dict's; caches of one name are one cache. ``default_timeout``: seconds or a timedelta, 0 for ever.
    ``serializer``: None for what a dict can store; ``"pickle"``; or an object with ``dumps`` and ``loads``.
    ``durable``: False for a cache that starts empty when the manager does, with room for 64 MiB, which then gives up
    its oldest entries; True for one that keeps everything, for sessions. ``max_bytes`` and ``on_full`` change that, as
    with ``StateManager.dict``. ``ignore_delete_many_errors``: cachelib's; no key ever fails here.

    Timeouts are cachelib's: None for the default, 0 for ever, and what is stored with one below zero is over already.
    Keys of more than 1 KiB are stored by their digest. Raises NotStorable for a value that needs a serializer.
    """

    serializer: Serializer | None = None

    def __init__(
        self,
        address: str | os.PathLike[str] | StateManager | None = None,
        name: str = "cache",
        default_timeout: int | timedelta = 300,
        serializer: str | Serializer | None = None,
        *,
        durable: bool = False,
        max_bytes: int | None = UNSET,
        on_full: str = UNSET,
        ignore_delete_many_errors: bool = True,
    ) -> None:
        if isinstance(address, Flask):
            raise TypeError("Flask-Caching calls the module: write CACHE_TYPE = 'state_manager.flask.caching'")
        super().__init__(default_timeout, ignore_delete_many_errors)
        check_name(name)
        self._name = name
        self._find = _finder(address)
        self._options: dict[str, Any] = {
            "durable": durable,
            "max_bytes": (None if durable else CACHE_BYTES) if max_bytes is UNSET else max_bytes,
            "on_full": ("refuse" if durable else "evict") if on_full is UNSET else on_full,
        }
        self._dicts: WeakKeyDictionary[StateManager, SharedDict] = WeakKeyDictionary()
        if serializer is not None:
            self.serializer = _serializer(serializer)

    @classmethod
    def factory(cls, app: Flask, config: Mapping[str, Any], args: list[Any], kwargs: dict[str, Any]) -> StateCache:
        """Return what Flask-Caching asks for: the cache of this app, which its configuration describes.

        CACHE_ARGS and CACHE_OPTIONS are the constructor's arguments. Without an address it is the app's own manager's.
        Without a name it is ``cache`` or, if the app sets a CACHE_KEY_PREFIX, ``cache:PREFIX``: so that ``clear``
        empties this cache and no other.
        """
        if len(args) < 2:
            kwargs.setdefault("name", _named_by(config.get("CACHE_KEY_PREFIX")))
        cache = cls(*args, **kwargs)
        if not args and kwargs.get("address") is None:
            cache._find = lambda: manager_of(app)
        return cache

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {self._options}>"

    def _shared(self) -> SharedDict:
        manager = self._find()
        found = self._dicts.get(manager)
        if found is None:
            found = self._dicts[manager] = manager.dict(self._name, **self._options)
        return found

    # -- values ----------------------------------------------------------------------------------------------------

    def _dump(self, value: Any) -> Any:
        """Return what the dict is to store."""
        if self.serializer is None or type(value) is int:
            return value
        dumped = self.serializer.dumps(value)
        if type(dumped) is not bytes and type(dumped) is not str:  # cachelib's log a warning and return None
            raise NotStorable(f"{self.serializer!r} makes {shown(dumped)} of {shown(value)}, and not bytes or a str")
        return dumped

    def _load(self, key: Key, found: Any) -> Any:
        """Return the value of what the dict holds; None if it cannot be read, as when an older release stored it."""
        if unsaved := watched():
            unsaved.forget(self._name, key)  # whoever reads a cache knows that it is a copy
        if self.serializer is None or found is None or type(found) is int:
            return found
        try:
            return self.serializer.loads(found)
        except Exception as error:
            logger.warning("the cache %r cannot read what it holds under %r: %r", self._name, key, error)
            return None

    def _write(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return write(*args, **kwargs)
        except NotStorable as error:
            raise NotStorable(f"{error}, {WAY_OUT}") from None

    def _ttl(self, timeout: int | timedelta | None) -> int | None:
        """Return the seconds that an entry is to live, None for ever, below zero for not at all."""
        return int(self._normalize_timeout(timeout)) or None

    # -- cachelib's interface ----------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """Return the value; None if there is none, or none that can be read."""
        stored_key = _key(key)
        return self._load(stored_key, self._shared().get(stored_key))

    def get_many(self, *keys: str) -> list[Any]:
        """Return the values, as they are at one moment, with None for what is absent. One round trip."""
        wanted = [_key(key) for key in keys]
        found = self._shared().get_many(wanted) if wanted else {}
        return [self._load(key, found.get(key)) for key in wanted]

    def has(self, key: str) -> bool:
        """Return whether the key is there; its value may be None."""
        return _key(key) in self._shared()

    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value; return True."""
        ttl = self._ttl(timeout)
        if _is_over(ttl):
            self.delete(key)
        else:
            self._write(self._shared().set, _key(key), self._dump(value), ttl)
        return True

    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        """Store a value only if the key is absent; return whether it was. Of all who try at once, one gets True."""
        ttl = self._ttl(timeout)
        if _is_over(ttl):
            return not self.has(key)
        return self._write(self._shared().add, _key(key), self._dump(value), ttl)

    def set_many(self, mapping: Mapping[str, Any], timeout: int | timedelta | None = None) -> list[Any]:
        """Store all of these at once; return their keys. One round trip."""
        ttl = self._ttl(timeout)
        if _is_over(ttl):
            return self.delete_many(*mapping)
        stored = {_key(key): self._dump(value) for key, value in mapping.items()}
        self._write(self._shared().set_many, stored, ttl)
        return list(mapping)

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        return self._shared().delete(_key(key))

    def delete_many(self, *keys: str) -> list[Any]:
        """Delete these keys at once; return them all, because none of them is there any more. One round trip."""
        if keys:
            self._shared().delete_many([_key(key) for key in keys])
        return list(keys)

    def clear(self) -> bool:
        """Delete all that is in this cache, and nothing else; return True."""
        self._shared().clear()
        return True

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to an integer, atomically, and return the sum.

        An absent key counts as 0 and gets the default timeout; one that is there keeps the time it has left. Raises
        TypeError if the value is not an int, OverflowError if the sum does not fit 64 bits.
        """
        ttl = self._ttl(None)
        if _is_over(ttl):
            return super().inc(key, delta)
        return self._shared().increment(_key(key), delta, ttl=ttl)

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract from an integer; otherwise like ``inc``."""
        return self.inc(key, -delta)

    # -- more than that --------------------------------------------------------------------------------------------

    def get_or_compute(self, key: str, function: Callable[[], Any], timeout: int | timedelta | None = None) -> Any:
        """Return the value that is there, else what ``function()`` returns, which is stored.

        Of all who want it at once one computes, in whichever worker, and the others wait: see
        ``SharedDict.get_or_compute`` for what it raises. (memoize and cached of Flask-Caching let each compute.)
        """
        ttl = self._ttl(timeout)
        if _is_over(ttl):
            return function()
        stored_key = _key(key)
        compute = self._shared().get_or_compute
        return self._load(stored_key, self._write(compute, stored_key, lambda: self._dump(function()), ttl))


def _finder(address: str | os.PathLike[str] | StateManager | None) -> Callable[[], StateManager]:
    """Return what finds the manager at each use."""
    if isinstance(address, SharedState):
        return lambda: address.manager
    manager = address if isinstance(address, StateManager) else connect(address)
    if address is not None:
        return lambda: manager
    return lambda: manager_of(current_app._get_current_object()) if has_app_context() else manager  # type: ignore[attr-defined]


def _serializer(given: object) -> Serializer:
    if given == "pickle":
        return pickle
    if callable(getattr(given, "dumps", None)) and callable(getattr(given, "loads", None)):
        return given  # type: ignore[return-value]
    raise TypeError(f"a serializer is None, 'pickle' or an object with dumps and loads, not {shown(given)}")


def _named_by(prefix: object) -> str:
    if not prefix or prefix == FLASK_CACHINGS_PREFIX:
        return "cache"
    if not isinstance(prefix, str):
        raise TypeError(f"CACHE_KEY_PREFIX becomes part of a dict's name, so it is a str, not {shown(prefix)}")
    return f"cache:{prefix}"


def _key(key: Any) -> Key:
    """Return the key that a dict takes. No limit is known to those who use a cache: a URL may be a key."""
    if isinstance(key, str) and len(key) > SHORT and len(encoded := key.encode()) > KEY_LIMIT:
        return sha256(encoded).digest()  # as bytes, which is no other str's key
    return str.__str__(key) if isinstance(key, str) else key  # of an Enum too


def _is_over(ttl: int | None) -> bool:
    return ttl is not None and ttl < 0


class _Callable(ModuleType):
    """What this module is: CACHE_TYPE names it, and Flask-Caching calls whatever that names."""

    def __call__(self, app: Flask, config: Mapping[str, Any], args: list[Any], kwargs: dict[str, Any]) -> StateCache:
        return StateCache.factory(app, config, args, kwargs)


sys.modules[__name__].__class__ = _Callable
