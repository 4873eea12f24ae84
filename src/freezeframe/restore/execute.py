"""Execute a restore plan: blobs into their places, in threads, then the table."""

from __future__ import annotations

from collections.abc import Iterator

from freezeframe.block.base import Writer
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.layout.recreate import execute_recreate
from freezeframe.restore.plan import RestorePlan
from freezeframe.restore.writing import write_blobs

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
    write_blobs(data, plan.start, image, blobs, target, progress, threads=threads)
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
