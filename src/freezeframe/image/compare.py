"""Compare a disk of two images by their trees: what differs, without reading any of it.

Segments with one and the same folder are not even looked into. Elsewhere blobs decide by their
ids, where both images have a blob of just these bytes. A chunk that is one blob in one image
and sixteen in the other has no ids to compare: its fast sums may say that it is the same, else
it may differ, and `exact` reads it in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK, GRANULE, SEGMENT
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import DiskBlobs, ImageReader, SegmentParts
from freezeframe.system.workers import run_workers


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a disk of one image differs from that of an earlier one. Bytes of the disk."""

    #: Blobs that differ: some of their bytes do.
    changed: Extents
    #: Stored in different pieces: may differ. Empty where `exact` was asked for.
    unclear: Extents
    #: In use in the new image and not in the old one, and the other way round.
    gained: Extents
    freed: Extents


@dataclass(frozen=True, slots=True)
class _Side:
    """One segment of one image, filled up with zeros where its disk is the shorter one.

    Offsets in bytes from the start of the segment; arrays of shape (n,) and (n, 32).
    """

    image: ImageReader
    blobs: DiskBlobs
    sums: NDArray[np.uint8] | None


def compare_disks(
    old: ImageReader,
    was: DiskRecord,
    new: ImageReader,
    now: DiskRecord,
    progress: Progress,
    *,
    exact: bool = False,
) -> Comparison:
    """Compare the disk `was` of an image with `now` of a later one, byte 0 with byte 0.

    What lies beyond the end of the shorter one is compared with zeros. Raises
    `RepositoryDamaged` where a tree cannot be read, or, with `exact`, a blob that is needed.
    """
    size = max(was.size, now.size)
    progress.start("compare", size)
    parts: list[Comparison] = []
    for number, base in enumerate(range(0, size, SEGMENT)):
        length = min(SEGMENT, size - base)
        if not _same_tree(old, was, new, now, number):
            one = _side(old, was, number, length)
            other = _side(new, now, number, length)
            found = _compare(one, other, length, exact=exact)
            parts.append(_shifted(found, base))
        progress.advance(length)
    return Comparison(
        changed=Extents.joined(part.changed for part in parts),
        unclear=Extents.joined(part.unclear for part in parts),
        gained=Extents.joined(part.gained for part in parts),
        freed=Extents.joined(part.freed for part in parts),
    )


def _same_tree(
    old: ImageReader, was: DiskRecord, new: ImageReader, now: DiskRecord, number: int
) -> bool:
    base = number * SEGMENT
    if base >= min(was.size, now.size):
        return False
    return old.segment_tree(was, number) == new.segment_tree(now, number)


def _shifted(found: Comparison, base: int) -> Comparison:
    return Comparison(
        found.changed.shift(base),
        found.unclear.shift(base),
        found.gained.shift(base),
        found.freed.shift(base),
    )


def _side(image: ImageReader, disk: DiskRecord, number: int, length: int) -> _Side:
    if number * SEGMENT >= disk.size:
        blobs = DiskBlobs(
            starts=np.zeros(1, np.int64),
            lengths=np.full(1, length, np.int64),
            ids=np.zeros((1, 32), np.uint8),
            zero=np.ones(1, np.bool_),
            used=Extents.empty(),
        )
        return _Side(image, blobs, None)
    parts = image.segment_parts(disk, number)
    return _Side(image, _filled(parts, length), parts.sums)


def _filled(parts: SegmentParts, length: int) -> DiskBlobs:
    """Add a stretch of zeros up to `length` bytes, where the segment is shorter."""
    some = parts.lengths > 0
    starts, lengths = parts.starts[some], parts.lengths[some]
    ids, zero = parts.ids[some], parts.zero[some]
    size = int(lengths.sum())
    if size < length:
        starts = np.append(starts, size)
        lengths = np.append(lengths, length - size)
        ids = np.concatenate([ids, np.zeros((1, 32), np.uint8)])
        zero = np.append(zero, True)
    return DiskBlobs(starts, lengths, ids, zero, parts.used)


def _compare(one: _Side, other: _Side, length: int, *, exact: bool) -> Comparison:
    a, b = one.blobs, other.blobs
    edges = np.union1d(a.starts, b.starts)
    stops = np.append(edges[1:], length)
    left = np.searchsorted(a.starts, edges, "right") - 1
    right = np.searchsorted(b.starts, edges, "right") - 1
    # Whether a blob is just this piece, and not a longer one that it is part of.
    whole_left = a.lengths[left] == stops - edges
    whole_right = b.lengths[right] == stops - edges
    zero_left, zero_right = a.zero[left], b.zero[right]
    both = whole_left & whole_right & ~zero_left & ~zero_right
    differs = both & (a.ids[left] != b.ids[right]).any(axis=1)
    # Zeros on one side only: a part of zeros is zeros, whatever blob it is a part of.
    differs |= zero_left & whole_right & ~zero_right
    differs |= zero_right & whole_left & ~zero_left
    unclear = ~differs & ~both & ~(zero_left & zero_right)
    changed = Extents.from_arrays(edges[differs], stops[differs])
    open_ = Extents.from_arrays(edges[unclear], stops[unclear]) - _same_by_sums(one, other, length)
    if exact:
        changed, open_ = changed | _read_both(one, other, open_), Extents.empty()
    return Comparison(changed, open_, b.used - a.used, a.used - b.used)


def _same_by_sums(one: _Side, other: _Side, length: int) -> Extents:
    """Return the chunks whose fast sums are known and agree.

    Sums that differ prove nothing: an image copied from another repository has those of that.
    """
    if one.sums is None or other.sums is None:
        return Extents.empty()
    count = min(len(one.sums), len(other.sums))
    agree = (one.sums[:count] == other.sums[:count]).all(axis=1) & one.sums[:count].any(axis=1)
    return Extents.from_bits(agree, CHUNK).clip(0, length)


def _read_both(one: _Side, other: _Side, extents: Extents) -> Extents:
    """Read some stretches in both images; return the granules that differ."""
    found: list[tuple[int, int]] = []

    def check(number: int) -> None:
        for start, stop in extents.clip(number * CHUNK, (number + 1) * CHUNK):
            mine, theirs = _bytes(one, start, stop), _bytes(other, start, stop)
            found.extend(
                (start + at, min(start + at + GRANULE, stop))
                for at in range(0, stop - start, GRANULE)
                if mine[at : at + GRANULE] != theirs[at : at + GRANULE]
            )

    def make_worker() -> Callable[[int], None]:
        return check

    numbers: list[int] = extents.units(CHUNK).tolist()
    if numbers:
        run_workers(numbers, make_worker)
    return Extents.of(found)


def _bytes(side: _Side, start: int, stop: int) -> bytes:
    blobs = side.blobs
    first = int(np.searchsorted(blobs.starts, start, "right")) - 1
    last = int(np.searchsorted(blobs.starts, stop, "left"))
    shift = int(blobs.starts[first])
    return side.image.read_group(blobs, first, last)[start - shift : stop - shift]
