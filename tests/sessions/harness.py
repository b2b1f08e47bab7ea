"""An app with sessions whose view is whatever a test gives it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from flask import Flask, session
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from state_manager.flask import SharedState
from state_manager.flask.session import ServerSession
from state_manager.flask.session_records import NAME

View = Callable[[ServerSession], object]


class Shop:
    """An app whose view is whatever a test gives it."""

    def __init__(self, address: str = "memory://", **config: object) -> None:
        self.app = Flask("shop")
        self.app.config.update({"STATE_MANAGER_ADDRESS": address} | config)
        self.state = SharedState(self.app, sessions=True)
        self.app.add_url_rule("/", view_func=self._serve)
        self.view: View = dict

    def _serve(self) -> str:
        found: Any = session._get_current_object()  # type: ignore[attr-defined]
        return repr(self.view(found))

    def client(self, cookie: str | None = None) -> FlaskClient:
        client = self.app.test_client()
        if cookie is not None:
            client.set_cookie("session", cookie)
        return client

    def ask(self, client: FlaskClient, view: View = dict) -> TestResponse:
        former, self.view = self.view, view
        try:
            return client.get("/")
        finally:
            self.view = former

    def data(self, client: FlaskClient) -> Any:
        return eval(self.ask(client).text, {"datetime": datetime})

    @property
    def stored(self) -> dict[Any, Any]:
        return self.state.dict(NAME).copy()


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("session")
    assert cookie is not None
    return str(cookie.value)


def setting(**items: Any) -> View:
    return lambda session: session.update(items)
