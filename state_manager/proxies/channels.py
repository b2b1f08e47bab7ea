"""``Channel``: messages for everybody who listens, and for a while for who listens again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Self

from ..caller import Caller
from ..checks import check_int, check_name
from ..checks import timeout as check_timeout
from ..codec import decode, encode
from ..errors import TimedOut, Unavailable
from ..patience import Patience

TIMEOUT: Final = 20.0
HISTORY: Final = 1000


class Message(NamedTuple):
    """``missed``: how many messages before this one this subscription has not seen, and never will."""

    id: int
    value: Any
    missed: int = 0


class ChannelState(NamedTuple):
    """The id of the last message, how many are kept, and how many subscriptions wait for the next one."""

    last: int
    messages: int
    waiting: int


class Subscription(Iterator[Message]):
    """Reads a channel from one message on, at its own pace: ``for message in subscription``, or ``get``.

    What it has not read is kept by the channel's ``history`` and by nobody else, so one that is slow costs nothing. It
    belongs to one thread at a time. It goes on after a manager's restart, and after an Unavailable that was caught.
    """

    def __init__(self, channel: Channel, after: int) -> None:
        self._channel = channel
        self._after = after
        self._read: deque[tuple[int, Any, int]] = deque()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Subscription to {self._channel.name!r} after {self._after:x}{', closed' if self._closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def after(self) -> int:
        """The id of the last message that was read, with which ``subscribe(after=...)`` goes on elsewhere."""
        return self._after

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def get(self, timeout: float = TIMEOUT) -> Message | None:
        """Return the next message; wait for it for ``timeout`` seconds, then return None. None once it is closed.

        Raises TimedOut if the process is being stopped meanwhile.
        """
        timeout = check_timeout(timeout)
        if self._closed:
            return None
        if not self._read:
            args = (self._channel.name, self._after)
            found = self._channel.caller.wait("channel", "read", args, timeout, numbered=False)
            if not found:
                return None
            missed, *page = found
            self._read.extend((id_, stored, 0) for id_, stored in zip(page[::2], page[1::2], strict=True))
            id_, stored, _ = self._read.popleft()
            self._read.appendleft((id_, stored, missed))
        id_, stored, missed = self._read.popleft()
        self._after = id_
        return Message(id_, decode(stored), missed)

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        """Return the next message, however long it takes, over restarts of the manager too.

        It ends once it is closed, or when the process is being stopped as gunicorn stops its workers.
        """
        patience = Patience(f"read the channel {self._channel.name!r}")
        while not self._closed:
            try:
                message = self.get()
            except TimedOut:
                break
            except Unavailable as error:
                patience.rest(error)
                continue
            patience.reset()
            if message is not None:
                return message
        raise StopIteration

    def close(self) -> None:
        """Read no more. Who waits in another thread meanwhile notices when his waiting ends."""
        self._closed = True
        self._read.clear()


class Channel:
    """Everybody who subscribes gets every message that is published from then on.

    ``history``: how many messages are kept, for who comes back or is slow; the last one to publish says it.
    """

    def __init__(self, caller: Caller, name: str, history: int = HISTORY) -> None:
        check_name(name)
        if check_int(history, "history") < 1:
            raise ValueError(f"a channel keeps at least one message, not {history}")
        self.caller = caller
        self._name = name
        self._history = history

    def __repr__(self) -> str:
        return f"<Channel {self._name!r} in {self.caller!r}>"

    @property
    def name(self) -> str:
        """The name that the channel has in the manager."""
        return self._name

    def publish(self, value: Any) -> int:
        """Send a message to everybody, and return its id, which is larger than any before it."""
        return int(self.caller.call("channel", "publish", (self._name, encode(value), self._history), True))

    def subscribe(self, after: int | None = None) -> Subscription:
        """Return what reads from this call on or, given the id of a message, from the one after that.

        0 is before the first. What is no longer kept is counted in ``Message.missed``.
        """
        if after is None:
            after = int(self.caller.call("channel", "last", (self._name,), False))
        return Subscription(self, check_int(after, "a message's id"))

    def drop(self) -> bool:
        """Forget the channel and its messages; return whether it was there. Subscriptions get what comes after."""
        return bool(self.caller.call("channel", "drop", (self._name,), True))

    def state(self) -> ChannelState:
        """Return the id of the last message, how many are kept, and who waits."""
        return ChannelState(*self.caller.call("channel", "state", (self._name,), False))
