"""The steps to one point in time, in which order they may come, and how long they may take."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How long what may take, in seconds."""

    #: All preparations of all writers, and of all providers.
    prepare: float = 600.0
    #: From the freeze of the first writer to the thaw of the last.
    writers: float = 60.0
    #: From the hold of the first volume to the last one's resume.
    commit: float = 10.0


class State(enum.StrEnum):
    """Where a set is."""

    NEW = "new"
    PREPARED = "prepared"
    WRITERS_FROZEN = "writers frozen"
    HELD = "held"
    COMMITTED = "committed"
    RESUMED = "resumed"
    THAWED = "thawed"
    FINISHED = "finished"
    RELEASED = "released"
    ABORTED = "aborted"


#: Which may follow which.
NEXT = {
    State.NEW: {State.PREPARED},
    State.PREPARED: {State.WRITERS_FROZEN},
    State.WRITERS_FROZEN: {State.HELD, State.THAWED},
    State.HELD: {State.COMMITTED, State.RESUMED},
    State.COMMITTED: {State.RESUMED},
    State.RESUMED: {State.THAWED},
    State.THAWED: {State.WRITERS_FROZEN, State.FINISHED},
    State.FINISHED: {State.RELEASED},
}
