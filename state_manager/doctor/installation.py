"""Looks at the state directory: who may use it, what it is on, whether there is room, and which manager is there.

It changes nothing and starts nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import sidecar
from ..api import connect
from ..checked import ELSEWHERE, open_file, quoted, refusal
from ..directory import FILES, SOCKET, NoDirectory, StateDirectory
from ..errors import StateError, Unavailable
from ..settings import DURABILITY_VARIABLE, VERSION, Address, MemoryAddress
from .findings import Finding

NEEDED = {"flask": "3.1.1", "gunicorn": "23.0", "msgpack": "1.1"}
"""The oldest releases that work, as pyproject.toml has them."""
MANAGER_TIMEOUT = 2.0
"""Seconds that a manager has for an answer."""
NEARLY_FULL = 2 * 2**20
"""Bytes on the disk below which a journal has no room."""
LITTLE = 64 * 2**20
"""Bytes on the disk that should be free beside the room for one more journal: compaction writes a second one."""
MEMORY_SHARE = 0.9
"""Of ``--max-memory``."""
MOUNTS = Path("/proc/self/mountinfo")
PASSING = {
    "tmpfs": "in memory (tmpfs), and gone after a reboot",
    "ramfs": "in memory (ramfs), and gone after a reboot",
    "overlay": "in a container's own layer (overlay), and gone with the container",
}
"""Kinds of file systems that do not stay."""


def look(address: Address) -> Iterator[Finding]:
    """Yield what can be said about a state directory and what runs there."""
    yield from versions()
    if isinstance(address, MemoryAddress):
        yield Finding(
            "problem",
            "address",
            f"{address} lives inside one process: each worker has a state of its own",
            "give a directory, with $STATE_MANAGER_DIR or --dir; memory:// is for tests",
        )
        return
    try:
        state = StateDirectory.open(address.path, create=False)
    except NoDirectory:
        yield missing(address.path)
        return
    except StateError as error:
        yield Finding("problem", "directory", str(error))
        return
    with contextlib.closing(state):
        yield from permissions(state)
        yield from durable(state)
        yield room(state)
        yield from manager(state)


def versions() -> Iterator[Finding]:
    """Compare what is installed with what this package needs."""
    found = {}
    for name, least in NEEDED.items():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("problem", "versions", f"{name} is not installed", f"pip install '{name}>={least}'")
            continue
        if numbers(found[name]) < numbers(least):
            yield Finding("problem", "versions", f"{name} {found[name]} is too old", f"pip install '{name}>={least}'")
    others = "".join(f", {name} {version}" for name, version in found.items())
    yield Finding("ok", "versions", f"flask-state-manager {VERSION}, Python {platform.python_version()}{others}")


def numbers(version: str) -> list[int]:
    """Return the leading numbers of a version: 1.2 of 1.2.0rc1."""
    return [int(part) for part in itertools.takewhile(str.isdecimal, version.split("."))]


def missing(path: Path) -> Finding:
    """Tell whether a directory that is not there could be made."""
    parent = next(parent for parent in path.parents if parent.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            "problem",
            "directory",
            f"{path} does not exist, and uid {os.geteuid()} may not make it in {parent}",
            f"`install -d -m 700 -o USER {quoted(path)}` as root, or {ELSEWHERE}",
        )
    return Finding("ok", "directory", f"{path} does not exist yet; the first manager makes it")


def permissions(state: StateDirectory) -> Iterator[Finding]:
    """Say whether everything in the directory is this user's alone; the directory itself is, or it were not open."""
    wrong = []
    for name in ours(state):
        try:
            if not stat.S_ISSOCK(os.stat(name, dir_fd=state.fd, follow_symlinks=False).st_mode):
                os.close(open_file(state.fd, state.path / name, os.O_RDONLY))
        except StateError as error:
            wrong.append(str(error))
        except FileNotFoundError:
            continue  # a segment of the journal may go at any time
        except OSError as error:
            wrong.append(str(refusal(state.path / name, error)))
    try:
        state.key(create=False)
    except Unavailable:
        pass  # there is none yet
    except StateError as error:
        wrong.append(str(error))
    if not os.access(state.path, os.W_OK):
        wrong.append(f"{state.path} cannot be written by uid {os.geteuid()}: is its file system mounted read-only?")
    for message in dict.fromkeys(wrong):
        yield Finding("problem", "permissions", message)
    if not wrong:
        yield Finding("ok", "permissions", f"{state.path} belongs to uid {os.geteuid()} and to nobody else")


def ours(state: StateDirectory) -> list[str]:
    """Return the names in the directory that are this package's: with ``--dir .`` there are others."""
    return sorted(name for name in os.listdir(state.fd) if name in FILES or name.startswith("journal."))


def durable(state: StateDirectory) -> Iterator[Finding]:
    """Warn of a file system that does not stay, where that can be known."""
    kind = file_system(state.path)
    if kind in PASSING:
        yield Finding(
            "advice",
            "durability",
            f"{state.path} is {PASSING[kind]}: logins and all other state too",
            "put $STATE_MANAGER_DIR on a disk or a volume that stays, unless this is meant",
        )


def file_system(path: Path) -> str | None:
    """Return the kind of file system that a directory is on, None where it cannot be known."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mount = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if path.is_relative_to(mount) and len(mount.parts) >= best:  # of two on one place the later one is on top
            best, kind = len(mount.parts), after.split()[0]
    return kind


def room(state: StateDirectory) -> Finding:
    """Compare the room on the disk with the journal."""
    found = os.fstatvfs(state.fd)
    free = found.f_bavail * found.f_frsize
    journal = 0
    for name in ours(state):
        if name.startswith("journal."):
            with contextlib.suppress(FileNotFoundError):
                journal += os.stat(name, dir_fd=state.fd).st_size
    text = f"{size_text(free)} free on the disk of {state.path}, {size_text(journal)} of journal"
    if free < NEARLY_FULL:
        return Finding("problem", "disk space", f"{text}: writes raise StoreFull", "make room; deletes still work")
    if free < journal + LITTLE:
        return Finding("advice", "disk space", f"{text}: the journal has no room for its next compaction", "make room")
    return Finding("ok", "disk space", text)


def size_text(size: float) -> str:
    """Return bytes in the unit that suits them."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def manager(state: StateDirectory) -> Iterator[Finding]:
    """Ask the manager, if there is one."""
    try:
        pid = sidecar.find(state.path)
        if pid is None:
            yield nobody(state)
            return
        with connect(state.path, timeout=MANAGER_TIMEOUT, near_cache=False) as found:
            numbers = found.stats()
    except StateError as error:
        yield Finding("problem", "manager", str(error))
        return
    yield from about(numbers)


def nobody(state: StateDirectory) -> Finding:
    """Say that no manager takes connections."""
    holder = state.holder()
    if holder is not None:
        problem = f"process {holder} holds the lock of {state.path} and takes no connections"
        return Finding("problem", "manager", problem, f"see what it does, or end it: `kill {holder}`")
    return Finding(
        "advice",
        "manager",
        f"no manager runs in {state.path}" + (", and one that was killed has left its socket" * left(state)),
        f"`state-manager run MODULE:NAME`, or `state-manager serve --dir {quoted(state.path)}`",
    )


def left(state: StateDirectory) -> bool:
    return SOCKET in os.listdir(state.fd)


def about(numbers: Any) -> Iterator[Finding]:
    """Judge what a manager tells about itself."""
    who = f"the manager (pid {numbers['pid']})"
    if numbers["version"] != VERSION:
        problem = f"{who} is version {numbers['version']}, and this is {VERSION}"
        yield Finding("advice", "manager", problem, "`state-manager restart`, and start gunicorn again")
    else:
        yield Finding("ok", "manager", f"{who} serves {numbers['entries']:,} entries, {size_text(numbers['bytes'])}")
    mode = numbers["durability"]
    if mode == "none":
        yield Finding(
            "advice",
            "durability",
            f"{who} keeps nothing (durability none): all state ends with it, logins too",
            f"`state-manager restart --durability process`, and {DURABILITY_VARIABLE}=process for the next start",
        )
    else:
        survives = "also a power failure" if mode == "power" else "a kill of any process"
        yield Finding("ok", "durability", f"an acknowledged write survives {survives} (durability {mode})")
    limit = numbers["max_memory"]
    if limit and numbers["bytes"] > MEMORY_SHARE * limit:
        text = f"{who} uses {size_text(numbers['bytes'])} of {size_text(limit)}; at the bound writes raise StoreFull"
        yield Finding("advice", "memory", text, "`state-manager restart --max-memory SIZE`, or give dicts a max_bytes")
