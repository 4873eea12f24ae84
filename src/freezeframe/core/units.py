"""Sizes the whole program agrees on, and how they are shown."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

#: The kernel counts disks in sectors of 512 bytes, whatever the device's own sector is.
SECTOR = 512
#: What is stored and deduplicated as one: 1 MiB of a disk, aligned.
CHUNK = MIB
#: What write tracking marks as one: 64 KiB of a disk, aligned.
GRANULE = 64 * KIB
#: One file of an image, in a directory of its own: 1,024 chunks.
SEGMENT = GIB

_STEPS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def human_size(size: float) -> str:
    """Write a number of bytes as people read it: `1.5 GiB`, `512 B`."""
    for step, name in _STEPS:
        if abs(size) >= step:
            return f"{size / step:.1f} {name}"
    return f"{size:.0f} B"


def human_time(seconds: float) -> str:
    """Write a duration in seconds as people read it: `1h02m`, `3m05s`, `4.2s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def align_down(value: int, unit: int) -> int:
    """Round down to a multiple of `unit`."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """Round up to a multiple of `unit`."""
    return -(-value // unit) * unit
