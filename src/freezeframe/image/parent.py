"""What an earlier image has of a disk, chunk by chunk, so that the next one can build on it.

A parent saves work and decides how finely a chunk is stored; it never decides what an image
holds. Every blob of it that is taken over is in the index, or it is not taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, GRANULE, SEGMENT
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import ImageReader, SegmentParts
from freezeframe.repo.fingerprint import LENGTH

#: Told why a parent cannot be used.
OnProblem = Callable[[FreezeframeError], None]


@dataclass(frozen=True, slots=True)
class ParentDisk:
    """A disk of an earlier image. Chunks are numbered from the disk's start."""

    #: The image it is of, full id.
    image: str
    size: int
    #: uint8, shape (chunks, 32): blob ids; meaningless where a chunk is in `fine`.
    ids: NDArray[np.uint8]
    #: Chunks stored by granules: uint8, shape (granules, 32).
    fine: Mapping[int, NDArray[np.uint8]]
    #: uint8, shape (chunks, 16): zeros where a chunk is zeros or its sum is not known.
    sums: NDArray[np.uint8]
    #: bool, shape (chunks,): all its blobs are in the index, divided in a way we know.
    usable: NDArray[np.bool_]
    #: bool, shape (chunks,): holds zeros only.
    zero: NDArray[np.bool_]
    #: What the image answers for and could read, in bytes of the disk.
    used: Extents
    #: The folder of each segment and its `used` file; None where they cannot be taken over.
    segments: Sequence[tuple[bytes, bytes] | None] = field(default=())


def parent_disk(image: ImageReader, record: DiskRecord) -> ParentDisk:
    """Read what an image has of a disk. Raises `FreezeframeError` where it is damaged."""
    chunks = -(-record.size // CHUNK)
    ids = np.zeros((chunks, 32), np.uint8)
    sums = np.zeros((chunks, LENGTH), np.uint8)
    usable = np.zeros(chunks, np.bool_)
    zero = np.zeros(chunks, np.bool_)
    fine: dict[int, NDArray[np.uint8]] = {}
    segments: list[tuple[bytes, bytes] | None] = []
    parts_of = image.segments(record)
    used = Extents.empty()
    pieces: list[Extents] = []
    for number, parts in enumerate(parts_of):
        first = number * (SEGMENT // CHUNK)
        size = min(SEGMENT, record.size - number * SEGMENT)
        _divide(parts, first, size, ids, fine, usable, zero)
        count = -(-size // CHUNK)
        if parts.sums is not None:
            sums[first : first + count] = parts.sums
        pieces.append(parts.used.shift(number * SEGMENT))
        segments.append((parts.tree, parts.used_file) if parts.reusable else None)
    if pieces:
        used = Extents.from_arrays(
            np.concatenate([piece.starts for piece in pieces]),
            np.concatenate([piece.stops for piece in pieces]),
        )
    # Zeros stand there, and may be believed by no image that is built upon this one.
    used = used - Extents.of(record.unreadable)
    return ParentDisk(image.snapshot.id, record.size, ids, fine, sums, usable, zero, used, segments)


def _divide(
    parts: SegmentParts,
    first: int,
    size: int,
    ids: NDArray[np.uint8],
    fine: dict[int, NDArray[np.uint8]],
    usable: NDArray[np.bool_],
    zero: NDArray[np.bool_],
) -> None:
    """Tell which blobs of a segment are whole chunks, and which are granules of one."""
    chunk = parts.starts // CHUNK
    lengths = np.minimum(CHUNK, size - np.arange(-(-size // CHUNK)) * CHUNK)
    whole = (parts.starts % CHUNK == 0) & (parts.lengths == lengths[chunk])
    rows = chunk[whole] + first
    ids[rows] = parts.ids[whole]
    zero[rows] = parts.zero[whole]
    usable[rows] = True
    rest = np.flatnonzero(~whole)
    if not len(rest):
        return
    bounds = np.flatnonzero(np.diff(chunk[rest])) + 1
    for group in np.split(rest, bounds):
        number = int(chunk[group[0]])
        offsets = parts.starts[group] - number * CHUNK
        length = int(lengths[number])
        if np.array_equal(offsets, np.arange(0, length, GRANULE)):
            fine[first + number] = parts.ids[group]
            usable[first + number] = True
            zero[first + number] = bool(parts.zero[group].all())


def matching(image: ImageReader, *, host: str, path: str, size: int) -> DiskRecord | None:
    """Return the disk of an image that is likely the same as one to be imaged.

    Likely is enough: whatever is taken over is compared first.
    """
    if image.manifest.host.name != host:
        return None
    for disk in image.manifest.disks:
        if disk.path == path and disk.size == size:
            return disk
    return None
