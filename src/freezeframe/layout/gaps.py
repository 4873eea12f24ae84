"""What of the space between partitions is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB, align_down, human_size
from freezeframe.layout.base import Region, Role

#: A gap up to this size is kept entirely, and as much of the beginning of a larger one:
#: boot loaders of all kinds hide there.
KEPT_GAP = 64 * MIB
#: At the end of a disk lie the metadata of firmware RAID.
KEPT_TAIL = MIB
#: Zeros are told apart in pieces of this size, aligned on the disk.
_GRAIN = 4 * KIB
_STEP = MIB
_ZEROS = bytes(_STEP)


def gap_content(
    reader: Reader, regions: Sequence[Region], *, keep_all: bool, why: str = ""
) -> tuple[Extents, list[str]]:
    """Return the bytes of all gaps that are kept: not zero, and not deep in a large gap.

    Reads at most `KEPT_GAP + KEPT_TAIL` bytes a gap, holes excepted; all of it with
    `keep_all`. Unreadable stretches count as used. The second value are notes on what is
    not kept; with `keep_all`, `why` is one where it makes a difference.
    """
    data = reader.data_extents()
    used = Extents.empty()
    notes: list[str] = []
    for gap in regions:
        if gap.role is not Role.GAP:
            continue
        kept = Extents.single(gap.start, gap.stop)
        head, tail = gap.start + KEPT_GAP, gap.stop - KEPT_TAIL
        if head < tail and kept.clip(head, tail) & data:
            if keep_all:
                notes += [why] if why and why not in notes else []
            else:
                kept = kept - Extents.single(head, tail)
                notes.append(
                    f"{human_size(tail - head)} of unallocated space at"
                    f" {human_size(head)} are not kept: if a lost partition may lie"
                    " there, take everything"
                )
        used = used | not_zero(reader, kept & data)
    return used, notes


def not_zero(reader: Reader, extents: Extents) -> Extents:
    """Return the pieces of `extents` that hold anything but zeros; what is unreadable too."""
    found: list[tuple[int, int]] = []
    for start, stop in extents:
        at = start
        while at < stop:
            upto = min(align_down(at, _STEP) + _STEP, stop)
            found += _pieces(reader, at, upto)
            at = upto
    return Extents.of(found)


def _pieces(reader: Reader, start: int, stop: int) -> list[tuple[int, int]]:
    try:
        data = reader.read_at(start, stop - start)
    except UnreadableRange:
        return [(start, stop)]
    # One comparison of memory, by far the quickest way in Python.
    if data == (_ZEROS if len(data) == _STEP else bytes(len(data))):
        return []
    lead = start % _GRAIN
    padded = np.zeros(-(-(lead + len(data)) // _GRAIN) * _GRAIN, np.uint8)
    padded[lead : lead + len(data)] = np.frombuffer(data, np.uint8)
    bits = np.count_nonzero(padded.reshape(-1, _GRAIN), axis=1) > 0
    return list(Extents.from_bits(bits, _GRAIN, start - lead).clip(start, stop))
