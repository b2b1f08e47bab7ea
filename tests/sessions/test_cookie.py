"""How long a session lives, and what becomes of its cookie."""

from __future__ import annotations

import re
from typing import Any

import pytest
import time_machine
from flask import Flask, session

from state_manager.flask import SharedState
from state_manager.flask.session import ServerSession
from tests.sessions.harness import Shop, View, cookie_of, setting


def test_clear_ends_it_for_whoever_has_the_cookie(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    thief = shop.client(cookie_of(client))
    response = shop.ask(client, lambda session: session.clear())
    assert "Max-Age=0" in response.headers["Set-Cookie"]
    assert client.get_cookie("session") is None
    assert shop.stored == {}
    assert shop.data(thief) == {}


def test_what_is_set_after_clear_begins_a_new_one(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(name="eve"))
    former = cookie_of(client)
    (sid,) = shop.stored

    def log_in(session: ServerSession) -> None:
        session.clear()
        session["name"] = "alice"

    shop.ask(client, log_in)
    assert list(shop.stored) != [sid]
    assert len(shop.stored) == 1
    assert shop.data(client) == {"name": "alice"}
    assert shop.data(shop.client(former)) == {}


def test_one_that_becomes_empty_takes_its_cookie_along(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    former = cookie_of(client)
    response = shop.ask(client, lambda session: session.pop("name"))
    assert "Max-Age=0" in response.headers["Set-Cookie"]
    assert list(shop.state.sessions) == []
    assert shop.ask(shop.client(former), lambda session: session.new).text == "True"


def test_it_lives_for_the_lifetime_after_its_last_use() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop(PERMANENT_SESSION_LIFETIME=1000)
        client = shop.client()
        shop.ask(client, setting(name="alice"))
        for _ in range(5):
            clock.shift(900)
            assert shop.data(client) == {"name": "alice"}
        clock.shift(1001)
        assert shop.data(client) == {}
        assert shop.stored == {}


def test_a_permanent_one_too_and_its_cookie_says_so() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop(PERMANENT_SESSION_LIFETIME=1000)
        client = shop.client()
        shop.ask(client, setting(name="alice"))
        cookie = client.get_cookie("session")
        assert cookie is not None
        assert cookie.expires is None
        shop.ask(client, setting(_permanent=True))
        cookie = client.get_cookie("session")
        assert cookie is not None
        assert cookie.expires is not None
        assert cookie.expires.timestamp() == 1_001_000
        clock.shift(500)
        shop.data(client)
        cookie = client.get_cookie("session")
        assert cookie is not None
        assert cookie.expires is not None
        assert cookie.expires.timestamp() == 1_001_500
        clock.shift(999)
        assert shop.data(client) == {"name": "alice", "_permanent": True}


def test_it_is_prolonged_once_in_a_hundredth_of_its_lifetime_by_any_request(writes: list[str]) -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop(PERMANENT_SESSION_LIFETIME=1000)
        shop.app.add_url_rule("/plain", view_func=lambda: "plain")
        client = shop.client()
        shop.ask(client, setting(name="alice"))
        writes.clear()
        for second in range(1, 31):
            clock.shift(1)
            response = client.get("/plain")
            assert ("Set-Cookie" in response.headers) == (second % 10 == 0)
        assert writes == ["put"] * 3


def test_without_refresh_only_a_change_prolongs_it() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop(PERMANENT_SESSION_LIFETIME=1000, SESSION_REFRESH_EACH_REQUEST=False)
        client = shop.client()
        shop.ask(client, setting(n=1))
        clock.shift(900)
        assert shop.data(client) == {"n": 1}
        shop.ask(client, setting(n=2))
        clock.shift(900)
        assert shop.data(client) == {"n": 2}
        shop.ask(client, lambda session: setattr(session, "modified", True))
        clock.shift(900)
        assert shop.data(client) == {"n": 2}
        clock.shift(200)
        assert shop.data(client) == {}


def test_a_clock_that_is_set_back_ends_no_session() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop()
        client = shop.client()
        shop.ask(client, setting(n=1))
        clock.shift(-500_000)
        assert "Set-Cookie" in client.get("/").headers
        assert "Set-Cookie" not in client.get("/").headers
        assert shop.data(client) == {"n": 1}


def test_a_shorter_lifetime_counts_at_once() -> None:
    with time_machine.travel(1_000_000, tick=False) as clock:
        shop = Shop(PERMANENT_SESSION_LIFETIME=1000)
        client = shop.client()
        shop.ask(client, setting(n=1))
        shop.app.config["PERMANENT_SESSION_LIFETIME"] = 100
        clock.shift(200)
        assert shop.data(client) == {}


# -- the cookie --------------------------------------------------------------------------------------------------------


def test_its_flags_are_flasks() -> None:
    config: dict[str, Any] = {
        "SESSION_COOKIE_NAME": "shop",
        "SESSION_COOKIE_DOMAIN": "shop.example",
        "SESSION_COOKIE_PATH": "/here",
        "SESSION_COOKIE_SECURE": True,
        "SESSION_COOKIE_HTTPONLY": False,
        "SESSION_COOKIE_SAMESITE": "Strict",
        "SESSION_COOKIE_PARTITIONED": True,
    }

    def flags(app: Flask) -> list[set[str]]:
        app.add_url_rule("/here/set", "set", lambda: repr(session.update(a=1)))
        app.add_url_rule("/here/delete", "delete", lambda: session.popitem()[0])
        client = app.test_client()
        found = []
        for path in ("/here/set", "/here/delete"):
            (header,) = client.get(path, base_url="https://shop.example").headers.getlist("Set-Cookie")
            found.append(set(re.sub("^shop=[^;]*", "shop=", header).split("; ")))
        return found

    plain = Flask("shop")
    plain.config.update(config, SECRET_KEY="its own")
    assert flags(Shop(**config).app) == flags(plain)


@pytest.mark.parametrize("cookie", ["", "x", "x.y.z", "{}", "Ä", "." * 3000])
def test_an_unsigned_cookie_is_a_new_visitors(shop: Shop, cookie: str) -> None:
    client = shop.client(cookie)
    assert shop.data(client) == {}
    shop.ask(client, setting(a=1))
    assert shop.data(client) == {"a": 1}


def test_an_id_that_nothing_is_stored_under_never_becomes_ones_own(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    former = cookie_of(client)
    (sid,) = shop.stored
    shop.state.sessions.revoke(str(sid))
    shop.ask(client, setting(name="eve"))
    assert sid not in shop.stored
    assert cookie_of(client) != former
    assert shop.data(shop.client(former)) == {}


def test_a_signed_cookie_session_of_before_is_no_session_here_nor_the_other_way_round(address: str) -> None:
    before, after = Shop(address), Shop(address)
    before.app = Flask("shop")
    before.app.config["STATE_MANAGER_ADDRESS"] = address
    SharedState(before.app)
    before.app.add_url_rule("/", view_func=before._serve)
    client = before.client()
    before.ask(client, setting(name="alice"))
    assert before.data(client) == {"name": "alice"}
    assert after.data(after.client(cookie_of(client))) == {}
    client = after.client()
    after.ask(client, setting(name="alice"))
    assert before.data(before.client(cookie_of(client))) == {}


def test_a_rotated_key_logs_nobody_out_however_often_if_he_comes_by(shop: Shop, writes: list[str]) -> None:
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    for _ in range(5):
        shop.state.secret("session").rotate()
        assert "Set-Cookie" in client.get("/").headers
        assert "Set-Cookie" not in client.get("/").headers
    assert shop.data(client) == {"name": "alice"}


def test_a_rotation_that_keeps_nothing_logs_everybody_out(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    shop.state.secret("session").rotate(keep=0)
    assert shop.data(client) == {}


def test_a_rotated_key_of_the_apps_own() -> None:
    shop = Shop(SECRET_KEY="first")
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    shop.app.config.update(SECRET_KEY="second", SECRET_KEY_FALLBACKS=["first"])
    assert shop.data(client) == {"name": "alice"}
    shop.app.config.update(SECRET_KEY="third", SECRET_KEY_FALLBACKS=["second"])
    assert shop.data(client) == {"name": "alice"}
    shop.app.config.update(SECRET_KEY="fourth", SECRET_KEY_FALLBACKS=[])
    assert shop.data(client) == {}


def test_without_a_key_it_says_so() -> None:
    shop = Shop(STATE_MANAGER_SECRET=None, TESTING=True)
    with pytest.raises(RuntimeError, match="no secret key"):
        shop.ask(shop.client(), setting(a=1))


# -- a new token -------------------------------------------------------------------------------------------------------


def test_regenerate_keeps_the_data_and_makes_the_former_cookie_worthless(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(cart=[1]))
    former = cookie_of(client)

    def log_in(session: ServerSession) -> None:
        session["name"] = "alice"
        session.regenerate()

    shop.ask(client, log_in)
    assert shop.data(client) == {"cart": [1], "name": "alice"}
    thief = shop.client(former)
    assert shop.data(thief) == {}
    shop.ask(thief, setting(name="eve"))
    assert shop.data(client) == {"cart": [1], "name": "alice"}
    assert len(shop.stored) == 2


def test_regenerate_alone_is_enough_and_a_new_session_has_nothing_to_lose(shop: Shop) -> None:
    client = shop.client()
    assert "Set-Cookie" not in shop.ask(client, lambda session: session.regenerate()).headers
    shop.ask(client, setting(a=1))
    former = cookie_of(client)
    shop.ask(client, lambda session: session.regenerate())
    assert shop.data(client) == {"a": 1}
    assert shop.data(shop.client(former)) == {}


def test_the_id_that_is_shown_stays(shop: Shop) -> None:
    client = shop.client()
    sid = shop.ask(client, lambda session: (session.update(a=1), session.sid)[1]).text
    assert repr(*shop.stored) == sid
    shop.ask(client, lambda session: session.regenerate())
    assert shop.ask(client, lambda session: session.sid).text == sid


@pytest.mark.parametrize("key", ["user_id", "user", "username"])
def test_so_has_one_under_any_key_that_is_common(shop: Shop, key: str) -> None:
    """Nobody needs to say which, or a cookie that was planted before would be good after the login."""
    client = shop.client()
    shop.ask(client, setting(cart=1))
    planted = cookie_of(client)
    shop.ask(client, setting(**{key: "7"}))
    assert shop.data(shop.client(planted)) == {}
    assert shop.data(client)["cart"] == 1


@pytest.mark.parametrize("change", [setting(_user_id="8"), lambda session: session.pop("_user_id")])
def test_another_user_has_a_new_token_by_himself(shop: Shop, change: View) -> None:
    client = shop.client()
    shop.ask(client, setting(cart=1))
    cookies = [cookie_of(client)]
    shop.ask(client, setting(_user_id="7"))
    cookies.append(cookie_of(client))
    shop.ask(client, setting(_user_id="7"))
    assert cookie_of(client) == cookies[1]
    shop.ask(client, change)
    assert len({*cookies, cookie_of(client)}) == 3
    for former in cookies:
        assert shop.data(shop.client(former)) == {}
    assert shop.data(client)["cart"] == 1
