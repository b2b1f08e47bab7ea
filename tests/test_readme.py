"""README's code works and its tables are complete.

A ``python`` block is run in a fresh ``memory://``; what a line says after ``# ->`` is compared with what it returns.
A ``py`` block is a part of somebody's program: it must compile, and those that can be run have a test of their own.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from state_manager import cli, errors, sidecar
from state_manager.flask import SharedState

pytest_plugins = ["pytester"]

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()


def blocks(language: str) -> list[Any]:
    """Return README's blocks in a language, each with its own line numbers."""
    found = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        before = TEXT.count("\n", 0, match.start(1))
        found.append(pytest.param("\n" * before + match[1], id=f"line {before}"))
    return found


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a block may use without saying so; its state is its own and in memory."""
    monkeypatch.setenv("STATE_MANAGER_ADDRESS", f"memory://{tmp_path}")
    monkeypatch.chdir(tmp_path)
    yield {"__name__": "readme", "SharedState": SharedState, "app": Flask("readme")}
    assert not list(tmp_path.iterdir())


def run(source: str, namespace: dict[str, Any]) -> None:
    """Run a block, and compare what its lines promise."""
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        code = ast.get_source_segment(source, statement)
        assert code is not None
        assert statement.end_lineno is not None
        _, promised, promise = lines[statement.end_lineno - 1].partition("-> ")
        if isinstance(statement, ast.Expr) and promised:
            result = repr(eval(compile(code, str(README), "eval", dont_inherit=True), namespace))
            assert promise == result or promise.startswith(result + ","), code
        else:
            exec(compile(ast.Module([statement], []), str(README), "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("source", blocks("python"))
def test_blocks_do_what_they_say(source: str, namespace: dict[str, Any]) -> None:
    run(source, namespace)


@pytest.mark.parametrize("source", blocks("py"))
def test_fragments_compile(source: str) -> None:
    compile(source, str(README), "exec", dont_inherit=True)


def test_the_app_works(namespace: dict[str, Any]) -> None:
    (source,) = [block.values[0] for block in blocks("python") if "/add/<item>" in block.values[0]]
    run(source, namespace)
    client = namespace["app"].test_client()
    with client.session_transaction() as session:
        session["user"] = "alice"
    client.post("/add/apples")
    assert client.post("/add/apples").json == {"apples": 2}
    assert namespace["visits"].value == 2


def test_the_fixture_works(pytester: pytest.Pytester) -> None:
    (source,) = [block.values[0] for block in blocks("py") if "@pytest.fixture" in block.values[0]]
    pytester.makeconftest(
        "import pytest\n"
        "from flask import Flask\n"
        "from state_manager.flask import SharedState\n"
        "def create_app(config):\n"
        "    app = Flask('shop')\n"
        "    app.config.update(config)\n"
        "    app.state = SharedState(app)\n"
        "    return app\n" + source
    )
    pytester.makepyfile(
        "import pytest\n"
        "@pytest.mark.parametrize('run', [1, 2])\n"
        "def test_visits(app, run):\n"
        "    with app.app_context():\n"
        "        assert app.state.counter('visits').increment() == 1\n"
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)
    assert not (pytester.path / ".state").exists()


def test_a_stock_manager_connects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (source,) = [block.values[0] for block in blocks("py") if "BaseManager" in block.values[0]]
    monkeypatch.chdir(tmp_path)
    manager = sidecar.start(tmp_path / ".state")
    try:
        run(source, {"__name__": "readme"})
    finally:
        manager.terminate()
        manager.wait(20)


def test_first_screen_has_the_two_commands() -> None:
    first_screen = "\n".join(TEXT.splitlines()[:40])
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python run.py" in first_screen
    assert "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox" in first_screen


def test_every_command_of_the_command_line_is_listed() -> None:
    section = TEXT.split("## Command line")[1].split("\n## ")[0]
    listed = " ".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))
    for command in cli.COMMANDS:
        assert re.search(rf"\b{command.name}\b", listed), command.name


def test_commands_can_be_typed() -> None:
    lines = re.findall(
        r"(?:^|&& |ExecStart=\S*/)(state-manager (?!run shop:app --workers).*?)(?:  +#.*)?$", TEXT, re.MULTILINE
    )
    assert len(lines) > 5
    for line in lines:
        cli.build_parser().parse_args(shlex.split(line)[1:])


def test_the_container_runs_a_command() -> None:
    (source,) = [block.values[0] for block in blocks("dockerfile")]
    words = json.loads(re.findall(r"^CMD (.*)$", source, re.MULTILINE)[0])
    assert words[0] == "state-manager"
    args = cli.build_parser().parse_args(words[1:])
    assert (args.module, args.bind) == ("shop:app", ["0.0.0.0:8000"])


def test_the_unit_is_sound(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs the program systemd-analyze, which is not installed")
    (source,) = [block.values[0] for block in blocks("ini")]
    unit = tmp_path / "shop.service"
    unit.write_text(source.lstrip().replace("/srv/shop/.venv/bin/state-manager", sys.executable))
    checked = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_listed_error_exists() -> None:
    section = TEXT.split("## Errors")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert listed
    for name in listed:
        assert hasattr(errors, name)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (README.parent / target).is_file(), target
