"""Single-use tokens: a link in a mail, to reset a password or to confirm an address, works once.

The call: ``add(token, True, ttl=...)``, which is True for the first who uses the link and False for everybody after
him, in whichever worker. Nothing is stored until then: the signature says that the link is ours, whose it is and how
old. The ttl is a link's own lifetime, after which it is refused for its age. (If there is something to keep for the
link, store that under the token and ``pop`` it, as `oauth_state.py` does.)
"""

from flask import Flask, abort
from itsdangerous import BadData, URLSafeTimedSerializer

from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
used, key = state.dict("used-links"), state.secret("links")


@app.post("/reset/<token>")
def reset(token: str) -> str:
    try:
        address = URLSafeTimedSerializer(key.current).loads(token, max_age=3600)
    except BadData:
        abort(404)
    return f"A new password for {address}, please." if used.add(token, True, ttl=3601) else abort(410)
