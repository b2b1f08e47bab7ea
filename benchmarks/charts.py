"""Charts as SVG files, written by hand: horizontal bars, and lines with axes.

Rules: a picture brings its own background, so that its text can be read on a light page and on a dark one; the colours
follow the reader's scheme. Numbers and names are text, not outlines. A logarithmic axis takes numbers above 0 only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH = 760
FONT = 13
LETTER = 0.58
"""How wide a letter is, as a part of its height: an average, because a file cannot measure its reader's font."""
COLOURS = ("#2f7ed8", "#d9822b", "#2f9e63", "#c0504d", "#8e6fc4", "#1f9aa8", "#b3679b", "#8a8f45")
STYLE = f"""
text {{ font: {FONT}px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f }}
.title {{ font-size: 15px; font-weight: 600 }}
.page {{ fill: #ffffff }}
.grid {{ stroke: #d8dee4; stroke-width: 1 }}
.axis {{ stroke: #6e7781; stroke-width: 1 }}
.other {{ fill: #9aa5b1 }}
.chosen {{ fill: {COLOURS[0]} }}
@media (prefers-color-scheme: dark) {{
  text {{ fill: #e6edf3 }}
  .page {{ fill: #161b22 }}
  .grid {{ stroke: #343b44 }}
  .axis {{ stroke: #8b949e }}
  .other {{ fill: #6e7781 }}
}}
"""

Points = Sequence[tuple[float, float]]


class Scale(NamedTuple):
    """Where the numbers from ``low`` to ``high`` lie between the pixels ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, number: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        part = ((math.log10(number) if self.log else number) - low) / (high - low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the round numbers to write at this axis, at most about ten."""
        if not self.log:
            step = round_step((self.high - self.low) / 6)
            return [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        parts = (1, 2, 5) if len(powers) <= 4 else (1,)
        every = [part * 10.0**power for power in powers for part in parts]
        return [number for number in every if self.low * 0.999 <= number <= self.high * 1.001]


def round_step(size: float) -> float:
    """Return the first of 1, 2, 5, 10, 20, ... that is not below ``size``."""
    power: float = 10.0 ** math.floor(math.log10(size))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= size * 0.999)


def limits(numbers: Iterable[float], log: bool) -> tuple[float, float]:
    """Return round ends of an axis for these numbers; one without a logarithm begins at 0."""
    found = list(numbers)
    low, high = min(found), max(found)
    if not log:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
        step = round_step((high - low) / 6)
        return math.floor(low / step) * step, math.ceil(high / step) * step
    if low <= 0:
        raise ValueError(f"a logarithmic axis cannot show {low!r}: give it numbers above 0, or use a linear one")
    steps = [part * 10.0**power for power in range(-12, 16) for part in (1, 2, 5)]
    below = max(step for step in steps if step <= low * 1.001)
    above = min(step for step in steps if step >= high * 0.999)
    return (below, above) if below < above else (below / 2, above * 2)


def shown(number: float) -> str:
    """Return a number with three digits that count."""
    if number == 0 or abs(number) >= 100:
        return f"{number:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}"


def tick_shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1 and number == int(number) else f"{number:.6g}"


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "", more: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{of_kind}{more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def width_of(words: str) -> float:
    return len(words) * FONT * LETTER


def save(path: str | Path, title: str, height: float, parts: Iterable[str]) -> None:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(title)}</title>'
    page = f'<rect class="page" width="{WIDTH}" height="{height:.0f}" rx="6"/>'
    body = "\n".join((head, f"<style>{STYLE}</style>", page, text(16, 26, title, kind="title"), *parts, "</svg>"))
    Path(path).write_text(body + "\n", encoding="utf-8")


def bars(
    title: str,
    x_label: str,
    values: Mapping[str, float],
    path: str | Path,
    log_x: bool = True,
    chosen: Iterable[str] = (),
    note: str = "",
) -> None:
    """Draw one horizontal bar for each value, in their order, with its number at its end; ``chosen`` are in colour.

    ``note`` is a line below.
    """
    chosen = set(chosen)
    low, high = limits(values.values(), log_x)
    if log_x:  # the shortest bar is to be seen as well
        low = 10.0 ** math.floor(math.log10(min(values.values()) * 0.8))
    left = 16 + max(width_of(name) for name in values) + 10
    top, step = 44, 26
    bottom = top + step * len(values)
    scale = Scale(low, high, left, WIDTH - 84, log_x)
    parts = []
    for number in scale.ticks():
        parts.append(line(scale.at(number), top, scale.at(number), bottom, "grid"))
        parts.append(text(scale.at(number), bottom + 18, tick_shown(number), "middle"))
    for position, (name, value) in enumerate(values.items()):
        y = top + step * position
        kind = "chosen" if name in chosen else "other"
        size = f'width="{max(scale.at(value) - left, 1):.1f}" height="{step - 8}"'
        parts.append(text(left - 8, y + 17, name, "end"))
        parts.append(f'<rect class="{kind}" x="{left:.1f}" y="{y + 4}" {size} rx="2"/>')
        parts.append(text(scale.at(value) + 6, y + 17, shown(value)))
    parts.append(line(left, top, left, bottom, "axis"))
    parts.append(text((left + scale.end) / 2, bottom + 38, x_label, "middle"))
    if note:
        parts.append(text(16, bottom + 62, note))
    save(path, title, bottom + (76 if note else 52), parts)


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Points],
    path: str | Path,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Draw one line for each series of points, with its name at its end."""
    right = WIDTH - max(width_of(name) for name in series) - 28
    top, bottom, left = 50.0, 370.0, 78.0
    every = [point for points in series.values() for point in points]
    xs = Scale(*axis_of_x([x for x, _ in every], log_x), left, right, log_x)
    ys = Scale(*limits([y for _, y in every], log_y), bottom, top, log_y)
    parts = []
    for number in xs.ticks():
        parts.append(line(xs.at(number), top, xs.at(number), bottom, "grid"))
        parts.append(text(xs.at(number), bottom + 20, tick_shown(number), "middle"))
    for number in ys.ticks():
        parts.append(line(left, ys.at(number), right, ys.at(number), "grid"))
        parts.append(text(left - 8, ys.at(number) + 4, tick_shown(number), "end"))
    parts += [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
    names = places([(ys.at(points[-1][1]), name) for name, points in series.items()], top, bottom)
    for position, (name, points) in enumerate(series.items()):
        colour = COLOURS[position % len(COLOURS)]
        placed = [(xs.at(x), ys.at(y)) for x, y in points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(text(right + 12, names[name] + 4, name, more=f' style="fill: {colour}; font-weight: 600"'))
    parts.append(text((left + right) / 2, bottom + 42, x_label, "middle"))
    middle = (top + bottom) / 2
    parts.append(text(18, middle, y_label, "middle", more=f' transform="rotate(-90 18 {middle:.1f})"'))
    save(path, title, bottom + 56, parts)


def axis_of_x(numbers: Sequence[float], log: bool) -> tuple[float, float]:
    """Return the ends of an axis that begins and ends with the numbers, as a line's should."""
    low, high = min(numbers), max(numbers)
    return (low, high) if low < high and (low > 0 or not log) else limits(numbers, log)


def places(wanted: Iterable[tuple[float, str]], top: float, bottom: float) -> dict[str, float]:
    """Return where each name goes: at its own height, or so far off that it covers no other."""
    gap = FONT + 3
    names = sorted(wanted)
    found: list[float] = []
    for y, _ in names:
        found.append(max(y, found[-1] + gap) if found else max(y, top))
    limit = bottom
    for position in reversed(range(len(found))):
        found[position] = min(found[position], limit)
        limit = found[position] - gap
    return {name: y for (_, name), y in zip(names, found, strict=True)}
