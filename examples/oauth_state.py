"""One-time OAuth state: the answer of the identity provider is taken once, and only from the browser that asked.

The call: ``pop(state)``. It gives what was kept, here the PKCE verifier, to one caller and nothing to the next: to look
first and delete afterwards lets two callbacks through that come at once. The cookie alone would not do, because an old
one can be sent again; the state alone would not do either, because it may be somebody else's.
"""

import secrets

from flask import Flask, abort, request, session

from state_manager.flask import SharedState

app = Flask(__name__)
verifiers = SharedState(app).dict("oauth-states")


@app.get("/login")
def login() -> tuple[str, int, dict[str, str]]:
    session["state"] = state = secrets.token_urlsafe()
    verifiers.set(state, secrets.token_urlsafe(48), ttl=600)
    return "", 302, {"Location": f"https://id.example/authorize?state={state}"}  # and client_id, code_challenge ...


@app.get("/callback")
def callback() -> str:
    verifier = verifiers.pop(request.args["state"], None) if request.args["state"] == session.get("state") else None
    return f"Now exchange the code with {verifier}." if verifier else abort(400)
