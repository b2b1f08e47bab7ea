"""Rate limits against models: the storage in memory that comes with limits, and a plain list of hits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from limits.storage import MemoryStorage

from state_manager.commands import limits
from tests.test_limits import NOW, Limits

LIMITS_OF = {"a": (1, 4), "b": (5, 4), "c": (11, 16), "d": (40, 8)}
"""Limit and seconds of each key. Powers of two: then limits computes without rounding, too."""
NEVER_TWICE = 2.0**-16
"""What all steps of time have beside eighths of a second, so that no two hits are exactly one window apart: there its
storage says one thing when it is asked and another when it is hit."""

keys = st.sampled_from(sorted(LIMITS_OF))
amounts = st.integers(0, 4) | st.just(1)
eighths = st.integers(1, 40) | st.integers(1, 4)


class LimitsModel(RuleBasedStateMachine):
    """The same hits, at the same moments, to both."""

    def __init__(self) -> None:
        super().__init__()
        self.run = Limits()
        self.seconds = 0.0
        self.hits: dict[str, list[float]] = {key: [] for key in LIMITS_OF}
        clock = SimpleNamespace(time=lambda: NOW + self.seconds)
        self.patches: list[Any] = [
            mock.patch("limits.storage.memory.time", clock),
            mock.patch.object(limits, "RECORDS", 3),  # so that there are full entries
        ]
        for patch in self.patches:
            patch.start()
        self.theirs = MemoryStorage()

    def teardown(self) -> None:
        self.theirs.timer.cancel()
        for patch in self.patches:
            patch.stop()
        self.run.store.check()

    @rule(eighths=eighths)
    def time_passes(self, eighths: int) -> None:
        self.seconds += eighths / 8 + NEVER_TWICE
        self.run.at(self.seconds)

    @rule(key=keys, amount=amounts)
    def fixed(self, key: str, amount: int) -> None:
        _, span = LIMITS_OF[key]
        assert self.run.hit_fixed(key, span, amount) == self.theirs.incr(f"fixed {key}", span, amount)

    @rule(key=keys, amount=amounts)
    def sliding(self, key: str, amount: int) -> None:
        limit, span = LIMITS_OF[key]
        theirs = self.theirs.acquire_sliding_window_entry(f"sliding {key}", limit, span, amount)
        assert self.run.hit_sliding(key, limit, span, amount) == theirs

    @rule(key=keys, amount=amounts)
    def moving(self, key: str, amount: int) -> None:
        limit, span = LIMITS_OF[key]
        passed = self.run.hit_moving(key, limit, span, amount)
        assert passed == self.theirs.acquire_entry(key, limit, span, amount)
        assert passed == (len(self.in_window(key)) + amount <= limit)
        self.hits[key] += [self.seconds] * amount if passed else []

    @rule(key=keys)
    def clear(self, key: str) -> None:
        _, span = LIMITS_OF[key]
        self.run.clear(key)
        self.theirs.clear(f"fixed {key}")
        for window in self.theirs.sliding_window_keys(f"sliding {key}", span, NOW + self.seconds):
            self.theirs.clear(window)
        self.theirs.clear(key)
        self.hits[key].clear()

    @rule()
    def reset(self) -> None:
        self.run.reset()
        self.theirs.reset()
        for hits in self.hits.values():
            hits.clear()

    @rule()
    def what_is_over_is_swept(self) -> None:
        self.run.service.tidy()

    def in_window(self, key: str) -> list[float]:
        return [then for then in self.hits[key] if then + LIMITS_OF[key][1] > self.seconds]

    @invariant()
    def all_say_the_same(self) -> None:
        for key, (limit, span) in LIMITS_OF.items():
            count, left = self.run.fixed(key)
            assert count == self.theirs.get(f"fixed {key}")
            if count:
                assert NOW + self.seconds + left == self.theirs.get_expiry(f"fixed {key}")
            assert self.run.sliding(key, span) == list(self.theirs.get_sliding_window(f"sliding {key}", span))
            hits = self.in_window(key)
            assert len(hits) <= limit
            assert self.run.moving(key, limit, span) == [len(hits), self.seconds - hits[0] if hits else 0.0]
            assert self.theirs.get_moving_window(key, limit, span)[1] == len(hits)


TestLimits = LimitsModel.TestCase
TestLimits.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
