"""``run.py`` and ``state-manager run``: one manager, one gunicorn, and a process that keeps both running.

__init__     the command: arguments in, exit code out
supervisor   what happens when: signals, ends, restarts
loop         how that is noticed
children     what the kernel is asked about processes
listeners    the sockets, which outlive every gunicorn
application  gunicorn's own process; nothing else here imports gunicorn
arguments    the options, and the app if nobody names one
banner       what a person reads
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from state_manager.settings import DirectoryAddress, resolve_address
from state_manager.supervisor.arguments import Plan, add_arguments, find_app, flags, split
from state_manager.supervisor.supervisor import Supervisor

__all__ = ["add_arguments", "main", "run", "split"]

USAGE = 2


def main(
    argv: Sequence[str] | None = None,
    *,
    default_app: str | None = None,
    path: str | None = None,
    prog: str | None = None,
) -> int:
    """Run the whole command until it is told to stop, and return its exit code.

    ``argv``: ``sys.argv[1:]`` by default. ``default_app``: the app if nobody names one; without it $FLASK_APP, wsgi.py
    and app.py are looked at. ``path``: the directory to import apps from before all others. ``prog``: what the command
    is called in messages. Raises SystemExit as argparse does.
    """
    own, rest = split(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run an app in gunicorn, and the manager that all its workers share.",
        epilog="What follows -- goes to gunicorn. Later wins: these defaults, gunicorn.conf.py, WEB_CONCURRENCY and "
        "PORT, GUNICORN_CMD_ARGS, these options, what follows --. Signals: TERM and Ctrl-C stop everything in order, "
        "HUP reloads the app.",
        allow_abbrev=False,
    )
    add_arguments(parser)
    return run(parser.parse_args(own), rest, default_app=default_app, path=path, prog=parser.prog)


def run(
    options: argparse.Namespace,
    rest: Sequence[str] = (),
    *,
    default_app: str | None = None,
    path: str | None = None,
    prog: str = "state-manager run",
) -> int:
    """Do what ``main`` does with arguments that were parsed already; ``rest`` are those after ``--``."""
    try:
        address = resolve_address(getattr(options, "dir", None))
        if not isinstance(address, DirectoryAddress):
            raise ValueError(f"{address} is not shared by the workers of gunicorn: give --dir DIR")
        app = options.app or options.module
        if app is None and default_app is None:
            default_app, path = find_app(os.environ.get("FLASK_APP"), Path.cwd()) or (None, path)
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return USAGE
    _log_like_gunicorn()
    plan = Plan(prog=prog, app=app, default_app=default_app, path=path, flags=flags(options), rest=list(rest))
    return Supervisor(address.path, plan).run()


def _log_like_gunicorn() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s [%(process)d] [%(levelname)s] %(message)s", "[%Y-%m-%d %H:%M:%S %z]")
    )
    logger = logging.getLogger(__name__)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
