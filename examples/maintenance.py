"""Maintenance mode: one command closes the whole app, in every worker at once, and another opens it again.

The call: ``switches.get("maintenance")`` before each request. It is answered from the worker's own memory, and a worker
cannot miss the switch. With a ttl nobody can forget to open the app again:

    state-manager set switches maintenance '"Back at noon."' --ttl 1800
    state-manager delete switches maintenance
"""

from flask import Flask
from flask.typing import ResponseReturnValue

from state_manager.flask import SharedState

app = Flask(__name__)
switches = SharedState(app).dict("switches")


@app.before_request
def close() -> ResponseReturnValue | None:
    message = switches.get("maintenance")
    return None if message is None else (message, 503, {"Retry-After": "60"})


@app.get("/")
def index() -> str:
    return "Open."
