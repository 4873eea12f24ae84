"""From flags, one a unit, to extents: piece by piece, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE, KIB

#: More ranges than this are merged over small gaps. 64 MiB of arrays; only a bitmap made
#: to hurt, or a large disk in a pitiful state, has more.
_MOST_RANGES = 4 << 20
#: How much of a bitmap is read at once, in bytes: 8 Mi flags.
PIECE = 1024 * KIB


class UsedUnits:
    """Units of `unit` bytes, the first at byte `base`, whose flags are given in order."""

    def __init__(self, unit: int, base: int = 0, *, most_ranges: int = _MOST_RANGES) -> None:
        self._unit = unit
        self._base = self._position = base
        self._most_ranges = most_ranges
        self._gap = GRANULE
        self._count = 0
        self._parts: list[Extents] = []
        #: How many units were flagged so far.
        self.flagged = 0

    def add(self, flags: NDArray[np.bool_]) -> None:
        """Take the flags of the next `len(flags)` units; True is used."""
        part = Extents.from_bits(flags, self._unit, self._position)
        self._position += len(flags) * self._unit
        self.flagged += int(np.count_nonzero(flags))
        self._parts.append(part)
        self._count += len(part)
        while self._count > self._most_ranges:
            # Outward: more is kept than need be, never less.
            merged = self.extents().aligned(self._gap).clip(self._base, self._position)
            self._parts, self._count = [merged], len(merged)
            self._gap *= 2

    def add_bitmap(self, data: bytes, count: int) -> None:
        """Take the next `count` flags out of bytes, the lowest bit of each byte first."""
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        self.add(bits[:count].astype(np.bool_))

    def extents(self) -> Extents:
        """Return the bytes of all units flagged so far."""
        if not self._parts:
            return Extents.empty()
        return Extents.from_arrays(
            np.concatenate([part.starts for part in self._parts]),
            np.concatenate([part.stops for part in self._parts]),
        )
