"""Disk images in plain files."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from freezeframe.block.descriptor import Descriptor, read_fully, write_fully
from freezeframe.block.faults import denied, source_fault, target_fault
from freezeframe.block.filelock import lock_file
from freezeframe.core.errors import SourceError, TargetUnsuitable
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB, SECTOR
from freezeframe.system import ioctl
from freezeframe.system.direct import ALIGNMENT, open_direct, write_direct

_ZEROS = bytes(MIB)
#: Shorter writes go through the page cache, which joins them.
_LARGE = 64 * KIB


class RawFile(Descriptor):
    """Reader and writer of a file whose byte 0 is byte 0 of a disk.

    With `watch`, a file that somebody wrote to since it was opened (its modification time
    changed) raises `SourceError` when it is next read: locks only bind those who ask.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        size: int,
        *,
        watch: bool = False,
        direct: int | None = None,
    ) -> None:
        """Own a descriptor, and `direct`, one of the same file for O_DIRECT, if there is one."""
        super().__init__(descriptor, name, size)
        self._direct = direct
        self.sector = SECTOR
        self._modified = os.fstat(descriptor).st_mtime_ns if watch else None

    # -- reading --------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        self._check_read(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, with no copy between."""
        self._check_read(offset, len(buffer))
        try:
            filled = read_fully(self._descriptor, offset, buffer)
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise self._read_failed(error, offset, len(buffer)) from error
        if filled < len(buffer) or status.st_size < self.size:
            raise SourceError(
                f"{self.name} shrank from {self.size} to {status.st_size} bytes while it was read",
                hint="stop what writes to it and start again",
            )
        if self._modified is not None and status.st_mtime_ns != self._modified:
            raise SourceError(
                f"{self.name} was written to while it was read",
                hint="stop what writes to it and start again",
            )

    def data_extents(self) -> Extents:
        """Return what is no hole, as the filesystem tells (SEEK_DATA); everything where not."""
        found: list[tuple[int, int]] = []
        position = 0
        while position < self.size:
            try:
                start = os.lseek(self._descriptor, position, os.SEEK_DATA)
                stop = os.lseek(self._descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole follows
                return Extents.single(0, self.size)
            if stop <= position:
                return Extents.single(0, self.size)
            found.append((start, stop))
            position = stop
        return Extents.of(found).clip(0, self.size)

    # -- writing --------------------------------------------------------------------

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`."""
        self._check_write(offset, len(data))
        try:
            if not self._write_large(offset, data):
                write_fully(self._descriptor, offset, memoryview(data).cast("B"))
        except OSError as error:
            raise self._write_failed(error, offset) from error

    def _write_large(self, offset: int, data: bytes | bytearray | memoryview) -> bool:
        """Write past the page cache; False where that is not possible or not worth it."""
        if self._direct is None or len(data) < _LARGE or (offset | len(data)) % ALIGNMENT:
            return False
        return write_direct(self._direct, offset, [data])

    def close(self) -> None:
        """Release the file, and the lock on it."""
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)
        super().close()

    def zero(self, offset: int, length: int) -> None:
        """Make the range a hole; zeros are written where the filesystem has no holes."""
        self._check_write(offset, length)
        if self.discard(offset, length):
            return
        for start in range(offset, offset + length, MIB):
            self.write_at(start, memoryview(_ZEROS)[: min(MIB, offset + length - start)])

    def discard(self, offset: int, length: int) -> bool:
        """Make the range a hole, so that it reads as zeros. False where that is not possible."""
        self._check_write(offset, length)
        if not length:
            return True
        try:
            ioctl.punch_hole(self._descriptor, offset, length)
        except OSError:
            return False
        return True

    def flush(self) -> None:
        """Return once all that was written is on stable storage."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._write_failed(error, 0) from error


def open_reader(path: str, *, lock: bool = True) -> RawFile:
    """Open a file for reading, locked against writers.

    With `lock` false nothing is locked, nor watched. Raises `SourceBusy` where another
    holds a lock for writing, `SourceError` where it cannot be opened or is empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise denied(path, error, source_fault) from error
    try:
        if lock:
            lock_file(descriptor, path, exclusive=False)
        # After locking: only from then on is the size what it will be.
        size = os.fstat(descriptor).st_size
        if not size:
            raise SourceError(f"{path} is empty: there is no disk in it")
        reader = RawFile(descriptor, path, size, watch=lock)
    except BaseException:
        os.close(descriptor)
        raise
    with contextlib.suppress(OSError):
        # The kernel reads further ahead; chunks are taken in order, or nearly so.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return reader


def open_writer(path: str, *, size: int | None = None, create: bool = False) -> RawFile:
    """Open a file for reading and writing, locked against everybody.

    With `create` it must not exist, and is made `size` bytes long, all hole, for its owner
    alone to read: it will hold everything a machine has. Without, it must exist, and
    `size`, where given, must be its size. Raises `SourceBusy`, `TargetUnsuitable`.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise denied(path, error, target_fault) from error
    try:
        lock_file(descriptor, path, exclusive=True)
        if create:
            _lengthen(descriptor, path, size or 0)
        found = os.fstat(descriptor).st_size
        if not found:
            raise empty_target(path)
        if size is not None and found != size:
            raise TargetUnsuitable(f"{path} has {found} bytes, not {size}")
        return RawFile(descriptor, path, found, direct=open_direct(descriptor))
    except BaseException:
        os.close(descriptor)
        if create:
            Path(path).unlink(missing_ok=True)
        raise


def empty_target(path: str) -> TargetUnsuitable:
    """Return the refusal of a file nothing fits into."""
    return TargetUnsuitable(
        f"{path} is empty: nothing fits into it",
        hint="remove it, and a new file will be made as long as the disk",
    )


def _lengthen(descriptor: int, path: str, size: int) -> None:
    """Give a new file its size, and its name a place on stable storage."""
    try:
        os.ftruncate(descriptor, size)
        folder = os.open(Path(path).absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise TargetUnsuitable(
            f"{path} cannot be made {size} bytes long: {error.strerror}",
            hint="the filesystem may not allow files of that size",
        ) from error
    try:
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)
