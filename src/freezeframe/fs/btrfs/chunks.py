"""Chunks: which logical addresses of a btrfs lie where on which device.

Source: `btrfs_map_block` of the kernel. A chunk is cut into stripe elements of 64 KiB;
how they go round its stripes is the profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents, Int64Array
from freezeframe.fs.btrfs.structs import (
    CHUNK,
    CHUNK_ITEM,
    CHUNK_KINDS,
    CHUNKS_OBJECT,
    DISK_KEY,
    PROFILES,
    STRIPE,
    STRIPE_LENGTH,
    Profile,
)

_MIRRORS: dict[int, int] = {
    0: 1,
    Profile.DUP: 2,
    Profile.RAID1: 2,
    Profile.RAID1C3: 3,
    Profile.RAID1C4: 4,
}
_PARITIES: dict[int, int] = {Profile.RAID5: 1, Profile.RAID6: 2}
#: Signed 64 bits hold every address there can be.
_FARTHEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Stripe:
    """A stretch of one device."""

    device: int
    offset: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Some bytes of one device."""

    device: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Logical bytes [start, start + length) and the stripes that hold them."""

    start: int
    length: int
    #: One of `Profile`, or 0.
    profile: int
    sub_stripes: int
    stripes: tuple[Stripe, ...]

    @property
    def stop(self) -> int:
        """The logical byte after the chunk."""
        return self.start + self.length

    @property
    def parities(self) -> int:
        """How many stripe elements of each row hold parity."""
        return _PARITIES.get(self.profile, 0)

    @property
    def columns(self) -> int:
        """How many stripe elements of each row hold data of their own."""
        if self.profile in _MIRRORS:
            return 1
        return len(self.stripes) // self.sub_stripes - self.parities

    @property
    def stripe_size(self) -> int:
        """How many bytes each stripe takes on its device."""
        return self.length // self.columns

    def copies(self, logical: int, length: int) -> Iterator[list[Place]]:
        """Give each copy of some bytes of the chunk, in the order they go together."""
        offset = logical - self.start
        if self.profile in _MIRRORS:
            for stripe in self.stripes:
                yield [Place(stripe.device, stripe.offset + offset, length)]
            return
        for copy in range(self.sub_stripes):
            yield [self._place(at, size, copy) for at, size in _elements(offset, length)]

    def _place(self, offset: int, length: int, copy: int) -> Place:
        row, column = divmod(offset // STRIPE_LENGTH, self.columns)
        # Parity wanders: each row of RAID 5 and 6 begins one stripe further.
        turn = row if self.parities else 0
        stripe = self.stripes[(column * self.sub_stripes + copy + turn) % len(self.stripes)]
        at = stripe.offset + row * STRIPE_LENGTH + offset % STRIPE_LENGTH
        return Place(stripe.device, at, length)

    def on_device(self, device: int, starts: Int64Array, stops: Int64Array) -> list[Extents]:
        """Return what some bytes of the chunk take on a device.

        `starts` and `stops` count from the chunk's start, int64 (n,). With parity, each row
        that is touched counts with all its elements.
        """
        found = []
        for number, stripe in enumerate(self.stripes):
            if stripe.device == device:
                first, last = self._on_stripe(number, starts, stops)
                found.append(Extents.from_arrays(stripe.offset + first, stripe.offset + last))
        return found

    def _on_stripe(
        self, number: int, starts: Int64Array, stops: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        row = self.columns * STRIPE_LENGTH
        if self.profile in _MIRRORS:
            return starts, stops
        if self.parities:
            return starts // row * STRIPE_LENGTH, -(-stops // row) * STRIPE_LENGTH
        column = number // self.sub_stripes * STRIPE_LENGTH
        return _before(starts, row, column), _before(stops, row, column)


def _before(offsets: Int64Array, row: int, column: int) -> Int64Array:
    """How many bytes of a stripe lie before each offset: nothing but counting."""
    full, rest = np.divmod(offsets, row)
    before: Int64Array = full * STRIPE_LENGTH + np.clip(rest - column, 0, STRIPE_LENGTH)
    return before


def _elements(offset: int, length: int) -> Iterator[tuple[int, int]]:
    while length > 0:
        size = min(length, STRIPE_LENGTH - offset % STRIPE_LENGTH)
        yield offset, size
        offset, length = offset + size, length - size


# -- parsing ----------------------------------------------------------------------------


def _unclear(start: int, reason: str) -> NotUnderstood:
    return NotUnderstood(f"the btrfs chunk at {start} {reason}")


def parse_chunk(start: int, raw: bytes, sector: int) -> tuple[Chunk, int]:
    """Read a chunk item; return it and its length in bytes. Raises `NotUnderstood`."""
    if len(raw) < CHUNK.size:
        raise _unclear(start, "is cut short")
    length, _, stripe_length, kind, _, _, _, count, sub_stripes = CHUNK.unpack_from(raw)
    size = CHUNK.size + count * STRIPE.size
    if len(raw) < size or not count:
        raise _unclear(start, "is cut short")
    if kind & ~(CHUNK_KINDS | PROFILES) or not kind & CHUNK_KINDS:
        raise _unclear(start, f"is of the unknown type {kind:#x}")
    if stripe_length != STRIPE_LENGTH or not length or (start | length) % sector:
        raise _unclear(start, "has odd sizes")
    profile = kind & PROFILES
    stripes = tuple(
        Stripe(*STRIPE.unpack_from(raw, CHUNK.size + number * STRIPE.size))
        for number in range(count)
    )
    halves = 2 if profile == Profile.RAID10 else 1
    if halves == 2 and sub_stripes != 2:
        raise _unclear(start, f"has {sub_stripes} sub-stripes")
    chunk = Chunk(start, length, profile, halves, stripes)
    _check_profile(chunk)
    return chunk, size


def _check_profile(chunk: Chunk) -> None:
    known = {*_MIRRORS, *_PARITIES, Profile.RAID0, Profile.RAID10}
    count = len(chunk.stripes)
    if chunk.profile not in known:
        raise _unclear(chunk.start, f"is of the unknown profile {chunk.profile:#x}")
    if count != _MIRRORS.get(chunk.profile, count) or count % chunk.sub_stripes:
        raise _unclear(chunk.start, f"has {count} stripes")
    if chunk.columns < 1 or chunk.length % chunk.columns:
        raise _unclear(chunk.start, f"has {count} stripes")
    if chunk.profile not in _MIRRORS and chunk.stripe_size % STRIPE_LENGTH:
        raise _unclear(chunk.start, "ends within a stripe")
    farthest = max(chunk.stop, *(s.offset + chunk.stripe_size for s in chunk.stripes))
    if farthest > _FARTHEST:
        raise _unclear(chunk.start, "lies beyond all disks")


def parse_system_chunks(raw: bytes, sector: int) -> list[Chunk]:
    """Read the superblock's own chunk items, each after its key. Raises `NotUnderstood`."""
    chunks = []
    position = 0
    while position < len(raw):
        if position + DISK_KEY.size > len(raw):
            raise NotUnderstood("btrfs with system chunks that are cut short")
        owner, kind, start = DISK_KEY.unpack_from(raw, position)
        if (owner, kind) != (CHUNKS_OBJECT, CHUNK_ITEM):
            raise NotUnderstood("btrfs with system chunks that are none")
        position += DISK_KEY.size
        chunk, size = parse_chunk(start, raw[position:], sector)
        chunks.append(chunk)
        position += size
    return chunks


# -- all of them ------------------------------------------------------------------------


class ChunkMap:
    """Chunks by logical address."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        """Raise `NotUnderstood` where two of them overlap, or there are none."""
        self.chunks = sorted(chunks, key=lambda chunk: chunk.start)
        self._starts = np.array([chunk.start for chunk in self.chunks], np.int64)
        self._stops = np.array([chunk.stop for chunk in self.chunks], np.int64)
        if not self.chunks:
            raise NotUnderstood("btrfs without chunks")
        if (self._starts[1:] < self._stops[:-1]).any():
            raise NotUnderstood("btrfs with chunks that overlap")

    def chunk_of(self, logical: int, length: int) -> Chunk:
        """Return the chunk that holds all these bytes; `NotUnderstood` where none does."""
        index = int(np.searchsorted(self._starts, logical, "right")) - 1
        if index < 0 or logical + length > int(self._stops[index]):
            raise NotUnderstood(f"btrfs has no chunk for {length} bytes at {logical}")
        return self.chunks[index]

    def hold(self, starts: Int64Array, stops: Int64Array) -> bool:
        """Whether each range lies within one chunk; int64 (n,)."""
        index = np.searchsorted(self._starts, starts, "right") - 1
        inside = (index >= 0) & (stops <= self._stops[np.maximum(index, 0)])
        return bool(inside.all())

    def on_device(self, device: int, logical: Extents) -> Extents:
        """Return what logical bytes take on one device, in bytes of that device."""
        found = []
        # Which of the ranges each chunk touches.
        firsts = np.searchsorted(logical.stops, self._starts, "right")
        lasts = np.searchsorted(logical.starts, self._stops, "left")
        for chunk, first, last in zip(self.chunks, firsts.tolist(), lasts.tolist(), strict=True):
            if first < last:
                starts = np.maximum(logical.starts[first:last], chunk.start) - chunk.start
                stops = np.minimum(logical.stops[first:last], chunk.stop) - chunk.start
                found += chunk.on_device(device, starts, stops)
        return _united(found)

    def allocated(self, device: int) -> Extents:
        """Return all that chunks take of one device, used or not."""
        return Extents.of(
            (stripe.offset, stripe.offset + chunk.stripe_size)
            for chunk in self.chunks
            for stripe in chunk.stripes
            if stripe.device == device
        )


def _united(parts: list[Extents]) -> Extents:
    if not parts:
        return Extents.empty()
    return Extents.from_arrays(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.stops for part in parts]),
    )
