"""What compare.py compares: for each peer how to start it, and how a process becomes its client."""

from __future__ import annotations

from peers import files, ours, python, servers
from peers.base import Peer, no_server

LOCAL = "local dict"
ECHO = "echo"
OURS = "ours"
UNCACHED = "ours (no near cache)"
IN_MEMORY = "ours (none)"
REDIS = "redis"
EVERYSEC = "redis (everysec)"

PEERS = {
    LOCAL: Peer(no_server, python.connect_dict, store=False),
    ECHO: Peer(python.serve_echo, python.connect_echo, store=False, many=False),
    "echo (epoll)": Peer(python.serve_echo_epoll, python.connect_echo, store=False, many=False),
    OURS: Peer(ours.serve_process, ours.connect, writer=ours.connect_uncached),
    UNCACHED: Peer(ours.serve_process, ours.connect_uncached),
    IN_MEMORY: Peer(ours.serve_none, ours.connect, writer=ours.connect_uncached),
    "BaseManager": Peer(python.serve_vanilla, python.connect_vanilla),
    "Manager().dict()": Peer(python.serve_shared_dict, python.connect_shared_dict),
    REDIS: Peer(servers.serve_redis, servers.connect_redis),
    EVERYSEC: Peer(servers.serve_redis_everysec, servers.connect_redis),
    "memcached": Peer(servers.serve_memcached, servers.connect_memcached),
    "gunicorn's stash": Peer(servers.serve_stash, servers.connect_stash),
    "diskcache": Peer(files.serve_diskcache, files.connect_diskcache),
    "LMDB": Peer(files.serve_lmdb, files.connect_lmdb),
    "SQLite": Peer(files.serve_sqlite, files.connect_sqlite),
}
