"""Block devices, past the page cache.

With O_DIRECT, what is read is what lies on the disk, and a backup does not push everybody
else's data out of memory. It wants offset, length and memory at multiples of the sector
(open(2)); everything else goes through an aligned buffer of the thread's own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from freezeframe.block.descriptor import (
    Descriptor,
    address_of,
    aligned_buffer,
    read_fully,
    read_scattered_fully,
    write_fully,
)
from freezeframe.core.errors import FreezeframeError, SourceError, TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import MIB, align_down, align_up
from freezeframe.system import ioctl, sysfs

__all__ = ["Device", "DeviceFacts", "aligned_buffer", "open_descriptor"]

log = logging.getLogger("freezeframe.block")

#: How much goes through the aligned buffer at once.
_BOUNCE = MIB
_GONE = frozenset((errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EBADF))
#: Whether it is still the same disk (a card may be changed), and still nobody else's, is
#: asked this often; seconds.
_WATCH_EVERY = 1.0


class _Bounce(threading.local):
    """An aligned buffer for each thread, made when first used."""

    def __init__(self) -> None:
        self.buffer = aligned_buffer(_BOUNCE)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device is, as found when it was opened."""

    #: In bytes.
    size: int
    logical_sector: int
    physical_sector: int
    read_only: bool
    #: `8:1`, and the number that no two disks of one boot share (0: unknown).
    number: str
    diskseq: int
    #: Where buffers of O_DIRECT have to start: a multiple of this, in bytes.
    alignment: int

    @classmethod
    def of(cls, descriptor: int) -> DeviceFacts:
        """Ask an open device. Raises `OSError`."""
        rdev = os.fstat(descriptor).st_rdev
        number = f"{os.major(rdev)}:{os.minor(rdev)}"
        node = sysfs.node_of_number(number)
        sector = ioctl.logical_sector(descriptor)
        return cls(
            size=ioctl.device_size(descriptor),
            logical_sector=sector,
            physical_sector=ioctl.physical_sector(descriptor),
            read_only=ioctl.is_read_only(descriptor),
            number=number,
            diskseq=node.diskseq if node is not None else 0,
            # The kernel asks for dma_alignment only since 6.0, and for the sector before.
            alignment=max(sector, node.dma_alignment if node is not None else 0),
        )


def open_descriptor(path: str, flags: int) -> tuple[int, bool]:
    """Open a device; return its descriptor and whether it reads past the page cache.

    Drivers that refuse O_DIRECT are opened without, and the log says so. Raises `OSError`.
    """
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    log.warning("%s knows no O_DIRECT: it is read through the page cache", path)
    return os.open(path, flags), False


class Device(Descriptor):
    """Reader and writer of an open block device, which it owns and closes.

    `also` are more descriptors to keep until then (claims on partitions). `watch` is
    called after reads, once a second at most, and raises where the device has changed hands.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        direct: bool,
        facts: DeviceFacts | None = None,
        also: tuple[int, ...] = (),
        watch: Callable[[], None] | None = None,
    ) -> None:
        self.facts = facts or DeviceFacts.of(descriptor)
        super().__init__(descriptor, name, self.facts.size)
        self.sector = self.facts.logical_sector
        self.direct = direct
        self._unit = self.sector if direct else 1
        self._also = also
        self._watch = watch
        self._watched = time.monotonic()
        self._bounce = _Bounce()
        # Two writes that share a sector and no byte: each must find what the other wrote.
        self._edges = threading.Lock()

    def close(self) -> None:
        """Release the device and the claims on its partitions."""
        super().close()
        also, self._also = self._also, ()
        for descriptor in also:
            os.close(descriptor)

    # -- reading --------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        self._check_read(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; with no copy between, where both are aligned."""
        self._check_read(offset, len(buffer))
        if not len(buffer):
            return
        if self._is_aligned(offset, len(buffer)) and self._fits(buffer):
            self._read(offset, buffer)
        else:
            self._read_around(offset, buffer)
        self._look()

    def read_scattered(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill up to 1,024 buffers one after the other from `offset`, with one call.

        Nothing else is done or looked at: the machine may be waiting. `offset`, the buffers'
        lengths and where they lie are multiples of the sector and of `facts.alignment`.
        """
        length = sum(map(len, buffers))
        self._check_read(offset, length)
        try:
            filled = read_scattered_fully(self._descriptor, offset, buffers)
        except OSError as error:
            raise self._read_failed(error, offset, length) from error
        if filled < length:
            self._check_alive()
            raise SourceError(f"{self.name} ended at {offset + filled}, before its end")

    def data_extents(self) -> Extents:
        """Return everything: a device does not tell what it never stored."""
        return Extents.single(0, self.size)

    def _is_aligned(self, offset: int, length: int) -> bool:
        return offset % self._unit == 0 and length % self._unit == 0

    def _fits(self, buffer: memoryview) -> bool:
        """Whether the kernel takes a buffer where it lies."""
        return not self.direct or address_of(buffer) % self.facts.alignment == 0

    def _read_around(self, offset: int, buffer: memoryview) -> None:
        """Read whole sectors into a buffer of our own, and copy what was asked for."""
        stop = offset + len(buffer)
        position = offset
        while position < stop:
            first = align_down(position, self._unit)
            last = min(align_up(stop, self._unit), first + _BOUNCE)
            whole = self._bounce.buffer[: last - first]
            self._read(first, whole)
            end = min(last, stop)
            buffer[position - offset : end - offset] = whole[position - first : end - first]
            position = end

    def _read(self, offset: int, buffer: memoryview) -> None:
        """Read what is aligned."""
        try:
            filled = read_fully(self._descriptor, offset, buffer)
        except OSError as error:
            raise self._read_failed(error, offset, len(buffer)) from error
        if filled < len(buffer):
            self._check_alive()
            raise SourceError(f"{self.name} ended at {offset + filled}, before its end")

    def _read_failed(self, error: OSError, offset: int, length: int) -> FreezeframeError:
        # A disk that was pulled out fails with the same EIO as a bad sector.
        try:
            self._check_alive()
        except SourceError as gone:
            return gone
        if error.errno in _GONE:
            return SourceError(f"{self.name} has gone: {error.strerror}", hint="connect it again")
        tail = align_down(self.size, self.sector)
        if error.errno == errno.EINVAL and offset + length > tail:
            # The kernel itself reads no sector that is cut off by the end of the device.
            return UnreadableRange(self.name, offset, length, "the last sector is incomplete")
        return super()._read_failed(error, offset, length)

    def _check_alive(self) -> None:
        """Raise `SourceError` where this is no longer the disk that was opened."""
        try:
            size = ioctl.device_size(self._descriptor)
        except OSError:
            size = 0
        node = sysfs.node_of_number(self.facts.number)
        if node is None or not size or node.diskseq != self.facts.diskseq:
            raise SourceError(f"{self.name} has gone", hint="connect it again and start again")
        if size < self.size:
            raise SourceError(
                f"{self.name} shrank from {self.size} to {size} bytes while it was in use"
            )

    def _look(self) -> None:
        """Ask, now and then, whether this is still that disk and nobody writes to it."""
        now = time.monotonic()
        if now - self._watched < _WATCH_EVERY:
            return
        self._watched = now
        self._check_alive()
        if self._watch is not None:
            self._watch()

    # -- writing --------------------------------------------------------------------

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`; sectors hit in part keep their other bytes."""
        self._check_write(offset, len(data))
        source = memoryview(data).cast("B")
        stop = offset + len(source)
        first, last = align_up(offset, self._unit), align_down(stop, self._unit)
        if first >= last:
            # Nothing but edges: within one sector, or across the border of two.
            for start, end in self._cut(offset, stop):
                self._write_edge(start, source[start - offset : end - offset])
            return
        self._write_edge(offset, source[: first - offset])
        self._write_aligned(first, source[first - offset : last - offset])
        self._write_edge(last, source[last - offset :])

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        middle = align_up(start, self._unit)
        return [(start, middle), (middle, stop)] if start < middle < stop else [(start, stop)]

    def _write_edge(self, offset: int, data: memoryview) -> None:
        """Write less than a sector."""
        if not len(data):
            return
        first = align_down(offset, self._unit)
        whole = self._bounce.buffer[: self._unit]
        with self._edges:
            try:
                read_fully(self._descriptor, first, whole)
            except OSError as error:
                raise self._write_failed(error, offset) from error
            whole[offset - first : offset - first + len(data)] = data
            self._write(first, whole)

    def _write_aligned(self, offset: int, data: memoryview) -> None:
        """Write whole sectors, through our own buffer where the caller's is not aligned."""
        if self._fits(data):
            self._write(offset, data)
            return
        for start in range(0, len(data), _BOUNCE):
            part = data[start : start + _BOUNCE]
            whole = self._bounce.buffer[: len(part)]
            whole[:] = part
            self._write(offset + start, whole)

    def _write(self, offset: int, data: memoryview) -> None:
        try:
            write_fully(self._descriptor, offset, data)
        except OSError as error:
            raise self._write_failed(error, offset) from error

    def _write_failed(self, error: OSError, offset: int) -> FreezeframeError:
        if error.errno in _GONE:
            return TargetUnsuitable(f"{self.name} has gone: {error.strerror}")
        if error.errno == errno.EINVAL and offset >= align_down(self.size, self.sector):
            return TargetUnsuitable(f"{self.name} ends with an incomplete sector at {offset}")
        return super()._write_failed(error, offset)

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros: the device does it itself where it can."""
        self._check_write(offset, length)
        first = min(align_up(offset, self.sector), offset + length)
        last = max(align_down(offset + length, self.sector), first)
        self.write_at(offset, bytes(first - offset))
        if first < last:
            try:
                ioctl.zero_out(self._descriptor, first, last - first)
            except OSError as error:
                log.debug("%s: BLKZEROOUT: %s", self.name, error.strerror)
                self._write_zeros(first, last)
        self.write_at(last, bytes(offset + length - last))

    def _write_zeros(self, start: int, stop: int) -> None:
        zeros = aligned_buffer(MIB)
        for position in range(start, stop, MIB):
            self._write_aligned(position, zeros[: min(MIB, stop - position)])

    def discard(self, offset: int, length: int) -> bool:
        """Tell the device the range is not needed. False where it knows no such thing."""
        self._check_write(offset, length)
        first = align_up(offset, self.sector)
        last = align_down(offset + length, self.sector)
        if first >= last:
            return False
        try:
            ioctl.discard(self._descriptor, first, last - first)
        except OSError as error:
            log.debug("%s: BLKDISCARD: %s", self.name, error.strerror)
            return False
        return True

    def flush(self) -> None:
        """Return once all is on stable storage, and others see it, too."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._write_failed(error, 0) from error
        # What the page cache had read of the device before is not what is there now.
        with contextlib.suppress(OSError):
            ioctl.flush_buffers(self._descriptor)
