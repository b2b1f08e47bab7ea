"""In debug mode, warns at a request's end about values that it read from a shared dict, changed, and did not store.

That is everybody's first mistake: ``carts["a"]["n"] = 2`` changes a copy. What a request reads is noted in its WSGI
environment, which is there for exactly as long as the request is, in whichever threads and greenlets. A request that
fails (an exception, or a status from 400) is not warned about: it may have stored nothing on purpose.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, current_app, has_request_context, request

from ..checks import Key
from ..proxies.unsaved import Unsaved, look_with

KEY = "state_manager.unsaved"
WARNING = (
    "%s[%r]%s was changed after %s read it, and not stored: what you read is a copy. "
    "Write %s[%r] = value, or use %s.transform(%r, function)."
)


def install(app: Flask) -> None:
    """Warn at the end of those requests of this app that ``watch`` was called for."""
    app.after_request(_forget_failed)
    app.teardown_request(_warn)


def watch(environ: dict[str, Any]) -> None:
    """Note what this request reads."""
    environ[KEY] = Unsaved()
    look_with(_of_request)


def _of_request() -> Unsaved | None:
    return request.environ.get(KEY) if has_request_context() else None


def _forget_failed(response: Response) -> Response:
    if response.status_code >= 400:
        request.environ.pop(KEY, None)
    return response


def _warn(error: BaseException | None) -> None:
    """Log one line for each dict: what is wrong with several of its keys is most often one line of the view."""
    unsaved: Unsaved | None = request.environ.get(KEY)
    if unsaved is None or error is not None:
        return
    keys: dict[str, list[Key]] = {}
    for name, key in unsaved.take_changed():
        keys.setdefault(name, []).append(key)
    reader = "the request" if request.endpoint is None else f"the view {request.endpoint!r}"
    for name, (key, *others) in keys.items():
        more = f" (and {len(others)} more)" if others else ""
        current_app.logger.warning(WARNING, name, key, more, reader, name, key, name, key)
