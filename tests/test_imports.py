"""Imports point down only: read from the source, so that an import nobody runs counts too.

A unit is a module or a package directly in ``state_manager``. It may import the units to the left of its own in its
half, and all of the bottom, which imports from its own left too. A new module gets its place here first.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import state_manager

PACKAGE = Path(state_manager.__file__).parent

BOTTOM = ["errors", "settings", "checks", "clock", "leaves", "classes", "codec", "wire", "serializer"]
BOTTOM += ["users", "checked", "versions", "directory", "processes", "archive"]
SERVER = [
    "store",
    "policies",
    "sessions",
    "parking",
    "commands",
    "view",
    "service",
    "memory",
    "poller",
    "connection",
    "watch",
]
SERVER += ["stock", "journal", "durability", "offline", "server", "manager"]
CLIENT = ["frozen", "nearcache", "sidecar", "lanes", "caller", "client", "serving", "patience", "backups"]
CLIENT += ["proxies", "api", "__init__", "flask", "doctor", "stopping", "supervisor", "gunicorn", "cli_output"]
CLIENT += ["exports", "cli_commands", "cli_lists", "cli_files", "cli_doctor", "cli", "__main__"]

LAZILY = {("api", "memory"), ("cli_commands", "manager"), ("cli_files", "offline")}
"""Imports of the other half, each inside the one function that needs it."""

PURE = {"errors", "checks", "leaves", "classes", "codec", "store", "policies", "commands", "sessions", "view"}
PURE |= {"parking", "service", "frozen", "nearcache"}
IMPURE = {
    "asyncio",
    "multiprocessing",
    "os",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "time",
}


class Import(NamedTuple):
    where: str
    unit: str
    target: str
    """A unit of ours, or the top level of another package."""
    ours: bool
    lazy: bool


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield the imports that can be executed, and whether only a call does."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, lazy
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from statements(node, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def names(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[str]:
    """Yield the absolute names that a statement may import: ``from a import b`` is ``a.b``, a module or not."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    package = ["state_manager", *path.relative_to(PACKAGE).parts[:-1]]
    base = package[: len(package) - node.level + 1] if node.level else []
    base += [node.module] if node.module else []
    yield from (".".join([*base, alias.name]) for alias in node.names)


def imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node, lazy in statements(ast.parse(path.read_text())):
            for name in names(node, path):
                where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                top, *rest = name.split(".")
                if top != "state_manager":
                    yield Import(where, unit_of(path), top, False, lazy)
                    continue
                module = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
                yield Import(where, unit_of(path), rest[0] if module else "__init__", True, lazy)


def allowed(unit: str, target: str) -> bool:
    if target in BOTTOM:
        return unit not in BOTTOM or BOTTOM.index(target) < BOTTOM.index(unit)
    return any(target in half and unit in half and half.index(target) < half.index(unit) for half in (SERVER, CLIENT))


def test_every_module_has_a_place() -> None:
    found = {unit_of(path) for path in PACKAGE.rglob("*.py")}
    assert found == {*BOTTOM, *SERVER, *CLIENT}
    assert len(found) == len(BOTTOM) + len(SERVER) + len(CLIENT)


def test_imports_point_down() -> None:
    wrong = [
        found
        for found in imports()
        if found.ours and found.target != found.unit and not allowed(found.unit, found.target)
        if (found.unit, found.target) not in LAZILY
    ]
    assert not wrong


def test_the_other_half_is_imported_in_a_function() -> None:
    crossings = {(found.unit, found.target): found.lazy for found in imports() if (found.unit, found.target) in LAZILY}
    assert crossings == dict.fromkeys(LAZILY, True)


def test_the_core_knows_no_socket_file_or_clock() -> None:
    wrong = [found for found in imports() if found.unit in PURE and found.target in IMPURE]
    assert not wrong


def test_settings_alone_reads_our_environment() -> None:
    readers = {
        unit_of(path)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    # The supervisor reads what gunicorn reads: PORT, WEB_CONCURRENCY. The doctor gives an app another environment.
    assert readers <= {"settings", "supervisor", "doctor"}


@pytest.mark.parametrize(
    ("code", "excluded"),
    [
        ("import state_manager; state_manager.connect('/nowhere')", {"flask", "gunicorn", *SERVER}),
        ("import state_manager.flask", {"gunicorn", *SERVER}),
        ("import state_manager.cli", {"flask", *SERVER}),
    ],
)
def test_a_worker_never_loads_the_server(code: str, excluded: set[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    loaded = {
        name.removeprefix("state_manager.").split(".")[0] for name in child.stdout.split() if "state_manager." in name
    }
    assert "settings" in loaded
    assert not loaded & excluded
