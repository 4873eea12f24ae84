"""What readers over an open descriptor have in common: closing, and meaning of errors."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence

import numpy as np

from freezeframe.block.base import verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError, SourceError, TargetUnsuitable, UnreadableRange

#: What the block layer says of a command the medium failed (blk_errors in block/blk-core.c),
#: and filesystems of a file beneath which one failed. EIO is the usual one; ENODATA is a bad
#: sector of a SCSI or ATA disk read with O_DIRECT.
_MEDIUM = frozenset(
    (
        errno.EIO,
        errno.ENODATA,
        errno.EILSEQ,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
        errno.ETIME,
        errno.ENOLINK,
        errno.EBADMSG,  # a checksum of btrfs or a bad block beneath ext4
        errno.EUCLEAN,
    )
)


def is_medium_error(error: OSError) -> bool:
    """Whether some sectors failed, and not the whole device."""
    return error.errno in _MEDIUM


def aligned_buffer(size: int) -> memoryview:
    """Return `size` writable zero bytes that start on a page, as O_DIRECT wants them.

    Slices at multiples of the sector are read into without a copy.
    """
    return memoryview(mmap.mmap(-1, max(size, 1)))[:size]


def address_of(buffer: memoryview) -> int:
    """Return where a buffer lies in memory."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


class Descriptor(Closing):
    """An open file or device of a fixed size, closed once."""

    def __init__(self, descriptor: int, name: str, size: int) -> None:
        self._descriptor = descriptor
        self.name = name
        self.size = size

    def fileno(self) -> int:
        """Return the descriptor; -1 after closing."""
        return self._descriptor

    def close(self) -> None:
        """Release the file or device, and the lock on it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _check_read(self, offset: int, length: int) -> None:
        verify_inside(self.name, self.size, offset, length)

    def _check_write(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise TargetUnsuitable(f"{self.name}: {length} bytes at {offset} pass its end")

    def _read_failed(self, error: OSError, offset: int, length: int) -> FreezeframeError:
        """Return what a failed read means to the caller."""
        reason = error.strerror or str(error)
        if is_medium_error(error):
            return UnreadableRange(self.name, offset, length, reason)
        return SourceError(f"{self.name} cannot be read at {offset}: {reason}")

    def _write_failed(self, error: OSError, offset: int) -> FreezeframeError:
        """Return what a failed write means to the caller."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return TargetUnsuitable(
                f"{self.name}: there is no room left beneath it", hint="free some, or go elsewhere"
            )
        reason = error.strerror or str(error)
        return TargetUnsuitable(f"{self.name} cannot be written at {offset}: {reason}")


def read_fully(descriptor: int, offset: int, buffer: memoryview) -> int:
    """Fill a buffer with `preadv`; return how much of it, less where the file ends."""
    filled = 0
    while filled < len(buffer):
        got = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        if got == 0:
            break
        filled += got
    return filled


def read_scattered_fully(descriptor: int, offset: int, buffers: Sequence[memoryview]) -> int:
    """Fill buffers one after the other with `preadv`; return how much of them was filled.

    1,024 buffers at most (IOV_MAX).
    """
    whole = sum(map(len, buffers))
    filled = os.preadv(descriptor, buffers, offset)
    if filled == whole:
        return filled
    # Cut short: what is left goes buffer by buffer.
    start = 0
    for buffer in buffers:
        if start + len(buffer) > filled:
            at = filled - start
            got = read_fully(descriptor, offset + filled, buffer[at:])
            filled += got
            if got < len(buffer) - at:
                break
        start += len(buffer)
    return filled


def write_fully(descriptor: int, offset: int, data: memoryview) -> None:
    """Write all of a buffer with `pwritev`."""
    done = 0
    while done < len(data):
        put = os.pwritev(descriptor, [data[done:]], offset + done)
        if put == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += put
