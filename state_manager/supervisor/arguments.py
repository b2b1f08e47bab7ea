"""What `run.py` and `state-manager run` are told, and which app is meant if nobody names one.

The options have the names of gunicorn's own and are few; whatever follows ``--`` is gunicorn's and not looked at here.
No app is imported to see what is in it: that is for the workers. Its source is read.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

APP_NAMES = ("app", "application")
FACTORY_NAMES = ("create_app", "make_app")
LIKELY_FILES = ("wsgi.py", "app.py")
NO_APP = "no app to run: name it (MODULE:NAME), set $FLASK_APP, or have an `app = Flask(__name__)` in wsgi.py or app.py"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one gunicorn is started with."""

    prog: str
    """What the command is called in messages."""
    app: str | None
    """The app that was asked for, as gunicorn takes it."""
    default_app: str | None
    """The app if neither anybody nor gunicorn's settings name one."""
    path: str | None
    """The directory to import apps from before all others."""
    flags: list[str]
    """Our options, as gunicorn's."""
    rest: list[str]
    """gunicorn's own options."""


def add_arguments(parser: argparse.ArgumentParser, *, directory: bool = True) -> None:
    """Add the options to a parser; ``--dir`` only with ``directory``, since a command line may have its own."""
    add = parser.add_argument
    add("module", nargs="?", metavar="MODULE:NAME", help="the app; MODULE:factory() is called")
    add("--app", metavar="MODULE:NAME", help="the app, as an option")
    add(
        "-b",
        "--bind",
        metavar="HOST:PORT",
        action="append",
        help="where to listen, or unix:PATH; may be given several times (default: 127.0.0.1:8000)",
    )
    add("-w", "--workers", metavar="N", type=_positive, help="worker processes (default: cores x 2 + 1)")
    add("--threads", metavar="N", type=_positive, help="threads of one gthread worker (default: 8)")
    add(
        "-k",
        "--worker-class",
        metavar="CLASS",
        help="gthread, sync, gevent or another of gunicorn's (default: gthread)",
    )
    if directory:
        add(
            "--dir",
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="the state directory (default: $STATE_MANAGER_DIR, else ./.state)",
        )


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (our arguments, gunicorn's). argparse cannot tell them apart beside an optional positional argument."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def flags(options: argparse.Namespace) -> list[str]:
    """Return the options that were given, as gunicorn's."""
    words = [word for address in options.bind or () for word in ("--bind", address)]
    for name in ("workers", "threads", "worker_class"):
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def command_line(plan: Plan, channel: int) -> list[str]:
    """Return the arguments of the process that is gunicorn; ``channel`` is a descriptor that it inherits."""
    words = ["--channel", str(channel), "--prog", plan.prog]
    for option, value in (("--app", plan.app), ("--default-app", plan.default_app), ("--path", plan.path)):
        if value is not None:
            words += [option, value]
    return [*words, *plan.flags, "--", *plan.rest]


def parse_command_line(argv: Sequence[str]) -> tuple[Plan, int]:
    """Return what ``command_line`` was made of."""
    own, rest = split(argv)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser, directory=False)
    for option in ("--channel", "--prog", "--default-app", "--path"):
        parser.add_argument(option)
    options = parser.parse_args(own)
    plan = Plan(options.prog, options.app, options.default_app, options.path, flags(options), rest)
    return plan, int(options.channel)


def find_app(flask_app: str | None, cwd: Path) -> tuple[str, str] | None:
    """Return (app, directory to import it from) as `flask run` would choose: $FLASK_APP, else wsgi.py or app.py in cwd.

    None if there is none. Raises ValueError if ``flask_app`` leads to a source without a likely name.
    """
    if flask_app:
        return _from_flask_app(flask_app, cwd)
    for file in (cwd / name for name in LIKELY_FILES):
        name = _likely_name(file)
        if name:
            return f"{file.stem}:{name}", str(cwd)
    return None


def _from_flask_app(flask_app: str, cwd: Path) -> tuple[str, str]:
    """Translate what Flask takes: MODULE or FILE.py, alone or with :NAME, :factory or :factory(arguments)."""
    module, _, name = flask_app.partition(":")
    base = cwd
    if module.endswith(".py"):
        base = (cwd / module).parent
        module = Path(module).stem
    source = base.joinpath(*module.split("."))
    file = next((file for file in (source.with_suffix(".py"), source / "__init__.py") if file.is_file()), None)
    if file and not name:
        name = _likely_name(file) or ""
    elif file and any(isinstance(node, ast.FunctionDef) and node.name == name for node in _top_level(file)):
        name += "()"  # Flask calls a factory by itself; gunicorn is told to
    if not name:
        raise ValueError(f"$FLASK_APP is {flask_app!r}, and no app is seen in it: name it as MODULE:NAME")
    return f"{module}:{name}", str(base)


def _likely_name(file: Path) -> str | None:
    """Return the app or factory call that a source file defines or imports, under a name that Flask looks for."""
    names: set[str] = set()
    for node in _top_level(file):
        match node:
            case ast.Assign(targets=targets):
                names.update(target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update(alias.asname or alias.name for alias in aliases)
    app = next((name for name in APP_NAMES if name in names), None)
    return app or next((f"{name}()" for name in FACTORY_NAMES if name in names), None)


def _top_level(file: Path) -> list[ast.stmt]:
    try:
        return ast.parse(file.read_bytes(), str(file)).body
    except (OSError, SyntaxError, ValueError):
        return []
