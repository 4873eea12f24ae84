"""Which granules of a disk were written, by an eBPF program that outlives ours."""

from freezeframe.tracking.tracker import (
    HarvestOverflow,
    Tracker,
    TrackerStatus,
    open_running,
    running,
    start,
    stop,
)
from freezeframe.tracking.trust import (
    Base,
    Distrust,
    changed_since,
    forget_base,
    remember_base,
)

__all__ = [
    "Base",
    "Distrust",
    "HarvestOverflow",
    "Tracker",
    "TrackerStatus",
    "changed_since",
    "forget_base",
    "open_running",
    "remember_base",
    "running",
    "start",
    "stop",
]
