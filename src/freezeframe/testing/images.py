"""Images of made-up disks, chunk by chunk, with no device and no filesystem."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, SEGMENT
from freezeframe.image.manifest import DiskRecord, Host, Manifest, Mode
from freezeframe.image.parent import ParentDisk
from freezeframe.image.reader import ImageReader
from freezeframe.image.writer import ImageWriter
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.repository import Repository
from freezeframe.repo.writer import PACK_SIZE, BlobWriter, WriterStats
from freezeframe.system.workers import run_workers


@dataclass
class SparseDisk:
    """A disk of `size` bytes: some chunks, by number, and zeros everywhere else."""

    size: int
    chunks: dict[int, bytes] = field(default_factory=dict)

    def length(self, number: int) -> int:
        """Bytes of a chunk; the last one may be short."""
        return min(CHUNK, self.size - number * CHUNK)

    def nonzero(self) -> dict[int, bytes]:
        """Return the chunks that do not hold zeros only."""
        return {number: chunk for number, chunk in self.chunks.items() if any(chunk)}


def record_of(size: int) -> DiskRecord:
    """Describe a disk of which nothing is known."""
    return DiskRecord(
        name="disk",
        path="/dev/disk",
        size=size,
        sector=512,
        table="none",
        segment=SEGMENT,
        used=size,
        regions=(),
    )


def save_image(
    repository: Repository,
    disk: SparseDisk,
    parent: ParentDisk | None = None,
    *,
    taken_over: Collection[int] = (),
    fine: Collection[int] = (),
    rewritten: Collection[int] = (),
    used: Extents | None = None,
    granular: bool = True,
    threads: int = 1,
    pack_size: int = PACK_SIZE,
) -> tuple[ImageReader, WriterStats]:
    """Make an image and open it as another run of the program would.

    Chunks `taken_over` are not even looked at; those in `fine` go by granules in any case;
    of those `rewritten` every byte was written since the parent.
    """
    with BlobWriter(repository, _index(repository), pack_size=pack_size) as writer:
        image = ImageWriter(repository, writer, [disk.size], [parent], granular=granular)
        image.take_over(0, np.array(sorted(taken_over), np.int64))

        def make_worker() -> Callable[[int], None]:
            store = image.chunk_store()

            def put(number: int) -> None:
                chunk = memoryview(disk.chunks[number])
                if number in fine:
                    store.put_fine(0, number, chunk)
                else:
                    store.put(0, number, chunk, rewritten=number in rewritten)

            return put

        todo = [number for number in sorted(disk.chunks) if number not in taken_over]
        run_workers(todo, make_worker, threads=threads)
        manifest = Manifest(
            format=1,
            program="test",
            created=dt.datetime.now(dt.UTC),
            mode=Mode.OFFLINE,
            host=Host(name="here"),
            disks=(record_of(disk.size),),
        )
        held = Extents.single(0, disk.size) if used is None else used
        snapshot, _ = image.commit(manifest, [held], {"disk": {}})
    return ImageReader(repository, _index(repository), snapshot), writer.stats


def _index(repository: Repository) -> Index:
    """Load the index as a backup does: without packs that are gone."""
    index = repository.load_index()
    index.drop_incomplete_packs(repository.pack_sizes())
    return index


def read_image(image: ImageReader) -> dict[int, bytes]:
    """Return every chunk of an image's only disk that does not hold zeros only."""
    record = image.manifest.disks[0]
    blobs = image.disk_blobs(record)
    stops = blobs.starts + blobs.lengths
    if not np.array_equal(blobs.starts, np.append(0, stops[:-1])) or stops[-1] != record.size:
        raise AssertionError("the blobs of the image leave gaps, or overlap")
    found: dict[int, bytearray] = {}
    for number in np.flatnonzero(~blobs.zero).tolist():
        start = int(blobs.starts[number])
        data = image.blobs.read(BlobKind.DATA, blobs.ids[number].tobytes())
        for at in range(start // CHUNK * CHUNK, start + len(data), CHUNK):
            chunk = found.setdefault(at // CHUNK, bytearray(min(CHUNK, record.size - at)))
            low, high = max(at, start), min(at + CHUNK, start + len(data))
            chunk[low - at : high - at] = data[low - start : high - start]
    return {number: bytes(chunk) for number, chunk in found.items() if any(chunk)}


def divisions(image: ImageReader) -> Mapping[int, list[int]]:
    """Return the lengths of the blobs of each chunk that is stored as several."""
    blobs = image.disk_blobs(image.manifest.disks[0])
    found: dict[int, list[int]] = {}
    short = np.flatnonzero(np.diff(blobs.starts // CHUNK, append=-1) == 0)
    for chunk in np.unique(blobs.starts[short] // CHUNK).tolist():
        found[chunk] = blobs.lengths[blobs.starts // CHUNK == chunk].tolist()
    return found
