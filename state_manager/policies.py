"""What a dict's options make of its changes: who owns an entry, what gives way for it, what is kept. Pure.

Options are entries of ":options", so they are kept and restored like any other: ``[durable, max_bytes, on_full,
ephemeral]``. A dict without an entry there has the defaults, and a store without the space pays for none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from .checks import CHANNEL, OPTIONS, QUEUE
from .errors import StoreFull
from .store import ABSENT, NEVER, Change, Entry, Store, cost

FILLED: Final = (QUEUE, CHANNEL)
"""What the spaces of the manager's own begin with that applications fill."""
REFUSE: Final = "refuse"
EVICT: Final = "evict"


class Options(NamedTuple):
    """A dict's options; ``max_bytes`` None is no bound, ``on_full`` says what happens at it."""

    durable: bool = True
    max_bytes: int | None = None
    on_full: str = REFUSE
    ephemeral: bool = False


DEFAULTS: Final = Options()


def options_of(store: Store, space: str) -> Options:
    """Return the options of a dict."""
    found = store.get(OPTIONS, space)
    return DEFAULTS if found is ABSENT else Options(*found)


def adapt(store: Store, changes: Sequence[Change], owner: int | None, max_memory: int | None) -> Sequence[Change]:
    """Return the changes that are to be made of those that a command wants. Raises StoreFull.

    ``owner``: the number of the session that asked. ``max_memory``: the bound of all bytes, None for none.
    """
    if OPTIONS in store.spaces:
        changes = [_owned(store, change, owner) for change in changes]
    if max_memory is None and OPTIONS not in store.spaces:
        return changes
    return _fitted(store, changes, max_memory)


def _owned(store: Store, change: Change, owner: int | None) -> Change:
    """Return the change with its writer as the owner, where the dict's entries live as long as their writers."""
    space, key, entry = change
    if entry is ABSENT or key is None or space[:1] == ":":
        return change
    value, deadline = (entry.value, entry.deadline) if type(entry) is Entry else (entry, NEVER)
    if owner is not None and options_of(store, space).ephemeral:
        return space, key, Entry(value, deadline, owner)
    return space, key, value if deadline == NEVER else Entry(value, deadline)


def _fitted(store: Store, changes: Sequence[Change], max_memory: int | None) -> Sequence[Change]:
    """Return the changes, after deletions that make room for them where a dict may give up its oldest entries."""
    growth = _growth(store, changes)
    total = sum(growth.values())
    evictions: list[Change] = []
    for space, more in growth.items():
        if more <= 0 or (space[:1] == ":" and not space.startswith(FILLED)):
            continue
        options = options_of(store, space)
        found = store.spaces.get(space)
        over = 0
        if options.max_bytes is not None:
            over = (found.bytes if found else 0) + more - options.max_bytes
        if max_memory is not None and total > 0:  # what only moves, such as an item that is given back, needs no room
            over = max(over, store.bytes + total - max_memory)
        if over > 0:
            evictions += _oldest(store, space, over, {key for name, key, _ in changes if name == space}, options)
    return [*evictions, *changes] if evictions else changes


def _growth(store: Store, changes: Iterable[Change]) -> dict[str, int]:
    """Return by how many bytes each space would grow."""
    growth: dict[str, int] = {}
    emptied: set[str] = set()
    for space, key, entry in changes:
        if key is None:
            emptied.add(space)
            growth[space] = -found.bytes if (found := store.spaces.get(space)) else 0
        else:
            old = ABSENT if space in emptied else store.get(space, key)
            more = (0 if entry is ABSENT else cost(key, entry)) - (0 if old is ABSENT else cost(key, old))
            growth[space] = growth.get(space, 0) + more
    return growth


def _oldest(store: Store, space: str, size: int, spared: set[Any], options: Options) -> list[Change]:
    """Return deletions of the entries that were added first, until they give ``size`` bytes."""
    if options.on_full == EVICT:
        found = store.spaces.get(space)
        evictions: list[Change] = []
        for key, entry in found.entries.items() if found else ():
            if key not in spared:
                evictions.append((space, key, ABSENT))
                size -= cost(key, entry)
                if size <= 0:
                    return evictions
    if space[:1] == ":":
        raise StoreFull(f"there is no room in {space!r} (the manager's memory): delete something, or raise the bound")
    bound = f"{options.max_bytes:,} bytes of its own" if options.max_bytes is not None else "the manager's memory"
    raise StoreFull(f"the dict {space!r} is full ({bound}): delete something, raise the bound, or set on_full='evict'")


def kept(store: Store, changes: Sequence[Change]) -> Sequence[Change]:
    """Return those changes that the log keeps: none of a dict that is not durable, which starts empty."""
    found: list[Change] = []
    for change in changes:
        space, key, entry = change
        if options_of(store, space).durable:
            found.append(change)
        if space == OPTIONS and entry is not ABSENT and not entry[0] and isinstance(key, str):
            found.append((key, None, ABSENT))  # what the log holds of it from before must not come back
    return found
