"""Stores without a server: each process does the work itself, on files that all of them share.

None syncs before it answers, as ours does not by default: what was answered survives the end of any process.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

from peers.base import COUNTER, Client, Missing, Server, each, no_server, package

PATIENCE = 60.0
"""Seconds that a writer waits for another one."""


# SQLite


@contextlib.contextmanager
def serve_sqlite(directory: str) -> Iterator[Server]:
    if sqlite3.sqlite_version_info < (3, 35):
        raise Missing(f"SQLite {sqlite3.sqlite_version} has no RETURNING")
    with no_server(directory) as server:
        with contextlib.closing(sqlite3.connect(os.path.join(directory, "file"))) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
            connection.execute("CREATE TABLE numbers (key TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID")
            connection.execute("INSERT INTO numbers VALUES (?, 0)", (COUNTER,))
            connection.commit()
        yield server


def connect_sqlite(directory: str) -> Client:
    path = os.path.join(directory, "file")
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, cached_statements=1000)
    run = connection.execute
    run("PRAGMA synchronous = NORMAL")

    def get(key: str) -> object:
        found = run("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if found is None else found[0]

    def set_one(key: str, value: bytes) -> None:
        run("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, value))

    def increment(key: str) -> object:
        return run("UPDATE numbers SET n = n + 1 WHERE key = ? RETURNING n", (key,)).fetchall()[0][0]

    def get_many(keys: Sequence[str]) -> dict[str, bytes]:
        marks = ", ".join(repeat("?", len(keys)))
        return dict(run(f"SELECT key, value FROM entries WHERE key IN ({marks})", keys).fetchall())

    def set_many(items: Mapping[str, bytes]) -> None:
        run("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", items.items())
        run("COMMIT")

    return Client(get, set_one, increment, get_many, set_many, close=connection.close)


# diskcache


@contextlib.contextmanager
def serve_diskcache(directory: str) -> Iterator[Server]:
    package("diskcache")
    with no_server(directory) as server:
        yield server


def connect_diskcache(directory: str) -> Client:
    cache = package("diskcache").Cache(directory, timeout=PATIENCE)  # synchronous=NORMAL is its default

    def set_many(items: Mapping[str, bytes]) -> None:
        with cache.transact():
            for key, value in items.items():
                cache.set(key, value)

    return Client(cache.get, cache.set, cache.incr, each(cache.get), set_many, close=cache.close)


# LMDB


@contextlib.contextmanager
def serve_lmdb(directory: str) -> Iterator[Server]:
    package("lmdb")
    with no_server(directory) as server:
        yield server


def connect_lmdb(directory: str) -> Client:
    store = package("lmdb").open(directory, map_size=1 << 30, sync=False)  # with sync it would wait for the disk
    begin = store.begin

    def get(key: bytes) -> object:
        with begin() as transaction:
            return transaction.get(key)

    def set_one(key: bytes, value: bytes) -> None:
        with begin(write=True) as transaction:
            transaction.put(key, value)

    def increment(key: bytes) -> int:
        with begin(write=True) as transaction:
            total = int(transaction.get(key, b"0")) + 1
            transaction.put(key, b"%d" % total)
            return total

    def get_many(keys: Sequence[bytes]) -> object:
        with begin() as transaction:
            return transaction.cursor().getmulti(keys)

    def set_many(items: Mapping[bytes, bytes]) -> None:
        with begin(write=True) as transaction:
            transaction.cursor().putmulti(list(items.items()))

    return Client(get, set_one, increment, get_many, set_many, key=str.encode, close=store.close)
