"""From used maps to the chunks that must be read, without a Python object a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """One chunk to read: which disk, which chunk, and which of its bytes count."""

    disk: int
    number: int
    #: Bytes of the chunk; CHUNK except for the last one of a disk.
    length: int
    #: [start, stop) of what counts, from the start of the chunk, ascending; the rest is zeros.
    parts: tuple[tuple[int, int], ...]


def chunk_jobs(disk: int, to_read: Extents, size: int) -> Iterator[ChunkJob]:
    """Yield a job for every chunk that holds any of `to_read`, in order of offset."""
    numbers = to_read.units(CHUNK)
    first = np.searchsorted(to_read.stops, numbers * CHUNK, "right").tolist()
    last = np.searchsorted(to_read.starts, (numbers + 1) * CHUNK, "left").tolist()
    for number, low, high in zip(numbers.tolist(), first, last, strict=True):
        base = number * CHUNK
        length = min(CHUNK, size - base)
        starts = np.maximum(to_read.starts[low:high] - base, 0).tolist()
        stops = np.minimum(to_read.stops[low:high] - base, length).tolist()
        yield ChunkJob(disk, number, length, tuple(zip(starts, stops, strict=True)))
