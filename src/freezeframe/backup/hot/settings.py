"""What a user may decide about a hot image."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GIB, MIB
from freezeframe.system.memory import available_memory

#: Memory around the freeze, where nobody says: so much at least, and at most.
_LEAST, _MOST = 64 * MIB, 2 * GIB


class IfBusy(enum.StrEnum):
    """What to do where disks are written to faster than they can be copied."""

    #: Hold writers down by short freezes, none longer than the pause allowed.
    SLOW_WRITERS = "slow-writers"
    #: Freeze for as long as it takes, up to the watchdog's limit.
    LONGER_PAUSE = "longer-pause"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class HotSettings:
    """How to make a hot image."""

    #: Seconds a writer may have to wait.
    max_pause: float = 0.1
    #: Bytes that may be read into memory around the freeze, all disks together; taken only as
    #: they are needed.
    residual_memory: int = field(default_factory=lambda: memory_to_spare())
    if_busy: IfBusy = IfBusy.SLOW_WRITERS
    #: Bytes a second to copy ahead, at most; None for as fast as it goes.
    limit_read: int | None = None
    #: Whether to copy more slowly where applications' writes take longer than in calm.
    back_off: bool = True
    #: Seconds after which the watchdog thaws, whatever happens.
    freeze_limit: float = 10.0
    threads: int | None = None


def memory_to_spare() -> int:
    """Return how many bytes a hot image may take if nobody says: an eighth of what is free.

    All that is written to again and again has to fit, in granules of 64 KiB: what does not is
    stored each time, and may never settle.
    """
    return min(max(available_memory() // 8, _LEAST), _MOST)


class NotConverging(FreezeframeError):
    """The machine writes faster than it can be copied: allow more, or slow it down."""
