"""``flask.session`` while the manager keeps the sessions: what it holds and refuses, what is written when."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from flask import Flask, flash, get_flashed_messages
from flask.sessions import SecureCookieSessionInterface
from markupsafe import Markup

from state_manager import NotStorable, TooLarge, Unavailable, connect, sidecar
from state_manager.client import Client
from state_manager.flask import SharedState
from state_manager.flask.session import ServerSession
from state_manager.flask.session_records import NAME
from state_manager.memory import MemoryClient
from tests.sessions.harness import Shop, View, cookie_of, setting


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


# -- what it refuses ---------------------------------------------------------------------------------------------------


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


# -- without a manager -------------------------------------------------------------------------------------------------


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
