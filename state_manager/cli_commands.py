"""What the commands of ``state-manager`` do: each takes the parsed arguments and returns the exit code.

Rules: a result goes to stdout, as text or with ``--json`` as one document (`keys` and `watch`: one a line), everything
else to stderr. Only `serve` imports the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from reprlib import repr as short
from typing import Any, NoReturn

from . import sidecar, supervisor
from .api import StateManager, connect
from .checks import COUNTERS, Key
from .cli_output import (
    complain,
    json_text,
    key_json,
    key_text,
    seconds_text,
    table,
    terminal_width,
    to_json,
    value_text,
)
from .directory import StateDirectory
from .errors import StateError
from .proxies.dicts import SharedDict
from .settings import DirectoryAddress, durability, resolve_address, state_directory

OK = 0
ABSENT = 1
USAGE = 2
NO_MANAGER = 3

STOP_TIMEOUT = 10.0
"""Seconds that `stop` waits for the manager to end."""
SUCCESSOR_TIMEOUT = 1.0
"""Seconds that it then looks for another one: run.py starts it again."""
TAKEOVER_TIMEOUT = 15.0
"""Seconds that `serve --takeover` waits for the other manager to end."""
POLL = 0.02

MISSING = object()


def serve(args: argparse.Namespace) -> int:
    from . import manager  # before another one is asked to leave: that is time without any

    directory = state_directory(args.dir)
    try:
        kept = args.durability or durability()
    except ValueError as error:
        complain(error)
        return USAGE
    if args.takeover:
        take_over(directory)
    failed = manager.serve(
        directory, ready_fd=args.ready_fd, durability=kept, recover=args.recover, max_memory=args.max_memory
    )
    return NO_MANAGER if failed else OK


def take_over(directory: Path) -> None:
    """Ask the manager of the directory to end, and wait until its lock is free or another's.

    Where that does not work, whoever takes the lock then says why.
    """
    with contextlib.suppress(StateError, FileNotFoundError):
        pid = sidecar.find(directory)
        if pid is None:
            return
        with contextlib.closing(StateDirectory.open(directory, create=False)) as state:
            holder = state.holder()
            try:
                with connect(directory, timeout=1.0) as manager:
                    manager.shutdown()
            except StateError as error:  # of another release, perhaps
                complain(f"{error}; sending SIGTERM to the manager (pid {pid})")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + TAKEOVER_TIMEOUT
            while holder is not None and state.holder() == holder and time.monotonic() < deadline:
                time.sleep(POLL / 4)


def run(args: argparse.Namespace) -> int:
    return supervisor.run(args, args.rest, prog="state-manager run")


def stop(args: argparse.Namespace) -> int:
    directory = directory_of(args)
    pid = sidecar.find(directory)
    with open_manager(args) as manager:
        manager.shutdown()
    if pid is not None and find_other_than(pid, directory, STOP_TIMEOUT) == pid:
        raise StateError(f"the manager of {directory} (pid {pid}) has not ended within {STOP_TIMEOUT:g} s")
    successor = find_other_than(None, directory, SUCCESSOR_TIMEOUT)
    text = f"stopped the manager of {directory} (pid {pid})"
    if successor is not None:
        text += f"; run.py has started it again (pid {successor}): to end both, end run.py with Ctrl-C or SIGTERM"
    show(args, {"directory": str(directory), "stopped": pid, "successor": successor}, text)
    return OK


def restart(args: argparse.Namespace) -> int:
    directory = directory_of(args)
    old, new = sidecar.replace(directory, *restart_options(args, directory))
    text = f"restarted the manager of {directory}: pid {old} before, {new} now"
    if old is None:
        text = f"no manager ran in {directory}; started one (pid {new})"
    show(args, {"directory": str(directory), "before": old, "pid": new}, text)
    return OK


def restart_options(args: argparse.Namespace, directory: Path) -> list[str]:
    """Return the options of the new manager: those given, else those of the one that runs, as far as it tells them."""
    given = {"durability": args.durability, "max_memory": args.max_memory}
    with contextlib.suppress(StateError), connect(directory, timeout=1.0) as manager:
        numbers = manager.stats()
        given = {name: numbers.get(name) if value is None else value for name, value in given.items()}
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def find_other_than(pid: int | None, directory: Path, timeout: float) -> int | None:
    """Return the directory's manager as soon as it is another one than ``pid`` (None: none), or after the timeout."""
    deadline = time.monotonic() + timeout
    while (found := sidecar.find(directory)) == pid and time.monotonic() < deadline:
        time.sleep(POLL)
    return found


def ping(args: argparse.Namespace) -> int:
    with open_manager(args) as manager:
        manager.ping()  # connects; the second one is what a request costs
        seconds = manager.ping()
        show(args, {"seconds": seconds}, f"pong in {seconds_text(seconds)} from {manager.address}")
    return OK


def stats(args: argparse.Namespace) -> int:
    with open_manager(args) as manager:
        numbers = manager.stats()
    rows = [(name, f"{value:.1f}" if isinstance(value, float) else str(value)) for name, value in numbers.items()]
    show(args, to_json(numbers), table(rows))
    return OK


def spaces(args: argparse.Namespace) -> int:
    with open_manager(args) as manager:
        found = manager.spaces()
    rows = [(key_text(space.name), space.kind, space.entries, space.bytes) for space in found]
    show(args, [space._asdict() for space in found], table(rows, header=("NAME", "KIND", "ENTRIES", "BYTES")))
    return OK


def keys(args: argparse.Namespace) -> int:
    with open_manager(args) as manager:
        say_if_nothing(manager, args.dict)
        for key in open_space(manager, args.dict):
            print(json_text(key_json(key)) if args.json else key_text(key))
    return OK


def get(args: argparse.Namespace) -> int:
    key = key_argument(args)
    with open_manager(args) as manager:
        value = open_space(manager, args.dict).get(key, MISSING)
    if value is MISSING:
        return absent(args, key)
    if args.text and isinstance(value, bytes):
        sys.stdout.buffer.write(value + b"\n")
    elif args.text and isinstance(value, str):
        print(value)
    else:
        show(args, to_json(value), value_text(value, terminal_width()))
    return OK


def set_(args: argparse.Namespace) -> int:
    key, value = key_argument(args), value_argument(args)
    with open_manager(args) as manager:
        open_space(manager, args.dict, write=True).set(key, value, ttl=args.ttl)
    return OK


def delete(args: argparse.Namespace) -> int:
    key = key_argument(args)
    with open_manager(args) as manager:
        deleted = open_space(manager, args.dict, write=True).delete(key)
    return OK if deleted else absent(args, key)


def increment(args: argparse.Namespace) -> int:
    key = key_argument(args)
    with open_manager(args) as manager:
        number = open_space(manager, args.dict, write=True).increment(key, by=args.by)
    show(args, number, str(number))
    return OK


def ttl(args: argparse.Namespace) -> int:
    key = key_argument(args)
    with open_manager(args) as manager:
        try:
            seconds = open_space(manager, args.dict).ttl(key)
        except KeyError:
            return absent(args, key)
    show(args, seconds, "none" if seconds is None else f"{seconds:.3f}")
    return OK


def secret_show(args: argparse.Namespace) -> int:
    with open_manager(args) as manager:
        generation, (current, *previous) = manager.secret(args.name).keys()
    document = {"name": args.name, "generation": generation, "current": current, "previous": previous}
    show(args, document, table([("current", current), *(("previous", key) for key in previous)]))
    return OK


def secret_rotate(args: argparse.Namespace) -> int:
    with open_manager(args) as manager:
        secret = manager.secret(args.name)
        if args.now:
            secret.rotate(keep=0)
        else:
            secret.rotate()
        generation = secret.generation
    effect = "everybody is logged out" if args.now else "nobody is logged out"
    show(args, {"name": args.name, "generation": generation}, f"rotated {args.name}: {effect}")
    return OK


# What the commands share.


def directory_of(args: argparse.Namespace) -> Path:
    """Return the directory of ``--dir``, else of the environment, else ./.state."""
    address = resolve_address(args.dir)
    if not isinstance(address, DirectoryAddress):
        raise ValueError(f"{address} lives inside one process and cannot be looked into: give --dir DIR")
    return address.path


def open_manager(args: argparse.Namespace) -> StateManager:
    return connect(directory_of(args))


def open_space(manager: StateManager, name: str, *, write: bool = False) -> SharedDict:
    """Return a dict, or one of the manager's own spaces (":counters"), which can only be read from here."""
    if not name.startswith(":"):
        return manager.dict(name)
    if write:
        raise ValueError(f"{name} is the manager's own: it can be read from here, not changed")
    return manager.system(name)


def say_if_nothing(manager: StateManager, name: str) -> None:
    """Say on stderr that nothing is stored under a name, and what else has it: it may be a slip."""
    found = {space.name: space.kind for space in manager.spaces()}
    if name in found:
        return
    others = [kind for space, kind in found.items() if space[:1] == ":" and space.endswith(f":{name}")]
    if not name.startswith(":") and manager.system(COUNTERS).get(name) is not None:
        others.append("counter")
    hint = f", but there is a {others[0]} of this name" if others else "; `state-manager spaces` lists what there is"
    complain(f"nothing is stored in {key_text(name)}{hint}")


def key_argument(args: argparse.Namespace) -> Key:
    """Return KEY as the text, the integer or the bytes that it stands for."""
    text: str = args.key
    try:
        return int(text) if args.int else bytes.fromhex(text) if args.hex else text
    except ValueError:
        kind = "an integer (--int)" if args.int else "bytes in hexadecimal (--hex)"
        raise ValueError(f"the key {short(text)} is not {kind}") from None


def value_argument(args: argparse.Namespace) -> Any:
    """Return VALUE, read from standard input if it is ``-``."""
    text: str = sys.stdin.read() if args.value == "-" else args.value
    if args.text:
        return text
    try:
        return json.loads(text, parse_constant=not_json)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the value {short(text)} is not JSON ({error}); for a text use --text") from None


def not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def absent(args: argparse.Namespace, key: Key) -> int:
    complain(f"no key {key_text(key)} in {key_text(args.dict)}")
    return ABSENT


def show(args: argparse.Namespace, document: Any, text: str) -> None:
    """Print a result: the document with ``--json``, else the text."""
    print(json_text(document) if args.json else text)
