"""The app that run.py serves: a counter, a session, a login, messages: with several workers and no manager all break.

It is the example that people copy: one `SharedState(app)`, then proxies that are made once, at import.
A cookie with SameSite=Lax does not come with a form that another site posts, so nobody else can log a visitor out.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response, abort, flash, redirect, render_template, request, session, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from state_manager.flask import SharedState, event_stream

NAME_LIMIT = 40
TEXT_LIMIT = 500

app = Flask(__name__)
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
state = SharedState(app)

visits = state.counter("visits")
messages = state.channel("messages", history=100)


@app.get("/")
def index() -> Response:
    """Count every request to every worker."""
    return Response(f"Hello World! {visits.increment()}, Process {os.getpid()}", mimetype="text/plain")


@app.get("/session")
def session_page() -> str:
    """Count the visits of one browser, in a cookie that every worker can read."""
    session["visits"] = session.get("visits", 0) + 1
    return render_template("session.html", visits=session["visits"])


@app.get("/login")
def login() -> str | BaseResponse:
    """Ask for a name, or show whose session this is."""
    return render_template("account.html" if "name" in session else "login.html", limit=NAME_LIMIT)


@app.post("/login")
def log_in() -> tuple[str, int] | BaseResponse:
    """Begin a session. There is no password: what this shows is whether the next worker still knows the name."""
    name = request.form.get("name", "").strip()
    if not 0 < len(name) <= NAME_LIMIT:
        flash(f"A name has 1 to {NAME_LIMIT} characters; this one has {len(name)}.")
        return render_template("login.html", limit=NAME_LIMIT), 400
    session["name"] = name
    flash(f"Logged in by process {os.getpid()}.")
    return redirect(url_for("login"), 303)


@app.post("/logout")
def log_out() -> BaseResponse:
    """Forget the name."""
    session.pop("name", None)
    flash("Logged out.")
    return redirect(url_for("login"), 303)


@app.get("/messages")
def messages_page() -> str:
    """Show what anybody writes, in every browser at once."""
    return render_template("messages.html", limit=TEXT_LIMIT)


@app.post("/messages")
def write_message() -> tuple[str, int]:
    """Send a text to all who have the page open, whichever worker they are connected to."""
    text = request.form.get("text", "").strip()
    if not 0 < len(text) <= TEXT_LIMIT:
        abort(400, f"A message has 1 to {TEXT_LIMIT} characters; this one has {len(text)}.")
    messages.publish({"name": session.get("name", "somebody"), "text": text, "pid": os.getpid()})
    return "", 204


@app.get("/messages/stream")
def message_stream() -> Response:
    """Hold this connection open, and a thread of this worker with it, and send messages as they come."""
    return event_stream(messages)


@app.errorhandler(HTTPException)
def error_page(error: HTTPException) -> BaseResponse:
    """Show an error like every other page, with its own status and headers (Retry-After, Allow)."""
    response = error.get_response()
    response.set_data(render_template("error.html", error=error))
    return response


@app.after_request
def forbid_caching(response: Response) -> Response:
    """Keep counts and names out of caches; the style sheet may stay in them."""
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response


@app.context_processor
def served_by() -> dict[str, Any]:
    """Let every page say which worker made it."""
    return {"pid": os.getpid()}
