from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import pytest

import state_manager
from state_manager import cli, supervisor
from tests.cli.harness import Run


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["set", "carts", "a", "hello"], "'hello' is not JSON"),
        (["set", "carts", "a", "NaN"], "NaN"),
        (["set", "carts", "a", "[" * 100_000], "not JSON"),
        (["set", "carts", "a", "1", "--ttl", "0"], "0"),
        (["set", "carts", "a", "1", "--ttl", "nan"], "nan"),
        (["set", "carts", "a", "1", "--ttl", "soon"], "soon"),
        (["set", "", "a", "1"], "name"),
        (["get", "carts", "x", "--int"], "'x' is not an integer"),
        (["get", "carts", "xyz", "--hex"], "'xyz' is not bytes"),
        (["get", "carts", str(2**64), "--int"], str(2**64)),
        (["get", "carts", "k" * 2000], "2,000"),
        (["get", "carts", "1", "--int", "--hex"], "--hex"),
        (["get", "carts"], "KEY"),
        (["increment", "carts", "text"], "text"),
        (["increment", "carts", "large"], "64"),
        (["increment", "carts", "a", "--by", "x"], "'x'"),
        (["watch", "carts", "--interval", "0"], "'0'"),
        (["fly"], "fly"),
        ([], "COMMAND"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Run, manager: state_manager.StateManager, argv: list[str], named: str
) -> None:
    manager.dict("carts").update({"text": "abc", "large": 2**63 - 1})
    before = manager.dict("carts").copy()
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert named in err
    *_, message = err.splitlines()  # argparse prints its usage first
    assert message.startswith("state-manager")
    assert len(message) < 400
    assert manager.dict("carts") == before


# Help


def test_help_lists_every_command(run: Run) -> None:
    answer = run("--help")
    assert answer.code == 0
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command.name}  +{re.escape(command.help)}$", answer.out, re.MULTILINE)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_with_an_example_that_parses(run: Run, command: cli.Command) -> None:
    answer = run(*command.name.split(), "--help")
    assert answer.code == 0
    assert "--dir DIR" in answer.out
    assert f"example: state-manager {command.name}" in answer.out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"state-manager {state_manager.settings.VERSION}\n", "")


def test_run_gets_its_options_and_gunicorn_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[argparse.Namespace, Sequence[str]]] = []

    def run(options: argparse.Namespace, rest: Sequence[str], *, prog: str) -> int:
        ran.append((options, rest))
        return 7

    monkeypatch.setattr(supervisor, "run", run)
    assert cli.main(["--dir", "/x", "run", "shop:app", "--workers", "2", "--", "-k", "gevent", "--", "-"]) == 7
    [(options, rest)] = ran
    assert (options.dir, options.module, options.workers) == ("/x", "shop:app", 2)
    assert rest == ["-k", "gevent", "--", "-"]
