"""A channel as Server-Sent Events, which a browser reads with ``new EventSource(url)``.

The browser says which message it had last when it connects again (``Last-Event-ID``), so it misses nothing that the
channel's history still has, whichever worker answers. An open stream holds the thread, or greenlet, that serves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flask import Flask, Response, current_app, request

from ..errors import TimedOut, Unavailable
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

    Raises ValueError for a name of several lines, and Unavailable if the manager cannot be reached.
    """
    if event is not None and ("\n" in event or "\r" in event):
        raise ValueError(f"an event's name is one line, not {event!r}")
    channel = Channel(caller_now(channel), channel.name)  # what streams later is outside of the app's context
    subscription = channel.subscribe(_last_event_id())
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    response = Response(_stream(app, subscription, event), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold back what is short
    response.call_on_close(subscription.close)
    return response


def _last_event_id() -> int | None:
    """Return the id of the message that the browser had last, None for one that it did not have from us."""
    text = request.headers.get("Last-Event-ID", "")
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _stream(app: Flask, subscription: Subscription, event: str | None) -> Iterator[str]:
    yield f"retry: {RECONNECT}\n\n"
    try:
        while not subscription.closed:
            message = subscription.get(KEEP_ALIVE)
            yield ": still here\n\n" if message is None else _text(app, message, event)
    except (TimedOut, Unavailable):
        return  # the worker is being stopped, or the manager is down: the browser connects again


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
