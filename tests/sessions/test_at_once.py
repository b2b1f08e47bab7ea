"""Requests that use one session at the same time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from flask import Flask, request_finished
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from state_manager import SharedDict
from state_manager.flask.session import ServerSession
from state_manager.flask.session_records import NAME
from tests.sessions.harness import Shop, View, cookie_of, setting


def during(
    shop: Shop, client: FlaskClient, first: View, meanwhile: Callable[[], object], then: View = dict
) -> TestResponse:
    """A request that does ``first``, lets ``meanwhile`` happen and does ``then``, with one and the same session."""

    def view(session: ServerSession) -> None:
        first(session)
        meanwhile()
        then(session)

    return shop.ask(client, view)


def test_both_count(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(a=0, b=0, c=0, d=0))
    other = shop.client(cookie_of(client))

    def change(session: ServerSession) -> None:
        session["b"] = 1
        session["other"] = 1
        del session["d"]

    during(shop, client, setting(a=1, mine=1), lambda: shop.ask(other, change))
    assert shop.data(client) == {"a": 1, "b": 1, "c": 0, "mine": 1, "other": 1}


def test_what_was_only_read_is_not_put_back(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(cart=[1], name="alice"))
    other = shop.client(cookie_of(client))
    during(shop, client, lambda session: session["cart"], lambda: shop.ask(other, setting(cart=[2])), setting(a=1))
    assert shop.data(client) == {"cart": [2], "name": "alice", "a": 1}


def test_of_one_key_the_one_that_is_saved_last_wins(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(step=1, cart=[1]))
    other = shop.client(cookie_of(client))
    change = lambda session: (session.update(step=2), session["cart"].append(3))  # noqa: E731
    during(shop, client, setting(step=3), lambda: shop.ask(other, change), lambda session: session["cart"].append(2))
    assert shop.data(client) == {"step": 3, "cart": [1, 2]}


def test_what_is_assigned_counts_though_it_was_so_before(shop: Shop) -> None:
    """Two keys that belong together come from one and the same request."""
    client = shop.client()
    shop.ask(client, setting(name="alice", admin=False))
    other = shop.client(cookie_of(client))
    during(shop, client, setting(name="bob", admin=False), lambda: shop.ask(other, setting(name="root", admin=True)))
    assert shop.data(client) == {"name": "bob", "admin": False}


def test_increments_add_up(shop: Shop) -> None:
    client = shop.client()
    assert shop.ask(client, lambda session: session.increment("n", initial=10)).text == "11"
    other = shop.client(cookie_of(client))

    def count(session: ServerSession) -> None:
        session.increment("n", 2)
        session.increment("new")
        session.increment("new")

    during(shop, client, count, lambda: (shop.ask(other, count), shop.ask(other, count)))
    assert shop.data(client) == {"n": 17, "new": 6}


def test_an_increment_of_what_was_assigned_or_deleted_is_part_of_that(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(a=1, b=1, c=1))
    other = shop.client(cookie_of(client))

    def change(session: ServerSession) -> None:
        session["a"] = 5
        session.increment("a")
        del session["b"]
        session.increment("b")
        session.increment("c")
        session["c"] = 5

    during(shop, client, change, lambda: shop.ask(other, setting(a=100, b=100, c=100)))
    assert shop.data(client) == {"a": 6, "b": 1, "c": 5}


def test_an_increment_wins_over_what_is_no_number(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(n=1, name="alice"))
    other = shop.client(cookie_of(client))
    during(shop, client, lambda session: session.increment("n"), lambda: shop.ask(other, setting(n="many")))
    assert shop.data(client) == {"n": 2, "name": "alice"}
    shop.app.testing = True
    with pytest.raises(TypeError, match=r"session\['name'\] is str 'alice', so it cannot be incremented"):
        shop.ask(client, lambda session: session.increment("name"))


def test_emptying_and_filling_both_count(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(flash=1))
    other = shop.client(cookie_of(client))
    responses = [client.get("/")]

    def empty() -> None:
        responses.append(shop.ask(other, lambda session: session.pop("flash")))

    responses.append(during(shop, client, setting(name="alice"), empty))
    assert ["Set-Cookie" in response.headers for response in responses] == [False, True, True]
    assert shop.data(client) == {"name": "alice"}
    ttl = shop.state.dict(NAME).ttl(next(iter(shop.stored)))
    assert ttl is not None
    assert ttl > 1000


def test_an_emptied_one_is_gone_after_a_minute() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop()
        client = shop.client()
        shop.ask(client, setting(a=1))
        shop.ask(client, lambda session: session.pop("a"))
        assert len(shop.stored) == 1
        clock.shift(61)
        assert shop.stored == {}


@pytest.mark.parametrize("end", ["clear", "revoke", "expire"])
def test_a_request_under_way_does_not_bring_back_what_has_ended(shop: Shop, end: str) -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        client = shop.client()
        shop.ask(client, setting(name="alice"))
        other = shop.client(cookie_of(client))
        ends: dict[str, Callable[[], object]] = {
            "clear": lambda: shop.ask(other, lambda session: session.clear()),
            "revoke": shop.state.sessions.revoke_all,
            "expire": lambda: clock.shift(timedelta(days=32)),
        }

        def change(session: ServerSession) -> None:
            session["cart"] = 1
            session.regenerate()

        during(shop, client, change, ends[end])
        assert shop.stored == {}
        assert shop.data(client) == {}


def test_a_request_under_way_at_a_login_counts_and_gets_no_cookie(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(a=1))
    former = cookie_of(client)
    other = shop.client(former)
    with time_machine.travel(timedelta(days=1)):  # it would prolong its cookie too
        during(shop, client, setting(cart=1), lambda: shop.ask(other, setting(_user_id="7")))
        assert cookie_of(client) == former
        assert shop.data(client) == {}
        assert shop.data(other) == {"a": 1, "cart": 1, "_user_id": "7"}


def test_two_logins_at_the_same_time_are_two_sessions(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(cart=1, hint=1))
    other = shop.client(cookie_of(client))

    def log_in(session: ServerSession) -> None:
        session["_user_id"] = "eve"
        del session["hint"]

    during(shop, client, log_in, lambda: shop.ask(other, setting(_user_id="7", address="secret")))
    assert shop.data(client) == {"cart": 1, "_user_id": "eve"}
    assert shop.data(other) == {"cart": 1, "_user_id": "7", "address": "secret"}


def test_a_logout_counts_even_if_the_token_has_changed(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(_user_id="7", cart=1))
    other = shop.client(cookie_of(client))
    during(
        shop,
        client,
        lambda session: session.pop("_user_id"),
        lambda: shop.ask(other, lambda session: session.regenerate()),
    )
    assert shop.data(client) == {"cart": 1}
    assert shop.data(other) == {"cart": 1}


def test_a_request_under_way_at_the_last_logout_leaves_nothing_behind() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop()
        client = shop.client()
        shop.ask(client, setting(_user_id="7"))
        other = shop.client(cookie_of(client))
        log_out = lambda session: session.pop("_user_id")  # noqa: E731
        during(shop, client, setting(cart=1), lambda: shop.ask(other, log_out))
        assert shop.data(client) == {}
        clock.shift(61)
        assert shop.stored == {}


def test_a_login_at_the_last_logout_counts(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(_user_id="7"))
    other = shop.client(cookie_of(client))
    during(shop, client, setting(_user_id="8"), lambda: shop.ask(other, lambda session: session.pop("_user_id")))
    assert shop.data(client) == {"_user_id": "8"}


def test_whoever_ends_all_sessions_ends_one_that_parts_from_them(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revocation comes between the look at the former session and the beginning of the new one."""
    client = shop.client()
    shop.ask(client, setting(_user_id="7"))
    other = shop.client(cookie_of(client))
    original = ServerSession._part

    def part(self: ServerSession, *args: Any) -> Any:
        assert shop.state.sessions.revoke_user("7") == 1
        return original(self, *args)

    monkeypatch.setattr(ServerSession, "_part", part)
    again = lambda session: session.regenerate()  # noqa: E731
    during(shop, client, again, lambda: shop.ask(other, again))
    assert shop.stored == {}
    assert shop.data(client) == {}


def test_a_write_between_look_and_put_is_seen(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    client = shop.client()
    shop.ask(client, setting(a=0))
    (sid,) = shop.stored
    original = SharedDict._store
    interfered: list[int] = []

    def store(self: SharedDict, command: str, *args: Any) -> Any:
        if not interfered and self.name == NAME:
            interfered.append(1)
            shop.state.dict(NAME).transform(sid, lambda record: {**record, "data": {"a": 0, "b": 1}})
        return original(self, command, *args)

    monkeypatch.setattr(SharedDict, "_store", store)
    shop.ask(client, setting(c=1))
    assert shop.data(client) == {"a": 0, "b": 1, "c": 1}


def test_a_request_that_is_saved_twice_counts_once(shop: Shop) -> None:
    """Flask saves again what its error handler answers, if something fails after it has saved."""
    client = shop.client()
    shop.ask(client, setting(n=1, cart=[]))
    other = shop.client(cookie_of(client))
    failing: list[bool] = []

    def fail(sender: Flask, **_: object) -> None:
        if failing:
            failing.pop()
            raise ZeroDivisionError

    def change(session: ServerSession) -> None:
        session.increment("n")
        session["cart"].append(1)
        session.regenerate()
        shop.ask(other, setting(other=1))
        failing.append(True)

    def empty(session: ServerSession) -> None:
        for key in list(session):
            del session[key]
        failing.append(True)

    with request_finished.connected_to(fail, shop.app):
        assert shop.ask(client, change).status_code == 500
        assert shop.data(client) == {"n": 2, "cart": [1], "other": 1}
        assert shop.ask(client, empty).status_code == 500
    assert client.get_cookie("session") is None
