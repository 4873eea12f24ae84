"""Structures of ext2, ext3 and ext4 as they lie on disk (little-endian).

Source: Documentation/filesystems/ext4 of the Linux kernel, and ext2_fs.h of e2fsprogs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

import numpy as np

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024
MAGIC = 0xEF53
#: Where the superblock keeps its own checksum.
SUPERBLOCK_CHECKSUM = 0x3FC

STATE_CLEAN = 0x1
STATE_ERRORS = 0x2
CHECKSUM_CRC32C = 1
DESCRIPTOR_SIZE = 32
DESCRIPTOR_SIZE_64BIT = 64
DESCRIPTOR_CHECKSUM = 0x1E


class Compat(IntFlag):
    """Features an older kernel may ignore."""

    DIR_PREALLOC = 0x1
    IMAGIC_INODES = 0x2
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """Features without which nobody may mount."""

    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class ReadOnlyCompat(IntFlag):
    """Features without which nobody may write."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    READONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


#: Features by which blkid tells ext2 from ext3 from ext4.
_OLD_READ_ONLY = ReadOnlyCompat.SPARSE_SUPER | ReadOnlyCompat.LARGE_FILE | ReadOnlyCompat.BTREE_DIR
_OLD_INCOMPAT = Incompat.FILETYPE | Incompat.META_BG


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the used map needs of the superblock; counts as stored, 64-bit halves joined."""

    inodes: int
    blocks: int
    first_data_block: int
    log_block_size: int
    log_cluster_size: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    state: int
    creator: int
    revision: int
    inode_size: int
    compat: int
    incompat: int
    read_only: int
    uuid: bytes
    label: str
    reserved_descriptor_blocks: int
    journal_inode: int
    journal_uuid: bytes
    last_orphan: int
    descriptor_size: int
    first_meta_group: int
    checksum_type: int
    backup_groups: tuple[int, int]
    checksum_seed: int
    checksum: int

    @classmethod
    def parse(cls, raw: bytes) -> Superblock:
        """Take the 1,024 bytes of a superblock apart; checks nothing."""

        def long(offset: int) -> int:
            return int.from_bytes(raw[offset : offset + 4], "little")

        def short(offset: int) -> int:
            return int.from_bytes(raw[offset : offset + 2], "little")

        revision, incompat = long(0x4C), long(0x60)
        wide = incompat & Incompat.BIT64
        return cls(
            inodes=long(0x0),
            blocks=long(0x4) | (long(0x150) << 32 if wide else 0),
            first_data_block=long(0x14),
            log_block_size=long(0x18),
            log_cluster_size=long(0x1C),
            blocks_per_group=long(0x20),
            clusters_per_group=long(0x24),
            inodes_per_group=long(0x28),
            state=short(0x3A),
            creator=long(0x48),
            revision=revision,
            # The first revision had no field for it.
            inode_size=short(0x58) if revision else 128,
            compat=long(0x5C),
            incompat=incompat,
            read_only=long(0x64),
            uuid=raw[0x68:0x78],
            label=raw[0x78:0x88].split(b"\0", 1)[0].decode(errors="replace"),
            reserved_descriptor_blocks=short(0xCE),
            journal_uuid=raw[0xD0:0xE0],
            journal_inode=long(0xE0),
            last_orphan=long(0xE8),
            descriptor_size=short(0xFE) if wide else DESCRIPTOR_SIZE,
            first_meta_group=long(0x104),
            checksum_type=raw[0x175],
            backup_groups=(long(0x24C), long(0x250)),
            checksum_seed=long(0x270),
            checksum=long(SUPERBLOCK_CHECKSUM),
        )

    @property
    def kind(self) -> str:
        """`ext2`, `ext3`, `ext4` or `ext-journal`, by the features, as blkid decides."""
        if self.incompat & Incompat.JOURNAL_DEV:
            return "ext-journal"
        journal = self.compat & Compat.HAS_JOURNAL
        known = _OLD_INCOMPAT | (Incompat.RECOVER if journal else 0)
        if self.read_only & ~_OLD_READ_ONLY or self.incompat & ~known:
            return "ext4"
        return "ext3" if journal else "ext2"


def descriptor_dtype(size: int) -> np.dtype[np.void]:
    """Return the fields needed of a group descriptor of `size` bytes (32, or 64 and more)."""
    fields = {
        "block_bitmap": ("<u4", 0x0),
        "inode_bitmap": ("<u4", 0x4),
        "inode_table": ("<u4", 0x8),
        "free": ("<u2", 0xC),
        "flags": ("<u2", 0x12),
        "block_bitmap_checksum": ("<u2", 0x18),
        "checksum": ("<u2", DESCRIPTOR_CHECKSUM),
    }
    if size >= DESCRIPTOR_SIZE_64BIT:
        fields |= {
            "block_bitmap_high": ("<u4", 0x20),
            "inode_bitmap_high": ("<u4", 0x24),
            "inode_table_high": ("<u4", 0x28),
            "free_high": ("<u2", 0x2C),
            "block_bitmap_checksum_high": ("<u2", 0x38),
        }
    return np.dtype(
        {
            "names": list(fields),
            "formats": [form for form, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": size,
        }
    )


#: A descriptor's flag: the block bitmap was never written; only group metadata are in use.
BLOCK_UNINIT = 0x2

# -- the journal's inode ---------------------------------------------------------------

INODE_FLAGS = 0x20
INODE_BLOCKS = 0x28
INODE_BLOCKS_SIZE = 60
INODE_USES_EXTENTS = 0x80000

EXTENT_MAGIC = 0xF30A
#: magic, entries, most entries, depth, generation
EXTENT_HEADER = struct.Struct("<HHHHI")
#: first block of the file, where the node below lies (low, high), unused
EXTENT_INDEX = struct.Struct("<IIHH")
#: first block of the file, length, where it lies (high, low)
EXTENT_LEAF = struct.Struct("<IHHI")

# -- the journal (big-endian) ----------------------------------------------------------

JOURNAL_MAGIC = 0xC03B3998
#: Block types of the journal's superblock, versions 1 and 2.
JOURNAL_SUPERBLOCKS = (3, 4)
#: magic, block type, sequence, block size, blocks, first, first commit, start, errno
JOURNAL_SUPERBLOCK = struct.Struct(">IIIIIIIIi")
