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
from freezeframe.layout.base import Role
from freezeframe.repo.fingerprint import LENGTH

#: Told why a parent, or a part of one, cannot be used.
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
    #: What the image answers for, in bytes of the disk.
    used: Extents
    #: What of it could not be read then, and is zeros.
    unreadable: Extents = field(default_factory=Extents.empty)
    #: The folder of each segment and its `used` file; None where they cannot be taken over.
    segments: Sequence[tuple[bytes, bytes] | None] = field(default=())


def parent_disk(image: ImageReader, record: DiskRecord, on_problem: OnProblem) -> ParentDisk:
    """Read what an image has of a disk.

    Of a segment that is damaged nothing is usable, and the first of them is told. Raises
    `FreezeframeError` where not even the segments can be listed.
    """
    chunks = -(-record.size // CHUNK)
    ids = np.zeros((chunks, 32), np.uint8)
    sums = np.zeros((chunks, LENGTH), np.uint8)
    usable = np.zeros(chunks, np.bool_)
    zero = np.zeros(chunks, np.bool_)
    fine: dict[int, NDArray[np.uint8]] = {}
    segments: list[tuple[bytes, bytes] | None] = []
    pieces: list[Extents] = [Extents.empty()]
    problems: list[FreezeframeError] = []
    found = image.segments(record, on_damage=lambda _start, _stop, error: problems.append(error))
    for number, parts in enumerate(found):
        if parts is None:
            segments.append(None)
            continue
        first = number * (SEGMENT // CHUNK)
        size = min(SEGMENT, record.size - number * SEGMENT)
        _divide(parts, first, size, ids, fine, usable, zero)
        count = -(-size // CHUNK)
        if parts.sums is not None:
            sums[first : first + count] = parts.sums
        pieces.append(parts.used.shift(number * SEGMENT))
        segments.append((parts.tree, parts.used_file) if parts.reusable else None)
    for error in problems[:1]:
        on_problem(error)
    return ParentDisk(
        image=image.snapshot.id,
        size=record.size,
        ids=ids,
        fine=fine,
        sums=sums,
        usable=usable,
        zero=zero,
        used=Extents.joined(pieces),
        unreadable=Extents.of(record.unreadable),
        segments=segments,
    )


def _divide(
    parts: SegmentParts,
    first: int,
    size: int,
    ids: NDArray[np.uint8],
    fine: dict[int, NDArray[np.uint8]],
    usable: NDArray[np.bool_],
    zero: NDArray[np.bool_],
) -> None:
    """Tell which blobs of a segment are whole chunks, and which are granules of one.

    A chunk that is made in any other way (none of ours is) does not become usable.
    """
    some = parts.lengths > 0
    starts, blob_lengths = parts.starts[some], parts.lengths[some]
    blobs, zeros = parts.ids[some], parts.zero[some]
    chunk = starts // CHUNK
    lengths = np.minimum(CHUNK, size - np.arange(-(-size // CHUNK)) * CHUNK)
    whole = (starts % CHUNK == 0) & (blob_lengths == lengths[chunk])
    rows = chunk[whole] + first
    ids[rows] = blobs[whole]
    zero[rows] = zeros[whole]
    usable[rows] = True
    rest = np.flatnonzero(~whole)
    if not len(rest):
        return
    bounds = np.flatnonzero(np.diff(chunk[rest])) + 1
    for group in np.split(rest, bounds):
        number = int(chunk[group[0]])
        expected = np.arange(0, int(lengths[number]), GRANULE)
        if np.array_equal(starts[group] - number * CHUNK, expected) and np.array_equal(
            blob_lengths[group], np.minimum(GRANULE, int(lengths[number]) - expected)
        ):
            fine[first + number] = blobs[group]
            usable[first + number] = True
            zero[first + number] = bool(zeros[group].all())


def matching(image: ImageReader, *, host: str, like: DiskRecord) -> DiskRecord | None:
    """Return the disk of an image that is likely the same as one to be imaged.

    Likely is enough: whatever is taken over is compared first. But on another disk that only
    lies in the same place (one of several that take turns, a new one, a loop device) nearly
    all would count as changed, and so be stored by granules for no gain.
    """
    if image.manifest.host.name != host:
        return None
    for disk in image.manifest.disks:
        if _identity(disk) == _identity(like) and (
            disk.serial == like.serial or not (disk.serial and like.serial)
        ):
            return disk
    return None


def _identity(disk: DiskRecord) -> tuple[object, ...]:
    whole = next((region for region in disk.regions if region.role == Role.WHOLE), None)
    return disk.path, disk.size, disk.disk_id, whole and (whole.content, whole.content_uuid)
