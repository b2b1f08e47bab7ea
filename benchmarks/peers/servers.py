"""Servers that others wrote: Redis, memcached, gunicorn's stash."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from common import ended, started

from peers.base import COMPARE, COUNTER, Client, Missing, Server, each, one_by_one, package

PATIENCE = 30.0
"""Seconds to wait for a server."""


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"the program {name} is not installed")
    return found


@contextlib.contextmanager
def answering(directory: str, command: list[str], connect: Callable[[str], Client]) -> Iterator[Server]:
    """Run a server at the socket ``directory/socket``; give it when a client could connect."""
    path = os.path.join(directory, "socket")
    with ended(started(*command, quiet=True)) as process:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                connect(path).close()
                break
            except Exception as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{' '.join(command)} does not answer ({error}): run it by hand") from error
            time.sleep(0.02)
        yield Server(path, process)


# Redis


@contextlib.contextmanager
def serve_redis(directory: str, *keeping: str) -> Iterator[Server]:
    package("redis")
    package("hiredis")  # without it redis-py is slower, and the comparison is not fair
    quiet = ("--loglevel", "warning")  # nobody reads its log
    place = ("--port", "0", "--unixsocket", os.path.join(directory, "socket"), "--dir", directory)
    command = [program("redis-server"), *place, *quiet, "--save", "", *keeping]
    os.mkdir(directory)
    with answering(directory, command, connect_redis) as server:
        yield server


def serve_redis_everysec(directory: str) -> contextlib.AbstractContextManager[Server]:
    return serve_redis(directory, "--appendonly", "yes", "--appendfsync", "everysec")


def connect_redis(path: str) -> Client:
    redis = package("redis").Redis(unix_socket_path=path)
    redis.ping()
    return Client(redis.get, redis.set, redis.incr, redis.mget, redis.mset, close=redis.close)


# memcached


@contextlib.contextmanager
def serve_memcached(directory: str) -> Iterator[Server]:
    package("pymemcache")
    memcached = program("memcached")
    os.mkdir(directory)
    path = os.path.join(directory, "socket")
    command = [memcached, "-s", path, "-a", "0700", "-m", "512", "-u", pwd.getpwuid(os.geteuid()).pw_name]
    with answering(directory, command, connect_memcached) as server:
        yield server


def connect_memcached(path: str) -> Client:
    memcached = package("pymemcache").Client(f"unix:{path}", no_delay=False, default_noreply=False)
    memcached.add(COUNTER, b"0")  # incr makes nothing that is not there

    def increment(key: str) -> Any:
        return memcached.incr(key, 1)

    return Client(
        memcached.get, memcached.set, increment, memcached.get_many, memcached.set_many, close=memcached.close
    )


# gunicorn's stash


@contextlib.contextmanager
def serve_stash(directory: str) -> Iterator[Server]:
    package("gunicorn.dirty.stash")
    os.mkdir(directory)
    command = [sys.executable, COMPARE, "--serve", "stash", os.path.join(directory, "socket")]
    with answering(directory, command, connect_stash) as server:
        yield server


def connect_stash(path: str) -> Client:
    client = package("gunicorn.dirty.stash").StashClient(path)
    table = client.table("benchmark")
    if COUNTER not in table:  # a get of what is not there raises
        table[COUNTER] = 0

    def increment(key: str) -> int:
        """A stash has no increment: two messages, and what another process adds in between is lost."""
        total: int = table.get(key) + 1
        table[key] = total
        return total

    return Client(
        table.get, table.__setitem__, increment, each(table.get), one_by_one(table.__setitem__), close=client.close
    )


def be_a_stash(path: str) -> None:
    """Run the process of gunicorn that holds its stash: the arbiter of its "dirty" workers, without any of those."""
    tempfile.tempdir = os.path.dirname(path)  # where it makes a folder
    config = package("gunicorn.config").Config()
    config.set("dirty_workers", 0)
    config.set("loglevel", "critical")
    arbiter = package("gunicorn.dirty.arbiter").DirtyArbiter(
        config, package("gunicorn.glogging").Logger(config), socket_path=path
    )
    arbiter.ppid = os.getppid()  # it takes itself for its parent's child, and ends when that is another
    arbiter.run()
