"""Names and ids that writers and readers of images share."""

from __future__ import annotations

import functools
import hashlib

from freezeframe.core.units import CHUNK

#: The file of a segment that holds its bytes.
DATA = "data"
_ZEROS = bytes(CHUNK)


@functools.lru_cache(maxsize=64)
def zero_id(length: int) -> bytes:
    """Return the blob id of `length` zero bytes, a chunk's at most."""
    return hashlib.sha256(_ZEROS[:length]).digest()


def segment_name(number: int) -> str:
    """Return the folder of a segment: zero-padded, so that a shell lists them in order."""
    return f"{number:05d}"
