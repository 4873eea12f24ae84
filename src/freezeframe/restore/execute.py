"""Execute a restore plan: blobs into their places, in threads, then the table."""

from __future__ import annotations

from collections.abc import Callable

from freezeframe.block.base import Writer
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.layout.recreate import execute_recreate
from freezeframe.repo.pack import BlobKind
from freezeframe.restore.plan import RestorePlan
from freezeframe.system.workers import run_workers

#: Zeroing and discarding go in steps of this many bytes, so that Ctrl-C is heard.
_STEP = 256 * MIB


def execute_restore(
    plan: RestorePlan,
    image: ImageReader,
    blobs: DiskBlobs,
    target: Writer,
    progress: Progress,
    *,
    threads: int | None = None,
) -> None:
    """Write the plan's data to an open target and make it durable.

    Every blob is checked against its hash before it is written. Raises `RepositoryDamaged`
    where one is not what it must be: the target is then incomplete, and says so nowhere.
    """
    for start, stop in _steps(plan.discard):
        if not target.discard(start, stop - start):
            break
    progress.start("restore", plan.write.total)
    inside = plan.write
    numbers = (
        number
        for number in range(len(blobs.starts))
        if inside.touches(
            int(blobs.starts[number]), int(blobs.starts[number] + blobs.lengths[number])
        )
    )

    def make_worker() -> Callable[[int], None]:
        return _Worker(plan, image, blobs, target, progress)

    run_workers(numbers, make_worker, threads=threads)
    if plan.zero:
        progress.start("zero the rest", plan.zero.total)
        for start, stop in _steps(plan.zero):
            target.zero(start, stop - start)
            progress.advance(stop - start)
    target.flush()


def finish_restore(plan: RestorePlan, progress: Progress) -> None:
    """Adapt the partition table, when the target has been closed."""
    if plan.recreate is not None:
        execute_recreate(plan.recreate, plan.target.path, progress)


def _steps(extents: Extents) -> list[tuple[int, int]]:
    return [
        (at, min(at + _STEP, stop)) for start, stop in extents for at in range(start, stop, _STEP)
    ]


class _Worker:
    """Writes one blob after the other."""

    def __init__(
        self,
        plan: RestorePlan,
        image: ImageReader,
        blobs: DiskBlobs,
        target: Writer,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._image = image
        self._blobs = blobs
        self._target = target
        self._progress = progress

    def __call__(self, number: int) -> None:
        start = int(self._blobs.starts[number])
        stop = start + int(self._blobs.lengths[number])
        parts = self._plan.write.clip(start, stop)
        shift = -self._plan.start
        if self._blobs.zero[number]:
            if not self._plan.target.blank:
                for low, high in parts:
                    self._target.zero(low + shift, high - low)
        else:
            blob_id = self._blobs.ids[number].tobytes()
            data = memoryview(self._image.blobs.read(BlobKind.DATA, blob_id))
            for low, high in parts:
                self._target.write_at(low + shift, data[low - start : high - start])
        self._progress.advance(parts.total)
