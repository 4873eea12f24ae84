"""A disk in use that is simulated: a toy filesystem, a writer that never asks, marks, a freeze.

The filesystem keeps one bit a block in a bitmap at the beginning of its disk; the writer acts
whenever somebody reads the disk, also in the middle of a read. So the real engine runs against
the worst timing there is, again and again, without a kernel and without root.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from freezeframe.backup.hot.disk import HotDisk
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError, SourceError, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE, KIB
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.image.reader import ImageReader
from freezeframe.repo.pack import BlobKind
from freezeframe.shadow.filesystems import MountedFilesystem
from freezeframe.shadow.freezer import FreezeTime, Window

BLOCK = 4 * KIB
#: Where the bitmap lies, in blocks: more than one granule of it, each block for a few bits.
BITMAP_BLOCKS = 24
_MAGIC = b"TOYFS\0"


class World(Closing):
    """A disk of `size` bytes, what is in use on it, and who writes to it."""

    name = "toy"
    sector = 512

    def __init__(self, size: int, seed: int, *, busy: float = 0.05) -> None:
        """Make it; `busy` is how likely the writer acts before, within or after a read."""
        self.size = size
        self.data = np.zeros(size, np.uint8)
        #: Blocks in use, as the filesystem knows it in memory.
        self.bits = np.zeros(-(-size // BLOCK), np.bool_)
        self.bits[:BITMAP_BLOCKS] = True
        #: Granules written since the last harvest.
        self.marks = np.zeros(-(-size // GRANULE), np.bool_)
        #: Granules harvested since the last image that counts.
        self.pending = np.zeros(len(self.marks), np.bool_)
        self.frozen = False
        self.busy = busy
        #: How likely the kernel tells nobody of a write, and how often it was so.
        self.deaf = 0.0
        self.untold = 0
        #: Sectors that cannot be read.
        self.bad = Extents.empty()
        self.random = random.Random(seed)
        self._count = 0
        #: The bitmap as it lies on the disk.
        self._packed = np.zeros(-(-len(self.bits) // 8), np.uint8)
        for _ in range(80):
            self.act()
        self.sync()
        # Tracked from now on.
        self.marks[:] = False

    # -- the writer -----------------------------------------------------------------------

    def write(self, start: int, length: int, *, zeros: bool = False) -> None:
        """Write something nobody has written before; then it is marked."""
        assert not self.frozen
        self._count += 1
        stop = min(start + length, self.size)
        stamp = np.frombuffer(self._count.to_bytes(4, "little"), np.uint8)
        self.data[start:stop] = 0 if zeros else np.resize(stamp, stop - start)
        self._mark(start // GRANULE, (stop - 1) // GRANULE + 1)

    def _mark(self, first: int, stop: int) -> None:
        if self.deaf and self.random.random() < self.deaf:
            self.untold += 1
        else:
            self.marks[first:stop] = True

    def sync(self) -> None:
        """Put the bitmap on the disk."""
        packed = np.packbits(self.bits)
        if np.array_equal(packed, self._packed):
            return
        per_block = -(-len(packed) // (BITMAP_BLOCKS - 1))
        self.data[: len(_MAGIC)] = np.frombuffer(_MAGIC, np.uint8)
        for number in np.unique(np.flatnonzero(packed != self._packed) // per_block).tolist():
            piece = packed[number * per_block : (number + 1) * per_block]
            start = (number + 1) * BLOCK
            self.data[start : start + len(piece)] = piece
            self._mark(start // GRANULE, start // GRANULE + 1)
        self._packed = packed

    def act(self) -> None:
        """Do one thing a filesystem does."""
        dice = self.random
        first = dice.randrange(BITMAP_BLOCKS, len(self.bits))
        count = dice.choice([1, 1, 1, 2, 5, 40])
        span = slice(first, min(first + count, len(self.bits)))
        what = dice.random()
        if what < 0.35:
            # New data in new places.
            self.bits[span] = True
            self.write(first * BLOCK, count * BLOCK)
        elif what < 0.65:
            used = np.flatnonzero(self.bits[BITMAP_BLOCKS:]) + BITMAP_BLOCKS
            if len(used):
                self.write(int(dice.choice(used)) * BLOCK, BLOCK, zeros=what < 0.4)
        elif what < 0.75:
            # Given out, and not written: what was there before counts.
            self.bits[span] = True
        elif what < 0.95:
            self.bits[span] = False
        else:
            # Past the filesystem, or lately freed.
            self.write(first * BLOCK, count * BLOCK)
        if dice.random() < 0.3:
            self.sync()

    def _maybe(self) -> None:
        while not self.frozen and self.random.random() < self.busy:
            self.act()

    def used(self) -> Extents:
        """Return what is in use, in bytes."""
        return Extents.from_bits(self.bits, BLOCK).clip(0, self.size)

    # -- a reader -------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read; whatever is written meanwhile."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read the one half, let the writer act, then read the other."""
        length = len(buffer)
        if offset < 0 or offset + length > self.size:
            raise SourceError(f"{length} bytes at {offset} pass the end")
        self._maybe()
        if self.bad.touches(offset, offset + length):
            raise UnreadableRange(self.name, offset, length, "Input/output error")
        middle = length // 2
        buffer[:middle] = self.data[offset : offset + middle].tobytes()
        self._maybe()
        buffer[middle:] = self.data[offset + middle : offset + length].tobytes()
        self._maybe()

    def data_extents(self) -> Extents:
        """Return everything."""
        return Extents.single(0, self.size)

    def close(self) -> None:
        """Do nothing."""

    # -- a tracker ------------------------------------------------------------------------

    def harvest(self) -> NDArray[np.int64]:
        """Take the marks."""
        found = np.flatnonzero(self.marks).astype(np.int64)
        self.pending |= self.marks
        self.marks[:] = False
        return found

    def settle(self) -> None:
        """Take note that an image counts."""
        self.pending[:] = False


def toy_map(
    reader: RegionReader, peers: Peers, *, state: State = State.AT_REST, volumes: object = None
) -> UsedMap:
    """Return the used map of the toy filesystem, in place of `fs.detect.used_map`.

    Like the real ones: what cannot be read makes a map that is not understood, and no error.
    """
    del peers, volumes
    try:
        # In pieces, as parsers do.
        count = -(-reader.size // BLOCK)
        packed_size = -(-count // 8)
        per_block = -(-packed_size // (BITMAP_BLOCKS - 1))
        packed = b"".join(
            reader.read_at((number + 1) * BLOCK, per_block) for number in range(BITMAP_BLOCKS - 1)
        )
    except FreezeframeError as error:
        everything = Extents.single(0, reader.size)
        return UsedMap("toy", everything, False, (error.message,), state=state)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=count).view(np.bool_)
    used = Extents.from_bits(bits, BLOCK).clip(0, reader.size)
    return UsedMap("toy", used, True, state=state)


@dataclass
class ToyTracked:
    """Stands for `backup.hot.tracked.Tracked`, of several worlds."""

    worlds: Sequence[World]
    disks: Sequence[HotDisk]
    reasons: tuple[str, ...] = ()
    #: What was untold when counting began.
    counted: int = 0

    mode = "requests"
    bio_based = False
    is_counted = True

    @property
    def undrained(self) -> list[NDArray[np.int64]]:
        """Nothing: writes are marked when they are done."""
        return []

    def drained(self) -> None:
        """Do nothing."""

    @property
    def tracker(self) -> Self:
        """Return itself."""
        return self

    @property
    def disk(self) -> World:
        """Return what has a name."""
        return self.worlds[0]

    def harvest(self, *, frozen: bool = False) -> int:
        """Take the marks, and give them to every disk."""
        del frozen
        total = 0
        for world, disk in zip(self.worlds, self.disks, strict=True):
            granules = world.harvest()
            disk.marked(granules)
            total += len(granules)
        return total

    def count(self) -> int:
        """Count the marks."""
        return sum(int(np.count_nonzero(world.marks)) for world in self.worlds)

    def prepare(self) -> None:
        """Do nothing."""

    def broken(self) -> tuple[str, ...]:
        """Return what a test says."""
        return self.reasons

    def left_out(self) -> tuple[str, ...]:
        """Say that writes are untold, if some are."""
        return ("told nobody",) if self._untold() > self.counted else ()

    def count_anew(self) -> None:
        """Forget what was untold."""
        self.counted = self._untold()

    def _untold(self) -> int:
        return sum(world.untold for world in self.worlds)


class ToyFreezer:
    """Stands for `shadow.freezer.Freezer`; keeps a copy of each world in its last freeze."""

    limit = 60.0
    unfreezable: tuple[MountedFilesystem, ...] = ()

    def __init__(self, worlds: Sequence[World]) -> None:
        self.worlds = worlds
        self.copies: list[NDArray[np.uint8]] = []
        self.used: list[Extents] = []

    def _freeze(self) -> None:
        for world in self.worlds:
            world._maybe()
            world.sync()
            world.frozen = True

    def _thaw(self) -> None:
        for world in self.worlds:
            world.frozen = False

    def flush(self) -> tuple[FreezeTime, ...]:
        """Put all bitmaps on the disks."""
        self._freeze()
        self._thaw()
        return ()

    def sync_unfreezable(self) -> None:
        """Do nothing."""

    @contextmanager
    def window(
        self, *, sync: bool = True, last: Callable[[], None] | None = None
    ) -> Iterator[Window]:
        """Hold the writer still within; it acts before and after."""
        if sync:
            for world in self.worlds:
                world.sync()
        if last is not None:
            last()
        self._freeze()
        try:
            yield Window()
            self.copies = [world.data.copy() for world in self.worlds]
            self.used = [world.used() for world in self.worlds]
        finally:
            self._thaw()
            for world in self.worlds:
                world._maybe()


def image_bytes(image: ImageReader, number: int) -> tuple[NDArray[np.uint8], Extents]:
    """Return all bytes of a disk of an image, uint8, and what the image answers for."""
    record = image.manifest.disks[number]
    blobs = image.disk_blobs(record)
    data = np.zeros(record.size, np.uint8)
    rows = zip(blobs.starts.tolist(), blobs.lengths.tolist(), blobs.ids, blobs.zero, strict=True)
    for start, length, blob_id, zero in rows:
        if not zero:
            content = image.blobs.read(BlobKind.DATA, blob_id.tobytes())
            data[start : start + length] = np.frombuffer(content, np.uint8)
    return data, blobs.used


def differing(one: NDArray[np.uint8], two: NDArray[np.uint8], used: Extents) -> Extents:
    """Return where two contents differ on what is in use, by blocks of 4 KiB."""
    bad = np.flatnonzero(one != two) // BLOCK
    return Extents.from_blocks(np.unique(bad), BLOCK) & used
