"""Snapshots of btrfs subvolumes by the kernel's own call, which opens no file.

Numbers and meanings: include/uapi/linux/btrfs.h of Linux.
"""

from __future__ import annotations

import errno
import fcntl
import struct

#: struct btrfs_ioctl_vol_args_v2: fd, transid, flags, four unused words, name.
_ARGUMENTS = struct.Struct("=qQQ32x4040s")
_READ_ONLY = 1 << 1
#: BTRFS_IOC_SNAP_CREATE_V2, as most architectures number it, and PowerPC, MIPS and SPARC.
_SNAPSHOT = (0x50009417, 0x90009417)
#: BTRFS_IOC_SNAP_DESTROY, likewise, and struct btrfs_ioctl_vol_args: fd, name.
_DESTROY = (0x5000940F, 0x9000940F)
_PLACE = struct.Struct("=q4088s")
#: BTRFS_IOC_GET_SUBVOL_INFO (4.18), likewise; struct btrfs_ioctl_get_subvol_info_args.
_INFO = (0x81F8943C, 0x41F8943C)
_INFO_SIZE = 504
#: treeid, name[256], parent_id, dirid, generation, flags, three uuids, ctransid, otransid.
_INFO_FIELDS = struct.Struct("=Q256sQQQQ16s16s16sQQ")


def snapshot(source: int, folder: int, name: str) -> None:
    """Make a read-only snapshot of a subvolume in a folder of the same btrfs.

    `source` and `folder` are open descriptors. Returns when it is on the disk.
    """
    arguments = _ARGUMENTS.pack(source, 0, _READ_ONLY, name.encode(errors="surrogateescape"))
    _call(folder, _SNAPSHOT, arguments)


def remove(folder: int, name: str) -> None:
    """Remove a subvolume or snapshot from a folder, given by its open descriptor."""
    _call(folder, _DESTROY, _PLACE.pack(0, name.encode(errors="surrogateescape")))


def made_in(descriptor: int) -> int:
    """Return the number of the transaction in which the subvolume of a file was made."""
    answer = _call(descriptor, _INFO, bytes(_INFO_SIZE))
    return int(_INFO_FIELDS.unpack_from(answer)[10])


def changed_in(descriptor: int) -> int:
    """Return the number of the last transaction, of those on the disk, that changed it."""
    answer = _call(descriptor, _INFO, bytes(_INFO_SIZE))
    return int(_INFO_FIELDS.unpack_from(answer)[4])


def _call(descriptor: int, numbers: tuple[int, int], argument: bytes) -> bytes:
    for number in numbers:
        buffer = bytearray(argument)
        try:
            fcntl.ioctl(descriptor, number, buffer, True)
        except OSError as error:
            if error.errno != errno.ENOTTY or number == numbers[-1]:
                raise
        else:
            return bytes(buffer)
    raise AssertionError("unreachable")
