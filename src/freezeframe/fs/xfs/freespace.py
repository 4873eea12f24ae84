"""The free space of one allocation group: its AGF, and the tree of free extents (bnobt)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Int64Array
from freezeframe.core.units import MIB
from freezeframe.fs.bulk import MOST_RANGES, Bytes, read_many
from freezeframe.fs.crc32c import crc32c_rows
from freezeframe.fs.xfs import structs
from freezeframe.fs.xfs.structs import VERSION_MASK, GroupFreeSpace, Superblock

#: Blocks of a tree are read so many bytes at a time.
_BATCH = 4 * MIB


@dataclass(frozen=True, slots=True)
class GroupFree:
    """Free extents of one group: int64 (n,), in blocks of the group, ascending and apart."""

    starts: Int64Array
    lengths: Int64Array
    agf: GroupFreeSpace


def checksums_match(rows: Bytes, at: int) -> NDArray[np.bool_]:
    """Whether each row (uint8 (n, size)) has the CRC stored in it, little-endian, at `at`."""
    covered = rows.copy()
    covered[:, at : at + 4] = 0
    stored = np.ascontiguousarray(rows[:, at : at + 4]).view("<u4")[:, 0]
    matches: NDArray[np.bool_] = (crc32c_rows(covered) ^ np.uint32(0xFFFFFFFF)) == stored
    return matches


def group_length(own: Superblock, number: int) -> int:
    """Return how many blocks a group has; the last one may be short."""
    return min(own.group_blocks, own.blocks - number * own.group_blocks)


def header_blocks(own: Superblock) -> int:
    """Return how many blocks the four header sectors of a group take."""
    return -(-structs.GROUP_HEADER_SECTORS * own.sector_size // own.block_size)


def read_group(reader: Reader, own: Superblock, number: int) -> GroupFree:
    """Read what is free in a group; raises `NotUnderstood` where anything does not fit."""
    agf = _read_agf(reader, own, number)
    starts, lengths = _Tree(reader, own, number, agf).records()
    taken = [(0, header_blocks(own)), *((root, root + 1) for root in agf.roots)]
    if own.log_start >> own.log_of_group_blocks == number:
        log = own.log_start & ((1 << own.log_of_group_blocks) - 1)
        taken.append((log, log + own.log_blocks))
    for first, last in taken:
        index = int(np.searchsorted(starts + lengths, first, "right"))
        if index < len(starts) and starts[index] < last:
            raise NotUnderstood(f"XFS group {number} counts some of its own metadata as free")
    return GroupFree(starts, lengths, agf)


def _read_agf(reader: Reader, own: Superblock, number: int) -> GroupFreeSpace:
    offset = number * own.group_blocks * own.block_size
    offset += structs.GROUP_FREE_SPACE_SECTOR * own.sector_size
    raw = reader.read_at(offset, own.sector_size)
    agf = GroupFreeSpace.parse(raw)
    if agf.magic != structs.GROUP_FREE_SPACE_MAGIC or agf.version != 1:
        raise NotUnderstood(f"XFS group {number} has no free-space header")
    if own.checksummed:
        rows = np.frombuffer(raw, np.uint8).reshape(1, -1)
        if not checksums_match(rows, structs.GROUP_FREE_SPACE_CHECKSUM)[0]:
            raise NotUnderstood(
                f"the free-space header of XFS group {number} does not have the checksum it states"
            )
        if agf.uuid != own.meta_uuid:
            raise NotUnderstood(f"XFS group {number} belongs to another filesystem")
    length = group_length(own, number)
    roots_fit = all(header_blocks(own) <= root < length for root in agf.roots)
    if agf.number != number or agf.length != length or not roots_fit:
        raise NotUnderstood(f"the free-space header of XFS group {number} makes no sense")
    if not 1 <= agf.levels <= structs.DEEPEST_TREE or max(agf.free, agf.longest) > length:
        raise NotUnderstood(f"the free-space header of XFS group {number} makes no sense")
    return agf


class _Tree:
    """The tree of free extents by block number, read level by level from the root.

    A level holds each block once and points only to the level below, so no cycle can keep
    the walk from its end.
    """

    def __init__(self, reader: Reader, own: Superblock, number: int, agf: GroupFreeSpace) -> None:
        self._reader = reader
        self._own = own
        self._number = number
        self._agf = agf
        version = own.version & VERSION_MASK
        self._magic = structs.TREE_MAGIC[version]
        self._header = structs.TREE_HEADER[version]
        self._uuid = np.frombuffer(own.meta_uuid, "V16")[0]
        self._base = number * own.group_blocks * own.block_size
        self._room = own.block_size - self._header.itemsize

    def _wrong(self, reason: str) -> NotUnderstood:
        return NotUnderstood(f"the free-space tree of XFS group {self._number} {reason}")

    def records(self) -> tuple[Int64Array, Int64Array]:
        """Return starts and lengths of all free extents, in blocks."""
        blocks = np.array([self._agf.roots[0]], np.int64)
        for level in range(self._agf.levels - 1, 0, -1):
            blocks = self._children(blocks, level)
        return self._leaves(blocks)

    def _read(
        self, blocks: Int64Array, level: int, first: int, step: int, most: int
    ) -> tuple[Bytes, Int64Array]:
        """Read and check a part of a level; return the blocks and their record counts."""
        part = blocks[first : first + step]
        size = self._own.block_size
        rows = read_many(self._reader, part * size + self._base, size)
        header = rows[:, : self._header.itemsize].copy().view(self._header)[:, 0]
        counts = header["records"].astype(np.int64)
        if (header["magic"] != self._magic).any() or (header["level"] != level).any():
            raise self._wrong(f"has a block that is none of its level {level}")
        if (counts > most).any() or (len(blocks) > 1 and (counts == 0).any()):
            raise self._wrong("has a block with an impossible number of records")
        expected = np.full(len(blocks) + 2, structs.NO_SIBLING, np.int64)
        expected[1:-1] = blocks
        left = expected[first : first + len(part)]
        right = expected[first + 2 : first + 2 + len(part)]
        if (header["left"] != left).any() or (header["right"] != right).any():
            raise self._wrong("has blocks whose neighbours are others than they say")
        if self._own.checksummed:
            self._verify_identity(header, rows, part)
        return rows, counts

    def _verify_identity(self, header: NDArray[np.void], rows: Bytes, part: Int64Array) -> None:
        if not checksums_match(rows, structs.TREE_CHECKSUM).all():
            raise self._wrong("has a block without the checksum it states")
        sectors = (part * self._own.block_size + self._base) // structs.LOG_SECTOR
        placed = (header["sector"] == sectors).all() and (header["owner"] == self._number).all()
        if not placed or (header["uuid"] != self._uuid).any():
            raise self._wrong("has a block that belongs elsewhere")

    def _children(self, blocks: Int64Array, level: int) -> Int64Array:
        most = self._room // (structs.FREE_RECORD + structs.TREE_POINTER)
        # Pointers begin behind the room for all keys.
        at = self._header.itemsize + most * structs.FREE_RECORD
        step = max(1, _BATCH // self._own.block_size)
        found = []
        for first in range(0, len(blocks), step):
            rows, counts = self._read(blocks, level, first, step, most)
            pointers = rows[:, at : at + most * structs.TREE_POINTER].copy().view(">u4")
            found.append(pointers[np.arange(most) < counts[:, None]].astype(np.int64))
        children = np.concatenate(found)
        outside = (children < header_blocks(self._own)) | (children >= self._agf.length)
        if not len(children) or outside.any():
            raise self._wrong("points outside the group")
        if len(np.unique(children)) != len(children):
            raise self._wrong("leads to a block twice")
        return children

    def _leaves(self, blocks: Int64Array) -> tuple[Int64Array, Int64Array]:
        most = self._room // structs.FREE_RECORD
        step = max(1, _BATCH // self._own.block_size)
        extents = _FreeExtents(self._agf.length)
        for first in range(0, len(blocks), step):
            rows, counts = self._read(blocks, 0, first, step, most)
            at = self._header.itemsize
            pairs = rows[:, at : at + most * structs.FREE_RECORD].copy().view(">u4")
            pairs = pairs.reshape(len(rows), most, 2)[np.arange(most) < counts[:, None]]
            if not extents.add(pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)):
                raise self._wrong("has extents that overlap or lie outside the group")
        if extents.total != self._agf.free or extents.longest != self._agf.longest:
            raise self._wrong(
                f"holds {extents.total} free blocks, its header says {self._agf.free}"
            )
        return extents.arrays()


class _FreeExtents:
    """Collects ascending free extents; where there are too many, small ones count as used."""

    def __init__(self, end: int) -> None:
        self._limit = end
        self._parts: list[tuple[Int64Array, Int64Array]] = []
        self._count = 0
        self._smallest = 1
        self._reached = 0
        self.total = 0
        self.longest = 0

    def add(self, starts: Int64Array, lengths: Int64Array) -> bool:
        """Take the next extents; False where they are out of order, overlap or end too far."""
        if not len(starts):
            return True
        before = np.append(self._reached, (starts + lengths)[:-1])
        end = int(starts[-1] + lengths[-1])
        if (starts < before).any() or (lengths <= 0).any() or end > self._limit:
            return False
        self._reached = end
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))
        self._keep(starts, lengths)
        while self._count > MOST_RANGES:
            self._smallest *= 2
            parts, self._parts, self._count = self._parts, [], 0
            for part in parts:
                self._keep(*part)
        return True

    def _keep(self, starts: Int64Array, lengths: Int64Array) -> None:
        large = lengths >= self._smallest
        self._parts.append((starts[large], lengths[large]))
        self._count += int(large.sum())

    def arrays(self) -> tuple[Int64Array, Int64Array]:
        """Return starts and lengths of what was kept, in blocks."""
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        starts, lengths = zip(*self._parts, strict=True)
        return np.concatenate(starts), np.concatenate(lengths)
