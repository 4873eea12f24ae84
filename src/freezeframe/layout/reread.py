"""Have the kernel look at a device's partition table again."""

from __future__ import annotations

import stat
from pathlib import Path

from freezeframe.core.errors import FreezeframeError
from freezeframe.system.run import run


def reread_table(path: str) -> list[str]:
    """Ask the kernel to read the table of a block device again; nothing for a file.

    What it knew of older partitions, and had cached of them, goes. Returns a note where
    that cannot be done: the disk is right, and the kernel sees it at its next start.
    """
    device = Path(path).resolve()
    if not stat.S_ISBLK(device.stat().st_mode):
        return []
    try:
        run(("blockdev", "--flushbufs", str(device)))
        run(("blockdev", "--rereadpt", str(device)))
    except FreezeframeError as error:
        # Devices that take no partitions refuse; only stale ones are worth a word.
        if not any(Path("/sys/class/block", device.name).glob("*/partition")):
            return []
        return _update(str(device), error.message)
    return []


def _update(device: str, reason: str) -> list[str]:
    """Take the other way, partition by partition: it works where some are in use."""
    try:
        run(("partx", "--update", device))
    except FreezeframeError:
        return [f"the kernel still knows the old partitions of {device}: {reason}"]
    return []
