"""How the command line shows keys, values and tables.

Rules: one line for each thing, so that scripts can read it; only a terminal gets a wide value laid out over several
lines. What JSON can say is shown as JSON, anything else as Python writes it. Nothing unprintable reaches a terminal.
"""

from __future__ import annotations

import json
import math
import pprint
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from .checks import Key

PROGRAM = "state-manager"

BAR = 30
"""Characters."""
REDRAW = 0.1
"""Seconds."""


def is_json(value: object) -> bool:
    """Tell whether JSON can say exactly this: a tuple, a bytes or an int key would come back as something else."""
    if isinstance(value, float):
        return type(value) is float and math.isfinite(value)
    if type(value) is list:
        return all(is_json(item) for item in value)
    if type(value) is dict:
        return all(type(key) is str and is_json(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, str)


def to_json(value: object) -> Any:
    """Return ``value`` for ``--json``: the parts that JSON cannot say become ``{"python": "<their repr>"}``."""
    if is_json(value):
        return value
    if type(value) is list:
        return [to_json(item) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: to_json(item) for key, item in value.items()}
    return {"python": repr(value)}


def json_text(value: object) -> str:
    """Return one line of JSON, in readable characters where a terminal can show them."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def value_text(value: object, width: int | None = None) -> str:
    """Return a value on one line, or over several if it is wider than ``width`` characters (None: always one)."""
    plain = is_json(value)
    text = json_text(value) if plain else repr(value)
    if width is None or len(text) <= width or not isinstance(value, (dict, list, tuple, set, frozenset)):
        return text
    return (
        json.dumps(value, indent=2, ensure_ascii=text.isascii())
        if plain
        else pprint.pformat(value, width=width, sort_dicts=False)
    )


def key_text(key: Key) -> str:
    """Return a key as the command line takes it; a text that could be misread is shown as JSON."""
    if isinstance(key, int):
        return f"--int {key}"
    if isinstance(key, bytes):
        return f"--hex {key.hex()}"
    plain = key.isprintable() and key == key.strip() and key and key[0] not in '"-'
    return key if plain else json.dumps(key)


def key_json(key: Key) -> Any:
    """Return a key for ``--json``; bytes become ``{"hex": "..."}``."""
    return {"hex": key.hex()} if isinstance(key, bytes) else key


def seconds_text(seconds: float) -> str:
    """Return a short time in the unit that suits it."""
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Return aligned columns, two spaces apart: numbers to the right, the rest to the left."""
    cells = [list(header)] if header else []
    cells += [[cell if isinstance(cell, str) else value_text(cell) for cell in row] for row in rows]
    numeric = [all(isinstance(cell, (int, float)) for cell in column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric or [False] * len(line), strict=True)
        ).rstrip()
        for line in cells
    )


def terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def complain(message: object) -> None:
    """Print one line to stderr, whatever the message is made of."""
    print(f"{PROGRAM}: {' '.join(str(message).split())}", file=sys.stderr)


class Progress:
    """A bar on the terminal while something takes long; nothing where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + REDRAW if sys.stderr.isatty() else math.inf
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Draw ``done`` of ``total``; 0 in all is not known."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REDRAW
        self._drawn = True
        share = min(done / total, 1.0) if total else 0.0
        bar = f"[{'#' * int(share * BAR):{BAR}}] {share:4.0%}" if total else f"{done:,}"
        print(f"\r{self._what} {bar}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        self._next = math.inf
        if self._drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
