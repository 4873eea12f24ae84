"""F2FS as it lies on disk; all numbers little-endian.

Source: the kernel's documentation of F2FS and its `f2fs_fs.h`. Blocks of 4 KiB in
segments of 512; nothing else is followed.
"""

from __future__ import annotations

import enum
import uuid
import zlib
from dataclasses import dataclass

import numpy as np

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import KIB
from freezeframe.fs.probe import little, text

MAGIC = 0xF2F52010
BLOCK = 4 * KIB
SEGMENT_BLOCKS = 512

#: One in each of the first two blocks.
SUPERBLOCKS_AT = (1024, BLOCK + 1024)
SUPERBLOCK_SIZE = 3072
_CHECKSUM_AT = SUPERBLOCK_SIZE - 4


class Feature(enum.IntFlag):
    """Features of the superblock, as `mkfs.f2fs -O` names them."""

    ENCRYPT = 1 << 0
    ZONED = 1 << 1
    ATOMIC_WRITE = 1 << 2
    EXTRA_ATTR = 1 << 3
    PROJECT_QUOTA = 1 << 4
    INODE_CHECKSUM = 1 << 5
    FLEXIBLE_INLINE_XATTR = 1 << 6
    QUOTA = 1 << 7
    INODE_CRTIME = 1 << 8
    LOST_FOUND = 1 << 9
    VERITY = 1 << 10
    SB_CHECKSUM = 1 << 11
    CASEFOLD = 1 << 12
    COMPRESSION = 1 << 13
    READ_ONLY = 1 << 14


#: Zoned disks keep write pointers of their own; read-only ones have fewer open segments. A
#: plain number: the complement of a flag has no bits that were never named.
KNOWN_FEATURES = int(
    Feature.ENCRYPT
    | Feature.ATOMIC_WRITE
    | Feature.EXTRA_ATTR
    | Feature.PROJECT_QUOTA
    | Feature.INODE_CHECKSUM
    | Feature.FLEXIBLE_INLINE_XATTR
    | Feature.QUOTA
    | Feature.INODE_CRTIME
    | Feature.LOST_FOUND
    | Feature.VERITY
    | Feature.SB_CHECKSUM
    | Feature.CASEFOLD
    | Feature.COMPRESSION
)


class CheckpointState(enum.IntFlag):
    """Flags of a checkpoint."""

    UNMOUNTED = 1 << 0
    ORPHANS = 1 << 1
    COMPACT_SUMMARIES = 1 << 2
    ERROR = 1 << 3
    NEEDS_CHECK = 1 << 4
    FAST_BOOT = 1 << 5
    CRC_RECOVERY = 1 << 6
    NAT_BITS = 1 << 7
    TRIMMED = 1 << 8
    NO_CRC_RECOVERY = 1 << 9
    LARGE_NAT_BITMAP = 1 << 10
    QUOTA_NEEDS_CHECK = 1 << 11
    DISABLED = 1 << 12
    DISABLED_QUICK = 1 << 13
    RESIZING = 1 << 14


#: The rest is an error, a check that is due, or an operation that never ended.
HARMLESS_STATES = int(
    CheckpointState.UNMOUNTED
    | CheckpointState.ORPHANS
    | CheckpointState.COMPACT_SUMMARIES
    | CheckpointState.FAST_BOOT
    | CheckpointState.CRC_RECOVERY
    | CheckpointState.NAT_BITS
    | CheckpointState.TRIMMED
    | CheckpointState.NO_CRC_RECOVERY
    | CheckpointState.LARGE_NAT_BITMAP
)


def checksum(data: bytes) -> int:
    """Return the CRC-32 that starts with the magic and is not inverted at the end."""
    return zlib.crc32(data, MAGIC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


# -- superblock -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Superblock:
    """Where everything is; addresses and counts in blocks of 4 KiB."""

    block_count: int
    #: Of the areas for checkpoints, segment information and the main area, in segments.
    checkpoint_segments: int
    sit_segments: int
    main_segments: int
    checkpoint_at: int
    sit_at: int
    nat_at: int
    summary_at: int
    main_at: int
    #: Blocks that follow a checkpoint's first one.
    payload: int
    features: int
    uuid: str
    label: str

    @property
    def size(self) -> int:
        """Bytes the filesystem spans."""
        return self.block_count * BLOCK


def parse_superblock(raw: bytes) -> Superblock:
    """Read a superblock of 3072 bytes. Raises `NotUnderstood` where it makes no sense."""

    def word(offset: int) -> int:
        return little(raw, offset, 4)

    if len(raw) < SUPERBLOCK_SIZE or word(0) != MAGIC:
        raise NotUnderstood("no F2FS superblock")
    if (word(16), word(20)) != (12, 9):
        raise NotUnderstood("F2FS with blocks or segments of unusual size")
    superblock = Superblock(
        block_count=little(raw, 36, 8),
        checkpoint_segments=word(52),
        sit_segments=word(56),
        main_segments=word(68),
        checkpoint_at=word(76),
        sit_at=word(80),
        nat_at=word(84),
        summary_at=word(88),
        main_at=word(92),
        payload=word(1664),
        features=word(2180),
        uuid=str(uuid.UUID(bytes=raw[108:124])),
        label=text(raw[124:1148], "utf-16-le"),
    )
    _check_checksum(raw, superblock.features)
    _check_areas(superblock)
    if any(raw[_DEVICES_AT : _DEVICES_AT + _DEVICES_SIZE]):
        raise NotUnderstood("F2FS over several devices")
    return superblock


#: Eight devices, each a path of 64 bytes and its number of segments; all zeros for one.
_DEVICES_AT = 2201
_DEVICES_SIZE = 8 * 68


def _check_checksum(raw: bytes, features: int) -> None:
    if features & Feature.SB_CHECKSUM:
        offset = little(raw, 32, 4)
        if offset != _CHECKSUM_AT or checksum(raw[:offset]) != little(raw, offset, 4):
            raise NotUnderstood("the F2FS superblock does not have the checksum it states")


def _check_areas(superblock: Superblock) -> None:
    """Areas follow each other, and the last one ends within the filesystem."""
    s = superblock
    order = [2, s.checkpoint_at, s.sit_at, s.nat_at, s.summary_at, s.main_at]
    end = s.main_at + s.main_segments * SEGMENT_BLOCKS
    # Both sets of the segment information table.
    sit_end = s.sit_at + s.sit_segments * SEGMENT_BLOCKS
    sit_needed = -(-s.main_segments // SIT_ENTRIES)
    if (
        order != sorted(order)
        or end > s.block_count
        or s.checkpoint_segments != 2
        or s.checkpoint_at + 2 * SEGMENT_BLOCKS > s.sit_at
        or sit_end > s.nat_at
        or s.sit_segments % 2
        or s.sit_segments // 2 * SEGMENT_BLOCKS < sit_needed
        or s.payload >= SEGMENT_BLOCKS
        or not s.main_segments
    ):
        raise NotUnderstood("F2FS whose areas make no sense")


# -- checkpoint -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint pack: what held when it was written."""

    version: int
    valid_blocks: int
    valid_nodes: int
    states: int
    #: Blocks of the whole pack, and where its summaries begin, counted from its start.
    pack_blocks: int
    summaries: int
    #: Open segments by number: hot, warm and cold nodes; hot, warm and cold data.
    node_segments: tuple[int, ...]
    data_segments: tuple[int, ...]
    #: One bit a block of the segment information table: which of its two sets counts.
    sit_bitmap: bytes


_BITMAPS_AT = 192


def parse_checkpoint(raw: bytes, payload: int) -> Checkpoint:
    """Read the first block of a checkpoint pack and the `payload` blocks that follow it.

    Raises `NotUnderstood` where its checksum is wrong or its sizes make no sense.
    """

    def word(offset: int) -> int:
        return little(raw, offset, 4)

    check_block(raw[:BLOCK])
    states = word(132)
    return Checkpoint(
        version=little(raw, 0, 8),
        valid_blocks=little(raw, 16, 8),
        valid_nodes=word(144),
        states=states,
        pack_blocks=word(136),
        summaries=word(140),
        node_segments=tuple(word(36 + 4 * n) for n in range(3)),
        data_segments=tuple(word(84 + 4 * n) for n in range(3)),
        sit_bitmap=_sit_bitmap(raw, states, payload, word(156), word(160)),
    )


def check_block(block: bytes) -> None:
    """Check the first or last block of a pack; `NotUnderstood` where its checksum is wrong."""
    offset = little(block, 164, 4)
    if not _BITMAPS_AT <= offset <= BLOCK - 4 or offset % 4:
        raise NotUnderstood("an F2FS checkpoint that makes no sense")
    value = checksum(block[:offset])
    if offset < BLOCK - 4:
        # What follows the checksum is covered, too.
        value = zlib.crc32(block[offset + 4 :], value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    if value != little(block, offset, 4):
        raise NotUnderstood("an F2FS checkpoint does not have the checksum it states")


def _sit_bitmap(raw: bytes, states: int, payload: int, size: int, nat_size: int) -> bytes:
    if states & CheckpointState.LARGE_NAT_BITMAP:
        # The checksum comes first, then the other table's bitmap.
        start = _BITMAPS_AT + nat_size
        start += 4 if little(raw, 164, 4) == _BITMAPS_AT else 0
    elif payload:
        start = BLOCK
    else:
        start = _BITMAPS_AT
    if start + size > len(raw):
        raise NotUnderstood("an F2FS checkpoint whose bitmaps pass its end")
    return raw[start : start + size]


# -- segment information ----------------------------------------------------------------

#: Valid blocks (low 10 bits) and kind of a segment, one bit a block (the first is the
#: highest of its byte), when it was last written.
SIT_ENTRY = np.dtype([("blocks", "<u2"), ("valid", "u1", (64,)), ("time", "<u8")])
SIT_ENTRIES = BLOCK // SIT_ENTRY.itemsize
SIT_COUNT_MASK = 0x3FF
#: In a journal each entry has its segment's number before it.
SIT_JOURNAL_ENTRY = np.dtype([("segment", "<u4"), ("entry", SIT_ENTRY)])
#: Where the journal lies in the summary block of the cold data segment: after 512 entries.
JOURNAL_AT = 512 * 7
#: What is left before the footer of 5 bytes; compact summaries begin with two of these.
JOURNAL_SIZE = BLOCK - JOURNAL_AT - 5
SIT_JOURNAL_MOST = (JOURNAL_SIZE - 2) // SIT_JOURNAL_ENTRY.itemsize
