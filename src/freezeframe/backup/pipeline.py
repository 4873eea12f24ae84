"""Read the chunks of a plan and store them, in threads.

Each worker takes the next chunk, reads it, and stores it, so that what is in memory is one
chunk a worker (and the packs being filled). While one waits for the disk the others hash
and compress. The order in which chunks finish does not matter to the image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from freezeframe.backup.chunks import ChunkJob, chunk_jobs
from freezeframe.backup.plan import DiskPlan
from freezeframe.block.base import Reader
from freezeframe.block.device import aligned_buffer
from freezeframe.block.salvage import read_salvaging
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK
from freezeframe.image.writer import ChunkStore, ImageWriter
from freezeframe.system.workers import run_workers

#: Ranges this close together are read in one go: a seek or a call costs more than the bytes.
_BRIDGE = 64 * 1024
_ZEROS = bytes(CHUNK)


class Unreadable:
    """What could not be read, disk by disk; filled by the workers."""

    def __init__(self, disks: int) -> None:
        self._lock = threading.Lock()
        self._found = [Extents.empty()] * disks

    def add(self, disk: int, bad: Extents) -> None:
        """Note bytes of a disk."""
        with self._lock:
            self._found[disk] = self._found[disk] | bad

    def of(self, disk: int) -> Extents:
        """Return what is missing of a disk, in bytes of that disk."""
        return self._found[disk]

    @property
    def total(self) -> int:
        """Bytes missing of all disks."""
        return sum(found.total for found in self._found)


def store_chunks(
    plans: Sequence[DiskPlan],
    image: ImageWriter,
    progress: Progress,
    *,
    threads: int | None = None,
    first: int = 0,
) -> Unreadable:
    """Read and store everything the plans say must be read.

    `first` is the number that the first of them has in the image. Sectors that cannot be read
    are stored as zeros and returned. Raises what reading or storing raises, and
    `FreezeframeError` where a chunk was left out: the image is then not to be committed.
    """
    jobs = chain.from_iterable(
        chunk_jobs(number, plan.to_read, plan.layout.size) for number, plan in enumerate(plans)
    )
    unreadable = Unreadable(len(plans))

    workers: list[_Worker] = []

    def make_worker() -> Callable[[ChunkJob], None]:
        worker = _Worker(plans, image.chunk_store(), unreadable, progress, first)
        workers.append(worker)
        return worker

    run_workers(jobs, make_worker, threads=threads)
    stored, wanted = sum(worker.stored for worker in workers), _planned(plans)
    if stored != wanted:
        # A chunk that nobody stored would be zeros in the image, and nobody would know.
        raise FreezeframeError(
            f"only {stored} of {wanted} chunks were stored; no image was made",
            hint="this is a mistake of freezeframe: please report it",
        )
    return unreadable


def _planned(plans: Sequence[DiskPlan]) -> int:
    return sum(len(plan.to_read.units(CHUNK)) for plan in plans)


class _Worker:
    """One thread's buffer and its way into the repository."""

    def __init__(
        self,
        plans: Sequence[DiskPlan],
        store: ChunkStore,
        unreadable: Unreadable,
        progress: Progress,
        first: int,
    ) -> None:
        self._first = first
        self._readers = [plan.reader for plan in plans]
        self._store = store
        self._unreadable = unreadable
        self._progress = progress
        self._buffer = aligned_buffer(CHUNK)
        #: Chunks done.
        self.stored = 0

    def __call__(self, job: ChunkJob) -> None:
        chunk = self._buffer[: job.length]
        if bad := fill_chunk(self._readers[job.disk], job, chunk):
            self._unreadable.add(job.disk, bad)
        self._store.put(self._first + job.disk, job.number, chunk)
        self.stored += 1
        self._progress.advance(sum(stop - start for start, stop in job.parts))


def fill_chunk(reader: Reader, job: ChunkJob, chunk: memoryview) -> Extents:
    """Read what counts of a chunk into `chunk`, zeros elsewhere; return what is unreadable.

    In bytes of the disk; `chunk` is as long as the job says.
    """
    base = job.number * CHUNK
    filled = 0
    missing = Extents.empty()
    for start, stop, gaps in _runs(job.parts):
        chunk[filled:start] = _ZEROS[: start - filled]
        if bad := read_salvaging(reader, base + start, chunk[start:stop]):
            missing = missing | bad
        for gap_start, gap_stop in gaps:
            chunk[gap_start:gap_stop] = _ZEROS[: gap_stop - gap_start]
        filled = stop
    chunk[filled:] = _ZEROS[: job.length - filled]
    return missing


def _runs(
    parts: Sequence[tuple[int, int]],
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Join parts that lie close together: (start, stop, the gaps inside, to be zeroed)."""
    start, stop = parts[0]
    gaps: list[tuple[int, int]] = []
    for next_start, next_stop in parts[1:]:
        if next_start - stop <= _BRIDGE:
            gaps.append((stop, next_start))
        else:
            yield start, stop, gaps
            start, gaps = next_start, []
        stop = next_stop
    yield start, stop, gaps
