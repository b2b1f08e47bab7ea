"""``serializer="msgpack"`` for ``multiprocessing.managers``: stock managers and proxies speak it once this is imported.

    import state_manager                                  # registers it
    class Manager(BaseManager): pass
    Manager.register("dict"); Manager.register("counter")
    m = Manager(address="/abs/.state/socket", authkey=open("/abs/.state/key", "rb").read(), serializer="msgpack")
    m.connect(); m.dict("carts").set("a", {"n": 1})

The standard library keeps serializers in a registry, ``listener_client``; this adds one beside "pickle" and
"xmlrpclib".
"""

from __future__ import annotations

from multiprocessing import connection, managers
from typing import Any

from . import codec
from .errors import from_wire
from .wire import ERROR


class MsgpackConnection:
    """A ``multiprocessing.connection.Connection`` whose messages are msgpack."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        for name in ("fileno", "close", "poll", "recv_bytes", "send_bytes"):
            setattr(self, name, getattr(conn, name))

    def send(self, message: tuple[Any, ...]) -> None:
        self._conn.send_bytes(codec.encode([list(part) if type(part) is tuple else part for part in message]))

    def recv(self) -> tuple[str, Any]:
        kind, result = codec.decode(self._conn.recv_bytes())
        return kind, from_wire(*result) if kind == ERROR else result


def client(*args: Any, **kwargs: Any) -> MsgpackConnection:
    """Connect as ``multiprocessing.connection.Client`` does."""
    return MsgpackConnection(connection.Client(*args, **kwargs))


def register() -> None:
    """Add "msgpack" to the serializers that ``multiprocessing.managers`` knows. Twice does no harm."""
    # The listener is for BaseManager.__init__ alone, which wants a pair: our server makes its own socket.
    serializers: dict[str, Any] = managers.listener_client  # type: ignore[attr-defined]
    serializers["msgpack"] = (connection.Listener, client)
