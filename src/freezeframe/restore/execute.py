"""Execute a restore plan: blobs into their places, in threads, then the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from freezeframe.block.base import Writer
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.layout.recreate import execute_recreate
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
    zeros = plan.write & blobs.zero_extents()
    data = plan.write - zeros
    numbers = np.flatnonzero(blobs.touching(data) & ~blobs.zero)
    written: list[int] = []

    def make_worker() -> Callable[[tuple[int, int]], None]:
        work = _Worker(plan, image, blobs, target, progress)
        return lambda group: written.append(work(*group))

    run_workers(blobs.groups(numbers), make_worker, threads=threads)
    if sum(written) != data.total:
        raise FreezeframeError(
            f"only {sum(written)} of {data.total} bytes were written to {target.name}",
            hint="this is a mistake of freezeframe: please report it",
        )
    for start, stop in _steps(zeros):
        if not plan.target.blank:
            target.zero(start - plan.start, stop - start)
        progress.advance(stop - start)
    if plan.zero:
        progress.start("zero the rest", plan.zero.total)
        for start, stop in _steps(plan.zero):
            target.zero(start, stop - start)
            progress.advance(stop - start)
    target.flush()


def finish_restore(plan: RestorePlan, path: str, progress: Progress) -> None:
    """Adapt the partition table, when the target, which lies at `path`, has been closed."""
    if plan.recreate is not None:
        execute_recreate(plan.recreate, path, progress)


def _steps(extents: Extents) -> Iterator[tuple[int, int]]:
    for start, stop in extents:
        for at in range(start, stop, _STEP):
            yield at, min(at + _STEP, stop)


class _Worker:
    """Writes one group of blobs after the other."""

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

    def __call__(self, first: int, stop: int) -> int:
        """Write what the plan wants of some blobs; return how many bytes that were."""
        start = int(self._blobs.starts[first])
        data = memoryview(self._image.read_group(self._blobs, first, stop))
        parts = self._plan.write.clip(start, start + len(data))
        shift = -self._plan.start
        for low, high in parts:
            self._target.write_at(low + shift, data[low - start : high - start])
        self._progress.advance(parts.total)
        return parts.total
