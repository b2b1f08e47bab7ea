"""Sessions that the manager keeps: what is stored when, what becomes of the cookie, and requests at the same time."""

from __future__ import annotations

import datetime
import gc
import re
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from flask import Flask, flash, get_flashed_messages, request_finished, session
from flask.sessions import SecureCookieSessionInterface
from flask.testing import FlaskClient
from markupsafe import Markup
from werkzeug.test import TestResponse

from state_manager import NotStorable, SharedDict, TooLarge, Unavailable, connect, sidecar
from state_manager.client import Client
from state_manager.flask import SharedState
from state_manager.flask.session import ServerSession
from state_manager.flask.session_records import NAME
from state_manager.memory import MemoryClient

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


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"memory://{request.node.nodeid}"
    yield name
    connect(name).shutdown()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that wrote to the sessions, as they are run."""
    names: list[str] = []
    original = MemoryClient.exchange

    def exchange(self: MemoryClient, kind: str, name: str, args: Any, numbered: bool) -> Any:
        if numbered and kind == "dict" and args[0] == NAME:
            names.append(name)
        return original(self, kind, name, args, numbered)

    monkeypatch.setattr(MemoryClient, "exchange", exchange)
    return names


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("session")
    assert cookie is not None
    return str(cookie.value)


def setting(**items: Any) -> View:
    return lambda session: session.update(items)


# -- a session -----------------------------------------------------------------------------------------------------


def test_it_is_in_the_manager_and_the_cookie_only_says_which_one_it_is(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(name="alice", cart=[1, (2, 3)], when=timedelta(days=1)))
    assert shop.data(client) == {"name": "alice", "cart": [1, (2, 3)], "when": timedelta(days=1)}
    ((sid, record),) = shop.stored.items()
    assert record["data"]["name"] == "alice"
    signer = shop.app.session_interface
    assert not isinstance(signer, SecureCookieSessionInterface)
    assert "alice" not in cookie_of(client)
    assert re.fullmatch("[0-9a-f]{32}", str(sid))


def test_every_worker_has_it(address: str) -> None:
    one, other = Shop(address), Shop(address)
    client = one.client()
    one.ask(client, setting(name="alice"))
    moved = other.client(cookie_of(client))
    assert other.data(moved) == {"name": "alice"}
    other.ask(moved, setting(name="bob"))
    assert one.data(client) == {"name": "bob"}


def test_a_request_that_sets_nothing_stores_nothing_and_sets_no_cookie(shop: Shop, writes: list[str]) -> None:
    response = shop.ask(shop.client(), lambda session: session.get("name"))
    assert "Set-Cookie" not in response.headers
    assert response.headers["Vary"] == "Cookie"
    assert writes == []


def test_a_page_without_a_session_is_the_same_for_everybody(shop: Shop) -> None:
    shop.app.add_url_rule("/plain", view_func=lambda: "plain")
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    response = client.get("/plain")
    assert "Vary" not in response.headers
    assert "Set-Cookie" not in response.headers


def test_what_is_already_so_is_not_written(shop: Shop, writes: list[str]) -> None:
    client = shop.client()

    def view(session: ServerSession) -> None:
        session.permanent = True
        session["name"] = "alice"

    shop.ask(client, view)
    assert writes == ["set"]
    shop.ask(client, view)
    shop.ask(client, lambda session: list(session.items()))
    assert writes == ["set"]
    shop.ask(client, setting(name="bob"))
    assert writes == ["set", "put"]


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session["cart"]["apples"].append(3),
        lambda session: session.get("cart").update(pears=True),
        lambda session: next(iter(session.values())).clear(),
        lambda session: session["cart"].update(flag=1),
        lambda session: session["cart"]["set"].add(7),
    ],
)
def test_what_is_changed_in_place_is_noticed(shop: Shop, change: View, writes: list[str]) -> None:
    client = shop.client()
    before = {"apples": [1, 2], "flag": True, "set": {1, 2}}
    shop.ask(client, setting(cart=before))
    shop.ask(client, lambda session: session["cart"]["set"])
    assert writes == ["set"]
    shop.ask(client, change)
    assert writes == ["set", "put"]
    copy = {"cart": {"apples": [1, 2], "flag": True, "set": {1, 2}}}
    change(copy)  # type: ignore[arg-type]
    assert repr(shop.data(client)) == repr(copy)


def test_it_is_a_mapping(shop: Shop) -> None:
    def view(session: ServerSession) -> object:
        assert session.new
        assert not session
        assert session == {}
        session.update(a=1, b=2, c=[])
        assert session.setdefault("d", 4) == 4
        assert session.pop("a") == 1
        assert session.pop("a", None) is None
        del session["b"]
        assert session["c"] is session["c"]
        assert "c" in session
        assert "a" not in session
        with pytest.raises(KeyError):
            session["a"]
        with pytest.raises(KeyError):
            del session["a"]
        assert session.copy() == {"c": [], "d": 4}
        assert repr(session) == "<ServerSession {'c': [], 'd': 4}>"
        return len(session)

    client = shop.client()
    assert shop.ask(client, view).text == "2"
    assert shop.ask(client, lambda session: session.new).text == "False"
    assert shop.ask(client, lambda session: session["c"] is session["c"]).text == "True"
    assert shop.data(client) == {"c": [], "d": 4}


def test_deleting_a_key_is_stored(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(a=1, b=2))
    shop.ask(client, lambda session: session.pop("a"))
    assert shop.data(client) == {"b": 2}


def test_flashed_markup_is_one_of_the_things_it_holds(shop: Shop) -> None:
    client = shop.client()
    shop.ask(client, setting(a=1))
    shop.ask(client, lambda session: flash(Markup("<b>")))
    assert shop.ask(client, lambda session: get_flashed_messages()).text == "[Markup('<b>')]"
    assert shop.ask(client, lambda session: get_flashed_messages()).text == "[]"


def test_the_test_clients_transaction(shop: Shop) -> None:
    client = shop.client()
    with client.session_transaction() as transaction:
        transaction["name"] = "alice"
    assert shop.data(client) == {"name": "alice"}
    with client.session_transaction() as transaction:
        assert transaction.pop("name") == "alice"
        transaction["other"] = 1
    assert shop.data(client) == {"other": 1}


# -- what it refuses -----------------------------------------------------------------------------------------------


def test_bad_keys_and_values_are_refused_where_they_are_set(shop: Shop) -> None:
    shop.app.testing = True

    def view(session: ServerSession) -> None:
        with pytest.raises(TypeError, match="a session's key is a str, not int 7"):
            session[7] = 1  # type: ignore[index]
        with pytest.raises(NotStorable, match=r"session\['it'\]: .*object"):
            session["it"] = object()

    client = shop.client()
    shop.ask(client, view)
    assert shop.stored == {}


def test_a_bad_value_put_inside_is_refused_at_the_end(shop: Shop) -> None:
    shop.app.testing = True
    client = shop.client()
    shop.ask(client, setting(cart=[]))
    with pytest.raises(NotStorable, match=r"session\['cart'\]: value\[0\]"):
        shop.ask(client, lambda session: session["cart"].append(object()))
    assert shop.data(client) == {"cart": []}


def test_one_that_is_too_large_is_refused_by_name(shop: Shop) -> None:
    shop.app.testing = True
    client = shop.client()
    shop.ask(client, setting(name="alice"))
    with pytest.raises(TooLarge, match=r"the session takes 70,\d+ bytes, most of them under 'form', .* is 65,536.*sid"):
        shop.ask(client, setting(form="x" * 70_000, other="y"))
    with pytest.raises(TooLarge, match="most of them under 'form'"):
        shop.ask(shop.client(), setting(form=["x" * 70_000]))
    assert shop.data(client) == {"name": "alice"}
    shop = Shop(STATE_MANAGER_SESSION_MAX_BYTES=100_000)
    client = shop.client()
    shop.ask(client, setting(form="x" * 70_000))
    assert len(shop.data(client)["form"]) == 70_000


@pytest.mark.parametrize("lifetime", [0, timedelta(seconds=-1)])
def test_a_lifetime_of_nothing_is_refused(lifetime: Any) -> None:
    shop = Shop(PERMANENT_SESSION_LIFETIME=lifetime, TESTING=True)
    with pytest.raises(ValueError, match=r"PERMANENT_SESSION_LIFETIME is -?[01] seconds"):
        shop.ask(shop.client(), setting(a=1))


def test_an_app_with_sessions_elsewhere_is_told(shop: Shop) -> None:
    class Elsewhere(SecureCookieSessionInterface):
        pass

    app = Flask("shop")
    app.config["STATE_MANAGER_ADDRESS"] = "memory://"
    app.session_interface = Elsewhere()
    with pytest.raises(RuntimeError, match=r"'shop' keeps its sessions in a Elsewhere: .*STATE_MANAGER_SESSIONS"):
        SharedState(app, sessions=True)
    SharedState(app)


def test_the_setting_does_the_same_and_the_argument_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeps(sessions: bool | None = None, **config: object) -> bool:
        app = Flask("shop")
        app.config.update({"STATE_MANAGER_ADDRESS": "memory://"} | config)
        SharedState(app, sessions=sessions)
        return not isinstance(app.session_interface, SecureCookieSessionInterface)

    assert not keeps()
    assert keeps(STATE_MANAGER_SESSIONS=True)
    monkeypatch.setenv("STATE_MANAGER_SESSIONS", "1")
    assert keeps()
    assert not keeps(STATE_MANAGER_SESSIONS=False)
    assert not keeps(sessions=False)


def test_a_repeated_read_asks_nobody_and_a_change_is_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = sidecar.start(tmp_path / "state")
    try:
        shop = Shop(str(tmp_path / "state"))
        client = shop.client()
        shop.ask(client, setting(cart=[1], name="alice"))
        asked: list[str] = []
        original = Client.exchange

        def exchange(self: Client, kind: str, name: str, args: Any, numbered: bool) -> Any:
            asked.append(name)
            return original(self, kind, name, args, numbered)

        monkeypatch.setattr(Client, "exchange", exchange)
        for _ in range(5):
            assert shop.data(client) == {"cart": [1], "name": "alice"}
            shop.ask(client, setting(name="alice"))
        assert asked == []
        shop.ask(client, lambda session: session["cart"].append(2))
        assert shop.data(client) == {"cart": [1, 2], "name": "alice"}
        assert asked == ["put"]
        shop.state.manager.close()
    finally:
        process.terminate()
        process.wait(10)


# -- its end -------------------------------------------------------------------------------------------------------


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


# -- the cookie ----------------------------------------------------------------------------------------------------


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


# -- a new token ---------------------------------------------------------------------------------------------------


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


# -- requests at the same time -------------------------------------------------------------------------------------


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


# -- without a manager ---------------------------------------------------------------------------------------------


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which the sessions' manager answers nothing."""

    def go() -> None:
        original = MemoryClient.exchange

        def exchange(self: MemoryClient, kind: str, name: str, args: Any, numbered: bool) -> Any:
            if kind == "dict" and args[0] == NAME:
                raise Unavailable("the reason")
            return original(self, kind, name, args, numbered)

        monkeypatch.setattr(MemoryClient, "exchange", exchange)

    return go


@pytest.mark.parametrize("view", [dict, setting(a=2)])
def test_reading_and_saving_are_503(
    shop: Shop, down: Callable[[], None], view: View, caplog: pytest.LogCaptureFixture
) -> None:
    client = shop.client()
    shop.ask(client, setting(a=1))
    down()
    with time_machine.travel(timedelta(days=1)):  # it is to be prolonged too, which is not tried again
        response = shop.ask(client, view)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert [record.getMessage() for record in caplog.records] == ["503 for GET /: Unavailable: the reason"]


def test_saving_a_new_one_is_503(shop: Shop, down: Callable[[], None]) -> None:
    down()
    assert shop.ask(shop.client(), setting(a=1)).status_code == 503


def test_with_no_manager_from_the_start_it_is_503_too(tmp_path: Path) -> None:
    shop = Shop(str(tmp_path / "state"))
    assert shop.ask(shop.client("x"), lambda session: session.get("a")).status_code == 503
    assert shop.ask(shop.client(), setting(a=1)).status_code == 503
    assert shop.ask(shop.client(), lambda session: None).status_code == 200


def test_a_page_that_needs_no_session_needs_no_manager(shop: Shop, down: Callable[[], None]) -> None:
    shop.app.add_url_rule("/plain", view_func=lambda: "plain")
    client = shop.client()
    shop.ask(client, setting(a=1))
    down()
    with time_machine.travel(timedelta(days=1)):  # it is due to be prolonged
        assert client.get("/plain").text == "plain"


def test_an_app_with_sessions_is_freed() -> None:
    shop = Shop()
    shop.ask(shop.client(), setting(a=1))
    gone = weakref.ref(shop.app)
    del shop
    gc.collect()
    assert gone() is None


def test_debug_mode_does_not_take_a_session_for_a_value_that_was_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(DEBUG=True)
    client = shop.client()
    shop.ask(client, setting(cart=[]))
    shop.ask(client, lambda session: session["cart"].append(1))
    assert shop.data(client) == {"cart": [1]}
    assert caplog.records == []


def test_another_address_is_another_store(address: str) -> None:
    shop = Shop()
    client = shop.client()
    shop.ask(client, setting(a=1))
    shop.app.config["STATE_MANAGER_ADDRESS"] = address
    assert shop.data(client) == {}
    shop.ask(client, setting(b=1))
    assert shop.data(client) == {"b": 1}
    assert len(connect(address).dict(NAME)) == 1
