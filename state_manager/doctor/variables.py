"""Variables that live as long as a worker and that requests change: each worker has its own.

Where it begins: the app's views and hooks. From them it follows the functions of the project that they name. A
variable, of a module or of the factory or decorator around a function, counts if at this moment it holds a plain dict,
list, number ...: a proxy of the state manager is none of those.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from flask import Flask

from . import source
from .findings import Finding
from .project import Place, Project, is_a

CONTAINERS = (dict, list, set, deque, defaultdict, Counter, OrderedDict)
PLAIN = (bool, int, float, str, type(None))
MULTIPROCESSING = ("multiprocessing.managers.BaseProxy", "multiprocessing.sharedctypes.SynchronizedBase")
PER_PROCESS = re.compile(
    r"cache|memo(?!r)|(^|_)(pool|conn|connection|client|lock|thread|engine|registr(y|ie))s?$", re.IGNORECASE
)
"""Names of what each process may well have for itself."""


def look(app: Flask, project: Project) -> Iterator[Finding]:
    """Yield a finding for each variable, at the line that makes it."""
    found: dict[Place, tuple[str, Any, list[tuple[source.Change, FunctionType]]]] = {}
    indexes = {file: source.functions(tree) for file, tree in project.trees.items()}
    for function in reachable(app, project):
        node = indexes.get(function.__code__.co_filename, {}).get(function.__code__.co_firstlineno)
        for change in source.changes(node) if node is not None else ():
            value = value_of(function, change.name)
            place = definition(project, function, change.name, value) if counts(change, value) else None
            if place is not None:
                found.setdefault(place, (change.name, value, []))[2].append((change, function))
    for place, (name, value, changes) in sorted(found.items()):
        yield judged(place, name, value, changes)
    yield from of_multiprocessing(project)


def of_multiprocessing(project: Project) -> Iterator[Finding]:
    """Yield what is shared only with children that are forked after the import, as with gunicorn's ``preload_app``."""
    for file, lines in project.definitions.items():
        for name, line in lines.items():
            if is_a(vars(project.modules[file]).get(name), *MULTIPROCESSING):
                text = f"{name} is made by multiprocessing at import: in each worker one, if there is no preload_app"
                yield Finding("advice", "variable", text, f'`{name} = state.dict("{name}")`', file, line)


def counts(change: source.Change, value: object) -> bool:
    """Tell whether the variable is of a kind that a change like this makes different in each worker."""
    if change.kind in ("count", "switch"):
        return type(value) in (*PLAIN, *CONTAINERS, itertools.count)
    if change.inside:
        held: Iterable[object] = value.values() if isinstance(value, dict) else value if type(value) is list else ()
        return type(value) in CONTAINERS and all(type(one) in CONTAINERS for one in held)
    return type(value) in CONTAINERS


def value_of(function: FunctionType, name: str) -> object:
    """Return what a variable of a function's module, or of a function around it, holds; NotImplemented for none."""
    if name in function.__code__.co_cellvars:
        return NotImplemented  # the function's own: those within it change it
    if name in function.__code__.co_freevars:
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
        return contents(cell)
    return function.__globals__.get(name, NotImplemented)


def definition(project: Project, function: FunctionType, name: str, value: object) -> Place | None:
    """Return the line of the project that makes the variable; it may have been imported from there."""
    file = function.__code__.co_filename
    if name in function.__code__.co_freevars:
        line = source.definition_before(project.trees[file], name, function.__code__.co_firstlineno)
    else:
        line = project.definitions[file].get(name)
    if line is not None:
        return Place(file, line)
    for other, lines in project.definitions.items():
        if name in lines and type(value) in CONTAINERS and vars(project.modules[other]).get(name) is value:
            return Place(other, lines[name])
    return None


def judged(place: Place, name: str, value: object, changes: list[tuple[source.Change, FunctionType]]) -> Finding:
    """Say what the changes of one variable do."""
    worst = next((one for one in changes if one[0].kind != "memo"), None)
    change, function = worst or changes[0]
    where = f"line {change.line}" + (
        "" if function.__code__.co_filename == place.file else f" of {function.__module__}"
    )
    if worst is None or PER_PROCESS.search(name):
        text = f"{name} is changed by {function.__name__} ({where}): each worker has its own, which may be meant"
        return Finding("advice", "variable", text, instead(name, value, change), *place)
    text = f"{name} is changed by {function.__name__} ({where}) in one worker, and the others do not see it"
    return Finding("problem", "variable", text, instead(name, value, change), *place)


def instead(name: str, value: object, change: source.Change) -> str:
    """Return what to write."""
    if change.kind == "count" and type(value) in (int, itertools.count):
        return f'`{name} = state.counter("{name}")`, and `{name}.increment()`, which returns the sum'
    if change.kind == "switch":
        return f'`settings = state.dict("settings")`, and `settings["{name}"]` wherever it is set or asked for'
    if isinstance(value, Counter):
        return f'`{name} = state.dict("{name}")`, and `{name}.increment(key)`'
    if isinstance(value, dict):
        return f'`{name} = state.dict("{name}")`, and `{name}.transform(key, function)` to change a value'
    if type(value) is set:
        return f'`{name} = state.dict("{name}")`, and `{name}.add(key, True)`'
    return f'keep it as a value of `state.dict("{name}")`, and change it with `.transform(key, function)`'


# -- which functions a request may run ---------------------------------------------------------------------------------


def reachable(app: Flask, project: Project) -> Iterator[FunctionType]:
    """Yield the project's functions that the app's views and hooks are, or name."""
    seen: set[FunctionType] = set()
    waiting = [function for one in entries(app) for function in functions_of(one)]
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        waiting += wrapped(function)
        if project.has(function.__code__.co_filename):
            yield function
            waiting += named(function, project)


def entries(app: Flask) -> Iterator[object]:
    """Yield what Flask calls for a request."""
    yield from app.view_functions.values()
    for hooks in (app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs):
        for functions in hooks.values():
            yield from functions
    for processors in app.template_context_processors.values():
        yield from processors
    for by_code in app.error_handler_spec.values():
        for handlers in by_code.values():
            yield from handlers.values()


def functions_of(one: object) -> Iterator[FunctionType]:
    """Yield the functions that something callable is made of; a class of views has several."""
    if isinstance(one, FunctionType):
        view_class = getattr(one, "view_class", None)
        yield one
        if isinstance(view_class, type):
            yield from (member for member in vars(view_class).values() if isinstance(member, FunctionType))
    elif inspect.ismethod(one):
        yield from functions_of(one.__func__)


def wrapped(function: FunctionType) -> Iterator[FunctionType]:
    """Yield what a decorator has wrapped, whether it says so or only holds it."""
    for one in (function.__dict__.get("__wrapped__"), *map(contents, function.__closure__ or ())):
        yield from functions_of(one)


def contents(cell: CellType) -> object:
    """Return what a function's variable holds that another one uses; NotImplemented if it is still empty."""
    try:
        found: object = cell.cell_contents
    except ValueError:
        found = NotImplemented
    return found


def named(function: FunctionType, project: Project) -> Iterator[FunctionType]:
    """Yield the project's functions that a function names: its own module's, another's, a method of something."""
    names = list(names_in(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, ModuleType) and value in project.modules.values():
            yield from (member for member in map(vars(value).get, names) if isinstance(member, FunctionType))
        elif (cls := value if isinstance(value, type) else type(value)).__module__ in project.names:
            members = (inspect.getattr_static(cls, word, None) for word in names)
            yield from (member for member in members if isinstance(member, FunctionType))


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that a function's code, and what is defined in it, looks up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)
