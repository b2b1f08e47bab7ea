"""What compare.py says in the end: tables, ratios, goals, a JSON file, pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import charts
from peers import ECHO, EVERYSEC, LOCAL, OURS, PEERS, REDIS

from comparison.sections import BYTES, COUNT, FIRST, INCREMENT, MIXED, REPEATED, SET, Section, base_of

# Tables


def print_section(section: Section) -> None:
    print(f"\n{section.title}: {section.unit}")
    print_table(section, {peer: [figure_shown(section, peer, each) for each in section.columns] for peer in PEERS})
    of = "ours / the peer's" if section.more_is_better else "the peer's / ours"
    print(f"\n{section.title}: ratios ({of}): above 1 ours is ahead")
    ratios = {peer: [ratio_shown(section.ratio(peer, each)) for each in section.columns] for peer in PEERS}
    print_table(section, ratios)
    for peer, reasons in section.wrong.items():
        for column, reason in reasons.items():
            print(f"wrong: {column} of {peer}: {reason}")


def print_table(section: Section, rows: Mapping[str, list[str]]) -> None:
    print(f"{'':<22}" + "".join(f"{column:>14}" for column in section.columns))
    for peer, cells in rows.items():
        if peer in section.rounds:
            print(f"{peer:<22}" + "".join(f"{cell:>14}" for cell in cells))


def figure_shown(section: Section, peer: str, column: str) -> str:
    if column in section.wrong.get(peer, {}):
        return "wrong"
    figure = section.figure(peer, column)
    if figure is None:
        return "-"
    return f"{figure:,.0f}" if figure >= 1000 or section.more_is_better else charts.shown(figure)


def ratio_shown(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


# Goals


class Goal(NamedTuple):
    text: str
    number: float | None
    reached: bool | None
    """None: it cannot be judged."""

    def __str__(self) -> str:
        if self.reached is None:
            return f"goal: {self.text}: cannot be judged, because a figure is missing"
        number = "" if self.number is None else f", {ratio_shown(self.number)}"
        return f"goal: {self.text}: {'reached' if self.reached else 'NOT reached'}{number}"


def at_least(bound: float, section: Section, peer: str, column: str) -> Goal:
    """Ours is this many times as good as the peer."""
    ratio = section.ratio(peer, column)
    text = f"{column}, {section.title}: at least {bound} x {peer}"
    return Goal(text, ratio, None if ratio is None else ratio >= bound)


def at_most(bound: float, section: Section, peer: str, column: str) -> Goal:
    """Ours takes at most this many times as long as the peer."""
    ratio = section.ratio(base_of(column), column, base=peer)
    text = f"{column}, {section.title}: at most {bound} x the time of {peer}"
    return Goal(text, ratio, None if ratio is None else ratio <= bound)


def ahead_of_all(section: Section, column: str) -> Goal:
    others = [peer for peer in PEERS if PEERS[peer].store and not peer.startswith(OURS)]
    ratios = {peer: ratio for peer in others if (ratio := section.ratio(peer, column)) is not None}
    text = f"{column}, {section.title}: ahead of every peer"
    if not ratios:
        return Goal(text, None, None)
    nearest = min(ratios, key=ratios.__getitem__)
    return Goal(f"{text}, of which {nearest} is the quickest", ratios[nearest], ratios[nearest] > 1)


def exact(section: Section, column: str) -> Goal:
    wrong = section.wrong.get(OURS, {}).get(column)
    return Goal(f"{column}, {section.title}: exact" + (f" ({wrong})" if wrong else ""), None, wrong is None)


def goals(pinned: Section | None, free: Section, clients: Section) -> list[Goal]:
    found = []
    if pinned:
        found += [
            at_least(100, pinned, REDIS, REPEATED),
            ahead_of_all(pinned, REPEATED),
            at_most(3, pinned, LOCAL, REPEATED),
            at_least(1.7, pinned, REDIS, FIRST),
            at_most(1.45, pinned, ECHO, FIRST),
        ]
    found.append(at_least(2, free, REDIS, FIRST))
    if pinned:
        for column in (SET, INCREMENT):
            found += [at_least(1.7, pinned, EVERYSEC, column), at_most(1.6, pinned, ECHO, column)]
    found += [at_least(1.5, clients, EVERYSEC, COUNT), exact(clients, COUNT), at_least(4, clients, REDIS, MIXED)]
    return found


# Files


def save_json(path: str, about: Mapping[str, object], sections: Mapping[str, Section], judged: Iterable[Goal]) -> None:
    document = {
        **about,
        "sections": {
            name: {
                "title": section.title,
                "unit": section.unit,
                "medians": tabled(section, section.figure),
                "ratios": tabled(section, section.ratio),
                "rounds": section.rounds,
                "wrong": section.wrong,
            }
            for name, section in sections.items()
        },
        "goals": [goal._asdict() for goal in judged],
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def tabled(section: Section, cell: Callable[[str, str], float | None]) -> dict[str, dict[str, float | None]]:
    return {peer: {column: cell(peer, column) for column in section.columns} for peer in section.rounds}


PICTURES = {
    "repeated-get": ("pinned", REPEATED, "Read again what was read before: 100 bytes"),
    "first-get": ("pinned", FIRST, "Read what was not read before: 100 bytes"),
    "set": ("pinned", SET, "Write 100 bytes"),
    "increment": ("pinned", INCREMENT, "Add 1 to a number"),
    "four-clients": ("clients", MIXED, "Four processes, 90 % reads of 1,000 keys"),
    "one-counter": ("clients", COUNT, "Four processes add to one number"),
    "memory": ("memory", BYTES, "Memory (or file) for a key of 10 and a value of 100 bytes"),
}


def draw(directory: str, sections: Mapping[str, Section]) -> None:
    os.makedirs(directory, exist_ok=True)
    for name, (of, column, title) in PICTURES.items():
        if of not in sections:
            continue
        section = sections[of]
        figures = {peer: section.figure(peer, column) for peer in section.rounds}
        known = {peer: figure for peer, figure in figures.items() if figure}
        if not known:
            continue
        ordered = dict(sorted(known.items(), key=lambda item: item[1], reverse=section.more_is_better))
        kind = "more is better" if section.more_is_better else "less is better"
        losers = [peer for peer, reasons in section.wrong.items() if column in reasons]
        note = f"Left out, because updates were lost: {', '.join(losers)}" if losers else ""
        ours = [peer for peer in ordered if peer.startswith(OURS)]
        label = f"{section.unit} ({kind}; logarithmic)"
        charts.bars(title, label, ordered, os.path.join(directory, f"{name}.svg"), chosen=ours, note=note)
