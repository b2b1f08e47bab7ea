"""What a key takes, in the memory of a server, or in the files of who has none."""

from __future__ import annotations

import os
import time
from pathlib import Path

from durable import resident
from peers import PEERS
from peers.base import Peer, Server

from comparison.sections import BYTES, Section
from comparison.subjects import PROGRESS, VALUE, Scale

FILLING = 8.0
"""Seconds after which a slow peer has been filled enough."""


def measure_memory(scratch: str, names: list[str], scale: Scale, missing: dict[str, str]) -> Section:
    section = Section("memory", "bytes for a key of 10 and a value of 100 bytes", (BYTES,))
    for position, name in enumerate(names):
        if name in missing:
            continue
        PROGRESS.say(f"memory: filling {name}")
        peer = PEERS[name]
        with peer.serve(os.path.join(scratch, f"memory-{position}")) as server:
            section.rounds[name] = {BYTES: [growth(peer, server, scale.keys)]}
    return section


def growth(peer: Peer, server: Server, keys: int) -> float:
    """Return the bytes by which a key makes the server grow, or the files if there is no server."""
    client, done, end = peer.connect(server.address), 0, time.monotonic() + FILLING
    client.set_many({client.key(f"warm:{number:05d}"): VALUE for number in range(500)})
    before = size(server)
    while done < keys and time.monotonic() < end:
        values = {client.key(f"key:{number:06d}"): b"%0100d" % number for number in range(done, done + 500)}
        client.set_many(values)
        done += 500
    if server.process is None:
        client.close()  # then a log that is still apart is put into its file
    after = size(server)
    if server.process is not None:
        client.close()
    return (after - before) / done


def size(server: Server) -> int:
    if server.process is not None:
        return resident(server.process)
    files = (path.stat() for path in Path(server.address).rglob("*") if path.is_file())
    return sum(file.st_blocks * 512 for file in files)
