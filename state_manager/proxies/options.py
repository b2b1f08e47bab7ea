"""Setting a dict's options: when the dict is first used, because importing an application needs no manager."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..caller import Caller
from ..versions import Page

if TYPE_CHECKING:
    from .dicts import SharedDict

logger = logging.getLogger("state_manager")


class Unset:
    """The type of ``UNSET``: an option that was not given, which stays as it is."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = Unset()


class Configuring:
    """Stands in for a dict's caller until the first call, sends the options before it, and then steps aside."""

    def __init__(self, caller: Caller, owner: SharedDict, given: dict[str, Any]) -> None:
        self._caller = caller
        self._owner = owner
        self._given = given

    def __repr__(self) -> str:
        return repr(self._caller)

    def call(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> Any:
        self._configure()
        return self._caller.call(kind, name, args, numbered)

    def exchange(self, kind: str, name: str, args: Sequence[Any], numbered: bool) -> tuple[Sequence[Any], Page | None]:
        self._configure()
        return self._caller.exchange(kind, name, args, numbered)

    def wait(self, kind: str, name: str, args: Sequence[Any], timeout: float, numbered: bool = True) -> Any:
        self._configure()
        return self._caller.wait(kind, name, args, timeout, numbered)

    def copies(self, space: str) -> None:
        """There are none: even a read that a copy could answer is to send the options."""

    lasting_copies = copies

    def look(self) -> None:
        self._caller.look()

    def tell_later(self, kind: str, name: str, args: Sequence[Any]) -> None:
        self._caller.tell_later(kind, name, args)

    def _configure(self) -> None:
        flat = [part for option in self._given.items() for part in option]
        before = self._caller.call("dict", "configure", (self._owner.name, flat), True)
        names = ("durable", "max_bytes", "on_full", "ephemeral")
        changed = {
            option: (former, self._given[option])
            for option, former in zip(names, before, strict=False)
            if option in self._given and self._given[option] != former
        }
        if changed:
            what = ", ".join(f"{option} was {former!r} and is {now!r}" for option, (former, now) in changed.items())
            logger.warning("the dict %r got other options than it had: %s", self._owner.name, what)
        self._owner._use(self._caller)

    def close(self) -> None:
        self._caller.close()
