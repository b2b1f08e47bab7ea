"""This project beside what one would otherwise take: Redis, memcached, LMDB, SQLite, the standard library and others.

Four kinds of use:

one client, one CPU    the client and its server share a CPU: the work that an operation takes, and the steadiest figure
one client, all CPUs   the scheduler places them: what a lone request feels
four clients           processes that read and write 1,000 keys, and that add to one counter, whose sum is checked
memory                 what the server, or its file, grows by for each of 100,000 keys

Rules: the peers take turns within each round, so that a change of the machine's mood meets all of them; a figure is the
median of the rounds, and a ratio is the median of the rounds' own ratios. A peer that is not installed is named and
left out. README.md says how to read the output.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from common import pinned, scratch_directory, where
from comparison.memory import measure_memory
from comparison.one_client import measure_one_client
from comparison.report import draw, goals, print_section, save_json
from comparison.sections import FIRST, INCREMENT, LARGE, MANY, REPEATED, SET, Section
from comparison.several_clients import be_a_client, measure_clients
from comparison.subjects import PROGRESS, Scale, subjects
from peers import EVERYSEC, PEERS, UNCACHED
from peers.python import be_a_manager
from peers.servers import be_a_stash

PACKAGES = ("redis", "hiredis", "pymemcache", "gunicorn", "diskcache", "lmdb")


def measure(options: argparse.Namespace, scratch: str) -> None:
    scale = Scale(3, 0.004, 0.1, 10_000) if options.quick else Scale(options.rounds, 0.02, 0.3, 100_000)
    print(f"{where()}; {versions()}")
    print(f"values of 100 bytes; medians of {scale.rounds} rounds; load before: {os.getloadavg()[0]:.1f}")
    missing: dict[str, str] = {}
    sections: dict[str, Section] = {}

    def report(name: str, section: Section) -> None:
        PROGRESS.say("")
        print_section(section)
        sections[name] = section

    stores = [name for name, peer in PEERS.items() if peer.store]
    columns = (REPEATED, FIRST, SET, INCREMENT, LARGE, MANY)
    with pinned() as one_cpu, ExitStack() as stack:
        if one_cpu:
            found = subjects(stack, folder(scratch, "pinned"), list(PEERS), missing)
            report("pinned", measure_one_client("one client, one CPU", found, columns, scale))
        else:
            print("one client, one CPU: left out, because this system cannot pin a process to a CPU")
    with ExitStack() as stack:
        found = subjects(stack, folder(scratch, "free"), list(PEERS), missing)
        few = columns[:4] if one_cpu else columns
        report("free", measure_one_client("one client, all CPUs", found, few, scale))
    with ExitStack() as stack:
        found = subjects(stack, folder(scratch, "clients"), stores, missing)
        report("clients", measure_clients(found, scale))
    apart = [name for name in stores if name not in (UNCACHED, EVERYSEC)]  # which keep as much as those beside them
    report("memory", measure_memory(folder(scratch, "memory"), apart, scale, missing))
    judged = goals(sections.get("pinned"), sections["free"], sections["clients"])
    print()
    for goal in judged:
        print(goal)
    if options.json:
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": where(),
            "versions": versions(),
            "scale": scale._asdict(),
            "missing": missing,
        }
        save_json(options.json, about, sections, judged)
    if options.pictures:
        draw(options.pictures, sections)


def folder(scratch: str, name: str) -> str:
    path = os.path.join(scratch, name)
    os.mkdir(path)
    return path


def versions() -> str:
    found = [f"SQLite {sqlite3.sqlite_version}"]
    for program in ("redis-server", "memcached"):
        if shutil.which(program):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            found += [f"{program} {number}" for number in re.findall(r"\d+(?:\.\d+)+", said)[:1]]
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def stop(number: int, _: object) -> None:
    """End in order, once: what was started is ended on the way out."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    PROGRESS.say("")
    raise SystemExit(128 + number)


SERVERS: dict[str, Callable[[str], None]] = {
    "vanilla": partial(be_a_manager, "vanilla"),
    "shared-dict": partial(be_a_manager, "shared-dict"),
    "stash": be_a_stash,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each figure is taken (15)")
    parser.add_argument("--quick", action="store_true", help="less than a minute in all, to see that it works")
    parser.add_argument("--dir", help="where to make the temporary directory: on the disk that is to be measured")
    parser.add_argument("--json", metavar="FILE", help="save all figures")
    parser.add_argument("--pictures", metavar="DIR", help="draw SVG bar charts of the medians")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    gc.disable()  # as timeit does
    if options.serve:
        kind, path = options.serve
        SERVERS[kind](path)
    elif options.client:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
        be_a_client(json.loads(options.client))
    else:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, stop)
        with scratch_directory("compare-", options.dir) as scratch:
            measure(options, scratch)


if __name__ == "__main__":
    main()
