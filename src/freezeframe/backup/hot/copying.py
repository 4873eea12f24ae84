"""Copying ahead: what is needed of disks in use, into the repository, in threads."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from freezeframe.backup.chunks import ChunkJob, chunk_jobs
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.pace import Pace
from freezeframe.backup.pipeline import fill_chunk
from freezeframe.block.device import aligned_buffer
from freezeframe.block.salvage import read_salvaging
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK, GRANULE
from freezeframe.image.writer import ChunkStore, ImageWriter
from freezeframe.system.workers import run_workers

_PER_CHUNK = CHUNK // GRANULE
#: Workers give way to everybody else (nice(2)).
_NICE = 10

#: Gives the bytes of a data blob by its id.
Content = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class _Job:
    """A chunk to read whole, as far as it is wanted, or by some of its granules."""

    chunk: ChunkJob
    #: Numbers within the chunk; empty: the chunk.
    granules: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class _Part:
    """What one pass reads of a disk."""

    disk: HotDisk
    whole: Extents
    granules: Extents


def copy_needed(
    disks: Sequence[HotDisk],
    image: ImageWriter,
    progress: Progress,
    pace: Pace,
    *,
    content: Content,
    threads: int | None = None,
) -> int:
    """Store everything the disks still need; return how many bytes were read.

    The marks that were taken are accounted for first; what is written meanwhile will have
    marks of its own. A chunk that this image or its parent has by granules is read by
    granules. Raises what reading or storing raises.
    """
    store = image.chunk_store()
    parts = [_divide(disk, store) for disk in disks]
    total = sum(part.whole.total + part.granules.total for part in parts)
    progress.start("copy", total)
    done: list[int] = []
    workers: list[_Worker] = []

    def make_worker() -> Callable[[_Job], None]:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        worker = _Worker(disks, image.chunk_store(), progress, pace, content)
        workers.append(worker)
        return worker

    def jobs() -> Iterator[_Job]:
        for part in parts:
            for job in _jobs(part):
                done.append(1)
                yield job

    run_workers(jobs(), make_worker, threads=threads)
    if sum(worker.stored for worker in workers) != len(done):
        raise FreezeframeError(
            "not every chunk was stored; no image was made",
            hint="this is a mistake of freezeframe: please report it",
        )
    for part in parts:
        part.disk.stored(part.whole)
        part.disk.covered = part.disk.covered | part.granules
        part.disk.copied[part.whole.units(CHUNK)] = True
        part.disk.bytes_read += part.whole.total + part.granules.total
    return total


def _divide(disk: HotDisk, store: ChunkStore) -> _Part:
    """Tell which chunks are read whole, and of which some granules are enough."""
    disk.account()
    need = disk.needed()
    numbers = need.units(CHUNK)
    fine = np.array([store.is_fine(disk.number, n) for n in numbers.tolist()], np.bool_)
    by_granule = Extents.from_blocks(numbers[fine], CHUNK)
    whole = Extents.from_blocks(numbers[~fine], CHUNK)
    granules = (need & by_granule).aligned(GRANULE).clip(0, disk.size)
    return _Part(disk, disk.want & whole, granules)


def _jobs(part: _Part) -> Iterator[_Job]:
    number, size = part.disk.number, part.disk.size
    for job in chunk_jobs(number, part.whole, size):
        yield _Job(job)
    for job in chunk_jobs(number, part.granules, size):
        inside = Extents.of(job.parts).units(GRANULE)
        yield _Job(job, tuple(inside.tolist()))


class _Worker:
    """One thread's buffer and its way into the repository."""

    def __init__(
        self,
        disks: Sequence[HotDisk],
        store: ChunkStore,
        progress: Progress,
        pace: Pace,
        content: Content,
    ) -> None:
        self._disks = {disk.number: disk for disk in disks}
        self._store = store
        self._progress = progress
        self._pace = pace
        self._content = content
        self._buffer = aligned_buffer(CHUNK)
        #: Jobs done.
        self.stored = 0

    def __call__(self, job: _Job) -> None:
        begun = time.monotonic()
        disk = self._disks[job.chunk.disk]
        amount = sum(stop - start for start, stop in job.chunk.parts)
        if job.granules:
            self._granules(disk, job)
        else:
            self._chunk(disk, job.chunk)
        self.stored += 1
        self._progress.advance(amount)
        self._pace.worked(time.monotonic() - begun, amount)

    def _chunk(self, disk: HotDisk, job: ChunkJob) -> None:
        chunk = self._buffer[: job.length]
        bad = fill_chunk(disk.reader, job, chunk)
        if bad:
            disk.add_unreadable(bad)
        if disk.copied[job.number]:
            # Written to while this image is made: a place that is hot.
            self._store.put_fine(job.disk, job.number, chunk)
        else:
            rewritten = bool(disk.rewritten[job.number])
            self._store.put(job.disk, job.number, chunk, rewritten=rewritten)

    def _granules(self, disk: HotDisk, job: _Job) -> None:
        base = job.chunk.number * CHUNK
        found: dict[int, memoryview] = {}
        for part in job.granules:
            start = part * GRANULE
            stop = min(start + GRANULE, job.chunk.length)
            view = self._buffer[start:stop]
            bad = read_salvaging(disk.reader, base + start, view)
            if bad:
                disk.add_unreadable(bad)
            found[part] = view
        self._store.patch(job.chunk.disk, job.chunk.number, found, self._content)


def store_overlays(
    disks: Sequence[HotDisk],
    image: ImageWriter,
    progress: Progress,
    *,
    content: Content,
    threads: int | None = None,
) -> int:
    """Put what is in memory into its chunks, and free the memory; return how many bytes.

    Everything stored before must be readable by `content`: flush the writer first.
    """
    jobs = [
        (disk.number, number, granules)
        for disk in disks
        for number, granules in disk.overlay_by_chunk().items()
    ]
    total = sum(disk.overlay.extents().total for disk in disks)
    progress.start("store", total)

    def make_worker() -> Callable[[tuple[int, int, dict[int, memoryview]]], None]:
        store = image.chunk_store()

        def work(job: tuple[int, int, dict[int, memoryview]]) -> None:
            number, chunk, granules = job
            store.patch(number, chunk, granules, content)
            progress.advance(sum(map(len, granules.values())))

        return work

    run_workers(jobs, make_worker, threads=threads)
    for disk in disks:
        disk.copied[disk.overlay.granules() // _PER_CHUNK] = True
        disk.overlay_stored()
    return total
