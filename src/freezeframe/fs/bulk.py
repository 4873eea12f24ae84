"""What used maps share: reading many blocks at once, runs of set bits, bounded sets."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.core.extents import Extents, Int64Array
from freezeframe.core.units import MIB

Bytes = NDArray[np.uint8]

#: Neighbouring blocks are read together, so many bytes at most.
_LONGEST_READ = 4 * MIB
#: So many ranges are kept apart, 16 bytes each; a set of more is made coarser.
MOST_RANGES = 1 << 22


def read_many(reader: Reader, offsets: Int64Array, size: int) -> Bytes:
    """Read `size` bytes at each offset; the result is uint8 (n, size), in the order asked for.

    Raises what `reader.read_into` raises.
    """
    order = np.argsort(offsets, kind="stable")
    ordered = offsets[order]
    rows = np.empty((len(offsets), size), np.uint8)
    most = max(1, _LONGEST_READ // size)
    breaks = np.flatnonzero(np.diff(ordered) != size) + 1
    edges = [0, *breaks.tolist(), len(ordered)]
    for first, last in itertools.pairwise(edges):
        for start in range(first, last, most):
            stop = min(start + most, last)
            reader.read_into(int(ordered[start]), rows[start:stop].data.cast("B"))
    if np.array_equal(order, np.arange(len(order))):
        return rows
    result = np.empty_like(rows)
    result[order] = rows
    return result


def runs_of_ones(packed: Bytes) -> tuple[Int64Array, Int64Array]:
    """Return the starts and stops of the runs of set bits; bit 0 is the lowest of byte 0.

    `packed` is uint8 (n,). Only words in which a run begins or ends are looked at bit by bit.
    """
    # One word of zeros at the end: there the last run ends.
    padded = np.zeros((len(packed) // 8 + 2) * 8, np.uint8)
    padded[: len(packed)] = packed
    words = padded.view("<u8").astype(np.uint64)
    shifted = words << np.uint64(1)
    shifted[1:] |= words[:-1] >> np.uint64(63)
    changes = words ^ shifted
    hit = np.flatnonzero(changes)
    bits = np.unpackbits(
        changes[hit].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
    )
    row, bit = np.nonzero(bits)
    edges = (hit[row] * 64 + bit).astype(np.int64)
    return edges[0::2], edges[1::2]


class Gathered:
    """Collects extents piece by piece; memory stays bounded, by counting small gaps as used."""

    def __init__(self, *, most: int = MOST_RANGES) -> None:
        self._parts: list[Extents] = []
        self._count = 0
        self._unit = 4096
        self._most = most

    def add(self, extents: Extents) -> None:
        """Take another piece."""
        self._parts.append(extents)
        self._count += len(extents)
        while self._count > self._most:
            self._unit *= 2
            merged = self._merge().aligned(self._unit)
            self._parts, self._count = [merged], len(merged)

    def _merge(self) -> Extents:
        if not self._parts:
            return Extents.empty()
        return Extents.from_arrays(
            np.concatenate([part.starts for part in self._parts]),
            np.concatenate([part.stops for part in self._parts]),
        )

    def result(self) -> Extents:
        """Return the union of all pieces, perhaps with small gaps closed."""
        return self._merge()
