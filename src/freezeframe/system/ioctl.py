"""The calls to the kernel that Python has no word for: block device ioctls, fallocate.

Numbers and meanings: include/uapi/linux/fs.h, loop.h, falloc.h and btrfs.h of Linux. Only
requests without an encoded size are used, because those are the same on every architecture.
All functions take an open descriptor and raise `OSError` as the kernel says it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

_BLKROGET = 0x125E
_BLKFLSBUF = 0x1261
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_BLKPBSZGET = 0x127B
_BLKZEROOUT = 0x127F

_LOOP_GET_STATUS64 = 0x4C05
#: struct loop_info64 as far as it is read (device, inode), and its whole size.
_LOOP_INFO = struct.Struct("=QQ")
_LOOP_INFO_SIZE = 232

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def _number(descriptor: int, request: int) -> int:
    """Call an ioctl that fills in a C int."""
    answer = fcntl.ioctl(descriptor, request, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def device_size(descriptor: int) -> int:
    """Return the length of a block device in bytes, as it is now.

    The end of the device's inode is what BLKGETSIZE64 tells, without that ioctl's number,
    which differs between architectures.
    """
    return os.lseek(descriptor, 0, os.SEEK_END)


def logical_sector(descriptor: int) -> int:
    """Return the smallest unit the device addresses, in bytes."""
    return _number(descriptor, _BLKSSZGET)


def physical_sector(descriptor: int) -> int:
    """Return the unit the medium writes at once, in bytes."""
    return _number(descriptor, _BLKPBSZGET)


def is_read_only(descriptor: int) -> bool:
    """Whether the device refuses writes."""
    return _number(descriptor, _BLKROGET) != 0


def flush_buffers(descriptor: int) -> None:
    """Write out and forget what the page cache holds of the device. Needs CAP_SYS_ADMIN."""
    fcntl.ioctl(descriptor, _BLKFLSBUF)


def discard(descriptor: int, offset: int, length: int) -> None:
    """Tell the device it may forget the range; both in bytes, multiples of its sector."""
    fcntl.ioctl(descriptor, _BLKDISCARD, struct.pack("QQ", offset, length))


def zero_out(descriptor: int, offset: int, length: int) -> None:
    """Let the kernel make the range zeros; both in bytes, multiples of the sector."""
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", offset, length))


def loop_backing(descriptor: int) -> tuple[int, int]:
    """Return (st_dev, st_ino) of the file beneath a loop device. ENXIO where it has none."""
    answer = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_SIZE))
    device, inode = _LOOP_INFO.unpack_from(answer)
    return int(device), int(inode)


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a range of a file a hole, reading as zeros; its size stays."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
