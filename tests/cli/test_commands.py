from __future__ import annotations

import json
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import state_manager
from state_manager import cli
from tests.cli.harness import ARGUMENTS, ASKING, DEADLINE, EXAMPLES, Run

# Values and keys


@pytest.mark.parametrize("value", ["1", "null", "1.5", '"x y"', '{"n": [1, {"m": null}]}', "9" * 40, '"é"', '"-"'])
def test_json_goes_in_and_comes_out(run: Run, manager: state_manager.StateManager, value: str) -> None:
    assert run("set", "carts", "alice", value) == (0, "", "")
    assert manager.dict("carts")["alice"] == json.loads(value)
    assert run("get", "carts", "alice") == (0, value + "\n", "")


def test_a_text_needs_no_quotes_with_text(run: Run, manager: state_manager.StateManager) -> None:
    assert run("set", "--text", "carts", "alice", "{not json").code == 0
    assert manager.dict("carts")["alice"] == "{not json"
    assert run("get", "carts", "alice").out == '"{not json"\n'
    assert run("get", "--text", "carts", "alice").out == "{not json\n"


def test_text_prints_bytes_as_they_are(
    manager: state_manager.StateManager, directory: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    manager.dict("carts")["raw"] = b"\x00\xff"
    assert cli.main(["--dir", str(directory), "get", "carts", "raw", "--text"]) == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"\x00\xff\n"


@pytest.mark.parametrize("value", [(1, 2), {3}, b"\xff", date(2026, 1, 2), {1: "x"}])
def test_what_json_cannot_say_is_shown_as_python(run: Run, manager: state_manager.StateManager, value: object) -> None:
    manager.dict("carts")["alice"] = value
    assert run("get", "carts", "alice") == (0, f"{value!r}\n", "")
    assert json.loads(run("get", "carts", "alice", "--json").out) == {"python": repr(value)}


@pytest.mark.parametrize(
    ("flags", "key"), [(["7"], "7"), (["--int", "7"], 7), (["--int", "-7"], -7), (["--hex", "00ff"], b"\x00\xff")]
)
def test_keys_are_texts_integers_or_bytes(
    run: Run, manager: state_manager.StateManager, flags: list[str], key: Any
) -> None:
    carts = manager.dict("carts")
    assert run("set", "carts", *flags, "1").code == 0
    assert list(carts) == [key]
    assert run("get", "carts", *flags).out == "1\n"
    assert run("increment", "carts", *flags).out == "2\n"
    assert run("ttl", "carts", *flags).out == "none\n"
    shown = run("keys", "carts").out.split()
    assert run("get", "carts", *shown).out == "2\n"  # a key is listed as the command line takes it
    assert run("delete", "carts", *flags).code == 0
    assert not carts


def test_a_key_that_looks_like_an_option(run: Run, manager: state_manager.StateManager) -> None:
    assert run("set", "carts", "--", "--x", "1").code == 0
    assert dict(manager.dict("carts")) == {"--x": 1}


def test_keys_are_listed_one_a_line(run: Run, manager: state_manager.StateManager) -> None:
    names = [f"user-{number}" for number in range(5000)]
    manager.dict("carts").set_many(dict.fromkeys(names, 1))
    assert sorted(run("keys", "carts").out.split()) == sorted(names)
    manager.dict("odd").set_many({"a\nb": 1, 5: 1, b"\xff": 1})
    assert sorted(run("keys", "odd").out.splitlines()) == ['"a\\nb"', "--hex ff", "--int 5"]
    lines = run("keys", "odd", "--json").out.splitlines()
    assert sorted(lines) == sorted(['"a\\nb"', "5", '{"hex": "ff"}'])
    assert run("keys", "empty")[:2] == (0, "")


def test_ttl(run: Run, manager: state_manager.StateManager) -> None:
    assert run("set", "carts", "alice", "1", "--ttl", "60").code == 0
    assert 0 < float(run("ttl", "carts", "alice").out) <= 60
    assert 0 < json.loads(run("ttl", "carts", "alice", "--json").out) <= 60
    assert run("set", "carts", "alice", "1").code == 0
    assert run("ttl", "carts", "alice", "--json").out == "null\n"


def test_increment(run: Run) -> None:
    assert run("increment", "hits", "a").out == "1\n"
    assert run("increment", "hits", "a", "--by", "5").out == "6\n"
    assert run("increment", "hits", "a", "--by", "-7", "--json").out == "-1\n"


@pytest.mark.parametrize("command", ["get", "delete", "ttl"])
def test_an_absent_key_is_exit_code_1(run: Run, command: str) -> None:
    assert run(command, "carts", "nobody") == (1, "", "state-manager: no key nobody in carts\n")


# The manager


def test_spaces(run: Run, manager: state_manager.StateManager) -> None:
    manager.dict("carts").update({"a": 1, "b": 2})
    header, *lines = run("spaces").out.splitlines()
    assert header.split() == ["NAME", "KIND", "ENTRIES", "BYTES"]
    assert [line.split()[:3] for line in lines if line.startswith("carts")] == [["carts", "dict", "2"]]
    documents = json.loads(run("spaces", "--json").out)
    assert documents == [space._asdict() for space in manager.spaces()]


def test_stats(run: Run, manager: state_manager.StateManager) -> None:
    assert json.loads(run("stats", "--json").out).keys() == manager.stats().keys()
    shown = dict(line.split(maxsplit=1) for line in run("stats").out.splitlines())
    assert shown["pid"] == str(manager.stats()["pid"])
    assert re.fullmatch(r"\d+\.\d", shown["uptime"])


def test_ping(run: Run, directory: Path) -> None:
    answer = run("ping")
    assert re.fullmatch(rf"pong in [\d.]+ (us|ms) from {re.escape(str(directory))}\n", answer.out)
    assert 0 < json.loads(run("ping", "--json").out)["seconds"] < DEADLINE


def test_the_managers_own_spaces_can_be_read_and_not_changed(run: Run, manager: state_manager.StateManager) -> None:
    manager.counter("visits").reset(41)
    assert run("get", ":counters", "visits").out == "41\n"
    assert "visits" in run("keys", ":counters").out.split()
    for command in (
        ["set", ":counters", "visits", "1"],
        ["delete", ":counters", "visits"],
        ["increment", ":counters", "visits"],
    ):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert ":counters" in err
    assert manager.counter("visits").value == 41


def test_secret_show_and_rotate(run: Run, manager: state_manager.StateManager) -> None:
    secret = manager.secret("session")
    first = secret.current
    assert run("secret", "rotate").out == "rotated session: nobody is logged out\n"
    second = secret.current
    assert first != second
    assert run("secret", "show").out == f"current   {second}\nprevious  {first}\n"
    document = json.loads(run("secret", "show", "session", "--json").out)
    assert document == {
        "name": "session", "generation": secret.generation, "current": second, "previous": [first]
    }  # fmt: skip
    assert run("secret", "rotate", "--now").out == "rotated session: everybody is logged out\n"
    assert secret.previous == ()


def test_only_secret_show_shows_a_secret(run: Run, manager: state_manager.StateManager) -> None:
    secret = manager.secret("session")
    secret.rotate()
    keys = [secret.current, *secret.previous]
    arguments = [*([name.split(), ARGUMENTS.get(name, [])] for name in ASKING if name not in ("watch", "stop"))]
    commands = [[*words, *rest] for words, rest in arguments if words != ["secret", "show"]]
    commands += [[name, ":secrets", *rest[1:]] for name, rest in EXAMPLES.items()]
    for command in commands:
        for json_option in ([], ["--json"]):
            answer = run(*command, *json_option)
            assert not [key for key in [*keys, secret.current] if key in answer.out + answer.err], command
    for refused in (["keys"], ["get", "session"], ["watch", "session"], ["ttl", "session"]):
        assert run(refused[0], ":secrets", *refused[1:]).code == 2


# Where the manager is


@pytest.mark.parametrize("before", [True, False])
def test_options_stand_before_or_after_the_command(
    run: Run, manager: state_manager.StateManager, directory: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", "/nowhere")
    manager.dict("carts")["a"] = (1,)
    options, command = ["--dir", str(directory), "--json"], ["get", "carts", "a"]
    answer = run(*options, *command) if before else run(*command, *options)
    assert answer.out == '{"python": "(1,)"}\n'


def test_options_of_a_group_stand_anywhere(run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_DIR", "/nowhere")
    for argv in (
        ["--dir", "{}", "secret", "show"],
        ["secret", "--dir", "{}", "show"],
        ["secret", "show", "--dir", "{}"],
    ):
        assert run(*(str(directory) if word == "{}" else word for word in argv)).code == 0


@pytest.mark.parametrize("name", ASKING)
def test_no_manager_is_exit_code_3_and_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        tmp_path.chmod(0o700)
        assert cli.main([*name.split(), *ARGUMENTS.get(name, []), "--dir", str(directory)]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert f"state-manager serve --dir {directory}" in err


def test_memory_cannot_be_looked_into(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_MANAGER_ADDRESS", "memory://x")
    code, out, err = run("spaces")
    assert (code, out) == (2, "")
    assert "memory://x" in err
    assert "--dir" in err


# Locks
