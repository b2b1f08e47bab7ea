"""A channel as Server-Sent Events, which a browser reads with ``new EventSource(url)``.

The browser says which message it had last when it connects again (``Last-Event-ID``), so it misses nothing that the
channel's history still has, whichever worker answers. A stream begins with the last id that there is, so that a browser
which has had no message yet can say it too. An open stream holds the thread, or greenlet, that serves it.

A browser never tries again after an answer that is not 200. So while no manager can be reached a stream is empty, and
ends at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Final

from flask import Flask, Response, current_app, request

from ..checks import INT_MAX
from ..errors import StateError, TimedOut, Unavailable
from ..proxies.channels import Channel, Message, Subscription
from .extension import caller_now

KEEP_ALIVE: Final = 15.0
"""Seconds of silence after which a comment is sent: proxies keep the connection, and one that has gone is noticed."""
RECONNECT: Final = 1000
"""Milliseconds until the browser connects again: most browsers wait three seconds otherwise."""


def event_stream(channel: Channel, event: str | None = None) -> Response:
    """Return a response that sends what is published, as JSON (``app.json``), for as long as the browser listens.

    ``event``: the name for ``addEventListener``; without one it is "message". Where messages are no longer in the
    history an event "missed" says how many, before the first that is there.

    A page that opens a stream by itself may go on where it was with ``?after=ID``. Raises ValueError for a name of
    several lines.
    """
    if event is not None and ("\n" in event or "\r" in event):
        raise ValueError(f"an event's name is one line, not {event!r}")
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    if not (app.testing or request.environ.get("wsgi.multithread", True)):
        _warn(app)
    channel = Channel(caller_now(channel), channel.name)  # what streams later is outside of the app's context
    response = Response(mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold back what is short
    try:
        subscription = channel.subscribe(_last_id())
    except Unavailable as error:
        app.logger.warning("an event stream is empty for now: %s", error)
        response.data = _beginning(None)
    else:
        response.response = _stream(app, subscription, event)
        response.call_on_close(subscription.close)
    return response


@cache
def _warn(app: Flask) -> None:
    """Say once a process what hangs a site, because nothing else would."""
    app.logger.warning(
        "an open event stream holds this whole worker, which has no threads: use --worker-class gthread --threads 20, "
        "or gevent"
    )


def _last_id() -> int | None:
    """Return the id of the message that the browser had last, None for one that it did not have from us."""
    text = request.headers.get("Last-Event-ID") or request.args.get("after", "")
    return id_ if text.isdecimal() and len(text) < 20 and (id_ := int(text)) <= INT_MAX else None


def _beginning(id_: int | None) -> str:
    return f"retry: {RECONNECT}\n\n" if id_ is None else f"retry: {RECONNECT}\nid: {id_}\n\n"


def _stream(app: Flask, subscription: Subscription, event: str | None) -> Iterator[str]:
    yield _beginning(subscription.after)
    try:
        while not subscription.closed:
            message = subscription.get(KEEP_ALIVE)
            yield ": still here\n\n" if message is None else _text(app, message, event)
    except TimedOut:
        return  # the worker is being stopped
    except StateError as error:
        app.logger.warning("an event stream ends, and its browser connects again: %s", error)


def _text(app: Flask, message: Message, event: str | None) -> str:
    lines = [f"event: missed\ndata: {message.missed}\n"] if message.missed else []
    lines.append(f"id: {message.id}")
    try:
        data = app.json.dumps(message.value)
    except (TypeError, ValueError) as error:
        app.logger.error("the message %d cannot be sent as JSON and is left out: %s", message.id, error)
    else:
        lines += [f"event: {event}"] if event else []
        lines += [f"data: {line}" for line in data.split("\n")]
    return "\n".join(lines) + "\n\n"
