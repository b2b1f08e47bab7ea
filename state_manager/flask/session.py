"""``ServerSession``: what ``flask.session`` is while the manager keeps the sessions.

It is read from the manager when it is first used, and at the end of the request only what the request changed is put
onto what is stored by then. So requests that change one session at the same time all count. The rules:

* A key that a request assigns, deletes or changes in place is the request's; every other key is left as it is stored.
  Of requests that change the same key, the one that is saved last wins, but ``increment`` adds to what is there.
* Nothing is written if what is stored is already so.
* ``clear()`` ends the session with all that is in it; what is set afterwards begins a new one. A session that ended
  while a request ran, by ``clear()``, revoked or at its time, stays ended, and what that request changed goes with it.
* The token changes by ``regenerate()``, and by itself when another user, or none, is logged in. A request that was
  under way with the former token still counts, but gets no cookie. If it wanted a new token too, as two clicks on
  "log in" do, then what it deleted is deleted, and the rest becomes a session of its own: nobody who has only a former
  cookie comes by this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from hmac import compare_digest
from typing import Any, Final, NamedTuple

from flask.sessions import SessionMixin

from ..checks import check_int, shown
from ..codec import Stored, decode, encode
from ..errors import NotStorable, TooLarge
from ..frozen import is_immutable
from .session_records import Record, SessionRecords, new_id

RENEWAL: Final = 0.01
"""How much of its lifetime goes by before a session that is in use gets all of it again: so seldom is it written."""
EMPTY_LIFETIME: Final = 60.0
"""Seconds that a session which has become empty waits for requests that are under way."""


class Ticket(NamedTuple):
    """What a cookie with a good signature says, and its age in seconds, below zero after the clock was set back.

    ``stale``: the browser is to get it anew in any case, as when a former key has signed it.
    """

    sid: str
    token: str
    age: float
    stale: bool


class Rules(NamedTuple):
    """What the app's configuration says: seconds, whether reading prolongs, bytes, and where the user may be."""

    lifetime: float
    refresh: bool
    max_bytes: int
    user_keys: tuple[str, ...]


class Answer(Enum):
    """What becomes of the browser's cookie."""

    LEAVE = "leave"
    SET = "set"
    DELETE = "delete"


class Changes(NamedTuple):
    """What a request did to its session: values by key, ``(by, initial, sum)`` by key, keys."""

    assigned: Mapping[str, Any]
    added: Mapping[str, tuple[int, int, int]]
    deleted: frozenset[str]

    def __bool__(self) -> bool:
        return any(self)

    def apply(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return what this makes of ``data``."""
        result = {key: value for key, value in data.items() if key not in self.deleted}
        result.update(self.assigned)
        for key, (by, initial, total) in self.added.items():
            found = result.get(key, initial)
            result[key] = found + by if type(found) is int else total
        return result


class ServerSession(SessionMixin):
    """A session that the manager keeps. Keys are str, values what a shared dict stores."""

    accessed = False
    modified = False

    def __init__(self, records: SessionRecords, ticket: Ticket | None) -> None:
        self._records = records
        self._ticket = ticket
        self._record: Record | None = None  # as it was read; nothing in it is ever handed out or changed
        self._data: dict[str, Any] | None = None
        self._unreadable = False
        self._ended: str | None = None
        self._regenerate = False
        self._forget()

    def _forget(self) -> None:
        """Be a new session that nobody has done anything to."""
        self._sid = new_id()
        self._token = new_id()
        self._assigned: set[str] = set()
        self._added: dict[str, tuple[int, int]] = {}
        self._handed: dict[str, Stored] = {}

    def __repr__(self) -> str:
        return f"<ServerSession {'not read yet' if self._data is None else self._data}>"

    # -- a dict ----------------------------------------------------------------------------------------------------

    def _load(self) -> dict[str, Any]:
        if self._data is None:
            self._unreadable = True
            self._data = dict(self._read())
            self._unreadable = False
        return self._data

    def _read(self) -> Mapping[str, Any]:
        """Return the data of the session that the ticket is for, none if there is no such session any more."""
        if self._ticket is None:
            return {}
        _, record = self._records.look(self._ticket.sid)
        if record is None or not record["data"] or not compare_digest(record["token"], self._ticket.token):
            return {}
        self._sid, self._token, *_ = self._ticket
        self._record = record
        return record["data"]

    def _view(self) -> dict[str, Any]:
        self.accessed = True
        return self._load()

    def __getitem__(self, key: str) -> Any:
        data = self._view()
        value = data[key]
        if key not in self._assigned and key not in self._handed and not is_immutable(value):
            value = data[key] = decode(encode(value))
            self._handed[key] = encode(value)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if type(key) is not str:
            raise TypeError(f"a session's key is a str, not {shown(key)}")
        _encode(key, value)  # refused here, where it is done
        self._view()[key] = value
        self._touch(key)
        self._assigned.add(key)

    def __delitem__(self, key: str) -> None:
        del self._view()[key]
        self._touch(key)

    def _touch(self, key: str) -> None:
        self.modified = True
        self._assigned.discard(key)
        self._added.pop(key, None)
        self._handed.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._view())

    def __len__(self) -> int:
        return len(self._view())

    def __contains__(self, key: object) -> bool:
        return key in self._view()

    def copy(self) -> dict[str, Any]:
        """Return a plain dict."""
        return dict(self)

    # -- more than a dict ------------------------------------------------------------------------------------------

    @property
    def sid(self) -> str:
        """The session's id, which is no secret and stays the same until ``clear()``."""
        self._view()
        return self._sid

    @property
    def new(self) -> bool:  # type: ignore[override]  # a plain attribute there
        """Whether nothing is stored yet."""
        self._view()
        return self._record is None

    def increment(self, key: str, by: int = 1, initial: int = 0) -> int:
        """Add to an integer and return the sum; what other requests add at the same time counts too.

        An absent key counts as ``initial``. The sum is this request's: two may get the same. Raises TypeError when the
        value is not an int.
        """
        found = self.get(key, initial)
        if type(found) is not int:
            raise TypeError(f"session[{key!r}] is {shown(found)}, so it cannot be incremented")
        total = found + check_int(by, "by")
        before = self._added.get(key, (0, initial))
        deleted = key not in self and self._record is not None and key in self._record["data"]
        assigned = key in self._assigned or deleted
        self[key] = total
        if not assigned:
            self._assigned.discard(key)
            self._added[key] = before[0] + by, before[1]
        return total

    def regenerate(self) -> None:
        """Keep what is in it and make every former cookie worthless: call this whenever somebody's rights change."""
        self._view()
        self._regenerate = True

    def clear(self) -> None:
        """End the session: nothing is left of it, in no worker. What is set afterwards begins a new one."""
        data = self._view()
        if self._record is not None:
            self._ended, self._record = self._sid, None
        data.clear()
        self._forget()
        self.modified = True

    # -- its end ---------------------------------------------------------------------------------------------------

    @property
    def ticket(self) -> tuple[str, str]:
        """What the cookie is to say."""
        return self._sid, self._token

    def save(self, rules: Rules, now: float) -> Answer:
        """Store what has changed, and return what becomes of the cookie. ``now``: seconds since 1970."""
        due = self._ticket is not None and (self._ticket.stale or abs(self._ticket.age) >= rules.lifetime * RENEWAL)
        if self._unreadable or (self._data is None and not due):
            return Answer.LEAVE
        data = self._load()
        if self._ended is not None:
            self._records.delete(self._ended)
        if self._record is not None:
            return self._merge(self._record, rules, now, due)
        if not data:
            return Answer.DELETE if self.modified else Answer.LEAVE
        return self._begin(data, rules, now)

    def _begin(self, data: dict[str, Any], rules: Rules, now: float) -> Answer:
        record = Record(token=self._token, created=now, seen=now, data=data)
        self._records.begin(self._sid, record, rules.lifetime, rules.max_bytes)
        return self._saved(record, Answer.SET)

    def _saved(self, record: Record, answer: Answer) -> Answer:
        """Have nothing to store any more: a request whose response fails after this is saved once more, by Flask."""
        data = self._load()
        self._record = Record({**record, "data": dict(data)})  # without what others have put there
        self._ticket = Ticket(self._sid, self._token, 0.0, stale=answer is not Answer.LEAVE)
        self._ended, self._regenerate = None, False
        self._assigned, self._added = set(), {}
        self._handed = {key: encode(data[key]) for key in self._handed}
        return answer

    def _merge(self, read: Record, rules: Rules, now: float, due: bool) -> Answer:
        assert self._ticket is not None
        changes = self._changes(read)
        mine = changes.apply(read["data"])
        regenerate = self._regenerate or any(mine.get(key) != read["data"].get(key) for key in rules.user_keys)
        renew = regenerate or (due and (rules.refresh or self.modified or bool(changes)))
        if not (changes or renew or self._ticket.stale):
            return Answer.LEAVE
        token = new_id() if regenerate else self._token
        while True:  # until nobody has written between the look and the put
            version, stored = self._records.look(self._sid)
            if stored is None:
                return Answer.LEAVE
            overtaken = stored["token"] != self._token
            if overtaken and regenerate:
                changes = Changes({}, {}, changes.deleted)
            elif overtaken and not stored["data"]:
                return Answer.LEAVE  # somebody has logged out, and no cookie is left that would find it
            record = Record({**stored, "data": changes.apply(stored["data"])})
            ttl = None if stored["data"] else rules.lifetime
            if renew and not overtaken:
                record["token"], record["seen"], ttl = token, now, rules.lifetime
            if not record["data"]:
                ttl = EMPTY_LIFETIME
            if encode(record) == encode(stored) or self._records.put(self._sid, version, record, ttl, rules.max_bytes):
                break
        if overtaken:
            return self._part(mine, rules, now) if regenerate and mine else self._saved(record, Answer.LEAVE)
        self._token = token
        if not record["data"]:
            return self._saved(record, Answer.DELETE)
        other_end = mine.get("_permanent") != read["data"].get("_permanent")
        changed = renew or self._ticket.stale or other_end or not stored["data"]
        return self._saved(record, Answer.SET if changed else Answer.LEAVE)

    def _part(self, data: dict[str, Any], rules: Rules, now: float) -> Answer:
        """Begin a session of this request's own, unless the one that it comes from has ended: then this one has too.

        Looked at afterwards, so that whoever ends all sessions of a user either finds this one or has ended that one.
        """
        former, self._sid, self._token = self._sid, new_id(), new_id()
        answer = self._begin(data, rules, now)
        if self._records.look(former)[1] is None:
            self._records.delete(self._sid)
            return Answer.LEAVE
        return answer

    def _changes(self, read: Record) -> Changes:
        data = self._load()
        assigned = {key: data[key] for key in self._assigned}
        for key, stored in self._handed.items():
            if _encode(key, data[key]) != stored:
                assigned[key] = data[key]
        added = {key: (by, initial, data[key]) for key, (by, initial) in self._added.items()}
        return Changes(assigned, added, frozenset(read["data"].keys() - data.keys()))


def _encode(key: str, value: Any) -> Stored:
    try:
        return encode(value)
    except (NotStorable, TooLarge) as error:
        raise type(error)(f"session[{key!r}]: {error}") from None
