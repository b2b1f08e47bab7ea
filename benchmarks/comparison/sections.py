"""What was measured: tables of figures, round by round, and the ratios between them.

Rules: a figure is the median of its rounds; a ratio is the median of the rounds' own ratios, and above 1 where ours is
the quicker or the smaller; what came out wrong has no figure and no ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from common import median_ratio
from peers import OURS, UNCACHED

REPEATED = "repeated get"
FIRST = "first get"
SET = "set"
INCREMENT = "increment"
LARGE = "get 10 kB"
MANY = "get 50 keys"
MIXED = "90 % reads"
COUNT = "one counter"
BYTES = "bytes a key"


@dataclass
class Section:
    """The figures of one kind of use: for each peer and column one number for each round."""

    title: str
    unit: str
    columns: tuple[str, ...]
    more_is_better: bool = False
    rounds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    wrong: dict[str, dict[str, str]] = field(default_factory=dict)
    """Why a peer has no figure in a column, where the reason is its own."""

    def of(self, peer: str, column: str) -> list[float] | None:
        if column in self.wrong.get(peer, {}):
            return None
        return self.rounds.get(peer, {}).get(column)

    def figure(self, peer: str, column: str) -> float | None:
        found = self.of(peer, column)
        return median(found) if found else None

    def ratio(self, peer: str, column: str, base: str = "") -> float | None:
        """Return how many times as good as ``peer`` the base is, which is ours if nothing is said."""
        theirs, ours = self.of(peer, column), self.of(base or base_of(column), column)
        if not theirs or not ours:
            return None
        return median_ratio(ours, theirs) if self.more_is_better else median_ratio(theirs, ours)


def base_of(column: str) -> str:
    return UNCACHED if column == FIRST else OURS
