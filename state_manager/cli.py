"""``state-manager``: look into and change a running manager's state, from a terminal or a script.

Rules: a command is one row of COMMANDS, from which the parser and the help are made, and one function in
``cli_commands``; an error is one line, and never a traceback.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from . import cli_commands, cli_doctor, cli_files, cli_lists, supervisor
from .checks import CHANNELS, LOCKS
from .cli_commands import NO_MANAGER, USAGE
from .cli_output import PROGRAM, complain, table
from .errors import StateError
from .settings import DURABILITY_VARIABLE, VERSION, Durability

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
BROKEN_PIPE = 141  # 128 + SIGPIPE

Adder = Callable[[argparse.ArgumentParser], object]


class Command(NamedTuple):
    name: str
    """One word, or a group and an action."""
    function: Callable[[argparse.Namespace], int]
    arguments: tuple[Adder, ...]
    help: str
    example: str


def argument(*names: str, **settings: Any) -> Adder:
    """Return what adds this argument to a parser; the settings are argparse's."""
    return lambda parser: parser.add_argument(*names, **settings)


def key_kind(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--int", action="store_true", help="KEY is an integer")
    kind.add_argument("--hex", action="store_true", help="KEY is bytes, written in hexadecimal")


def size(text: str) -> int:
    """Return bytes: ``500M`` is 500 times 2**20."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text, re.IGNORECASE)
    if found is None or int(found[1]) == 0:
        raise ValueError
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


def kept(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--durability",
        choices=get_args(Durability),
        help=f"what a write survives: the end of any process, also a power failure, nothing (default: "
        f"${DURABILITY_VARIABLE} or process)",
    )
    parser.add_argument(
        "--max-memory", type=size, metavar="SIZE", help="refuse writes beyond this many bytes; 500M, 2G (default: none)"
    )


def interval(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


DICT = argument("dict", metavar="DICT", help="a dict's name, or a space of the manager's own, such as :counters")
KEY = argument("key", metavar="KEY", help="the key: a text, or what --int or --hex say")

COMMANDS = (
    Command(
        "serve",
        cli_commands.serve,
        (
            kept,
            argument(
                "--recover", action="store_true", help="step over damage in the journal, and keep the damaged file"
            ),
            argument(
                "--takeover", action="store_true", help="ask the manager that runs there to end, and go on for it"
            ),
            argument("--ready-fd", type=int, metavar="N", help="tell this descriptor when clients can connect"),
        ),
        "run a manager in the foreground",
        "--dir /var/lib/shop/state --durability power --max-memory 2G",
    ),
    Command(
        "run",
        cli_commands.run,
        (lambda parser: supervisor.add_arguments(parser, directory=False),),
        "run an app: a manager and gunicorn, looked after together",
        "shop:app --workers 4 -- --access-logfile -",
    ),
    Command("stop", cli_commands.stop, (), "end the manager in order", ""),
    Command("restart", cli_commands.restart, (kept,), "put a new manager in the place of the one that runs", ""),
    Command("ping", cli_commands.ping, (), "measure one round trip to the manager", ""),
    Command("stats", cli_commands.stats, (), "show the manager's numbers", ""),
    Command("spaces", cli_commands.spaces, (), "list what is stored: names, kinds, sizes", ""),
    Command(
        "locks",
        cli_lists.list_of(LOCKS),
        (),
        "list locks, semaphores and leaders: who holds them, since when, who waits",
        "",
    ),
    Command("queues", cli_lists.list_of(":queues"), (), "list queues: what waits, what was taken, who waits", ""),
    Command("channels", cli_lists.list_of(CHANNELS), (), "list channels: messages kept, who waits for the next", ""),
    Command("workers", cli_lists.list_of(":workers"), (), "list processes: what they hold and wait for", ""),
    Command("keys", cli_commands.keys, (DICT,), "list a dict's keys, one a line", "carts | head"),
    Command(
        "get",
        cli_commands.get,
        (DICT, KEY, key_kind, argument("--text", action="store_true", help="print a text without its quotes")),
        "print a value",
        "carts alice",
    ),
    Command(
        "set",
        cli_commands.set_,
        (
            DICT,
            KEY,
            argument("value", metavar="VALUE", help="the value: JSON; - reads it from standard input"),
            key_kind,
            argument("--text", action="store_true", help="VALUE is a text, not JSON"),
            argument("--ttl", type=float, metavar="SECONDS", help="remove it after this time (else: never)"),
        ),
        "store a value",
        """carts alice '{"n": 1}' --ttl 3600""",
    ),
    Command("delete", cli_commands.delete, (DICT, KEY, key_kind), "delete a key", "carts alice"),
    Command(
        "increment",
        cli_commands.increment,
        (DICT, KEY, key_kind, argument("--by", type=int, default=1, metavar="N", help="add N (default: 1)")),
        "add to an integer and print it; an absent key counts as 0",
        "hits /index --by 5",
    ),
    Command(
        "ttl",
        cli_commands.ttl,
        (DICT, KEY, key_kind),
        "print the seconds that a key has left, or 'none'",
        "carts alice",
    ),
    Command(
        "watch",
        cli_lists.watch,
        (
            argument(
                "dict",
                metavar="DICT",
                help="a dict's name; :locks, :queues, :channels, :workers; :channel:NAME for its messages; or another "
                "space of the manager's own",
            ),
            argument("key", metavar="KEY", nargs="?", help="only this key"),
            key_kind,
            argument(
                "--interval", type=interval, default=1.0, metavar="SECONDS", help="how often to look (default: 1)"
            ),
        ),
        "print what changes, until Ctrl-C",
        "carts --interval 0.5",
    ),
    Command(
        "secret show",
        cli_commands.secret_show,
        (argument("name", nargs="?", default="session", metavar="NAME", help="the secret's name (default: session)"),),
        "print the keys that sign sessions: keep them to yourself",
        "",
    ),
    Command(
        "secret rotate",
        cli_commands.secret_rotate,
        (
            argument("name", nargs="?", default="session", metavar="NAME", help="the secret's name (default: session)"),
            argument("--now", action="store_true", help="forget the older keys: everybody is logged out"),
        ),
        "sign with a new key from each worker's next request on; nobody is logged out",
        "",
    ),
    Command(
        "backup",
        cli_files.backup,
        (argument("file", metavar="FILE", help="a new file, or a backup that it replaces"),),
        "copy all that the manager keeps, secrets too, to a file while it goes on",
        "/backup/shop-monday",
    ),
    Command(
        "restore",
        cli_files.restore,
        (
            argument("file", metavar="FILE", help="what `backup` has written"),
            argument("--force", action="store_true", help="end the manager that runs there first"),
        ),
        "replace what a directory keeps by a backup; the former files stay under another name",
        "/backup/shop-monday --dir /var/lib/shop/state",
    ),
    Command(
        "export",
        cli_files.export,
        (
            argument(
                "file", metavar="FILE", nargs="?", default="-", help="the file to write (default: standard output)"
            ),
            argument("--skip", action="store_true", help="leave out what JSON cannot hold, instead of ending there"),
        ),
        "write dicts and counters as JSON lines; without a manager, from its journal",
        "carts.jsonl",
    ),
    Command(
        "import",
        cli_files.import_,
        (argument("file", metavar="FILE", nargs="?", default="-", help="the file to read (default: standard input)"),),
        "store the JSON lines of an export, over what is there under the same keys",
        "carts.jsonl",
    ),
    Command(
        "doctor",
        cli_doctor.doctor,
        (
            argument(
                "--app",
                metavar="MODULE:NAME",
                help="also import this app, as gunicorn would, and name what breaks with several workers",
            ),
        ),
        "name what breaks an app with several workers, and what is wrong with the state directory",
        "--app shop:app",
    ),
)

GROUPS = {"secret": "Show or rotate the keys that sign sessions."}

EXAMPLES = """\
examples:
  state-manager spaces
  state-manager get carts alice
  state-manager set carts alice '{"n": 1}' --ttl 3600
  state-manager keys carts | head
  state-manager COMMAND --help

A key is a text (or --int, --hex), a value is JSON (or --text).
Exit codes: 0; 1 the key is absent, or `doctor` has found a problem; 2 wrong usage, or an app that cannot be imported;
3 no manager, or it could not do it. `run` has gunicorn's.
"""


def build_parser() -> argparse.ArgumentParser:
    commands = table([(f"  {command.name}", command.help) for command in COMMANDS])
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Look into the state that an app's workers share, and change it.",
        epilog=f"commands:\n{commands}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage=f"{PROGRAM} [--dir DIR] [--json] COMMAND ...",
    )
    parser.set_defaults(dir=None, json=False)
    add_global_options(parser)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
    groups = {"": parser.add_subparsers(prog=PROGRAM, metavar="COMMAND", required=True, help=argparse.SUPPRESS)}
    for command in COMMANDS:
        group, _, word = command.name.rpartition(" ")
        if group not in groups:
            inner = groups[""].add_parser(group, description=GROUPS[group], allow_abbrev=False)
            add_global_options(inner)
            groups[group] = inner.add_subparsers(title="commands", metavar="COMMAND", required=True)
        sub = groups[group].add_parser(
            word,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example: {PROGRAM} {command.name} {command.example}".rstrip(),
            allow_abbrev=False,
        )
        for add in command.arguments:
            add(sub)
        add_global_options(sub)
        sub.set_defaults(function=command.function)
    return parser


def add_global_options(parser: argparse.ArgumentParser) -> None:
    """Add what may stand before or after the command. Each parser sets only what it is given, and so undoes nothing."""
    where = "the state directory (default: $STATE_MANAGER_DIR or ./.state)"
    parser.add_argument("--dir", metavar="DIR", default=argparse.SUPPRESS, help=where)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def is_run(argv: Sequence[str]) -> bool:
    """Tell whether the command is `run`, whose arguments after ``--`` are gunicorn's."""
    words = (word for before, word in zip(("", *argv), argv, strict=False) if before != "--dir" and word[:1] != "-")
    return next(words, None) == "run"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    own, rest = supervisor.split(argv) if is_run(argv) else (argv, ())
    args = build_parser().parse_args(own)
    args.rest = rest
    if args.function in (cli_commands.serve, cli_commands.run):
        return int(args.function(args))  # they report what goes wrong; anything else is a bug, and wants its traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its number
    try:
        code = args.function(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        discard_output()
        return BROKEN_PIPE
    except (TypeError, ValueError, OverflowError) as error:  # NotStorable and TooLarge are among them
        complain(error)
        return USAGE
    except (StateError, OSError) as error:  # OSError: the disk under stdout is full
        discard_output()
        complain(error)
        return NO_MANAGER
    return int(code)


def discard_output() -> None:
    """Let what is still buffered go nowhere, or the interpreter complains about it as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
