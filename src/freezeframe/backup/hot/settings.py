"""What a user may decide about a hot image."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import MIB


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
    #: Bytes that may be read into memory around the freeze, all disks together.
    residual_memory: int = 256 * MIB
    if_busy: IfBusy = IfBusy.SLOW_WRITERS
    #: Bytes a second to copy ahead, at most; None for as fast as it goes.
    limit_read: int | None = None
    #: Whether to copy more slowly where applications' writes take longer than in calm.
    back_off: bool = True
    #: Seconds after which the watchdog thaws, whatever happens.
    freeze_limit: float = 10.0
    threads: int | None = None


class NotConverging(FreezeframeError):
    """The machine writes faster than it can be copied: allow more, or slow it down."""
