"""What `state-manager` shows of who works together: locks, queues, channels, workers; and `watch`.

Rules: a listing is made of ``Line``s, which are a row of a table, a JSON object, and what `watch` compares.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .api import StateManager
from .checks import CHANNEL, CHANNELS, DEAD, LOCKS, QUEUE, Key
from .cli_commands import OK, key_argument, open_manager, open_space, say_if_nothing, show
from .cli_output import complain, json_text, key_json, key_text, table, to_json, value_text
from .proxies.channels import Channel
from .proxies.dicts import SharedDict


class Line(NamedTuple):
    """One thing. ``identity``: what makes it the same later on; ``cells``: its row; ``document``: all about it."""

    identity: Any
    cells: tuple[object, ...]
    document: dict[str, Any]


class Listing(NamedTuple):
    header: tuple[str, ...]
    lines: Callable[[StateManager], Iterator[Line]]


def _locks(manager: StateManager) -> Iterator[Line]:
    for one in manager.held():
        document = {"kind": one.kind, "name": one.name, "waiters": one.waiters, "lease": one.lease, "token": one.token}
        left = "none" if one.lease is None else f"{one.lease:.1f} s"
        cells = (key_text(one.name), one.kind, one.owner.pid, one.owner.thread, _moment(one.owner.since), left)
        yield Line((one.kind, one.name, one.token), (*cells, one.waiters), document | one.owner._asdict())


def _queues(manager: StateManager) -> Iterator[Line]:
    sizes = {space.name: space.entries for space in manager.spaces()}
    for queue in manager.queues():
        state = queue.state()
        dead = sizes.get(f"{QUEUE}{queue.name}{DEAD}", 0)
        cells = (key_text(queue.name), state.waiting, state.taken, dead, state.getters, state.putters)
        yield Line(queue.name, cells, {"name": queue.name, "dead": dead} | state._asdict())


def _channels(manager: StateManager) -> Iterator[Line]:
    for channel in manager.channels():
        state = channel.state()
        cells = (key_text(channel.name), state.messages, state.waiting, state.last)
        yield Line(channel.name, cells, {"name": channel.name} | state._asdict())


def _workers(manager: StateManager) -> Iterator[Line]:
    for one in manager.workers():
        who = f"{key_text(one.name)} {'?' if one.pid is None else one.pid}"
        holds, waits = (", ".join(map(key_text, things)) or "-" for things in (one.holds, one.waits))
        yield Line((one.pid, one.since), (who, _moment(one.since), holds, waits), one._asdict())


LISTINGS = {
    LOCKS: Listing(("NAME", "KIND", "PID", "THREAD", "SINCE", "LEASE LEFT", "WAITING"), _locks),
    ":queues": Listing(("NAME", "ITEMS", "TAKEN", "DEAD", "GETTERS", "PUTTERS"), _queues),
    CHANNELS: Listing(("NAME", "MESSAGES", "WAITING", "LAST ID"), _channels),
    ":workers": Listing(("NAME AND PID", "SINCE", "HOLDS", "WAITS FOR"), _workers),
}
"""By the name that `watch` takes."""


def list_of(name: str) -> Callable[[argparse.Namespace], int]:
    """Return the command that shows a listing."""

    def command(args: argparse.Namespace) -> int:
        header, lines = LISTINGS[name]
        with open_manager(args) as manager:
            found = list(lines(manager))
        show(args, [line.document for line in found], table([line.cells for line in found], header=header))
        return OK

    return command


class Seen(NamedTuple):
    """What `watch` has seen of one thing: what it compares, how the thing is called, and what it prints of it."""

    compared: Any
    name: str
    text: str
    key: dict[str, Any]
    value: dict[str, Any]


def watch(args: argparse.Namespace) -> int:
    key = None if args.key is None else key_argument(args)
    with open_manager(args) as manager:
        if key is None and args.dict in LISTINGS:
            listing = LISTINGS[args.dict]
            watch_changes(args, lambda: _lines_seen(listing.lines(manager)))
        elif key is None and args.dict.startswith(CHANNEL):
            watch_channel(args, manager.channel(args.dict.removeprefix(CHANNEL)))
        else:
            say_if_nothing(manager, args.dict)
            space = open_space(manager, args.dict)
            watch_changes(args, lambda: _entries_seen(space, key))
    return OK


def watch_changes(args: argparse.Namespace, look: Callable[[], dict[Any, Seen]]) -> None:
    """Print what has come, changed or gone, again and again."""
    before = look()
    complain(f"looking every {args.interval:g} s; Ctrl-C ends it")
    while True:
        time.sleep(args.interval)
        now = look()
        for identity, seen in (before | now).items():
            gone = identity not in now
            if gone or identity not in before or before[identity].compared != seen.compared:
                document = {"time": time.time()} | seen.key | ({"gone": True} if gone else seen.value)
                text = f"{time.strftime('%H:%M:%S')}  {seen.name}  {'(gone)' if gone else seen.text}"
                print(json_text(document) if args.json else text, flush=True)
        before = now


def watch_channel(args: argparse.Namespace, channel: Channel) -> None:
    """Print messages as they come."""
    with channel.subscribe() as subscription:
        complain("waiting for messages; Ctrl-C ends it")
        for message in subscription:
            document = {"time": time.time(), "id": message.id, "missed": message.missed}
            text = f"{time.strftime('%H:%M:%S')}  {message.id}  {value_text(message.value)}"
            print(json_text(document | {"value": to_json(message.value)}) if args.json else text, flush=True)


def _entries_seen(space: SharedDict, key: Key | None) -> dict[Any, Seen]:
    found = space.copy() if key is None else space.get_many([key])
    return {
        key: Seen(
            repr(value),  # True == 1 == 1.0
            key_text(key),
            value_text(value),
            {"key": key_json(key)},
            {"value": to_json(value)},
        )
        for key, value in found.items()
    }


def _lines_seen(lines: Iterable[Line]) -> dict[Any, Seen]:
    seen = {}
    for identity, (name, *cells), document in lines:
        compared = {field: value for field, value in document.items() if field != "lease"}  # that runs out
        text = "  ".join(map(_cell, cells))
        seen[identity] = Seen(compared, _cell(name), text, {"name": document["name"]}, document)
    return seen


def _cell(cell: object) -> str:
    return cell if isinstance(cell, str) else value_text(cell)


def _moment(since: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
