"""Grow a filesystem to the end of its partition, with the field's own programs.

Works on raw files and devices alike: each program gets a loop device that is just the
partition. Nothing stays attached or mounted, whatever happens.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from freezeframe.core.errors import FreezeframeError, ToolFailed
from freezeframe.system.loop import attached
from freezeframe.system.run import run

#: `e2fsck -p`: nothing to do, or all repaired.
E2FSCK_FINE = (0, 1)
#: A daemon (udev, an indexer) may look at a fresh mount for a moment.
_UMOUNT_TRIES = 20
#: Where the superblock of btrfs lies, and its id in it.
_BTRFS_ID_AT = 65536 + 32
_BTRFS_DEVICES_AT = 65536 + 136
#: Leaves the machine's own LVM alone: this device only, nothing activated or written to /etc.
_LVM_ALONE = (
    "--driverloaded",
    "n",
    "--config",
    "devices{use_devicesfile=0} backup{backup=0 archive=0} global{event_activation=0}",
)

#: What cannot be grown from outside, or not at all, and what to do then.
NOT_GROWN = {
    "fat12": "FAT keeps its size: no program here grows it",
    "fat16": "FAT keeps its size: no program here grows it",
    "fat32": "FAT keeps its size: no program here grows it",
    "exfat": "exFAT keeps its size: no program here grows it",
    "swap": "swap keeps its size; mkswap -U with its UUID would take it all",
    "luks1": "LUKS takes all of its partition when it is opened; then grow what is inside",
    "luks2": "LUKS takes all of its partition when it is opened; then grow what is inside",
    "md": "an md member keeps its size until mdadm --grow",
}


class NotGrown(FreezeframeError):
    """The filesystem was left as it is, whole, and can be grown later by hand."""


def can_grow(kind: str) -> bool:
    """Whether there is a way to grow a filesystem of that kind (as used maps call it)."""
    return kind in _WAYS


def grow_filesystem(path: str, kind: str, start: int, length: int, sector: int) -> None:
    """Grow the filesystem in bytes [start, start + length) of a disk or file to all of it.

    Raises `NotGrown` where it was left as it is, and `ToolFailed` where a program failed
    halfway. Needs root, for the loop device.
    """
    way = _WAYS.get(kind)
    if way is None:
        raise NotGrown(NOT_GROWN.get(kind, f"nobody knows how to grow {kind or 'its content'}"))
    with contextlib.ExitStack() as stack:
        with _left_alone("it cannot be attached"):
            device = stack.enter_context(attached(path, offset=start, size=length, sector=sector))
        way(device)


@contextlib.contextmanager
def _left_alone(why: str) -> Iterator[None]:
    """Nothing has been changed yet: whatever fails now only means it is not grown."""
    try:
        yield
    except (FreezeframeError, OSError) as error:
        raise NotGrown(f"{why}: {error}") from error


@contextlib.contextmanager
def _mounted(device: str, kind: str, *options: str) -> Iterator[str]:
    """Mount a device on a folder of its own for a moment."""
    with tempfile.TemporaryDirectory(prefix="freezeframe-grow-") as folder:
        try:
            with _left_alone("it cannot be mounted"):
                run(("mount", "-t", kind, *options, device, folder))
            yield folder
        finally:
            # Asked of the kernel rather than remembered: Ctrl-C may come between.
            if Path(folder).is_mount():
                _unmount(folder)


def _unmount(folder: str) -> None:
    """Unmount, waiting a moment for whoever looks into it; in the end whoever does."""
    for _ in range(_UMOUNT_TRIES):
        try:
            run(("umount", folder))
        except ToolFailed:
            time.sleep(0.1)
        else:
            return
    run(("umount", "--lazy", folder))


def _ext(device: str) -> None:
    with _left_alone("its check failed"):
        run(("e2fsck", "-f", "-p", device), ok=E2FSCK_FINE)
        run(("resize2fs", "-P", device))
    run(("resize2fs", device))


def _xfs(device: str) -> None:
    # The disk it was imaged from may be mounted right now, with the same UUID.
    with _mounted(device, "xfs", "-o", "nouuid") as folder, _left_alone("the kernel refused"):
        # One transaction of the kernel: it grows, or is as it was. btrfs likewise.
        run(("xfs_growfs", "-d", folder))


@contextlib.contextmanager
def mounted_btrfs(device: str) -> Iterator[str]:
    """Mount a btrfs of one device for a moment, and have the kernel forget it afterwards.

    Raises `NotGrown` where it has several devices, or the kernel has one with its id mounted.
    """
    with open(device, "rb") as file:  # noqa: PTH123 - a device, read once
        file.seek(_BTRFS_ID_AT)
        name = str(uuid.UUID(bytes=file.read(16)))
        file.seek(_BTRFS_DEVICES_AT)
        devices = int.from_bytes(file.read(8), "little")
    if devices != 1:
        raise NotGrown(f"btrfs over {devices} devices: mount it, then btrfs filesystem resize")
    # The kernel takes two devices with one id for the same filesystem.
    if Path("/sys/fs/btrfs", name).exists():
        raise NotGrown(f"btrfs {name} is mounted from another device right now")
    try:
        with _mounted(device, "btrfs") as folder:
            yield folder
    finally:
        with contextlib.suppress(FreezeframeError):
            run(("btrfs", "device", "scan", "--forget", device))


def _btrfs(device: str) -> None:
    with mounted_btrfs(device) as folder, _left_alone("the kernel refused"):
        # It wants 256 MiB at least.
        run(("btrfs", "filesystem", "resize", "max", folder))


def _ntfs(device: str) -> None:
    with _left_alone("it is not clean"):
        run(("ntfsresize", "--no-progress-bar", "--no-action", "--force", device))
    # Once: go on without asking. (Twice would go on with an unclean one, too.)
    run(("ntfsresize", "--no-progress-bar", "--force", device))


def _f2fs(device: str) -> None:
    with _left_alone("its check failed"):
        run(("fsck.f2fs", "--dry-run", device))
    run(("resize.f2fs", device))


def _lvm(device: str) -> None:
    with _left_alone("pvresize did not do it"):
        run(("pvresize", "--devices", device, *_LVM_ALONE, device), purpose="to grow LVM")


_WAYS: dict[str, Callable[[str], None]] = {
    "ext2": _ext,
    "ext3": _ext,
    "ext4": _ext,
    "xfs": _xfs,
    "btrfs": _btrfs,
    "ntfs": _ntfs,
    "f2fs": _f2fs,
    "lvm2": _lvm,
}
