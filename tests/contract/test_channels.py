"""Channels, for every way to reach a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from state_manager import Channel, Message, NotStorable, StateManager


@pytest.fixture
def channel(manager: StateManager, name: str) -> Channel:
    return manager.channel(name)


def wait_for_subscribers(channel: Channel, number: int) -> None:
    deadline = time.monotonic() + 20
    while channel.state().waiting != number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_from_now_on(channel: Channel) -> None:
    channel.publish("before")
    with channel.subscribe() as subscription:
        assert subscription.get(timeout=0) is None
        first = channel.publish({"n": [1]})
        second = channel.publish((1, 2))
        assert second > first
        assert subscription.get() == Message(first, {"n": [1]}, 0)
        assert subscription.after == first
        assert subscription.get() == Message(second, (1, 2), 0)
        assert subscription.get(timeout=0) is None
        third = channel.publish("third")
        assert next(subscription) == Message(third, "third")
    assert subscription.get() is None
    assert next(subscription, "closed") == "closed"
    assert subscription.closed
    assert list(subscription) == []


def test_from_a_message_on(channel: Channel) -> None:
    ids = [channel.publish(number) for number in range(5)]
    assert [channel.subscribe(after=ids[1]).get(0)] == [Message(ids[2], 2)]
    whole = channel.subscribe(after=0)
    assert [whole.get(0) for _ in range(6)] == [*(Message(id_, n) for n, id_ in enumerate(ids)), None]
    assert channel.subscribe(after=ids[-1]).get(0) is None


def test_what_is_no_longer_kept_is_counted(manager: StateManager, name: str) -> None:
    channel = manager.channel(name, history=3)
    ids = [channel.publish(number) for number in range(10)]
    assert channel.state() == (ids[-1], 3, 0)
    late = channel.subscribe(after=ids[1])
    assert late.get(0) == Message(ids[7], 7, missed=5)
    assert late.get(0) == Message(ids[8], 8, missed=0)
    assert channel.subscribe(after=0).get(0) == Message(ids[7], 7, missed=7)
    assert channel.subscribe(after=ids[6]).get(0) == Message(ids[7], 7, missed=0)


def test_a_history_of_one(manager: StateManager, name: str) -> None:
    channel = manager.channel(name, history=1)
    with channel.subscribe() as subscription:
        for number in range(3):
            channel.publish(number)
        assert subscription.get(0) == Message(channel.state().last, 2, missed=2)
    assert channel.state().messages == 1


def test_the_last_to_publish_says_how_much_is_kept(manager: StateManager, name: str) -> None:
    for number in range(250):
        manager.channel(name).publish(number)
    for _ in range(3):  # no publication deletes very many
        manager.channel(name, history=10).publish("x")
    assert manager.channel(name).state().messages == 10


def test_everybody_gets_everything(reach: Callable[[], StateManager], channel: Channel, name: str) -> None:
    def listen() -> list[int]:
        with reach() as manager, manager.channel(name).subscribe(after=0) as subscription:
            return [message.value for _, message in zip(range(100), subscription, strict=False)]

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(listen) for _ in range(4)]
        for number in range(100):
            channel.publish(number)
        assert [future.result(20) for future in futures] == [list(range(100))] * 4


def test_who_waits_is_told_at_once_all_of_them(channel: Channel) -> None:
    subscriptions = [channel.subscribe() for _ in range(3)]
    ahead = channel.subscribe(after=2**62)  # who waits for something else does not stand in the others' way
    with ThreadPoolExecutor(4) as pool:
        waiting = pool.submit(ahead.get, 1.0)
        wait_for_subscribers(channel, 1)
        futures = [pool.submit(each.get, 20) for each in subscriptions]
        wait_for_subscribers(channel, 4)
        channel.publish("it")
        assert [found and found.value for found in (future.result(5) for future in futures)] == ["it"] * 3
        assert channel.state().waiting <= 1
        found = waiting.result()
    assert found is None or found.id > 2**62


def test_a_wait_ends_after_its_timeout(channel: Channel) -> None:
    with channel.subscribe() as subscription:
        began = time.monotonic()
        assert subscription.get(timeout=0.2) is None
        assert 0.19 < time.monotonic() - began < 2
    assert channel.state().waiting == 0


def test_a_page_is_bounded(channel: Channel) -> None:
    ids = [channel.publish(number) for number in range(600)]
    subscription = channel.subscribe(after=0)
    assert [subscription.get(0) for _ in range(600)] == [Message(id_, n) for n, id_ in enumerate(ids)]
    for _ in range(3):
        channel.publish(b"x" * 700_000)
    for _ in range(3):
        found = subscription.get(0)
        assert found is not None
        assert len(found.value) == 700_000


def test_closing_ends_an_iteration(channel: Channel) -> None:
    subscription = channel.subscribe()
    seen = []

    def listen() -> None:
        for message in subscription:
            seen.append(message.value)
            subscription.close()

    thread = threading.Thread(target=listen)
    thread.start()
    channel.publish(1)
    channel.publish(2)
    thread.join(10)
    assert not thread.is_alive()
    assert seen == [1]


def test_a_dropped_channel_begins_anew_and_ids_go_on(channel: Channel) -> None:
    assert not channel.drop()
    last = [channel.publish(number) for number in range(3)][-1]
    with channel.subscribe() as subscription:
        assert channel.drop()
        assert not channel.drop()
        assert channel.state().messages == 0
        assert subscription.get(0) is None
        id_ = channel.publish("new")
        assert id_ > last
        assert subscription.get(0) == Message(id_, "new", 0)
    assert channel.subscribe(after=0).get(0) == Message(id_, "new", 0)


def test_channels_are_listed(manager: StateManager, channel: Channel, name: str) -> None:
    channel.publish(1)
    assert name in [found.name for found in manager.channels()]
    assert (f":channel:{name}", "channel", 1) in [space[:3] for space in manager.spaces()]
    assert name in repr(channel)
    assert name in repr(channel.subscribe())


def test_what_is_refused(manager: StateManager, channel: Channel) -> None:
    with pytest.raises(ValueError, match="no name"):
        manager.channel(":x")
    for history in (0, -1):
        with pytest.raises(ValueError, match="at least one"):
            manager.channel("c", history=history)
    with pytest.raises(ValueError, match="1,000,000"):
        manager.channel("c", history=1_000_001).publish(1)
    with pytest.raises(NotStorable):
        channel.publish(object())
    with pytest.raises(TypeError):
        channel.subscribe(after="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="below zero"):
        channel.subscribe().get(timeout=-1)
    assert channel.state().messages == 0
