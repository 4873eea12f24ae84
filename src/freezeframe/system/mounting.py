"""Mount, and unmount whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from freezeframe.core.errors import FreezeframeError, ToolFailed
from freezeframe.system.mounts import Mount, own_mounts
from freezeframe.system.run import run

#: A daemon (udev, an indexer) may look at a fresh mount for a moment.
_TRIES = 20
_BETWEEN = 0.1
#: A mount that has not answered after so many seconds is stuck.
_ANSWERS = 2.0


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted at a folder; also where nobody serves it any more."""
    return mount_at(folder) is not None


def mount_at(folder: Path) -> Mount | None:
    """Return what is mounted at a folder, the topmost; None where nothing is."""
    # The folder itself is not asked: a dead mount answers with errors.
    place = os.path.join(os.path.realpath(folder.absolute().parent), folder.name)  # noqa: PTH118
    found = [mount for mount in own_mounts() if mount.point == place]
    return found[-1] if found else None


def mount(kind: str, source: str, folder: Path, options: Sequence[str]) -> None:
    """Mount a device. Raises `ToolFailed`, `ToolMissing`."""
    run(
        ["mount", "-t", kind, "-o", ",".join(options), source, str(folder)],
        purpose=f"to mount {kind}",
    )


def unmount(folder: Path) -> None:
    """Unmount, waiting a moment for whoever looks into it. Raises `ToolFailed`."""
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    for attempt in range(_TRIES):
        try:
            run([*command, str(folder)], purpose="to unmount")
        except ToolFailed:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_BETWEEN)
        else:
            return


def detach_mount(folder: Path) -> None:
    """Take a mount out of the tree although it is in use; it ends with its last user."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    with contextlib.suppress(FreezeframeError):
        run([*command, str(folder)], purpose="to unmount")


def answers(folder: Path) -> bool:
    """Whether whoever serves a mount (FUSE) still does. Never hangs."""
    told: list[int] = []

    def ask() -> None:
        try:
            # The kernel remembers what stat(2) tells; this it asks for each time.
            os.statvfs(folder)
        except OSError as error:
            told.append(error.errno or errno.EIO)
        else:
            told.append(0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWERS)
    return bool(told) and told[0] not in (errno.ENOTCONN, errno.ECONNABORTED)
