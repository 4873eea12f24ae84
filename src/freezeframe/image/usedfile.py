"""The file `used` of a segment: which of its bytes the image answers for.

A zero chunk of `data` may be a chunk of zeros that is in use (a restore must write zeros
there) or a chunk nobody uses (a restore may leave it): only the used map tells. It stands
beside the data, segment by segment, so that an unchanged segment keeps its tree.

Format: uint32 little-endian pairs (start, stop) in sectors of 512 bytes from the start of
the segment, ascending, not touching.
"""

from __future__ import annotations

import numpy as np

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import SECTOR, SEGMENT

NAME = "used"
#: Bytes it may have: every other sector of a segment used.
LARGEST = SEGMENT // (2 * SECTOR) * 8


def encode(used: Extents, start: int, length: int) -> bytes:
    """Write the part of a disk's used map that lies in the segment [start, start + length).

    Grown outward to sectors of 512 bytes: a false positive costs time only.
    """
    inside = used.clip(start, start + length).shift(-start).aligned(SECTOR)
    pairs = np.empty((len(inside), 2), "<u4")
    pairs[:, 0] = inside.starts // SECTOR
    pairs[:, 1] = inside.stops // SECTOR
    return pairs.tobytes()


def decode(data: bytes, start: int, length: int) -> Extents:
    """Read it back as extents of the disk, in bytes.

    Raises `NotUnderstood` where the file is not of that form.
    """
    if len(data) % 8:
        raise NotUnderstood("a used map that is not made of pairs")
    pairs = np.frombuffer(data, "<u4").reshape(-1, 2).astype(np.int64) * SECTOR
    found = Extents.from_arrays(pairs[:, 0], np.minimum(pairs[:, 1], length))
    if len(found) != len(pairs):
        raise NotUnderstood("a used map whose ranges are not in order")
    return found.shift(start)
