"""The peers as they are measured: started, connected to, and seen to work."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import NamedTuple

from peers import PEERS
from peers.base import COUNTER, Client, Missing, Peer, Server

VALUE = b"x" * 100
LARGE_VALUE = b"x" * 10_000
KEYS = [f"key:{number:06d}" for number in range(1000)]


class Scale(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """The length of one figure of one client."""
    together: float
    """The length of one figure of several clients."""
    keys: int
    """How many keys are stored to see what one takes."""


class Progress:
    """One line that says what is being done; nothing of it is left in the end, and nothing goes into a file."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def say(self, what: str) -> None:
        if self._shown:
            print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


PROGRESS = Progress()


class Subject(NamedTuple):
    """A peer that is served, and this process's client of it."""

    peer: Peer
    server: Server
    client: Client
    counted: int
    """What the counter was when the measuring began."""


def subjects(stack: ExitStack, scratch: str, names: list[str], missing: dict[str, str]) -> dict[str, Subject]:
    """Start these peers, to be ended by the stack, and see that they work; note and name those that are missing."""
    found = {}
    for position, name in enumerate(names):
        if name in missing:
            continue
        PROGRESS.say(f"starting {name}")
        peer = PEERS[name]
        try:
            server = stack.enter_context(peer.serve(os.path.join(scratch, str(position))))
        except Missing as reason:
            missing[name] = str(reason)
            PROGRESS.say("")
            print(f"{name}: left out, because {reason}")
            continue
        client = peer.connect(server.address)
        stack.callback(client.close)
        found[name] = Subject(peer, server, client, checked(name, peer, client))
    return found


def checked(name: str, peer: Peer, client: Client) -> int:
    """Return what the counter is, once it has been seen that the peer does what it is to be measured at."""
    if not peer.many:  # an echo answers, and knows nothing
        return 0
    small, large, counter = client.key("key"), client.key("large"), client.key(COUNTER)
    client.set(small, VALUE)
    client.set(large, LARGE_VALUE)
    client.set_many({client.key(each): VALUE for each in KEYS})
    found = client.get(small), client.get(large), client.get(client.key(KEYS[-1]))
    if found != (VALUE, LARGE_VALUE, VALUE) or (client.increment(counter), client.increment(counter)) != (1, 2):
        raise SystemExit(f"{name} does not do what it is to be measured at")
    return 2
