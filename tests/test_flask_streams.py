"""Server-Sent Events, as bytes. Browsers, workers and restarts are in tests/processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient

from state_manager import TimedOut, Unavailable
from state_manager.flask import SharedState, event_stream, streams
from state_manager.proxies.channels import Subscription


@pytest.fixture
def app(tmp_path: Any) -> Flask:
    app = Flask("streams")
    app.config["STATE_MANAGER_ADDRESS"] = f"memory://{tmp_path}"
    state = SharedState(app)
    news = state.channel("news", history=3)

    @app.get("/stream")
    @app.get("/stream/<event>")
    def stream(event: str | None = None) -> Response:
        return event_stream(news, event)

    app.extensions["news"] = news
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def events(response: Any, number: int) -> Iterator[str]:
    """Yield the first events of a stream, without the one that begins it."""
    chunks = response.iter_encoded()
    assert re.fullmatch(rb"retry: 1000\nid: \d+\n\n", next(chunks))
    for _ in range(number):
        yield next(chunks).decode()
    response.close()


def test_a_stream(app: Flask, client: FlaskClient) -> None:
    news = app.extensions["news"]
    response = client.get("/stream")
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    first, second = news.publish({"text": "é\n"}), news.publish(7)
    assert list(events(response, 2)) == [
        f'id: {first}\ndata: {{"text":"\\u00e9\\n"}}\n\n'.replace('":"', '": "'),
        f"id: {second}\ndata: 7\n\n",
    ]


def test_a_named_event(app: Flask, client: FlaskClient) -> None:
    response = client.get("/stream/price")
    id_ = app.extensions["news"].publish(1)
    assert list(events(response, 1)) == [f"id: {id_}\nevent: price\ndata: 1\n\n"]
    with app.test_request_context(), pytest.raises(ValueError, match="one line"):
        event_stream(app.extensions["news"], "a\nb")


def test_who_comes_back_goes_on_where_he_was(app: Flask, client: FlaskClient) -> None:
    news = app.extensions["news"]
    ids = [news.publish(number) for number in range(3)]
    response = client.get("/stream", headers={"Last-Event-ID": str(ids[0])})
    assert list(events(response, 2)) == [f"id: {ids[1]}\ndata: 1\n\n", f"id: {ids[2]}\ndata: 2\n\n"]


def test_what_was_missed_is_told(app: Flask, client: FlaskClient) -> None:
    news = app.extensions["news"]
    ids = [news.publish(number) for number in range(10)]
    response = client.get("/stream", headers={"Last-Event-ID": str(ids[1])})
    assert list(events(response, 1)) == [f"event: missed\ndata: 5\n\nid: {ids[7]}\ndata: 7\n\n"]


@pytest.mark.parametrize("header", ["", "x", "-1", "1.5", "9" * 30, "²"])
def test_an_id_that_is_none_of_ours_is_from_now_on(app: Flask, client: FlaskClient, header: str) -> None:
    news = app.extensions["news"]
    news.publish("before")
    response = client.get("/stream", headers={"Last-Event-ID": header.encode().decode("latin-1")})
    id_ = news.publish("after")
    assert list(events(response, 1)) == [f'id: {id_}\ndata: "after"\n\n']


def test_silence_is_broken_by_a_comment(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE", 0.01)
    assert list(events(client.get("/stream"), 2)) == [": still here\n\n"] * 2


def test_what_is_no_json_is_left_out_and_not_asked_for_again(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    news = app.extensions["news"]
    response = client.get("/stream")
    bad, good = news.publish({1, 2}), news.publish(3)
    assert list(events(response, 2)) == [f"id: {bad}\n\n", f"id: {good}\ndata: 3\n\n"]
    assert "cannot be sent as JSON" in caplog.text


@pytest.mark.parametrize("error", [TimedOut("being stopped"), Unavailable("no manager")])
def test_a_stream_ends_where_it_cannot_go_on(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def get(subscription: Subscription, timeout: float) -> None:
        raise error

    monkeypatch.setattr(Subscription, "get", get)
    assert client.get("/stream").data == b"retry: 1000\nid: 0\n\n"


def test_a_browser_that_has_had_no_message_yet_can_say_so(app: Flask, client: FlaskClient) -> None:
    news = app.extensions["news"]
    last = news.publish("before")
    with client.get("/stream") as response:
        begin = next(response.iter_encoded()).decode()
    assert f"id: {last}\n" in begin
    missed = news.publish("while it was away")
    for again in (
        client.get("/stream", headers={"Last-Event-ID": str(last)}),
        client.get(f"/stream?after={last}"),
    ):
        assert list(events(again, 1)) == [f'id: {missed}\ndata: "while it was away"\n\n']


def test_without_a_manager_a_stream_is_empty_and_no_error_which_would_be_its_last(
    app: Flask, client: FlaskClient, tmp_path: Any
) -> None:
    app.config |= {"STATE_MANAGER_ADDRESS": str(tmp_path / "nobody"), "STATE_MANAGER_TIMEOUT": 0.1}
    answer = client.get("/stream")
    assert (answer.status_code, answer.data) == (200, b"retry: 1000\n\n")
    assert answer.content_type == "text/event-stream; charset=utf-8"


def test_a_worker_without_threads_is_warned_about_once(
    app: Flask, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    for multithread in (True, False, False):
        client.get("/stream", environ_overrides={"wsgi.multithread": multithread}).close()
    assert caplog.text.count("holds this whole worker") == 1


def test_a_browser_that_leaves_closes_the_subscription(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Subscription] = []
    close = Subscription.close

    def note_and_close(subscription: Subscription) -> None:
        closed.append(subscription)
        close(subscription)

    monkeypatch.setattr(Subscription, "close", note_and_close)
    for read in (0, 1):
        response = client.get("/stream")
        chunks = response.iter_encoded()
        for _ in range(read):
            next(chunks)
        response.close()
        assert len(closed) == read + 1


def test_a_head_request_streams_nothing(client: FlaskClient) -> None:
    assert client.head("/stream").data == b""


def test_several_apps_and_one_state(tmp_path: Any) -> None:
    """What streams later is outside of the app's context, and still knows which app's channel it is."""
    state = SharedState()
    clients = []
    for number in range(2):
        app = Flask(f"app{number}")
        app.config["STATE_MANAGER_ADDRESS"] = f"memory://{tmp_path}/{number}"
        state.init_app(app)
        app.add_url_rule("/stream", view_func=lambda: event_stream(state.channel("news")), endpoint="stream")
        clients.append((app, app.test_client()))
    responses = [client.get("/stream") for _, client in clients]
    for app, _ in clients:
        with app.app_context():
            state.channel("news").publish(app.name)
    assert [next(events(response, 1)).split("\n")[1] for response in responses] == ['data: "app0"', 'data: "app1"']


@pytest.mark.parametrize("last", [2**63, 10**19 - 1])
def test_an_id_of_more_than_64_bits_is_no_error(client: FlaskClient, last: int) -> None:
    with client.get("/stream", headers={"Last-Event-ID": str(last)}) as response:
        assert response.status_code == 200
