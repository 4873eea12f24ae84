"""Freezing, thawing and flushing a mounted filesystem, by a descriptor of anything on it.

Numbers and meanings: include/uapi/linux/fs.h and fs/ioctl.c, fs/super.c of Linux. The
requests have a size in them, but come out the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from enum import Enum
from pathlib import Path

_FIFREEZE = 0xC0045877  # _IOWR('X', 119, int)
#: Also for the watchdog's process, which imports nothing of ours.
FITHAW = 0xC0045878  # _IOWR('X', 120, int)

#: BTRFS_IOC_FS_INFO, as most architectures number it, and as PowerPC, MIPS and SPARC do.
_BTRFS_INFO = (0x8400941F, 0x4400941F)
_BTRFS_INFO_SIZE = 1024
_BTRFS_UUID = slice(16, 32)

_libc = ctypes.CDLL(None, use_errno=True)


class Frozen(Enum):
    """What a filesystem answered when it was to freeze."""

    #: Frozen, by us: nothing writes to it until it is thawed.
    DONE = "done"
    #: Somebody else has frozen it: theirs to thaw.
    BUSY = "busy"
    #: It knows no freezing (vfat, exfat, ntfs3, FUSE, tmpfs, overlay).
    UNSUPPORTED = "unsupported"


def freeze(descriptor: int) -> Frozen:
    """Write out everything, and hold all writers until `thaw`. Needs CAP_SYS_ADMIN.

    Returns when no write is under way any more; cannot be interrupted meanwhile. `OSError`
    for anything but the three answers (EIO, EPERM); then it is not frozen.
    """
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return Frozen.BUSY
        # ENOTTY: descriptors that never get as far as the filesystem.
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return Frozen.UNSUPPORTED
        raise
    return Frozen.DONE


def thaw(descriptor: int) -> bool:
    """Let writers go on; False where the filesystem was not frozen (any more).

    The kernel does not know who froze: never call this for a freeze that is not ours.
    """
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def sync_filesystem(descriptor: int) -> None:
    """Write out what the filesystem holds in memory (syncfs), while writers go on."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def btrfs_uuid(descriptor: int) -> str:
    """Return the identity of a btrfs as /sys/fs/btrfs names it; nothing for anything else."""
    for request in _BTRFS_INFO:
        try:
            answer = fcntl.ioctl(descriptor, request, bytes(_BTRFS_INFO_SIZE))
        except OSError:
            continue
        text = answer[_BTRFS_UUID].hex()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    return ""


#: Whether the kernel is to wait for its readers with haste (Documentation/RCU).
EXPEDITED = Path("/sys/kernel/rcu_expedited")


def expedited() -> str:
    """Return what `EXPEDITED` says, `0` or `1`; nothing where the kernel has no such switch."""
    try:
        return EXPEDITED.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def expedite(value: str) -> None:
    """Set the switch. Raises `OSError`."""
    EXPEDITED.write_text(value, encoding="ascii")
