"""What a journal says when it cannot do what it was asked. The caller undoes its tick; the file is as it was before."""

from __future__ import annotations

from ..errors import OutcomeUnknown, StoreFull, Unavailable


class JournalFull(StoreFull):
    """There is no room for the frame. Deletes still fit, and writes do again when there is room."""


class JournalFailed(Unavailable):
    """The frame could not be written, or the journal is read-only since a sync failed."""


class JournalNotSynced(JournalFailed, OutcomeUnknown):
    """The frame was written and could not be synced. It was cut off, and the journal is read-only from now on."""


class JournalLost(Exception):
    """The frame was written, not synced, and could not be cut off: a restart may find it or not.

    The manager must end without a reply, because any reply might be wrong.
    """
