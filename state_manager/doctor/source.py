"""How a function changes variables that are not its own, read from its source. Pure.

What counts:
- ``global n`` (or ``nonlocal n``) and ``n += 1``, ``n = n + 1``: a count.
- ``global n`` and ``n = True`` or something of the request: a switch. Not under an ``if`` that asks for n, which is how
  each process makes a thing of its own once; and neither None nor what a call returns, as for a client or a pool.
- ``n[k] = v``, ``n[k] += v``, ``del n[k]``, ``n.append(v)``, ``n[k].append(v)``, ``next(n)``.

``n[k] = v`` alone, in a function that looks into n first, is a memo if v is computed: each process may have its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["count", "switch", "change", "memo"]

METHODS = {"append", "extend", "insert", "remove", "pop", "popitem", "clear", "update", "setdefault", "add", "discard"}
METHODS |= {"appendleft", "extendleft", "popleft", "rotate"}
"""What changes a list, dict, set or deque."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Change(NamedTuple):
    name: str
    kind: Kind
    line: int
    inside: bool
    """Whether it changes what the variable holds, by a method of that, and not the variable itself."""


def functions(tree: ast.AST) -> dict[int, Function]:
    """Return the functions of a module by their first line, decorators included, as a code object has it."""
    return {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }


def definitions(tree: ast.Module) -> dict[str, int]:
    """Return where each module-level variable is first given a value."""
    found: dict[str, int] = {}
    for node in _top_level(tree.body):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    found.setdefault(name.id, node.lineno)
    return found


def definition_before(tree: ast.AST, name: str, line: int) -> int | None:
    """Return where a variable of an enclosing function is made: the last place above that line."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store) and node.lineno < line
    ]
    return max(lines, default=None)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.Assign | ast.AnnAssign]:
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _top_level(node.body)


def changes(function: Function) -> Iterator[Change]:
    """Yield what a function does to variables that are not its own."""
    shared = {name for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    own = _own(function) - shared
    asked = {id(node): names for node, names in _under_ifs(function, frozenset())}
    for node in ast.walk(function):
        for name, kind, inside in _changes(node, shared):
            if name in own:
                continue
            if kind == "switch" and name in asked[id(node)]:
                continue
            if kind == "change" and _is_memo(node, name) and _looks_into(function, name):
                kind = "memo"
            yield Change(name, kind, node.lineno, inside)  # type: ignore[attr-defined]  # all of them have a line


def _changes(node: ast.AST, shared: set[str]) -> Iterator[tuple[str, Kind, bool]]:
    match node:
        case ast.AugAssign(target=ast.Name(id=name)) if name in shared:
            yield name, "count", False
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in shared:
            if name in _names(value):
                yield name, "count", False
            elif (isinstance(value, ast.Constant) and value.value is not None) or "request" in _names(value):
                yield name, "switch", False
        case ast.Assign(targets=targets):
            yield from ((_root(target), "change", False) for target in targets if isinstance(target, ast.Subscript))
        case ast.AugAssign(target=ast.Subscript() as target):
            yield _root(target), "change", False
        case ast.Delete(targets=targets):
            yield from ((_root(target), "change", False) for target in targets if isinstance(target, ast.Subscript))
        case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in METHODS:
            yield _root(value), "change", isinstance(value, ast.Subscript)
        case ast.Call(func=ast.Name(id="next"), args=[ast.Name(id=name)]):
            yield name, "count", False


def _root(node: ast.expr) -> str:
    """Return n of ``n[a][b]``; nothing of anything else."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.AST) -> set[str]:
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def _own(function: Function) -> set[str]:
    """Return the names that the function binds, and those that the functions in it do: too many rather than too few."""
    found = {""}
    for node in ast.walk(function):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                found.add(name)
            case ast.ExceptHandler(name=str() as name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                found.update((alias.asname or alias.name).partition(".")[0] for alias in aliases)
    return found


def _under_ifs(node: ast.AST, names: frozenset[str]) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """Yield every node with the names that the ``if`` statements around it ask for, or one before it that returns."""
    yield node, names
    for _, field in ast.iter_fields(node):
        children = field if isinstance(field, list) else [field]
        around = names
        for child in children:
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.If):
                yield from _under_ifs(child, around | _names(child.test))
                if any(isinstance(last, ast.Return | ast.Raise) for last in child.body[-1:]):
                    around = around | _names(child.test)
            else:
                yield from _under_ifs(child, around)


def _is_memo(node: ast.AST, name: str) -> bool:
    """Tell whether this is ``n[k] = v`` with a v that is neither a constant, nor made of n, nor of the request."""
    return (
        isinstance(node, ast.Assign)
        and not isinstance(node.value, ast.Constant)
        and not {name, "request"} & _names(node.value)
        and not any(
            isinstance(target, ast.Subscript) and isinstance(target.value, ast.Subscript) for target in node.targets
        )
    )


def _looks_into(function: Function, name: str) -> bool:
    """Tell whether the function asks what is in n: ``k in n``, ``n.get(k)``, ``try: n[k] except KeyError``."""
    for node in ast.walk(function):
        match node:
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[ast.Name(id=found)]) if found == name:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id=found), attr="get")) if found == name:
                return True
            case ast.Try(handlers=handlers) if any("KeyError" in _names(handler) for handler in handlers):
                return True
    return False


def imported_names(tree: ast.Module, package: str) -> dict[str, int]:
    """Return what ``from package import ...`` names anywhere in a module, and where."""
    return {
        alias.name: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == package
        for alias in node.names
    }
