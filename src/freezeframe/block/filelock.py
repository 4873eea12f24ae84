"""Locks on disk image files: flock for everybody, and the bytes QEMU locks.

QEMU marks what it does with an image by open-file-description locks on single bytes: byte
100 + n is locked by who uses permission n, byte 200 + n by who does not let others use it
(block/file-posix.c; 0 read, 1 write, 2 write unchanged, 3 resize). A running guest's disk
is seen by these, and QEMU will not start on a file we hold.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from freezeframe.core.errors import SourceBusy
from freezeframe.system.processes import openers_of_file, process_name

log = logging.getLogger("freezeframe.block")

#: struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
_USES, _DENIES = 100, 200
_READ, _WRITE, _UNCHANGED, _RESIZE = range(4)
_WRITES = (_WRITE, _UNCHANGED, _RESIZE)

#: `1: FLOCK  ADVISORY  WRITE 1234 fe:00:16040052 0 EOF`, numbers of the device in hexadecimal.
_LOCKS = re.compile(r"^\d+: FLOCK\s+\S+\s+\S+\s+(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.M)


def lock_file(descriptor: int, path: str, *, exclusive: bool) -> None:
    """Lock an open file until it is closed: shared for reading, exclusive for writing.

    Raises `SourceBusy` at once, naming who holds it. Filesystems that know no locks are
    noted in the log and read all the same.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(path, tuple(_lockers(descriptor)), descriptor) from error
    except OSError as error:
        log.warning("%s cannot be locked: %s", path, error.strerror)
    _lock_as_qemu(descriptor, path, exclusive=exclusive)


def _lock_as_qemu(descriptor: int, path: str, *, exclusive: bool) -> None:
    uses = (_READ, *_WRITES) if exclusive else (_READ,)
    denies = _WRITES
    try:
        for permission in uses:
            _qemu(descriptor, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, _USES + permission)
        for permission in denies:
            _qemu(descriptor, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, _DENIES + permission)
        held = [_DENIES + permission for permission in uses]
        held += [_USES + permission for permission in denies]
        taken = any(_is_locked(descriptor, byte) for byte in held)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            taken = True
        else:
            log.debug("%s: no byte locks: %s", path, error.strerror)
            return
    if taken:
        raise _busy(path, (), descriptor)


def _qemu(descriptor: int, command: int, kind: int, byte: int) -> bytes:
    return fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_locked(descriptor: int, byte: int) -> bool:
    """Whether another open file has a lock on a byte."""
    answer = _qemu(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK


def _busy(path: str, lockers: tuple[str, ...], descriptor: int) -> SourceBusy:
    if not lockers:
        status = os.fstat(descriptor)
        lockers = tuple(str(one) for one in openers_of_file(status.st_dev, status.st_ino))
    who = lockers or ("another program",)
    return SourceBusy(
        path, tuple(f"locked by {one}" for one in who), hint="wait for it to end, or stop it"
    )


def _lockers(descriptor: int) -> Iterator[str]:
    """Give the processes that hold a flock on an open file."""
    status = os.fstat(descriptor)
    try:
        text = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return
    for pid, major, minor, inode in _LOCKS.findall(text):
        device = os.makedev(int(major, 16), int(minor, 16))
        # Btrfs tells files another device number than locks: there the inode must do.
        if int(inode) == status.st_ino and (device == status.st_dev or int(major, 16) == 0):
            # 0 and -1: a process of a container, or one that has handed the lock on.
            yield f"pid {pid} ({process_name(int(pid))})" if int(pid) > 0 else "another program"
