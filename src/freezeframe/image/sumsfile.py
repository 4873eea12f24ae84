"""The file `sums` of a segment: a fast sum of each chunk, for the next image to compare.

It belongs to the repository it was made in (its sums are keyed) and is never needed to read
an image: without it, or copied to another repository, the next image hashes every chunk.

Format: 16 bytes for each chunk of the segment, in order; zeros for a chunk of zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.units import CHUNK, SEGMENT
from freezeframe.repo.fingerprint import LENGTH

NAME = "sums"
#: Bytes it may have.
LARGEST = SEGMENT // CHUNK * LENGTH


def decode(data: bytes, chunks: int) -> NDArray[np.uint8] | None:
    """Read the sums of so many chunks: uint8, shape (chunks, 16); None where they do not fit."""
    if len(data) != chunks * LENGTH:
        return None
    return np.frombuffer(data, np.uint8).reshape(-1, LENGTH)
