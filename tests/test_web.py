"""The app in web/, as a visitor sees it. Several workers and kills are in tests/processes."""

from __future__ import annotations

import json
import os
import re

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from web import app

PAGES = ["/session", "/login", "/messages"]
USES_STATE = ["/", "/session", "/login"]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FlaskClient:
    monkeypatch.setitem(app.config, "STATE_MANAGER_ADDRESS", f"memory://{request.node.nodeid}")
    return app.test_client()


def log_in(client: FlaskClient, name: str = "Ada") -> TestResponse:
    return client.post("/login", data={"name": name}, follow_redirects=True)


def test_the_counter_is_plain_text_to_the_letter(client: FlaskClient) -> None:
    answers = [client.get("/") for _ in range(3)]
    assert [answer.text for answer in answers] == [f"Hello World! {n}, Process {os.getpid()}" for n in (1, 2, 3)]
    assert answers[0].content_type == "text/plain; charset=utf-8"


def test_the_session_counts_one_browser(client: FlaskClient) -> None:
    def visits(client: FlaskClient) -> str:
        (number,) = re.findall(r'class="number">(\d+)<', client.get("/session").text)
        return str(number)

    assert [visits(client), visits(client), visits(app.test_client())] == ["1", "2", "1"]


def test_login_is_remembered_until_logout(client: FlaskClient) -> None:
    page = log_in(client)
    assert page.status_code == 200
    assert "Hello, Ada" in page.text
    assert f"Logged in by process {os.getpid()}." in page.text
    again = client.get("/login").text
    assert "Hello, Ada" in again
    assert "Logged in by" not in again  # a flash message is shown once
    left = client.post("/logout", follow_redirects=True)
    assert "Logged out." in left.text
    assert "Hello" not in client.get("/login").text


def test_posts_redirect_so_that_a_reload_sends_no_form_again(client: FlaskClient) -> None:
    for path in ("/login", "/logout"):
        response = client.post(path, data={"name": "Ada"})
        assert (response.status_code, response.location) == (303, "/login")


def test_the_cookie_does_not_come_with_other_sites_forms(client: FlaskClient) -> None:
    cookie = client.post("/login", data={"name": "Ada"}).headers["Set-Cookie"]
    assert "SameSite=Lax" in cookie
    assert "HttpOnly" in cookie
    assert client.get("/logout").status_code == 405  # a link is followed with Lax cookies, so it must do nothing


@pytest.mark.parametrize("name", ["", "   ", "x" * 41])
def test_a_bad_name_is_refused_with_the_form(client: FlaskClient, name: str) -> None:
    page = log_in(client, name)
    assert page.status_code == 400
    assert "A name has 1 to 40 characters" in page.text
    assert "<form" in page.text
    assert "Hello" not in client.get("/login").text


def test_a_form_without_the_field_is_a_bad_name(client: FlaskClient) -> None:
    assert client.post("/login").status_code == 400


def test_a_name_is_text_and_not_markup(client: FlaskClient) -> None:
    assert "<script>" not in log_in(client, "<script>alert(1)</script>").text


@pytest.mark.parametrize("path", PAGES)
def test_pages_say_who_served_them_and_lead_to_each_other(client: FlaskClient, path: str) -> None:
    page = client.get(path).text
    assert f"Served by process {os.getpid()}" in page
    assert '<meta name="viewport"' in page
    assert re.findall(r'<a href="([^"]+)"', page) == ["/", *PAGES]
    assert re.findall(r'<a href="([^"]+)" aria-current="page"', page) == [path]
    (style,) = re.findall(r'rel="stylesheet" href="([^"]+)"', page)
    with client.get(style) as found:
        assert found.status_code == 200


@pytest.mark.parametrize("path", ["/", *PAGES])
def test_head_answers_like_get_without_a_body(client: FlaskClient, path: str) -> None:
    head = client.head(path)
    assert (head.status_code, head.data) == (200, b"")
    assert head.content_type == client.get(path).content_type


@pytest.mark.parametrize("path", ["/", *PAGES])
def test_no_cache_keeps_a_count_or_a_name(client: FlaskClient, path: str) -> None:
    assert client.get(path).headers["Cache-Control"] == "no-store"


def test_errors_are_pages_with_their_own_status_and_headers(client: FlaskClient) -> None:
    missing = client.get("/nothing")
    assert missing.status_code == 404
    assert "<h1>Not Found</h1>" in missing.text
    wrong = client.delete("/login")
    assert wrong.status_code == 405
    assert set(wrong.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


@pytest.mark.parametrize("path", USES_STATE)
def test_without_a_manager_every_page_says_try_again(
    client: FlaskClient, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setitem(app.config, "STATE_MANAGER_ADDRESS", os.fspath(tmp_path))
    monkeypatch.setitem(app.config, "STATE_MANAGER_TIMEOUT", 0.1)
    page = client.get(path)
    assert (page.status_code, page.headers["Retry-After"]) == (503, "1")
    assert "<h1>Service Unavailable</h1>" in page.text


def test_a_message_reaches_who_listens(client: FlaskClient) -> None:
    page = client.get("/messages").text
    assert 'data-stream="/messages/stream"' in page
    (script,) = re.findall(r'<script src="([^"]+)"', page)
    with client.get(script) as found:
        assert found.status_code == 200
    stream = client.get("/messages/stream")
    log_in(client, "Ada")
    assert client.post("/messages", data={"text": " <b>hello</b> "}).status_code == 204
    chunks = iter(stream.iter_encoded())
    next(chunks)
    (data,) = re.findall(r"^data: (.*)$", next(chunks).decode(), re.MULTILINE)
    stream.close()
    assert json.loads(data) == {"name": "Ada", "text": "<b>hello</b>", "pid": os.getpid()}


@pytest.mark.parametrize("text", ["", "  ", "x" * 501])
def test_a_message_has_a_text(client: FlaskClient, text: str) -> None:
    answer = client.post("/messages", data={"text": text})
    assert answer.status_code == 400
    assert "A message has 1 to 500 characters" in answer.text
