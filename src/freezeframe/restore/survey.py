"""Look what of an image a target holds already, so that only the rest is written.

A blob is named by the SHA-256 of its bytes: the target's bytes are read and hashed, and where
that is the blob's name nothing is fetched from the repository. Bytes the image does not answer
for are taken as zeros, as they were when it was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.system.workers import run_workers


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found on a target."""

    #: Bytes of the image that the target was compared with, and the chunks they lie in.
    compared: int
    chunks: int
    #: What is not the same, in bytes of the disk: whole blobs, as far as they are in use.
    write: Extents
    #: How many chunks that is.
    differ: int
    #: Bytes of the target that are to be zeros and are not.
    zero: Extents


def survey(
    image: ImageReader,
    blobs: DiskBlobs,
    write: Extents,
    zero: Extents,
    target: Reader,
    start: int,
    progress: Progress,
    *,
    threads: int | None = None,
) -> Survey:
    """Compare a target with what a restore would write, and with what it would make zeros.

    `write` in bytes of the disk, `zero` in bytes of the target, whose byte 0 is byte `start` of
    the disk. Sectors of the target that cannot be read count as different. Raises
    `RepositoryDamaged` where a blob that has to be compared byte by byte cannot be read.
    """
    progress.start("compare with the target", write.total + zero.total)
    differing: list[tuple[int, int]] = []
    dirty: list[tuple[int, int]] = []
    # Zeros of a file's holes are known without looking.
    holes = target.data_extents().complement(target.size)
    wanted = write - (holes.shift(start) & blobs.zero_extents())
    progress.advance(write.total - wanted.total)

    def make_worker() -> Callable[[int], None]:
        work = _Comparing(image, blobs, wanted, target, start)

        def check(number: int) -> None:
            differing.extend(work(number))
            progress.advance(work.parts(number).total)

        return check

    numbers: list[int] = np.flatnonzero(blobs.touching(wanted)).tolist()
    run_workers(numbers, make_worker, threads=threads)

    def look(span: tuple[int, int]) -> None:
        if not _is_zero(_read(target, *span)):
            dirty.append(span)
        progress.advance(span[1] - span[0])

    run_workers(_pieces(zero - holes), lambda: look, threads=threads)
    found = Extents.of(differing)
    return Survey(
        compared=write.total,
        chunks=len(write.units(CHUNK)),
        write=found,
        differ=len(found.units(CHUNK)),
        zero=Extents.of(dirty),
    )


def _pieces(extents: Extents) -> Iterator[tuple[int, int]]:
    for start, stop in extents:
        for at in range(start, stop, CHUNK):
            yield at, min(at + CHUNK, stop)


def _is_zero(data: bytes | bytearray | None) -> bool:
    # As flags: numpy looks at them 16 at a time and stops at the first that is set.
    return data is not None and not np.frombuffer(data, np.bool_).any()


def _read(target: Reader, start: int, stop: int) -> bytes | None:
    try:
        return target.read_at(start, stop - start)
    except UnreadableRange:
        return None


class _Comparing:
    """Compares one blob after the other with the target; one for each thread."""

    def __init__(
        self, image: ImageReader, blobs: DiskBlobs, write: Extents, target: Reader, start: int
    ) -> None:
        self._image = image
        self._blobs = blobs
        self._write = write
        self._target = target
        self._start = start

    def parts(self, number: int) -> Extents:
        """Return what of a blob the restore would write."""
        first = int(self._blobs.starts[number])
        return self._write.clip(first, first + int(self._blobs.lengths[number]))

    def __call__(self, number: int) -> list[tuple[int, int]]:
        """Return what has to be written of a blob: all its bytes in use, or none."""
        parts = self.parts(number)
        held = self._held(number, parts)
        if held is not None and self._is(number, parts, held):
            return []
        return list(parts)

    def _held(self, number: int, parts: Extents) -> bytearray | None:
        """Read what the target has there; zeros where the image does not answer for it."""
        first = int(self._blobs.starts[number])
        held = bytearray(int(self._blobs.lengths[number]))
        view = memoryview(held)
        for low, high in parts:
            try:
                self._target.read_into(low - self._start, view[low - first : high - first])
            except UnreadableRange:
                return None
        return held

    def _is(self, number: int, parts: Extents, held: bytearray) -> bool:
        if self._blobs.zero[number]:
            return _is_zero(held)
        if hashlib.sha256(held).digest() == self._blobs.ids[number].tobytes():
            return True
        if parts.total == len(held):
            return False
        # What was in use when the blob was stored, and freed before the image was made, is in
        # the blob all the same; and a partition's edge, or the target's, may cut through it.
        first = int(self._blobs.starts[number])
        data = self._image.read_group(self._blobs, number, number + 1)
        return all(
            held[low - first : high - first] == data[low - first : high - first]
            for low, high in parts
        )
