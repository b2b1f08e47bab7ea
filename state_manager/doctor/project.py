"""Which modules are the app's own: those of its package and those below the working directory, installed ones aside."""

from __future__ import annotations

import ast
import linecache
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple

from . import source

INSTALLED = {"site-packages", "dist-packages"}
NOT_OURS = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
"""The standard library, and this package, which may lie below a working directory too."""


class Place(NamedTuple):
    file: str
    line: int


class Project:
    """The project that an app belongs to; ``name`` is the module that holds it."""

    def __init__(self, name: str) -> None:
        self._name = name
        top = sys.modules.get(name.partition(".")[0])
        file = "" if top is None else file_of(top)
        self._package = os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file
        self._root = os.getcwd()

    def has(self, file: str) -> bool:
        """Tell whether a source file is the app's own."""
        if self._package and (file == self._package or file.startswith(self._package + os.sep)):
            return True
        return (
            file.startswith(self._root + os.sep)
            and not INSTALLED & set(Path(file).parts)
            and not any(file.startswith(place + os.sep) for place in NOT_OURS)
        )

    @cached_property
    def modules(self) -> dict[str, ModuleType]:
        """The app's own modules by their files, that of the app first."""
        found = [sys.modules.get(self._name), *list(sys.modules.values())]
        files = {file_of(module): module for module in found if module is not None}
        return {file: module for file, module in files.items() if file.endswith(".py") and self.has(file)}

    @cached_property
    def names(self) -> set[str]:
        """The names of the app's own modules."""
        return {module.__name__ for module in self.modules.values()}

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """The source of the app's own modules, as far as it can be read."""
        found = {}
        for file in self.modules:
            try:
                found[file] = ast.parse("".join(linecache.getlines(file)), file)
            except (SyntaxError, ValueError):
                continue
        return found

    @cached_property
    def definitions(self) -> dict[str, dict[str, int]]:
        """Where in each of these files which module-level variable is made."""
        return {file: source.definitions(tree) for file, tree in self.trees.items()}

    def find(self, *patterns: str) -> Place | None:
        """Return the first line that has one of these regular expressions, of which the first counts most."""
        for pattern in patterns:
            for place, _ in self.lines(re.compile(rf"[^#]*{pattern}")):
                return place
        return None

    def lines(self, pattern: re.Pattern[str]) -> Iterator[tuple[Place, str]]:
        """Yield the lines of the app's own that match."""
        for file in self.modules:
            for number, text in enumerate(linecache.getlines(file), 1):
                if pattern.match(text):
                    yield Place(file, number), text

    def caller(self, stack: list[Place]) -> Place | None:
        """Return the innermost place of a stack that is the app's own."""
        return next((place for place in stack if self.has(place.file)), None)


def file_of(module: ModuleType) -> str:
    """Return where a module comes from, without waking one that loads itself when it is asked for anything."""
    if not issubclass(type(module), ModuleType):  # some pretend to be one
        return ""
    file = object.__getattribute__(module, "__dict__").get("__file__")
    return file if isinstance(file, str) else ""


def stack_of(frame: FrameType | None) -> list[Place]:
    """Return where a frame is, the innermost place first."""
    found = []
    while frame is not None:
        found.append(Place(frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return found


def is_a(thing: object, *names: str) -> bool:
    """Tell whether an object's class, or one that it comes from, has one of these full names: nothing is imported."""
    return any(f"{cls.__module__}.{cls.__qualname__}" in names for cls in type(thing).__mro__)
