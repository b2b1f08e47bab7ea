"""What messages.py compares: each peer's queues, channels and transactions, as one process uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from peers.base import Server, package
from peers.ours import serve_none, serve_process
from peers.servers import serve_redis, serve_redis_everysec

import state_manager

VALUE: Final = b"x" * 100
TIMEOUT: Final = 20.0
"""Seconds that a receiver waits: it never comes to that."""
HISTORY: Final = 1000

QUEUE, ACKED, CHANNEL, STREAM = "queue", "queue, ack", "channel", "channel, history"
WAYS: Final = (QUEUE, ACKED, CHANNEL, STREAM)
OURS: Final = "ours"
EVERYSEC: Final = "redis (everysec)"

Receiver = Callable[[], object]


@dataclass
class Client:
    """One process's way to a peer: for each way what sends a message, and what receives one, once it is open."""

    send: dict[str, Callable[[], object]]
    open: dict[str, Callable[[], AbstractContextManager[Receiver]]]
    transfer: Callable[[], object]
    """A transaction that reads an entry of each of two dicts and writes both."""
    get: Callable[[float], object]
    """What waits for so many seconds for an item of a queue, and returns None if there was none."""
    put: Callable[[], object]
    waiting: Callable[[], int]
    """How many wait for an item."""


def connect_ours(directory: str) -> Client:
    manager = state_manager.connect(directory)
    queue, idle, channel = manager.queue("benchmark"), manager.queue("idle"), manager.channel("news", HISTORY)

    @contextlib.contextmanager
    def take() -> Iterator[Receiver]:
        taken = []

        def receive() -> object:
            item = queue.get(TIMEOUT)
            taken.append(item)
            return item and item.value

        yield receive
        for item in taken:
            if item:
                item.ack()

    @contextlib.contextmanager
    def take_and_ack() -> Iterator[Receiver]:
        def receive() -> object:
            item = queue.get(TIMEOUT)
            if item:
                item.ack()
            return item and item.value

        yield receive

    @contextlib.contextmanager
    def listen() -> Iterator[Receiver]:
        with channel.subscribe() as subscription:

            def receive() -> object:
                message = subscription.get(TIMEOUT)
                return message and message.value

            yield receive

    def transfer() -> None:
        with manager.transaction() as transaction:
            one, other = transaction.dict("one"), transaction.dict("other")
            taken, given = one.get("n", 0) - 1, other.get("n", 0) + 1
            one["n"], other["n"] = taken, given

    put, publish = partial(queue.put, VALUE), partial(channel.publish, VALUE)
    return Client(
        {QUEUE: put, ACKED: put, CHANNEL: publish, STREAM: publish},
        {QUEUE: take, ACKED: take_and_ack, CHANNEL: listen, STREAM: listen},
        transfer,
        idle.get,
        partial(idle.put, VALUE),
        lambda: idle.state().getters,
    )


def connect_redis(path: str) -> Client:
    # No timeout of the socket: the default one is shorter than what is waited for here, and costs a system call.
    redis = package("redis").Redis(unix_socket_path=path, socket_timeout=None)

    @contextlib.contextmanager
    def take() -> Iterator[Receiver]:
        yield lambda: redis.blpop("benchmark", TIMEOUT)[1]

    @contextlib.contextmanager
    def take_and_ack() -> Iterator[Receiver]:
        def receive() -> object:
            value = redis.blmove("benchmark", "taken", TIMEOUT, "LEFT", "RIGHT")
            redis.lrem("taken", 1, value)
            return value

        yield receive

    @contextlib.contextmanager
    def listen() -> Iterator[Receiver]:
        with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("news")
            pubsub.get_message(timeout=TIMEOUT)  # that it has subscribed
            messages = pubsub.listen()
            yield lambda: next(messages)["data"]

    @contextlib.contextmanager
    def read() -> Iterator[Receiver]:
        last = redis.xrevrange("stream", count=1)
        after = last[0][0] if last else "0"
        unread: list[Any] = []

        def receive() -> object:
            nonlocal after
            if not unread:
                [(_, found)] = redis.xread({"stream": after}, block=int(TIMEOUT * 1000))
                after = found[-1][0]
                unread.extend(reversed(found))
            return unread.pop()[1][b"value"]

        yield receive

    def transfer() -> None:
        with redis.pipeline() as pipe:
            pipe.watch("one", "other")
            taken, given = int(pipe.hget("one", "n") or 0) - 1, int(pipe.hget("other", "n") or 0) + 1
            pipe.multi()
            pipe.hset("one", "n", taken)
            pipe.hset("other", "n", given)
            pipe.execute()

    push = partial(redis.rpush, "benchmark", VALUE)
    add = partial(redis.xadd, "stream", {"value": VALUE}, maxlen=HISTORY, approximate=True)
    return Client(
        {QUEUE: push, ACKED: push, CHANNEL: partial(redis.publish, "news", VALUE), STREAM: add},
        {QUEUE: take, ACKED: take_and_ack, CHANNEL: listen, STREAM: read},
        transfer,
        partial(redis.blpop, "idle"),
        partial(redis.rpush, "idle", VALUE),
        lambda: int(redis.info("clients")["blocked_clients"]),
    )


@dataclass(frozen=True)
class Peer:
    serve: Callable[[str], AbstractContextManager[Server]]
    connect: Callable[[str], Client]


PEERS = {
    OURS: Peer(serve_process, connect_ours),
    "ours (none)": Peer(serve_none, connect_ours),
    EVERYSEC: Peer(serve_redis_everysec, connect_redis),
    "redis": Peer(serve_redis, connect_redis),
}
