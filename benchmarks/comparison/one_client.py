"""One client, which does one operation after the other: how long each takes."""

from __future__ import annotations

from timeit import Timer

from peers.base import COUNTER

from comparison.sections import FIRST, INCREMENT, LARGE, MANY, REPEATED, SET, Section
from comparison.subjects import KEYS, PROGRESS, VALUE, Scale, Subject

FRESH = 50_000
"""Keys that are written for first gets, each of which is read once."""


def timers(subject: Subject) -> dict[str, Timer]:
    """Return for each column what is measured there."""
    client, writer = subject.client, subject.peer.writer
    key = client.key
    names = {
        "get": client.get,
        "set": client.set,
        "increment": client.increment,
        "get_many": client.get_many,
        "key": key("key"),
        "large": key("large"),
        "counter": key(COUNTER),
        "value": VALUE,
        "keys": [key(each) for each in KEYS[:50]],
        "fresh": iter(()),
    }
    found = {
        REPEATED: Timer("get(key)", globals=names),
        SET: Timer("set(key, value)", globals=names),
        INCREMENT: Timer("increment(counter)", globals=names),
    }
    if writer:
        fresh = [f"fresh:{number:06d}" for number in range(FRESH)]
        other = writer(subject.server.address)
        for start in range(0, FRESH, 1000):
            other.set_many(dict.fromkeys(fresh[start : start + 1000], VALUE))
        other.close()
        names["fresh"] = iter(fresh)
        found[FIRST] = Timer("get(next(fresh))", globals=names)
    if subject.peer.many:
        found[LARGE] = Timer("get(large)", globals=names)
        found[MANY] = Timer("get_many(keys)", globals=names)
    return found


def repeats(timer: Timer, seconds: float) -> int:
    """Warm up, and return how often something can be done in so many seconds."""
    timer.timeit(20)
    number, took = 20, timer.timeit(20)
    while took < seconds / 5:
        number *= 3
        took = timer.timeit(number)
    return max(5, int(seconds / took * number))


def measure_one_client(title: str, found: dict[str, Subject], columns: tuple[str, ...], scale: Scale) -> Section:
    section = Section(title, "microseconds", columns)
    measured = {}
    for name, subject in found.items():
        PROGRESS.say(f"{title}: warming up {name}")
        chosen = {column: timer for column, timer in timers(subject).items() if column in columns}
        often = {column: repeats(timer, scale.seconds) for column, timer in chosen.items()}
        if FIRST in often:
            often[FIRST] = min(often[FIRST], FRESH // 2 // scale.rounds)
        measured[name] = chosen, often
        section.rounds[name] = {column: [] for column in chosen}
    for number in range(scale.rounds):
        PROGRESS.say(f"{title}: round {number + 1} of {scale.rounds}")
        for column in columns:
            for name, (chosen, often) in measured.items():
                if column in chosen:
                    took = chosen[column].timeit(often[column])
                    section.rounds[name][column].append(took / often[column] * 1e6)
    for rounds in section.rounds.values():
        rounds.setdefault(FIRST, rounds[REPEATED])  # without copies in the client each get is a first one
    return section
