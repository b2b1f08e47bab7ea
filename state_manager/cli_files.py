"""The commands of ``state-manager`` that read or write files: backup, restore, export, import.

Rules: as in ``cli_commands``. Only `restore`, and `export` without a manager, import a part of the server's half.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from . import exports, sidecar
from .api import connect
from .backups import whole_file
from .checked import quoted
from .cli_commands import OK, STOP_TIMEOUT, directory_of, open_manager, show
from .cli_output import Progress, complain
from .errors import StateError
from .exports import Item, NotJson

STANDARD = "-"
NAMED = 20
"""Entries that `export --skip` names; the rest are counted."""


def backup(args: argparse.Namespace) -> int:
    with open_manager(args) as manager, Progress("backing up") as progress:
        path = manager.backup(args.file, progress=progress)
    size = path.stat().st_size
    show(args, {"file": str(path), "bytes": size}, f"backed up {directory_of(args)} to {path} ({size:,} bytes)")
    return OK


def restore(args: argparse.Namespace) -> int:
    from . import offline

    directory, path = directory_of(args), Path(os.path.abspath(args.file))
    pid = sidecar.find(directory)
    if pid is not None and not args.force:
        raise StateError(
            f"a manager (pid {pid}) serves {directory}, and its state would be replaced: end it with "
            f"`state-manager stop --dir {quoted(directory)}`, or give --force"
        )
    with Progress("restoring") as progress:
        found = offline.restore(path, directory, progress, ready=lambda: end_manager(directory), patience=STOP_TIMEOUT)
    text = f"restored {found.entries:,} entries from {path} to {directory}; the next manager there serves them"
    if found.kept:
        text += f". The former journal is kept as {', '.join(map(str, found.kept))}"
    kept = [str(path) for path in found.kept]
    show(args, {"directory": str(directory), "file": str(path), "entries": found.entries, "kept": kept}, text)
    return OK


def end_manager(directory: Path) -> None:
    """Ask the manager of the directory, if there is one, to end."""
    if sidecar.find(directory) is not None:
        with connect(directory) as manager:
            manager.shutdown()


def export(args: argparse.Namespace) -> int:
    written, skipped = 0, 0
    with Progress("exporting") as progress, output(args.file) as file, items(args, progress) as found:
        for item in found:
            try:
                line = exports.line_of(item)
            except NotJson as error:
                if not args.skip:
                    raise NotJson(f"{error}; --skip leaves out what JSON cannot hold, `backup` keeps all") from None
                skipped += 1
                if skipped <= NAMED:
                    complain(f"skipped: {error}")
                continue
            print(line, file=file)
            written += 1
    complain(f"exported {written:,} entries" + (f", skipped {skipped:,}" if skipped else ""))
    return OK


@contextlib.contextmanager
def items(args: argparse.Namespace, progress: Progress) -> Iterator[Iterator[Item]]:
    """Give what is to be exported: what the manager has, else what its journal says."""
    directory = directory_of(args)
    if sidecar.find(directory) is not None:
        with open_manager(args) as manager:
            total = sum(space.entries for space in manager.spaces() if space.kind in ("dict", "counter"))
            yield counted(exports.items_of(manager), progress, total)
        return
    from . import offline

    yield offline.exported(directory, progress)


def counted(found: Iterator[Item], progress: Progress, total: int) -> Iterator[Item]:
    for done, item in enumerate(found):
        progress(done, total)
        yield item


@contextlib.contextmanager
def output(name: str) -> Iterator[IO[str]]:
    """Give standard output, or a file that is there when all of it was written."""
    if name == STANDARD:
        yield sys.stdout
        return
    if os.path.lexists(name):
        raise FileExistsError(errno.EEXIST, "this file exists; choose another name, or '-' for standard output", name)
    with (
        whole_file(Path(os.path.abspath(name))) as file,
        open(file.fileno(), "w", encoding="utf-8", closefd=False) as lines,
    ):
        yield lines


def import_(args: argparse.Namespace) -> int:
    with open_manager(args) as manager, Progress("importing") as progress, contextlib.ExitStack() as stack:
        manager.ping()  # without a manager no line is at fault
        file: IO[bytes] = sys.stdin.buffer
        total = 0
        if args.file != STANDARD:
            file = stack.enter_context(open(args.file, "rb"))
            total = os.fstat(file.fileno()).st_size
        read = 0
        for read in exports.load(manager, file):
            progress(file.tell() if total else read, total)
    complain(f"imported {read:,} lines")
    return OK
