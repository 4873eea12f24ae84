"""A logical volume as a reader over its physical volumes, and the way back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

import numpy as np

from freezeframe.block.base import Reader, verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents, Int64Array
from freezeframe.fs.lvm.group import Group, Logical, Physical, Segment


class LogicalVolume(Closing):
    """Reads a plain logical volume through its segments. Closing it closes nothing below."""

    def __init__(
        self, group: Group, volume: Logical, devices: Mapping[str, Reader], sector: int
    ) -> None:
        """Take the readers by the physical volumes' names in the group.

        All that it has stripes on must be there. Raises `NotUnderstood` where stripes do not
        fit into extents.
        """
        self.name = f"{group.name}/{volume.name}"
        self.size = volume.extents * group.extent_size
        self.sector = sector
        self.volume = volume
        self._group = group
        self._segments = sorted(volume.segments, key=lambda segment: segment.first)
        self._firsts = [segment.first * group.extent_size for segment in self._segments]
        self._devices = {
            stripe.physical: devices[stripe.physical]
            for segment in self._segments
            for stripe in segment.stripes
        }
        for segment in self._segments:
            if len(segment.stripes) > 1 and group.extent_size % segment.stripe_size:
                raise NotUnderstood(f"{self.name} has stripes that do not fit into extents")

    # -- reading ------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        self._check(offset, length)
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        self._check(offset, len(buffer))
        done = 0
        for physical, place, length in self._pieces(offset, len(buffer)):
            self._devices[physical].read_into(place, buffer[done : done + length])
            done += length

    def _check(self, offset: int, length: int) -> None:
        verify_inside(self.name, self.size, offset, length)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[str, int, int]]:
        """Cut a range into (physical volume, byte of it, length), in order."""
        stop = offset + length
        while offset < stop:
            index = bisect_right(self._firsts, offset) - 1
            segment = self._segments[index]
            inside = offset - self._firsts[index]
            unit = self._unit(segment)
            row, column = divmod(inside // unit, len(segment.stripes))
            piece = min(unit - inside % unit, stop - offset)
            stripe = segment.stripes[column]
            start, _ = self._group.place(self._group.physical[stripe.physical], stripe.first, 0)
            yield stripe.physical, start + row * unit + inside % unit, piece
            offset += piece

    def _unit(self, segment: Segment) -> int:
        """How many bytes lie together: all of the segment where there is but one stripe."""
        if len(segment.stripes) == 1:
            return segment.count * self._group.extent_size
        return segment.stripe_size

    # -- and back -----------------------------------------------------------------------

    def on_physical(self, physical: Physical, used: Extents) -> Extents:
        """Return what some bytes of the volume take of a physical one, in bytes of that."""
        found = Extents.empty()
        for segment, first in zip(self._segments, self._firsts, strict=True):
            length = segment.count * self._group.extent_size
            inside = used.clip(first, first + length).shift(-first)
            unit = self._unit(segment)
            for column, stripe in enumerate(segment.stripes):
                if stripe.physical == physical.name:
                    row = unit * len(segment.stripes)
                    starts = _before(inside.starts, row, unit, column)
                    stops = _before(inside.stops, row, unit, column)
                    base, _ = self._group.place(physical, stripe.first, 0)
                    found |= Extents.from_arrays(base + starts, base + stops)
        return found

    def from_physical(self, used: Mapping[str, Extents]) -> Extents:
        """Return what of the volume lies in some bytes of its physical volumes, by their names.

        A segment of several stripes counts as a whole where any of it does.
        """
        found = []
        for segment, first in zip(self._segments, self._firsts, strict=True):
            length = segment.count * self._group.extent_size
            for stripe in segment.stripes:
                physical = self._group.physical[stripe.physical]
                start, stop = self._group.place(physical, stripe.first, segment.stripe_extents)
                inside = used.get(stripe.physical, Extents.empty()).clip(start, stop)
                if len(segment.stripes) == 1:
                    found.append(inside.shift(first - start))
                elif inside:
                    found.append(Extents.single(first, first + length))
        return Extents.joined(found)

    @property
    def devices(self) -> Mapping[str, Reader]:
        """The readers of the physical volumes it lies on, by their names in the group."""
        return self._devices

    # -- the rest of a reader -----------------------------------------------------------

    def data_extents(self) -> Extents:
        """Return everything: holes are not looked for."""
        return Extents.single(0, self.size)

    def close(self) -> None:
        """Do nothing: the devices belong to somebody else."""


def _before(offsets: Int64Array, row: int, unit: int, column: int) -> Int64Array:
    """How many bytes of a stripe lie before each offset: nothing but counting."""
    full, rest = np.divmod(offsets, row)
    before: Int64Array = full * unit + np.clip(rest - column * unit, 0, unit)
    return before
