"""Blobs of an image into their places on a target, in threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from freezeframe.block.base import Writer
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.system.workers import run_workers


def write_blobs(
    data: Extents,
    start: int,
    image: ImageReader,
    blobs: DiskBlobs,
    target: Writer,
    progress: Progress,
    *,
    threads: int | None = None,
) -> None:
    """Write what of a disk is in `data`, and in no blob of zeros, to a target.

    Byte 0 of the target is byte `start` of the disk. Raises `RepositoryDamaged`.
    """
    numbers = np.flatnonzero(blobs.touching(data) & ~blobs.zero)
    written: list[int] = []

    def make_worker() -> Callable[[tuple[int, int]], None]:
        work = _Worker(data, start, image, blobs, target, progress)
        return lambda group: written.append(work(*group))

    run_workers(blobs.groups(numbers), make_worker, threads=threads)
    if sum(written) != data.total:
        raise FreezeframeError(
            f"only {sum(written)} of {data.total} bytes were written to {target.name}",
            hint="this is a mistake of freezeframe: please report it",
        )


class _Worker:
    """Writes one group of blobs after the other."""

    def __init__(
        self,
        data: Extents,
        start: int,
        image: ImageReader,
        blobs: DiskBlobs,
        target: Writer,
        progress: Progress,
    ) -> None:
        self._data = data
        self._start = start
        self._image = image
        self._blobs = blobs
        self._target = target
        self._progress = progress

    def __call__(self, first: int, stop: int) -> int:
        """Write what is wanted of some blobs; return how many bytes that were."""
        start = int(self._blobs.starts[first])
        data = memoryview(self._image.read_group(self._blobs, first, stop))
        parts = self._data.clip(start, start + len(data))
        shift = -self._start
        for low, high in parts:
            self._target.write_at(low + shift, data[low - start : high - start])
        self._progress.advance(parts.total)
        return parts.total
