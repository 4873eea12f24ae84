"""Disk image files as block devices."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freezeframe.core.errors import ToolFailed
from freezeframe.system import sysfs
from freezeframe.system.interrupt import deferred
from freezeframe.system.run import run

#: Two programs that look for a free device at once may find the same; one of them fails.
_ATTEMPTS = 5
#: A daemon may look at a device for a moment after it was closed; seconds.
_PATIENCE = 2.0


@contextmanager
def attached(
    path: str | Path,
    *,
    offset: int = 0,
    size: int = 0,
    sector: int = 512,
    read_only: bool = False,
    partitions: bool = False,
) -> Iterator[str]:
    """Give the path of a loop device over `size` bytes (0: all that follow) at `offset`.

    `sector` is the logical sector it shows, in bytes. With `partitions`, each partition is
    there as `<device>p<number>`, also where the kernel reads no tables. Detached in the
    end, whatever happens. Raises `ToolFailed`; needs root.
    """
    device = ""
    try:
        with deferred():
            device = _attach(path, offset, size, sector, read_only)
        if partitions:
            _add_partitions(device)
        yield device
    finally:
        if device:
            with deferred():
                _detach(device, partitions=partitions)


def attach(path: str | Path, *, offset: int = 0, size: int = 0, sector: int = 512) -> str:
    """Attach a file for longer than a `with` block; return the device. Raises `ToolFailed`."""
    return _attach(path, offset, size, sector, read_only=False)


def detach(device: str) -> None:
    """Detach what `attach` attached. Raises `ToolFailed`."""
    _detach(device, partitions=False)


@contextmanager
def lent(path: str | Path, *, sector: int = 512) -> Iterator[str]:
    """Give a loop device over a file, for as long as anybody uses it.

    Who mounts it within the block keeps it: the kernel detaches it with the last unmount.
    Raises `ToolFailed`; needs root.
    """
    device = ""
    try:
        with deferred():
            device = _attach(path, 0, 0, sector, read_only=False)
        yield device
    finally:
        if device:
            with deferred():
                run(["losetup", "-d", device])


def _attach(path: str | Path, offset: int, size: int, sector: int, read_only: bool) -> str:
    command = ["losetup", "--show", "-f", "-o", str(offset), "-b", str(sector)]
    if size:
        command += ["--sizelimit", str(size)]
    if read_only:
        command.append("-r")
    for attempt in range(_ATTEMPTS):
        try:
            done = run([*command, os.fspath(path)])
        except ToolFailed as error:
            busy = "busy" in error.output or "temporarily unavailable" in error.output
            if not busy or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.05)
        else:
            return done.stdout.decode().strip()
    raise AssertionError("unreachable")


def _add_partitions(device: str) -> None:
    node = sysfs.node_of(device)
    if node is not None and not node.partitions():
        # Fails where there is no table, or nothing in it; then there are none to show.
        run(["partx", "-a", device], purpose="to show partitions", ok=(0, 1))


def _detach(device: str, *, partitions: bool) -> None:
    node = sysfs.node_of(device)
    if partitions and node is not None and node.partitions():
        run(["partx", "-d", device], purpose="to remove partitions", ok=(0, 1))
    run(["losetup", "-d", device])
    # The kernel detaches when the last one closes it: wait for that, but not for ever.
    patience = time.monotonic() + _PATIENCE
    while node is not None and sysfs.loop_backing_file(node) and time.monotonic() < patience:
        time.sleep(0.01)
