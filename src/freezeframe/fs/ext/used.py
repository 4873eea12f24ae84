"""The used map of ext2, ext3 and ext4: block bitmaps, and what lies outside them.

A group whose bitmap was never written (BLOCK_UNINIT) holds group metadata at most. The
metadata of all groups count as used whatever the bitmaps say.

Mounted with a journal, it needs recovery from the first change on; a freeze empties the
journal and takes that mark away until the thaw (ext4_freeze, ext4_unfreeze in fs/ext4/super.c
of Linux). So a frozen one is judged just as one at rest. Without a journal nothing on disk
tells a frozen one from one that crashed before it was mounted, whose bitmaps may lack blocks:
that is taken whole.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents, Int64Array
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.bulk import Bytes, Gathered, read_many, runs_of_ones
from freezeframe.fs.ext import structs
from freezeframe.fs.ext.checksums import verify_superblock, wrong_bitmaps, wrong_descriptors
from freezeframe.fs.ext.geometry import Geometry, geometry_of
from freezeframe.fs.ext.journal import verify_journal_empty
from freezeframe.fs.ext.structs import Compat, Incompat, ReadOnlyCompat, Superblock

#: Block bitmaps are looked at so many bytes at a time; fully fragmented ones take 200 times that.
_BATCH = MIB // 2


@dataclass(frozen=True, slots=True)
class ExtKind:
    """The parser of ext2, ext3 and ext4."""

    name: str = "ext"

    def recognise(self, reader: Reader) -> bool:
        """Look for the superblock's magic number, 1,024 bytes into the region."""
        if reader.size < structs.SUPERBLOCK_OFFSET + structs.SUPERBLOCK_SIZE:
            return False
        magic = reader.read_at(structs.SUPERBLOCK_OFFSET + 0x38, 2)
        return int.from_bytes(magic, "little") == structs.MAGIC

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Tell what is in use; raises `NotUnderstood` where that is not certain."""
        del peers  # A journal elsewhere says nothing about the blocks here.
        if not self.recognise(reader):
            raise NotUnderstood("no ext superblock")
        raw = reader.read_at(structs.SUPERBLOCK_OFFSET, structs.SUPERBLOCK_SIZE)
        own = Superblock.parse(raw)
        _verify_known(own)
        live = state is State.LIVE
        if not live:
            # The kernel may change it in memory while it goes to the disk.
            verify_superblock(own, raw)
        if own.incompat & Incompat.JOURNAL_DEV:
            return _journal_device(own, reader.size)
        if not live:
            _verify_clean(own)
        return _map(reader, geometry_of(own, reader.size), live=live)


def _verify_known(own: Superblock) -> None:
    if own.revision > 1:
        raise NotUnderstood(f"ext of revision {own.revision}")
    unknown = (
        ("compatible", own.compat & ~_all(Compat)),
        ("incompatible", own.incompat & ~_all(Incompat)),
        ("read-only compatible", own.read_only & ~_all(ReadOnlyCompat)),
    )
    for word, bits in unknown:
        # Unknown "compatible" features too: sparse_super2 is one, and moves metadata.
        if bits:
            raise NotUnderstood(f"unknown {word} features of ext: {bits:#x}")


def _all(features: type[Compat] | type[Incompat] | type[ReadOnlyCompat]) -> int:
    return sum(int(feature) for feature in features)


def _verify_clean(own: Superblock) -> None:
    if own.incompat & Incompat.RECOVER:
        raise NotUnderstood("the ext journal needs recovery: it was not unmounted cleanly")
    if own.state & structs.STATE_ERRORS:
        raise NotUnderstood("the ext filesystem is marked as having errors: run e2fsck")
    if own.state & ~structs.STATE_CLEAN:
        raise NotUnderstood(f"the ext filesystem is in state {own.state:#x}")
    if not own.state & structs.STATE_CLEAN:
        raise NotUnderstood("the ext filesystem was not unmounted cleanly: run e2fsck")


def _uuid_text(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw)) if any(raw) else ""


def _journal_device(own: Superblock, size: int) -> UsedMap:
    return UsedMap(
        kind=own.kind,
        used=Extents.single(0, size),
        understood=True,
        notes=("the journal of an ext filesystem on another device; kept whole",),
        label=own.label,
        uuid=_uuid_text(own.uuid),
        block_size=KIB << own.log_block_size if own.log_block_size < 7 else 0,
    )


def _map(reader: Reader, geometry: Geometry, *, live: bool) -> UsedMap:
    own = geometry.superblock
    descriptors = _Descriptors.read(reader, geometry, live=live)
    notes: tuple[str, ...] = ()
    # Looked at in a live one as well, whatever it says: what was read then is not to be read
    # when it is frozen.
    with contextlib.suppress(*((NotUnderstood,) if live else ())):
        notes = _look_at_journal(reader, geometry, descriptors)
    metadata = _metadata(geometry, descriptors)
    if not live:
        _verify_unwritten(geometry, descriptors, metadata)
    used = _bitmaps(reader, geometry, descriptors, live=live) | metadata
    if own.last_orphan or own.read_only & ReadOnlyCompat.ORPHAN_PRESENT:
        # Their blocks are still in the bitmaps.
        notes += ("some deleted files were still open; the next mount or e2fsck frees them",)
    return UsedMap(
        kind=own.kind,
        # What lies past the filesystem's end belongs to nobody we know, so it is kept.
        used=used.clip(0, geometry.span) | Extents.single(geometry.span, reader.size),
        understood=True,
        notes=notes,
        label=own.label,
        uuid=_uuid_text(own.uuid),
        block_size=geometry.block_size,
        span=geometry.span,
    )


@dataclass(frozen=True, slots=True)
class _Descriptors:
    """All group descriptors: int64 (groups,), block numbers and clusters."""

    block_bitmap: Int64Array
    inode_bitmap: Int64Array
    inode_table: Int64Array
    free: Int64Array
    #: Whether the block bitmap was never written.
    unwritten: NDArray[np.bool_]
    checksum: NDArray[np.uint32]

    @classmethod
    def read(cls, reader: Reader, geometry: Geometry, *, live: bool) -> _Descriptors:
        """Read and check them; raises `NotUnderstood`. `live`: whatever their checksums say."""
        own = geometry.superblock
        locations = geometry.descriptor_locations()
        if int(locations.max()) >= own.blocks:
            raise NotUnderstood("ext group descriptors lie outside the filesystem")
        blocks = read_many(reader, locations * geometry.block_size, geometry.block_size)
        raw = blocks.reshape(-1, own.descriptor_size)[: geometry.groups]
        wrong = wrong_descriptors(own, raw)
        if len(wrong) and not live:
            raise NotUnderstood(
                f"{len(wrong)} ext group descriptors do not have the checksum they state, "
                f"group {wrong[0]} first"
            )
        table = np.ascontiguousarray(raw).view(structs.descriptor_dtype(own.descriptor_size))[:, 0]

        def joined(name: str, bits: int) -> Int64Array:
            low = table[name].astype(np.int64)
            if own.descriptor_size < structs.DESCRIPTOR_SIZE_64BIT:
                return low
            return low | table[f"{name}_high"].astype(np.int64) << bits

        # Without checksums nobody else believes this flag either.
        checked = own.read_only & (ReadOnlyCompat.GDT_CSUM | ReadOnlyCompat.METADATA_CSUM)
        unwritten = (table["flags"] & structs.BLOCK_UNINIT).astype(np.bool_)
        found = cls(
            block_bitmap=joined("block_bitmap", 32),
            inode_bitmap=joined("inode_bitmap", 32),
            inode_table=joined("inode_table", 32),
            free=joined("free", 16),
            unwritten=unwritten if checked else np.zeros(geometry.groups, np.bool_),
            checksum=joined("block_bitmap_checksum", 16).astype(np.uint32),
        )
        found.verify(geometry)
        return found

    def verify(self, geometry: Geometry) -> None:
        """Raise `NotUnderstood` where anything lies outside, or two bitmaps in one place."""
        own = geometry.superblock
        for what, first, length in (
            ("block bitmap", self.block_bitmap, 1),
            ("inode bitmap", self.inode_bitmap, 1),
            ("inode table", self.inode_table, geometry.inode_table_blocks),
        ):
            # The high halves may turn a number negative.
            wrong = (first <= own.first_data_block) | (first > own.blocks - length)
            if wrong.any():
                group = int(np.flatnonzero(wrong)[0])
                raise NotUnderstood(f"the {what} of ext group {group} lies outside the filesystem")
        written = self.block_bitmap[~self.unwritten]
        if len(np.unique(written)) != len(written):
            raise NotUnderstood("two ext groups claim the same block bitmap")


def _look_at_journal(
    reader: Reader, geometry: Geometry, descriptors: _Descriptors
) -> tuple[str, ...]:
    own = geometry.superblock
    if not own.compat & Compat.HAS_JOURNAL:
        return ()
    if not own.journal_inode:
        return (f"its journal is on another device, with UUID {_uuid_text(own.journal_uuid)}",)
    group = (own.journal_inode - 1) // own.inodes_per_group
    if group >= geometry.groups:
        raise NotUnderstood("the inode of the ext journal does not exist")
    verify_journal_empty(reader, geometry, int(descriptors.inode_table[group]))
    return ()


def _metadata(geometry: Geometry, descriptors: _Descriptors) -> Extents:
    """Superblocks, descriptors, bitmaps and inode tables of all groups, in bytes."""
    first, last = geometry.head_extents()
    boot = np.zeros(1, np.int64)
    tables = descriptors.inode_table
    starts = [boot, first, descriptors.block_bitmap, descriptors.inode_bitmap, tables]
    stops = [
        boot + geometry.superblock_block + 1,
        last,
        descriptors.block_bitmap + 1,
        descriptors.inode_bitmap + 1,
        tables + geometry.inode_table_blocks,
    ]
    blocks = Extents.from_arrays(np.concatenate(starts), np.concatenate(stops))
    blocks = blocks.aligned(geometry.ratio).clip(0, geometry.superblock.blocks)
    return Extents(blocks.starts * geometry.block_size, blocks.stops * geometry.block_size)


def _verify_unwritten(geometry: Geometry, descriptors: _Descriptors, metadata: Extents) -> None:
    """Raise `NotUnderstood` where a group without a bitmap says it holds more than metadata."""
    groups = np.flatnonzero(descriptors.unwritten).astype(np.int64)
    if not len(groups):
        return
    first = geometry.starts_of(groups)
    last = np.minimum(first + geometry.superblock.blocks_per_group, geometry.superblock.blocks)
    counted = _bytes_before(metadata, last * geometry.block_size)
    counted -= _bytes_before(metadata, first * geometry.block_size)
    # A last cluster may be cut short by the filesystem's end.
    known = -(-counted // (geometry.block_size * geometry.ratio))
    stated = geometry.clusters_in(groups) - descriptors.free[groups]
    wrong = np.flatnonzero((stated > known) | (stated < 0))
    if len(wrong):
        raise NotUnderstood(
            f"ext group {groups[wrong[0]]} has no block bitmap, but counts blocks in use"
        )


def _bytes_before(extents: Extents, positions: Int64Array) -> Int64Array:
    """How many bytes of the set lie before each position."""
    lengths = np.append(0, np.cumsum(extents.stops - extents.starts))
    index = np.searchsorted(extents.starts, positions, "right")
    over = np.zeros(len(positions), np.int64)
    inside = index > 0
    over[inside] = np.maximum(extents.stops[index[inside] - 1] - positions[inside], 0)
    before: Int64Array = lengths[index] - over
    return before


def _bitmaps(
    reader: Reader, geometry: Geometry, descriptors: _Descriptors, *, live: bool
) -> Extents:
    """Bytes of all clusters whose bit is set."""
    own = geometry.superblock
    cluster = geometry.block_size * geometry.ratio
    step = max(1, _BATCH // geometry.bitmap_bytes)
    gathered = Gathered()
    for begin in range(0, geometry.groups, step):
        groups = np.arange(begin, min(begin + step, geometry.groups), dtype=np.int64)
        groups = groups[~descriptors.unwritten[groups]]
        if not len(groups):
            continue
        rows = _read_bitmaps(reader, geometry, descriptors, groups, live=live)
        batch = np.zeros((min(step, geometry.groups - begin), geometry.bitmap_bytes), np.uint8)
        batch[groups - begin] = rows
        starts, stops = runs_of_ones(batch.reshape(-1))
        base = own.first_data_block * geometry.block_size
        base += begin * own.clusters_per_group * cluster
        gathered.add(Extents(starts * cluster + base, stops * cluster + base))
    return gathered.result()


def _read_bitmaps(
    reader: Reader,
    geometry: Geometry,
    descriptors: _Descriptors,
    groups: Int64Array,
    *,
    live: bool,
) -> Bytes:
    """Read the bitmaps of these groups, check them, and clear what lies past the end.

    `live`: a bitmap and its descriptor come to the disk at different times, and newer ones
    are in the journal. Each is taken as it is.
    """
    offsets = descriptors.block_bitmap[groups] * geometry.block_size
    # The rest of each block is padding.
    rows = read_many(reader, offsets, geometry.bitmap_bytes)
    wrong = np.flatnonzero(wrong_bitmaps(geometry.superblock, rows, descriptors.checksum[groups]))
    if len(wrong) and not live:
        raise NotUnderstood(
            f"{len(wrong)} ext block bitmaps do not have the checksum they state, "
            f"that of group {groups[wrong[0]]} first"
        )
    clusters = geometry.clusters_in(groups)
    short = int(clusters[-1])
    if short < geometry.superblock.clusters_per_group:
        bits = np.unpackbits(rows[-1], bitorder="little")
        bits[short:] = 0
        rows[-1] = np.packbits(bits, bitorder="little")
    free = clusters - np.bitwise_count(rows).sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(free != descriptors.free[groups])
    if len(wrong) and not live:
        raise NotUnderstood(
            f"the block bitmaps of {len(wrong)} ext groups do not match their counts of free "
            f"blocks, that of group {groups[wrong[0]]} first"
        )
    return rows
