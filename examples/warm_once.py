"""Warm this cache once: a cold start costs one query, not one for each worker and each request that comes meanwhile.

The call: ``once(name, ttl=...)``, which is True for one caller in all processes. Its ttl is how long the warming may
take: if the process that does it ends before it is done, somebody else is asked after that time. Those who come
meanwhile do not wait; here they are told to come again.
"""

import time

from flask import Flask, abort

from state_manager.flask import SharedState

app = Flask(__name__)
state = SharedState(app)
cache = state.dict("catalogue", durable=False)


@app.get("/catalogue")
def catalogue() -> list[str]:
    found: list[str] | None = cache.get("all")
    if found is None and state.once("warm-catalogue", ttl=30):
        time.sleep(0.1)  # your long query
        cache.set("all", found := ["apples", "pears"], ttl=600)
    return abort(503) if found is None else found
