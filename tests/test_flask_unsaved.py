"""In debug mode a value that a request read, changed and did not store is named in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, abort, copy_current_request_context, current_app, stream_with_context

from state_manager import connect, sidecar
from state_manager.flask import SharedState
from state_manager.proxies import unsaved
from state_manager.proxies.dicts import SharedDict

Warnings = Callable[[], list[str]]
View = Callable[[SharedDict], Any]

CART = {"n": 1, "items": [2, 1]}


def make_app(view: View, **config: object) -> Flask:
    """Return an app in debug mode; what its view returns is left out."""
    app = Flask("shop")
    app.config.update({"STATE_MANAGER_ADDRESS": "memory://", "SECRET_KEY": "its own", "DEBUG": True} | config)
    carts = SharedState(app).dict("carts")
    with app.app_context():
        carts.update({"a": CART, "b": [2, 1], 3: {1, 2}, "n": 1})

    @app.route("/")
    def index() -> str:
        view(carts)
        return ""

    app.add_url_rule("/peace", "peace", lambda: "")
    return app


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Warnings:
    """Returns the warnings up to now, and forgets them."""

    def take() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return found

    return take


def change(carts: SharedDict) -> None:
    carts["a"]["n"] = 2


def test_the_warning_says_what_is_wrong_and_what_to_write(warnings: Warnings) -> None:
    make_app(change).test_client().get("/")
    assert warnings() == [
        "carts['a'] was changed after the view 'index' read it, and not stored: what you read is a copy. "
        "Write carts['a'] = value, or use carts.transform('a', function)."
    ]


def change_inside_itself(carts: SharedDict) -> None:
    items = carts["b"]
    items.append(items)


def store_before(carts: SharedDict) -> None:
    carts["a"] = {}
    carts["a"]["n"] = 2


def store_another_key(carts: SharedDict) -> None:
    change(carts)
    carts["b"] = []


def store_another_dict(carts: SharedDict) -> None:
    change(carts)
    current_app.extensions["state_manager"].dict("orders").update({"a": CART})


def change_all(carts: SharedDict) -> None:
    for value in carts.values():
        if isinstance(value, list):
            value.append(3)


def change_items(carts: SharedDict) -> None:
    for key, value in carts.items():
        if key == "a":
            value["n"] = 2


def prolong(carts: SharedDict) -> None:
    change(carts)
    carts.expire("a", 60)
    carts.persist("a")


CHANGES: dict[str, View] = {
    "[]": change,
    "deep inside": lambda carts: carts["a"]["items"].append(3),
    "get": lambda carts: carts.get("b").append(3),
    "sort": lambda carts: carts["b"].sort(),
    "setdefault of a new key": lambda carts: carts.setdefault("new", []).append(1),
    "setdefault of an old key": lambda carts: carts.setdefault("b", []).append(1),
    "a set": lambda carts: carts[3].add(3),
    "a default": lambda carts: carts.get("new", {}).update(n=1),
    "a default of a key that was absent before": lambda carts: [carts.get("new"), carts.get("new", []).append(1)],
    "values": change_all,
    "items": change_items,
    "prolonged": prolong,
    "get_many": lambda carts: carts.get_many(["a", "n"])["a"].clear(),
    "what cannot be stored": lambda carts: carts["a"].update(n=object()),
    "inside itself": change_inside_itself,
    "stored before": store_before,
    "another key stored": store_another_key,
    "another dict stored": store_another_dict,
}


@pytest.mark.parametrize("view", CHANGES.values(), ids=CHANGES)
def test_changed_and_not_stored(view: View, warnings: Warnings) -> None:
    make_app(view).test_client().get("/")
    assert len(warnings()) == 1


def store(carts: SharedDict) -> None:
    cart = carts["a"]
    cart["n"] = 2
    carts["a"] = cart


def store_many(carts: SharedDict) -> None:
    values = carts.get_many(["a", "b"])
    values["a"]["n"] = 2
    values["b"].append(3)
    carts.update(values)


def transform_in_place(carts: SharedDict) -> None:
    def function(items: list[int]) -> list[int]:
        items.append(3)
        return items

    carts.transform("b", function)


def change_back(carts: SharedDict) -> None:
    cart = carts["a"]
    cart["n"] = cart.pop("n")  # the keys have another order now


def store_default(carts: SharedDict) -> None:
    cart = carts.get("new", {})
    cart["n"] = 1
    carts["new"] = cart


def change_copy(carts: SharedDict) -> None:
    carts.copy()["a"]["n"] = 2


def change_large_copy(carts: SharedDict) -> None:
    carts.update(dict.fromkeys(range(600), 0))
    carts.copy()["a"]["n"] = 2


def delete(carts: SharedDict) -> None:
    change(carts)
    del carts["a"]


def clear(carts: SharedDict) -> None:
    change(carts)
    carts.clear()


PEACEFUL: dict[str, View] = {
    "reading": lambda carts: [carts["a"], carts.get("b"), carts[3], carts.get_many(["a", "b"])],
    "an immutable value": lambda carts: carts["n"] + 1,
    "stored": store,
    "stored together": store_many,
    "transform": lambda carts: carts.transform("a", lambda cart: {**cart, "n": 2}),
    "transform in place": transform_in_place,
    "a changed copy": lambda carts: {**carts["a"], "n": 2},
    "sorted": lambda carts: sorted(carts["b"]),
    "changed back": change_back,
    "pop": lambda carts: carts.pop("b").append(3),
    "a default that is stored": store_default,
    "a default that stays": lambda carts: carts.get("new", {"n": 1}),
    "a default that cannot be stored": lambda carts: carts.get("new", [object()]),
    "copy": change_copy,
    "a large copy": change_large_copy,
    "deleted": delete,
    "all deleted": clear,
}


@pytest.mark.parametrize("view", PEACEFUL.values(), ids=PEACEFUL)
def test_nothing_to_warn_about(view: View, warnings: Warnings) -> None:
    assert make_app(view).test_client().get("/").status_code == 200
    assert warnings() == []


def test_one_line_for_each_dict(warnings: Warnings) -> None:
    def view(carts: SharedDict) -> None:
        carts["a"].clear()
        carts["b"].clear()
        carts[3].clear()

    make_app(view).test_client().get("/")
    (warning,) = warnings()
    assert warning.startswith("carts['a'] (and 2 more) was changed ")


# -- when it watches ---------------------------------------------------------------------------------------------------


def test_only_in_debug_mode_whenever_that_begins(warnings: Warnings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsaved, "_find", None)
    app = make_app(change, DEBUG=False)
    client = app.test_client()
    client.get("/")
    assert warnings() == []
    assert unsaved._find is None, "without debug mode no read is asked about"
    app.debug = True
    client.get("/")
    assert len(warnings()) == 1
    app.debug = False
    client.get("/")
    assert warnings() == []


def test_outside_of_a_request_nobody_watches(warnings: Warnings) -> None:
    app = make_app(change)
    carts = app.extensions["state_manager"].dict("carts")
    app.test_client().get("/")
    warnings()
    with app.app_context():
        carts["a"]["n"] = 2
        assert unsaved.watched() is None
    carts["a"]["n"] = 2
    app.test_client().get("/peace")
    assert warnings() == []


def test_requests_know_nothing_of_one_another(warnings: Warnings) -> None:
    def begin(carts: SharedDict) -> None:
        kept.append(carts["a"])

    kept: list[Any] = []
    client = make_app(begin).test_client()
    client.get("/")
    kept[0]["n"] = 2  # a value that is kept may be changed: it is nobody's copy any more
    client.get("/peace")
    assert warnings() == []


def test_a_request_within_a_request(warnings: Warnings) -> None:
    def outer(carts: SharedDict) -> None:
        cart = carts["a"]
        inner.test_client().get("/")
        assert len(warnings()) == 1
        cart["n"] = 2

    inner = make_app(change)
    make_app(outer).test_client().get("/")
    assert len(warnings()) == 1


def test_a_context_without_a_request_to_the_end(warnings: Warnings) -> None:
    app = make_app(change)
    carts = app.extensions["state_manager"].dict("carts")
    with app.test_request_context("/nowhere"):
        change(carts)
    (warning,) = warnings()
    assert "after the request read it" in warning


def test_a_context_that_a_test_keeps(warnings: Warnings) -> None:
    app = make_app(change)
    with app.test_client() as client:
        client.get("/")
        client.get("/peace")
    assert len(warnings()) == 1


def test_what_a_streaming_response_reads_counts_until_its_end(warnings: Warnings) -> None:
    app = make_app(change)
    carts = app.extensions["state_manager"].dict("carts")

    def stream() -> Iterator[str]:
        cart = carts["a"]
        cart["n"] = 2
        yield "stored"
        carts["a"] = cart
        carts["b"].append(3)
        yield "not stored"

    app.add_url_rule("/stream", "stream", lambda: Response(stream_with_context(stream())))
    assert app.test_client().get("/stream").text == "storednot stored"
    (warning,) = warnings()
    assert warning.startswith("carts['b'] was changed after the view 'stream' ")


def test_what_another_thread_reads_counts_for_its_request(warnings: Warnings) -> None:
    def view(carts: SharedDict) -> None:
        @copy_current_request_context
        def read() -> Any:
            return carts["a"]

        with ThreadPoolExecutor(1) as threads:
            cart = threads.submit(read).result()
        cart["n"] = 2

    make_app(view).test_client().get("/")
    assert len(warnings()) == 1


def test_a_thread_that_ends_first_takes_no_warning_along(warnings: Warnings) -> None:
    def view(carts: SharedDict) -> None:
        change(carts)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(copy_current_request_context(lambda: None)).result()
        carts["b"].append(3)

    make_app(view).test_client().get("/")
    assert [warning[:10] for warning in warnings()] == ["carts['a']", "carts['b']"]


def test_an_endless_response_keeps_a_bounded_part_of_what_it_reads(
    warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def view(carts: SharedDict) -> None:
        for _ in range(20):
            carts["a"]["n"] = 2
        watched = unsaved.watched()
        assert watched is not None
        kept.append(sum(map(len, watched._read.values())))

    kept: list[int] = []
    monkeypatch.setattr(unsaved, "LIMIT", 10 * unsaved.NOTE_COST)
    make_app(view).test_client().get("/")
    assert kept == [9]
    assert len(warnings()) == 1


# -- requests that fail ------------------------------------------------------------------------------------------------


def test_a_view_that_raises_is_not_warned_about(warnings: Warnings) -> None:
    def view(carts: SharedDict) -> None:
        change(carts)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_app(view).test_client().get("/")
    assert warnings() == []


def test_a_view_that_aborts_is_not_warned_about(warnings: Warnings) -> None:
    def view(carts: SharedDict) -> None:
        change(carts)
        abort(409)

    assert make_app(view).test_client().get("/").status_code == 409
    assert warnings() == []


# -- over a socket -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near_cache", [True, False])
def test_with_a_manager(near_cache: bool, tmp_path: Path, warnings: Warnings) -> None:
    manager = sidecar.start(tmp_path / "state")
    try:
        app = make_app(change, STATE_MANAGER_ADDRESS=tmp_path / "state", STATE_MANAGER_NEAR_CACHE=near_cache)
        client = app.test_client()
        for _ in range(3):  # from the manager, then from a copy
            client.get("/")
            assert len(warnings()) == 1
        with connect(tmp_path / "state") as other:
            assert other.dict("carts")["a"] == CART
        app.extensions["state_manager"].manager.close()
    finally:
        manager.terminate()
        manager.wait(20)
