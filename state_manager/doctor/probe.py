"""Imports an app as a gunicorn worker would, and writes what was found to a file: ``python -m ...probe APP REPORT``.

Nothing is served, and no manager is asked, started or found by the app: whoever starts this process says so in its
environment. It stays until its standard input ends, so that two of them live at the same time as two workers would, and
then ends without running anything more of the app's.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from flask import Flask
from gunicorn.errors import AppImportError
from gunicorn.util import import_app

from ..errors import StateError
from ..flask import own_key
from ..flask.binding import Binding
from ..flask.extension import BINDING
from ..settings import MEMORY_SCHEME
from . import libraries, source, variables
from .findings import Finding
from .project import Place, Project, stack_of

SECRET = re.compile(r"(^|_)SECRET_KEY$|_SALT$")
"""Settings that must be the same in every worker."""
RANDOM = re.compile(r".*(urandom|token_|uuid|random|secrets\.|Fernet)")
WRAPPERS = 5
"""How many middlewares around an app are looked through."""
SESSION_WORDS = ("session", "flash", "get_flashed_messages")
SESSION_LIBRARIES = ("flask_login", "flask_wtf", "flask_dance", "flask_security")


class NotFlask(TypeError):
    """What the name leads to is something else."""


class Watch:
    """Notes where threads are started, and where the app would begin to serve."""

    def __init__(self) -> None:
        self.starts: dict[threading.Thread, list[Place]] = {}
        self.runs: list[list[Place]] = []
        start = threading.Thread.start

        def noted_start(thread: threading.Thread) -> None:
            self.starts[thread] = stack_of(sys._getframe(1))
            start(thread)

        def noted_run(app: Flask, *args: Any, **options: Any) -> None:
            self.runs.append(stack_of(sys._getframe(1)))

        threading.Thread.start = noted_start  # type: ignore[assignment,method-assign]
        Flask.run = noted_run  # type: ignore[assignment,method-assign]


def main() -> NoReturn:
    name, report = sys.argv[1:]
    salt = sys.stdin.buffer.readline()
    gate = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a worker has nothing to read either
    sys.path.insert(0, os.getcwd())
    watch = Watch()
    try:
        app = unwrapped(import_app(name), name)
    except BaseException as error:  # SystemExit too: the app has parsed our command line
        answer = failure(error, Project(name.partition(":")[0]))
    else:
        project = Project(name.partition(":")[0])
        findings = list(look(app, project, watch))
        answer = {"findings": [finding._asdict() for finding in findings], "secrets": secrets(app, project, salt)}
    with open(f"{report}.new", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.rename(f"{report}.new", report)
    os.read(gate, 1)
    os._exit(0)


def unwrapped(app: object, name: str) -> Flask:
    """Return the Flask app, which may be within middleware. Raises NotFlask if there is none."""
    inner: Any = app
    for _ in range(WRAPPERS):
        if isinstance(inner, Flask):
            return inner
        inner = getattr(inner, "app", None) or getattr(inner, "wsgi_app", None) or getattr(inner, "server", None)
    hint = f"; if it makes one, write {name}()" if callable(app) and not name.endswith(")") else ""
    raise NotFlask(f"{name} is no Flask app but a {type(app).__name__}{hint}")


def failure(error: BaseException, project: Project) -> dict[str, Any]:
    """Say why the app could not be imported, and where in it."""
    places = [Place(frame.filename, frame.lineno or 0) for frame in reversed(traceback.extract_tb(error.__traceback__))]
    place = project.caller(places)
    if isinstance(error, SyntaxError) and error.filename:
        place = Place(error.filename, error.lineno or 0)
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, AppImportError | NotFlask):
        text = str(error)  # these were raised for whoever typed the name
    return {"error": text, "stateless": isinstance(error, StateError), "place": place}


def look(app: Flask, project: Project, watch: Watch) -> Iterator[Finding]:
    """Yield everything but what takes a comparison of two processes."""
    starts = {thread: project.caller(stack) for thread, stack in watch.starts.items()}
    yield from guarded("app.run", serving(watch, project))
    yield from guarded("address", memory(app, project))
    yield from guarded("SECRET_KEY", key(app, project))
    yield from guarded("extensions", libraries.look(app, project))
    yield from guarded("APScheduler", libraries.schedulers(starts, project))
    yield from guarded("thread", threads(starts, project))
    yield from guarded("variable", variables.look(app, project))


def guarded(check: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; one that an app is too strange for says so, and the others go on."""
    try:
        yield from findings
    except Exception as error:
        yield Finding("advice", check, f"this check has failed: {type(error).__name__}: {error}", "please report it")


def serving(watch: Watch, project: Project) -> Iterator[Finding]:
    """An app that is imported must not serve."""
    for stack in watch.runs:
        yield Finding(
            "problem",
            "app.run",
            "app.run() is called while the app is imported: a worker would serve there for itself, and never be ready",
            'put it under `if __name__ == "__main__":`',
            *(project.caller(stack) or ()),
        )


def memory(app: Flask, project: Project) -> Iterator[Finding]:
    """The app's own setting is not overridden by the environment of this process."""
    address = str(app.config.get("STATE_MANAGER_ADDRESS") or "")
    if BINDING in app.extensions and address.startswith(MEMORY_SCHEME):
        yield Finding(
            "problem",
            "address",
            f"STATE_MANAGER_ADDRESS is {address}, which lives inside one process: each worker has a state of its own",
            "leave it out, or give a directory; memory:// is for tests",
            *(project.find(r"STATE_MANAGER_ADDRESS") or ()),
        )


def key(app: Flask, project: Project) -> Iterator[Finding]:
    """Tell an app that has no key, or the manager's; one of its own is compared with that of another process."""
    binding: Binding | None = app.extensions.get(BINDING)
    if binding is not None and binding.settings.secret is not None and not binding.keys.is_own(app):
        yield Finding("ok", "SECRET_KEY", "the manager makes one for all workers")
    elif not app.secret_key:
        place = session_use(project)
        if place is None and not any(name in sys.modules for name in SESSION_LIBRARIES):
            yield Finding("ok", "SECRET_KEY", "there is none, and nothing that needs one was found")
        else:
            yield Finding(
                "problem",
                "SECRET_KEY",
                "there is none: every use of the session raises an error",
                "`state = SharedState(app)`, which makes one for all workers",
                *(place or ()),
            )


def session_use(project: Project) -> Place | None:
    """Return where the app imports Flask's session, or what uses it."""
    for file, tree in project.trees.items():
        names = source.imported_names(tree, "flask")
        for word in SESSION_WORDS:
            if word in names:
                return Place(file, names[word])
    return None


def secrets(app: Flask, project: Project, salt: bytes) -> dict[str, Any]:
    """Return each secret's fingerprint, keyed with what only the two processes know, and the line that sets it."""
    binding: Binding | None = app.extensions.get(BINDING)
    found = {}
    for name, value in sorted(app.config.items()):
        if not SECRET.search(name) or not isinstance(value, str | bytes) or not value:
            continue
        if name == "SECRET_KEY" and binding is not None and not binding.keys.is_own(app):
            continue
        text = value.encode() if isinstance(value, str) else value
        found[name] = {"digest": hmac.new(salt, text, "sha256").hexdigest(), "place": assignment(project, name)}
    return found


def assignment(project: Project, name: str) -> Place | None:
    """Return the line that sets a secret: of several the first that makes something random."""
    found = list(project.lines(own_key.assignment_of(name)))
    return next((place for place, text in found if RANDOM.match(text)), found[0][0] if found else None)


def threads(starts: dict[threading.Thread, Place | None], project: Project) -> Iterator[Finding]:
    """Yield the threads that run something of the project's; a library's own are its own affair."""
    for thread, place in starts.items():
        target = getattr(thread, "_target", None) or getattr(thread, "function", None) or type(thread).run
        code = getattr(getattr(target, "__func__", target), "__code__", None)
        if thread.is_alive() and place is not None and code is not None and project.has(code.co_filename):
            yield Finding(
                "advice",
                "thread",
                f"a thread that runs {code.co_name} is started while the app is imported: there is one in each worker",
                "if there may be only one, let it do its work while it holds `state.lock(NAME)`",
                *place,
            )


if __name__ == "__main__":
    main()
