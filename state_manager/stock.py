"""What a stock ``BaseManager`` sees: registered objects with methods, over the same commands as everybody else.

A proxy's ident is ``"dict:carts"``, so it means the same before and after a restart, where the standard library's is
the address of an object. Its reference counts are answered and not kept: nothing here lives because somebody points to
it. A stock client has no lane, so a request of its that broke off may have been applied; that is what the library
offers.

Values come as msgpack in the message itself and are stored as the bytes of that msgpack, which is what ``codec``
writes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Final

import msgpack

from .checks import COUNTERS, check_name
from .commands.base import check_size
from .errors import to_wire
from .wire import ERROR, RETURN, packer, unpack

if TYPE_CHECKING:
    from .connection import Connection
    from .server import StateServer

Call = Callable[[str, str, list[Any]], Any]
"""``Service.call``: kind, command, arguments."""

SCALARS: Final = frozenset((type(None), bool, int, float, str))


def to_stored(value: Any) -> Any:
    """Return the stored form of a value that came in a message."""
    return value if type(value) in SCALARS else msgpack.packb(value)


def from_stored(stored: Any) -> Any:
    """Return what stands for a stored value in a message."""
    return unpack(stored) if type(stored) is bytes else stored


class DictObject:
    """``manager.dict(name)`` of a stock manager."""

    exposed = (
        *("get", "set", "add", "replace", "pop", "delete", "increment", "clear", "keys", "items", "ttl"),
        *("__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__"),
    )

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self._name = name
        self.__len__()  # refuses a bad name when the proxy is made

    def _ask(self, command: str, *args: Any) -> Any:
        return self._call("dict", command, [self._name, *args])

    def get(self, key: Any, default: Any = None) -> Any:
        _, *found = self._ask("get", key)
        return from_stored(found[0]) if found else default

    def set(self, key: Any, value: Any, ttl: float | None = None) -> None:
        self._ask("set", key, to_stored(value), ttl)

    def add(self, key: Any, value: Any, ttl: float | None = None) -> Any:
        return self._ask("add", key, to_stored(value), ttl)

    def replace(self, key: Any, value: Any, ttl: float | None = None) -> Any:
        return self._ask("replace", key, to_stored(value), ttl)

    def pop(self, key: Any, *default: Any) -> Any:
        value = self._ask("pop", key) or default
        if not value:
            raise KeyError(key)
        return from_stored(value[0])

    def delete(self, key: Any) -> Any:
        return self._ask("delete", key)

    def increment(self, key: Any, by: int = 1, initial: int = 0, ttl: float | None = None) -> Any:
        return self._ask("increment", key, by, initial, ttl)

    def clear(self) -> None:
        self._ask("clear")

    def keys(self) -> list[Any]:
        return self._scan(False)

    def items(self) -> list[list[Any]]:
        """One message, so for small dicts; ``state_manager.connect`` iterates in pages."""
        return [[key, from_stored(value)] for key, value in zip(*[iter(self._scan(True))] * 2, strict=True)]

    def _scan(self, values: bool) -> list[Any]:
        cursor, found, *_ = self._ask("scan", None, values)
        size = sum(map(getsizeof, found))
        while cursor is not None:
            check_size(size)
            cursor, more, *_ = self._ask("scan", cursor, values)
            size += sum(map(getsizeof, more))
            found += more
        return list(found)

    def ttl(self, key: Any) -> Any:
        left = self._ask("ttl", key)
        if not left:
            raise KeyError(key)
        return left[0]

    def __getitem__(self, key: Any) -> Any:
        _, *found = self._ask("get", key)
        if not found:
            raise KeyError(key)
        return from_stored(found[0])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return len(self._ask("contains", key)) > 1

    def __len__(self) -> int:
        return int(self._ask("size"))


class CounterObject:
    """``manager.counter(name)`` of a stock manager."""

    exposed = ("value", "increment", "decrement", "reset")

    def __init__(self, call: Call, name: str) -> None:
        check_name(name)
        self._call = call
        self._name = name

    def value(self) -> Any:
        _, *value = self._call("dict", "get", [COUNTERS, self._name])
        return value[0] if value else 0

    def increment(self, by: int = 1) -> Any:
        return self._call("counter", "increment", [self._name, by])

    def decrement(self, by: int = 1) -> Any:
        return self._call("counter", "increment", [self._name, -by])

    def reset(self, value: int = 0) -> Any:
        return self._call("counter", "reset", [self._name, value])


class StockPeer:
    """One connection of a stock client: the messages of ``multiprocessing.managers``, without a thread behind them."""

    def __init__(self, server: StateServer) -> None:
        self._server = server
        self._pack = packer().pack

    def receive(self, connection: Connection, payload: bytes) -> bytes:
        if payload[:1] == b"\x80" and payload[-1:] == b".":
            # The one answer that a pickle-speaking client understands. It is written here, and nothing is read.
            text = "this manager speaks msgpack: pass serializer='msgpack' to your BaseManager"
            return pickle.dumps((ERROR, TypeError(text)), protocol=2)
        try:
            message = unpack(payload)
            if type(message) is not list or len(message) != 4:
                raise ValueError("a request is [ident, method, arguments, keywords]")
            ident, method, args, keywords = message
            if type(method) is not str or type(args) is not list or type(keywords) is not dict:
                raise TypeError("a request's method is a str, its arguments are a list and its keywords a dict")
            if ident is None:
                result = self._manage(method, args)
            elif type(ident) is str:
                result = self._ask(ident, method, args, keywords)
            else:
                raise TypeError(f"an ident is a str, not {ident!r}")
            return self._pack([RETURN, result])
        except Exception as error:
            return self._pack([ERROR, to_wire(error)])

    def _manage(self, method: str, args: list[Any]) -> Any:
        """A request to the manager itself."""
        if method in ("dummy", "incref", "decref", "accept_connection"):
            return None
        if method == "create":
            typeid, *rest = args
            ident = f"{typeid}:{rest[0] if rest else ''}"
            return [ident, list(self._object(ident).exposed)]
        if method == "get_methods":
            return list(self._object(args[0][2]).exposed)
        if method == "number_of_objects":
            return self._server.service.store.entries
        if method == "debug_info":
            return repr(self._server.service)
        if method == "shutdown":
            return self._server.service.call("manager", "shutdown", [])
        raise ValueError(f"unknown request {method!r}")

    def _object(self, ident: str) -> Any:
        typeid, _, name = ident.partition(":")
        if typeid not in self._server.registry:
            known = ", ".join(sorted(self._server.registry))
            raise ValueError(f"this manager has no {typeid!r}; a stock client can use {known}")
        return self._server.registry[typeid][0](self._server.service.call_unattached, name)

    def _ask(self, ident: str, method: str, args: list[Any], keywords: dict[Any, Any]) -> Any:
        found = self._object(ident)
        if method == "__repr__" or method == "__str__":
            return ident
        if method not in found.exposed:
            raise ValueError(f"{ident} has no method {method!r}; it has {', '.join(found.exposed)}")
        return getattr(found, method)(*args, **keywords)
