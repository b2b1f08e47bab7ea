"""The extensions of an app that keep something in the worker's own memory, or start something in each worker.

A library is looked at only if the app has imported it, and recognised by the names of its classes: nothing is imported
here. What is kept in files or in a server of its own is shared by the workers, and well.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Flask

from .findings import Finding
from .project import Place, Project, is_a

RUNNING = 1
"""``state`` of an APScheduler that runs; 2 is paused."""


def look(app: Flask, project: Project) -> Iterator[Finding]:
    """Yield what the extensions do with several workers."""
    yield from caches(app, project)
    yield from limiters(app, project)
    yield from socketio(app, project)
    yield from sessions(app, project)


def caches(app: Flask, project: Project) -> Iterator[Finding]:
    """Flask-Caching."""
    found = app.extensions.get("cache")
    for backend in found.values() if isinstance(found, dict) else ():
        kind = type(backend).__name__
        if is_a(backend, "cachelib.simple.SimpleCache"):
            yield Finding(
                "problem",
                "Flask-Caching",
                f"{kind} is one cache for each worker: what one deletes or computes anew, the others still have",
                'CACHE_TYPE = "state_manager.flask.caching"',
                *(project.find(r"CACHE_TYPE.*(?i:simple)", r"CACHE_TYPE\b", r"\bCache\(") or ()),
            )
        elif is_a(backend, "flask_caching.backends.nullcache.NullCache"):
            yield Finding(
                "advice",
                "Flask-Caching",
                "NullCache keeps nothing: every call computes its result",
                'CACHE_TYPE = "state_manager.flask.caching", unless this is meant',
                *(project.find(r"CACHE_TYPE.*(?i:null)", r"CACHE_TYPE\b", r"\bCache\(") or ()),
            )
        else:
            yield Finding("ok", "Flask-Caching", f"{kind} is not in the worker's memory")


def limiters(app: Flask, project: Project) -> Iterator[Finding]:
    """Flask-Limiter."""
    found = app.extensions.get("limiter")
    for limiter in found if isinstance(found, set) else ():
        storage = getattr(limiter, "_storage", None)
        if not getattr(limiter, "enabled", True) or storage is None:
            continue
        if is_a(storage, "limits.storage.memory.MemoryStorage"):
            yield Finding(
                "problem",
                "Flask-Limiter",
                "memory:// counts in each worker for itself: with four workers a client has four times the limit",
                'storage_uri="statemanager://", after `import state_manager.flask.limits`',
                *(project.find(r"(storage_uri|RATELIMIT_STORAGE_UR[IL])\b.*memory:", r"\bLimiter\(") or ()),
            )
        else:
            yield Finding("ok", "Flask-Limiter", f"{type(storage).__name__} is not in the worker's memory")


def socketio(app: Flask, project: Project) -> Iterator[Finding]:
    """Flask-SocketIO."""
    server = getattr(app.extensions.get("socketio"), "server", None)
    if not is_a(server, "socketio.server.Server"):
        return
    if is_a(getattr(server, "manager", None), "socketio.pubsub_manager.PubSubManager"):
        yield Finding(
            "ok", "Flask-SocketIO", "it has a message queue; clients must stay with one worker (sticky sessions)"
        )
        return
    yield Finding(
        "problem",
        "Flask-SocketIO",
        "without a message queue an event reaches only the clients of the worker that emits it",
        'SocketIO(app, message_queue="redis://") and a proxy that keeps a client with one worker; or gunicorn -w 1',
        *(project.find(r"\bSocketIO\(") or ()),
    )


def sessions(app: Flask, project: Project) -> Iterator[Finding]:
    """Flask-Session."""
    interface = app.session_interface
    if not type(interface).__module__.startswith("flask_session"):
        return
    store = getattr(interface, "cache", None) or getattr(interface, "client", None)
    place = project.find(r"SESSION_(TYPE|CACHELIB)\b", r"\bSession\(") or ()
    if is_a(store, "cachelib.simple.SimpleCache"):
        yield Finding(
            "problem",
            "Flask-Session",
            f"{type(store).__name__} keeps sessions in each worker for itself: a login holds in one, not in the next",
            "SharedState(app, sessions=True), and delete Session(app)",
            *place,
        )
    elif is_a(store, "cachelib.file.FileSystemCache"):
        yield Finding(
            "advice",
            "Flask-Session",
            "sessions are files, written whole: of two requests of one visitor at the same time one is lost",
            "SharedState(app, sessions=True), and delete Session(app)",
            *place,
        )
    else:
        yield Finding("ok", "Flask-Session", f"{type(interface).__name__} keeps sessions outside of the workers")


def schedulers(starts: Mapping[Any, Place | None], project: Project) -> Iterator[Finding]:
    """APScheduler, alone or in Flask-APScheduler: those that run. ``starts``: which threads were started where."""
    base = getattr(sys.modules.get("apscheduler.schedulers.base"), "BaseScheduler", None)
    if base is None:
        return
    # By type(), because a proxy of Werkzeug's that is asked for its class looks for a request.
    for scheduler in (found for found in gc.get_objects() if issubclass(type(found), base)):
        if getattr(scheduler, "state", None) == RUNNING:
            yield Finding(
                "problem",
                "APScheduler",
                f"a {type(scheduler).__name__} is started while the app is imported: each worker runs every job",
                '`state.leader("scheduler").run(scheduler.start)` instead of `scheduler.start()`',
                *(starts.get(getattr(scheduler, "_thread", None)) or project.find(r"Scheduler\(") or ()),
            )
