"""What counts as a change of a module-level variable, and what does not."""

from __future__ import annotations

import ast
import textwrap

import pytest

from state_manager.doctor import source


def changes(body: str, head: str = "def view(key, value=None):") -> list[tuple[str, str]]:
    """Return name and kind of each change that a function makes."""
    tree = ast.parse(f"{head}\n{textwrap.indent(textwrap.dedent(body), '    ')}")
    (function, *_) = source.functions(tree).values()
    return [(change.name, change.kind) for change in source.changes(function)]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("global n\nn += 1", "count"),
        ("global n\nn = n + 1", "count"),
        ("global n\nn = max(n, value)", "count"),
        ("return next(n)", "count"),
        ("global n\nn = True", "switch"),
        ("global n\nn = request.form['on'] == '1'", "switch"),
        ("n[key] = value", "change"),
        ("n[key] += 1", "change"),
        ("n[key][value] = 1", "change"),
        ("n[key] = n.get(key, 0) + 1", "change"),
        ("if key in n: return 'known'\nn[key] = True", "change"),
        ("if key not in n:\n    n[key] = request.json", "change"),
        ("del n[key]", "change"),
        ("n.append(value)", "change"),
        ("n[key].append(value)", "change"),
        ("n.pop(key, None)", "change"),
        ("for item in value:\n    n.add(item)", "change"),
        ("def inner():\n    n.append(1)\nreturn inner()", "change"),
        ("if key not in n:\n    n[key] = compute(key)\nreturn n[key]", "memo"),
        ("found = n.get(key)\nif found is None:\n    n[key] = found = compute(key)\nreturn found", "memo"),
        ("try:\n    return n[key]\nexcept KeyError:\n    n[key] = compute(key)\nreturn n[key]", "memo"),
    ],
)
def test_a_change(body: str, kind: str) -> None:
    assert changes(body) == [("n", kind)]


@pytest.mark.parametrize(
    "body",
    [
        "n = 1\nn += 1",  # its own
        "n = {}\nn[key] = value",
        "for n in value:\n    n.append(1)",
        "with open(key) as n:\n    n.update(1)",
        "import n\nn.update()",
        "key[1] = 2",  # a parameter
        "global n\nif n is None:\n    n = 'made'",  # once in each process
        "global n\nif n:\n    return\nn = True",
        "global n\nn = connect()",  # a client of its own
        "global n\nn = None",
        "return n[key]",
        "n.read(key)",
        "value.n.append(key)",
        "n(key).append(value)",
        "return {**n, key: value}",
    ],
)
def test_no_change(body: str) -> None:
    assert changes(body) == []


def test_where_variables_are_made() -> None:
    text = "import os\na = b = 1\nif os.name:\n    c: dict = {}\n"
    text += "try:\n    d, e = 1, 2\nexcept ImportError:\n    d = 3\na = 5\nh[i] = 1\ndef f():\n    g = 1\n"
    assert source.definitions(ast.parse(text)) == {"a": 2, "b": 2, "c": 4, "d": 6, "e": 6}


def test_a_function_begins_with_its_decorators() -> None:
    tree = ast.parse("@a\n@b\ndef f(): ...\n\nclass C:\n    async def g(self): ...\n")
    assert {line: node.name for line, node in source.functions(tree).items()} == {1: "f", 6: "g"}


def test_what_is_imported_from_a_package() -> None:
    tree = ast.parse(
        "from flask import Flask, session as s\ndef f():\n    from flask import flash\nfrom flask.views import View\n"
    )
    assert source.imported_names(tree, "flask") == {"Flask": 1, "session": 1, "flash": 3}
