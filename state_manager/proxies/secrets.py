"""``Secret``: a signing key that the manager makes once, so that all workers have the same one."""

from __future__ import annotations

from ..caller import Caller
from ..checks import SECRETS, check_name


class Secret:
    """256 random bits as hexadecimal text, and the former ones that are still good for verifying."""

    def __init__(self, caller: Caller, name: str) -> None:
        check_name(name)
        self._caller = caller
        self._name = name

    def __repr__(self) -> str:
        return f"<Secret {self._name!r} in {self._caller!r}>"

    def keys(self) -> tuple[int, tuple[str, ...]]:
        """Return the generation, which grows with each rotation, and the current key with the former ones after it."""
        copies = self._caller.copies(SECRETS)
        if copies is not None and (copy := copies.find(self._name)) is not None:
            generation, *keys = copy.read()
            return generation, tuple(keys)
        (_, (version, found), *_), page = self._caller.exchange("secret", "keys", (self._name,), False)
        if copies is not None and page is not None:
            copies.keep(self._name, page, version, tuple(found))
        generation, *keys = found
        return generation, tuple(keys)

    @property
    def current(self) -> str:
        """The key to sign with."""
        return self.keys()[1][0]

    @property
    def previous(self) -> tuple[str, ...]:
        """The former keys to verify with, newest first."""
        return self.keys()[1][1:]

    @property
    def generation(self) -> int:
        """How many keys there have been."""
        return self.keys()[0]

    def rotate(self, keep: int = 2) -> None:
        """Make a new current key. ``keep`` former ones stay good; 0 logs everybody out."""
        self._caller.call("secret", "rotate", (self._name, keep), True)
