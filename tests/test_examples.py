"""The recipes in examples/ do what they say, in this process and between several that begin at the same moment."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import jwt
import pytest
from itsdangerous import URLSafeTimedSerializer

from state_manager import StateManager, cli, connect, sidecar

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
PROCESSES = 4
ROUNDS = 30
"""Times that they race."""
SECONDS = 30.0

Load = Callable[[str], ModuleType]


def load(name: str) -> ModuleType:
    """Return the recipe, imported anew."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateManager]:
    """What a recipe uses that is loaded now, in memory."""
    monkeypatch.setenv("STATE_MANAGER_ADDRESS", f"memory://{request.node.nodeid}")
    with connect() as manager:
        yield manager
        manager.shutdown()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a manager."""
    directory = tmp_path_factory.mktemp("examples") / "state"
    process = sidecar.start(directory)
    yield directory
    process.terminate()
    assert process.wait(SECONDS) == 0


WORKER = """
import json, sys
import state_manager
from tests.test_examples import load

recipe = load(sys.argv[1])
arrived = state_manager.connect().counter(f"arrived at {sys.argv[1]}")
arrived.value  # connects

def together(number):
    "Wait until all processes have come to this line for the time with this number, from 1 on."
    arrived.increment()
    while arrived.value < number * int(sys.argv[3]):
        pass

print("ready", flush=True)
input()
exec(sys.argv[2])
"""


def race(directory: Path, recipe: str, code: str, processes: int = PROCESSES) -> list[Any]:
    """Run the code, which prints JSON, in several processes at once; return what each printed.

    It has ``recipe``, ``json``, and ``together(1)``, ``together(2)`` ... to wait for the others.
    """
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, recipe, code, str(processes)],
            env=os.environ | {"STATE_MANAGER_DIR": str(directory)},
            cwd=EXAMPLES.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        return [json.loads(worker.communicate(timeout=SECONDS)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def at_once(count: int, function: Callable[[], Any]) -> list[Any]:
    """Return what the function returns in so many threads that begin together."""
    barrier = Barrier(count)

    def call(_: int) -> Any:
        barrier.wait(SECONDS)
        return function()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


# Their form


def test_there_is_one_for_each_promise() -> None:
    assert RECIPES == [
        "feature_flags",
        "job_progress",
        "jwt_revocation",
        "login_lockout",
        "maintenance",
        "oauth_state",
        "single_use_token",
        "warm_once",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_which_call_and_why(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(text)
    head = ast.get_docstring(tree)
    assert head is not None
    assert "\n\nThe call" in head
    assert tree.body[0].end_lineno is not None
    code = [line for line in text.splitlines()[tree.body[0].end_lineno :] if line.strip() and line.strip()[0] != "#"]
    assert len(code) < 15


# Login lockout


def test_twenty_guesses_at_once_are_five(manager: StateManager) -> None:
    recipe = load("login_lockout")

    def guess() -> int:
        return int(recipe.app.test_client().post("/login/alice", data={"password": "x"}).status_code)

    assert sorted(at_once(20, guess)) == [403] * 5 + [429] * 15
    right = {"password": "correct horse"}
    assert recipe.app.test_client().post("/login/alice", data=right).status_code == 429, "locked means locked"
    assert recipe.app.test_client().post("/login/bob", data=right).status_code == 403, "only alice is"
    assert 890 < (manager.dict("login-guesses").ttl("alice") or 0) <= 900


def test_who_knows_the_password_begins_anew(manager: StateManager) -> None:
    client = load("login_lockout").app.test_client()
    for _ in range(2):
        for _ in range(4):
            assert client.post("/login/alice", data={"password": "x"}).status_code == 403
        assert client.post("/login/alice", data={"password": "correct horse"}).text == "Welcome, alice."


def test_twenty_guesses_in_four_processes_are_five(served: Path) -> None:
    code = """
client = recipe.app.test_client()
print(json.dumps([client.post("/login/alice", data={"password": "x"}).status_code for _ in range(5)]))
"""
    answers = race(served, "login_lockout", code)
    assert sorted(chain.from_iterable(answers)) == [403] * 5 + [429] * 15


# JWT revocation


def test_a_revoked_token_is_refused_everywhere_for_as_long_as_it_lives(manager: StateManager) -> None:
    recipe = load("jwt_revocation")
    key = "k" * 32
    tokens = [jwt.encode({"jti": name, "exp": time.time() + 60}, key, "HS256") for name in ("a", "b")]
    claims = recipe.claims_of(tokens[0], key)
    assert claims["jti"] == "a"
    recipe.revoke(claims)
    for worker in (recipe, load("jwt_revocation")):
        with pytest.raises(jwt.InvalidTokenError, match="revoked"):
            worker.claims_of(tokens[0], key)
        assert worker.claims_of(tokens[1], key)["jti"] == "b"
    assert 50 < (manager.dict("revoked-tokens").ttl("a") or 0) <= 60
    recipe.revoke(claims)  # twice is no mistake


def test_a_token_that_could_not_be_revoked_is_refused(manager: StateManager) -> None:
    recipe = load("jwt_revocation")
    for claims in ({"exp": time.time() + 60}, {"jti": "a"}):
        with pytest.raises(jwt.MissingRequiredClaimError):
            recipe.claims_of(jwt.encode(claims, "k" * 32, "HS256"), "k" * 32)


def test_another_process_knows_of_it_at_once(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has looked before, and found nothing: it has a copy of that."""
    monkeypatch.setenv("STATE_MANAGER_DIR", str(served))
    recipe = load("jwt_revocation")
    token = jwt.encode({"jti": "a", "exp": time.time() + 60}, "k" * 32, "HS256")
    claims = recipe.claims_of(token, "k" * 32)
    race(served, "jwt_revocation", f"recipe.revoke({claims!r}); print(1)", processes=1)
    with pytest.raises(jwt.InvalidTokenError, match="revoked"):
        recipe.claims_of(token, "k" * 32)


# One-time OAuth state


def test_of_many_callbacks_with_one_state_one_wins(manager: StateManager) -> None:
    app = load("oauth_state").app
    browser = app.test_client()
    state = browser.get("/login").location.partition("state=")[2]
    cookie = browser.get_cookie("session")
    assert cookie is not None

    def callback() -> int:
        client = app.test_client()  # the same cookie, sent again
        client.set_cookie("session", cookie.value)
        return int(client.get(f"/callback?state={state}").status_code)

    assert sorted(at_once(10, callback)) == [200] + [400] * 9


def test_a_state_is_the_browsers_own(manager: StateManager) -> None:
    app = load("oauth_state").app
    mine, theirs = app.test_client(), app.test_client()
    state = mine.get("/login").location.partition("state=")[2]
    theirs.get("/login")
    assert theirs.get(f"/callback?state={state}").status_code == 400
    assert mine.get("/callback").status_code == 400
    kept = manager.dict("oauth-states")[state]
    assert mine.get(f"/callback?state={state}").text == f"Now exchange the code with {kept}."


def test_of_four_processes_with_one_state_one_wins(served: Path) -> None:
    states = [f"state-{number}" for number in range(ROUNDS)]
    with connect(served) as manager:
        manager.dict("oauth-states").set_many(dict.fromkeys(states, "verifier"))
    code = f"""
client, won = recipe.app.test_client(), []
for number, state in enumerate({states!r}, 1):
    with client.session_transaction() as session:
        session["state"] = state
    together(number)
    if client.get("/callback?state=" + state).status_code == 200:
        won.append(state)
print(json.dumps(won))
"""
    assert sorted(chain.from_iterable(race(served, "oauth_state", code))) == sorted(states)


# Feature flags


def test_a_flag_counts_from_the_next_request_on(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", str(served))
    client = load("feature_flags").app.test_client()
    for value, shown in (("100", "new"), ("0", "old"), ("100", "new")):
        assert cli.main(["set", "flags", "checkout", value]) == 0
        assert client.get("/checkout/alice").text == f"the {shown} checkout"


def test_a_share_of_the_users_has_it_and_keeps_it(manager: StateManager) -> None:
    recipe = load("feature_flags")
    users = [f"user-{number}" for number in range(1000)]
    assert not any(recipe.enabled("checkout", user) for user in users)
    manager.dict("flags")["checkout"] = 10
    few = {user for user in users if recipe.enabled("checkout", user)}
    assert 60 < len(few) < 140
    manager.dict("flags")["checkout"] = 50
    assert few < {user for user in users if recipe.enabled("checkout", user)}
    manager.dict("flags")["search"] = 10
    assert few != {user for user in users if recipe.enabled("search", user)}, "not always the same users"


# Job progress


def test_a_job_tells_how_far_it_is_and_ends_when_it_is_cancelled(manager: StateManager) -> None:
    recipe = load("job_progress")
    progress = manager.dict("job-progress")
    seen = []
    assert recipe.run("whole", [lambda: seen.append(progress.get("whole"))] * 3)
    assert (seen, progress["whole"]) == ([None, 1, 2], 3)
    assert not recipe.run("part", [lambda: None, lambda: recipe.cancel("part"), lambda: pytest.fail("cancelled")])
    assert progress["part"] == 2
    assert progress.ttl("part") is not None


def test_a_job_in_another_process_is_watched_and_cancelled(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", str(served))
    recipe = load("job_progress")
    code = "import itertools, time\n"
    code += "print(json.dumps(recipe.run('long', itertools.repeat(lambda: time.sleep(0.001)))))"
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(race, served, "job_progress", code, processes=1)
        deadline = time.monotonic() + SECONDS
        while recipe.progress.get("long", 0) < 5:
            assert time.monotonic() < deadline, "five steps"
            time.sleep(0.01)
        recipe.cancel("long")
        assert job.result(SECONDS) == [False]
    assert recipe.progress["long"] >= 5


# Single-use tokens


def test_a_link_works_once_and_for_an_hour(manager: StateManager) -> None:
    recipe = load("single_use_token")
    links = URLSafeTimedSerializer(manager.secret("links").current)
    path = f"/reset/{links.dumps('alice@example.org')}"

    def reset() -> int:
        return int(recipe.app.test_client().post(path).status_code)

    assert sorted(at_once(10, reset)) == [200] + [410] * 9
    assert recipe.app.test_client().post(f"{path}x").status_code == 404
    other = f"/reset/{links.dumps('bob@example.org')}"
    assert recipe.app.test_client().post(other).text == "A new password for bob@example.org, please."
    assert {3590 < (left or 0) <= 3601 for left in map(manager.dict("used-links").ttl, manager.dict("used-links"))}


def test_four_processes_use_a_link_once(served: Path) -> None:
    with connect(served) as manager:
        links = URLSafeTimedSerializer(manager.secret("links").current)
        tokens = [links.dumps(f"user-{number}") for number in range(ROUNDS)]
    code = f"""
client, won = recipe.app.test_client(), []
for number, token in enumerate({tokens!r}, 1):
    together(number)
    if client.post("/reset/" + token).status_code == 200:
        won.append(token)
print(json.dumps(won))
"""
    assert sorted(chain.from_iterable(race(served, "single_use_token", code))) == sorted(tokens)


# Warm this cache once


def test_one_process_warms_the_cache(served: Path) -> None:
    code = """
asked = []
recipe.time.sleep = asked.append
print(json.dumps([recipe.app.test_client().get("/catalogue").status_code for _ in range(2)] + [len(asked)]))
"""
    answers = race(served, "warm_once", code)
    assert sum(asked for *_, asked in answers) == 1
    assert {status for *statuses, _ in answers for status in statuses} <= {200, 503}
    assert race(served, "warm_once", code, processes=1) == [[200, 200, 0]]


def test_who_comes_meanwhile_does_not_wait(manager: StateManager) -> None:
    recipe = load("warm_once")
    client = recipe.app.test_client()
    assert manager.once("warm-catalogue", ttl=30)  # somebody is at it
    assert client.get("/catalogue").status_code == 503
    manager.dict("catalogue")["all"] = ["plums"]
    assert client.get("/catalogue").json == ["plums"]


# Maintenance mode


def test_a_switch_closes_every_worker_and_opens_it_again(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", str(served))
    client = load("maintenance").app.test_client()
    assert client.get("/").text == "Open."
    assert cli.main(["set", "switches", "maintenance", '"Back at noon."', "--ttl", "1800"]) == 0
    answer = client.get("/")
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "Back at noon.", "60")
    code = "print(json.dumps(recipe.app.test_client().get('/').status_code))"
    assert race(served, "maintenance", code, processes=1) == [503]
    assert cli.main(["delete", "switches", "maintenance"]) == 0
    assert client.get("/").text == "Open."
