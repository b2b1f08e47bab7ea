"""The manager's clock: it tells the time, and it never goes back."""

from __future__ import annotations

import time

import pytest

from state_manager.clock import Clock


def test_it_tells_the_time() -> None:
    assert abs(Clock()() - time.time()) < 1


def test_a_clock_that_was_put_back_does_not_put_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    assert clock() >= before


def test_it_goes_on_from_where_an_earlier_manager_was() -> None:
    later = time.time() + 5_000
    clock = Clock(later)
    assert later <= clock() < later + 5
    assert abs(Clock(later - 10_000)() - time.time()) < 1


def test_without_a_boot_time_clock_it_is_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert abs(Clock()() - time.time()) < 1
