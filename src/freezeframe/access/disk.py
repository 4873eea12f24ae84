"""A disk of an image as a reader: bytes on demand, nothing unpacked."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from freezeframe.access.cache import BlobCache
from freezeframe.access.streams import Streams
from freezeframe.block.base import verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, MIB, SEGMENT
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import ImageReader, SegmentParts, grouped
from freezeframe.repo.fingerprint import Fingerprinter
from freezeframe.repo.reader import Proof

#: Segments whose lists of blobs are kept: 50 KB each, 800 KB where all its chunks are fine.
_SEGMENTS = 128
#: Read ahead of a sequential reader, at most; and never more than a quarter of the cache.
_FURTHEST = 8 * MIB
_ZEROS = memoryview(bytes(CHUNK))


class ImageDisk(Closing):
    """One disk of an image, as a `block.base.Reader`.

    Lists of blobs are read by segment, when somebody reads there; blobs when somebody wants
    their bytes, and a little before that where the reading is sequential. Zeros are never
    read. What is damaged raises `UnreadableRange` for reads of just those bytes, which names
    the chunk, the blob and the pack; what lies beside it reads on.

    `cache` may be shared with other disks of the repository, and stays open then; without one
    the disk has its own, whose `threads` read ahead.
    """

    def __init__(
        self,
        reader: ImageReader,
        record: DiskRecord,
        *,
        cache: BlobCache | None = None,
        threads: int | None = None,
    ) -> None:
        self.reader = reader
        self.record = record
        self.name = f"{reader.snapshot.short_id}:{record.name}"
        self.size = record.size
        self.sector = record.sector
        self._cache = cache or BlobCache(threads=threads)
        self._own_cache = cache is None
        self._streams = Streams(min(_FURTHEST, self._cache.limit // 4))
        self._lock = threading.Lock()
        self._segments: OrderedDict[int, SegmentParts] = OrderedDict()
        self._fingerprinter = Fingerprinter(reader.repository.key)
        self._data: Extents | None = None

    # -- reading ------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`; raises `UnreadableRange`."""
        verify_inside(self.name, self.size, offset, length)
        self._look_ahead(offset, length)
        return b"".join(self._parts(offset, length))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; raises `UnreadableRange`."""
        verify_inside(self.name, self.size, offset, len(buffer))
        self._look_ahead(offset, len(buffer))
        done = 0
        for part in self._parts(offset, len(buffer)):
            buffer[done : done + len(part)] = part
            done += len(part)

    def _parts(self, offset: int, length: int) -> Iterator[memoryview]:
        stop = offset + length
        while offset < stop:
            segment = self._segment(offset)
            end = min(stop, (offset // SEGMENT + 1) * SEGMENT)
            base = offset // SEGMENT * SEGMENT
            number = int(np.searchsorted(segment.starts, offset - base, "right")) - 1
            while offset < end:
                start, size = base + int(segment.starts[number]), int(segment.lengths[number])
                upto = min(end, start + size)
                if segment.zero[number]:
                    yield from _zeros(upto - offset)
                else:
                    proof = self._proof(segment, number)
                    blob = self._blob(segment.ids[number].tobytes(), start, size, proof)
                    yield blob[offset - start : upto - start]
                offset = upto
                number += 1

    def _blob(self, blob_id: bytes, start: int, length: int, proof: Proof | None) -> memoryview:
        try:
            return memoryview(self._cache.read(self.reader.blobs, blob_id, proof))
        except FreezeframeError as error:
            raise self._unreadable(start, length, error) from error

    def _proof(self, segment: SegmentParts, number: int) -> Proof | None:
        """Return what knows the bytes of a blob that is a whole chunk; None where nothing does."""
        start, length = int(segment.starts[number]), int(segment.lengths[number])
        if segment.sums is None or start % CHUNK or length != min(CHUNK, segment.size - start):
            return None
        known, make = segment.sums[start // CHUNK].tobytes(), self._fingerprinter.sum
        return lambda plain: make(plain) == known

    def _segment(self, offset: int) -> SegmentParts:
        number = offset // SEGMENT
        with self._lock:
            found = self._segments.get(number)
            if found is not None:
                self._segments.move_to_end(number)
                return found
        try:
            found = self.reader.segment_parts(self.record, number)
        except FreezeframeError as error:
            base = number * SEGMENT
            raise self._unreadable(base, min(SEGMENT, self.size - base), error) from error
        with self._lock:
            self._segments[number] = found
            while len(self._segments) > _SEGMENTS:
                self._segments.popitem(last=False)
        return found

    def _unreadable(self, start: int, length: int, error: FreezeframeError) -> UnreadableRange:
        first, last = start // CHUNK, (start + length - 1) // CHUNK
        chunks = f"chunk {first}" if first == last else f"chunks {first} to {last}"
        return UnreadableRange(self.name, start, length, f"{chunks}: {error.message}")

    # -- ahead --------------------------------------------------------------------------

    def _look_ahead(self, offset: int, length: int) -> None:
        start, stop = self._streams.note(offset, length)
        stop = min(stop, self.size)
        while start < stop:
            end = min(stop, (start // SEGMENT + 1) * SEGMENT)
            try:
                segment = self._segment(start)
            except FreezeframeError:
                return  # told when somebody wants it
            base = start // SEGMENT * SEGMENT
            first = int(np.searchsorted(segment.starts, start - base, "right")) - 1
            last = int(np.searchsorted(segment.starts, end - base, "left"))
            numbers = np.arange(first, last)[~segment.zero[first:last]]
            for low, high in grouped(segment.starts, numbers):
                ids = (row.tobytes() for row in segment.ids[low:high])
                self._cache.ahead(self.reader.blobs, ids, self._proof(segment, low))
            start = end

    # -- the rest of a reader -----------------------------------------------------------

    def data_extents(self) -> Extents:
        """Return what may hold something but zeros: damaged segments, too.

        Reads the lists of all segments, the first time.
        """
        if self._data is None:
            damaged: list[tuple[int, int]] = []
            blobs = self.reader.disk_blobs(
                self.record, on_damage=lambda start, stop, _: damaged.append((start, stop))
            )
            self._data = blobs.data_extents() | Extents.of(damaged)
        return self._data

    def close(self) -> None:
        """End its threads; a cache that was given stays open."""
        if self._own_cache:
            self._cache.close()


def _zeros(length: int) -> Iterator[memoryview]:
    while length > 0:
        part = _ZEROS[: min(length, CHUNK)]
        yield part
        length -= len(part)
