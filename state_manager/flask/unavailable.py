"""A request that needs the manager while it cannot be reached gets 503 and Retry-After, and the log gets one line.

Flask's error handlers see what a view raises, and there the app's own handler for Unavailable, or for 503, comes first.
They never see what is raised while the session is opened or saved: that arrives in ``handle_exception``, which would
log a traceback and answer 500, or raise it in debug mode and in tests. So that method is replaced on the app.
A response that has begun to stream has its status already; it breaks off, as with any other error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import ServiceUnavailable

from ..errors import Unavailable

DESCRIPTION = "The shared state cannot be reached at the moment. Please try again."


def install(app: Flask, retry_after: Callable[[], int]) -> None:
    """Answer 503 in this app; ``retry_after`` returns the seconds to say."""

    def service_unavailable() -> ServiceUnavailable:
        return ServiceUnavailable(DESCRIPTION, retry_after=retry_after())

    def answer(error: Unavailable) -> Response:
        app.logger.warning("503 for %s %s: %s: %s", request.method, request.path, type(error).__name__, error)
        unavailable = service_unavailable()
        page = app._find_error_handler(unavailable, request.blueprints)
        response = app.make_response(app.ensure_sync(page)(unavailable) if page else unavailable)
        if response.status_code == 503:  # the app's own page may leave it out
            response.headers.setdefault("Retry-After", str(retry_after()))
        return response

    def handle_exception(*arguments: Any) -> Response:
        error = arguments[-1]  # Flask 3.2 will pass its context first
        if not isinstance(error, Unavailable):
            return flasks_own(*arguments)
        try:
            return app.make_response(app.handle_user_exception(*arguments))
        except Unavailable:  # the app's own page needs the manager too
            pass
        except Exception:
            app.logger.exception("The app's own handler for %s failed", type(error).__name__)
        return app.make_response(service_unavailable())

    flasks_own = app.handle_exception
    app.handle_exception = handle_exception  # type: ignore[method-assign,assignment]
    if Unavailable not in app.error_handler_spec[None][None]:
        app.register_error_handler(Unavailable, answer)
