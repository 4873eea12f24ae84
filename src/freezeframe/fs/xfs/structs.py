"""Structures of XFS as they lie on disk (big-endian; checksums little-endian).

Source: "XFS Algorithms & Data Structures" (xfs-documentation), and xfs_format.h and
xfs_log_format.h of the Linux kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

import numpy as np

SUPERBLOCK_MAGIC = b"XFSB"
#: The superblock lies in one sector; the fields needed end before the smallest one does.
SMALLEST_SECTOR = 512
LARGEST_SECTOR = 32768
SUPERBLOCK_CHECKSUM = 224

VERSION_MASK = 0xF
VERSION_4 = 4
VERSION_5 = 5


class Version(IntFlag):
    """Bits beside the version number."""

    ATTR = 0x10
    NLINK = 0x20
    QUOTA = 0x40
    ALIGN = 0x80
    DALIGN = 0x100
    LOGV2 = 0x400
    SECTOR = 0x800
    EXTFLG = 0x1000
    DIRV2 = 0x2000
    BORG = 0x4000
    MOREBITS = 0x8000


class Features2(IntFlag):
    """More bits of version 4; a version 5 has them too."""

    LAZYSBCOUNT = 0x2
    ATTR2 = 0x8
    PARENT = 0x10
    PROJID32 = 0x80
    CRC = 0x100
    FTYPE = 0x200


class ReadOnlyCompat(IntFlag):
    """Features of version 5 without which nobody may write."""

    FINOBT = 0x1
    RMAPBT = 0x2
    REFLINK = 0x4
    INOBTCNT = 0x8


class Incompat(IntFlag):
    """Features of version 5 without which nobody may mount.

    Metadata directories (0x100) and zones (0x200, 0x400) are not among them: they come with
    realtime groups, of which this parser knows nothing.
    """

    FTYPE = 0x1
    SPARSE_INODES = 0x2
    META_UUID = 0x4
    BIGTIME = 0x8
    NEEDS_REPAIR = 0x10
    NREXT64 = 0x20
    EXCHANGE_RANGE = 0x40
    PARENT = 0x80


class LogIncompat(IntFlag):
    """Features of what the log may hold at this moment."""

    XATTRS = 0x1


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the used map needs of the superblock; counts in blocks unless said otherwise."""

    block_size: int  # bytes
    blocks: int
    realtime_blocks: int
    realtime_extents: int
    uuid: bytes
    log_start: int
    group_blocks: int
    groups: int
    log_blocks: int
    version: int
    sector_size: int  # bytes
    label: str
    log_of_block_size: int
    log_of_sector_size: int
    log_of_group_blocks: int
    in_progress: int
    free: int
    features2: int
    bad_features2: int
    compat: int
    read_only: int
    incompat: int
    log_incompat: int
    checksum: int
    meta_uuid: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Superblock:
        """Take the first 512 bytes of a superblock apart; checks nothing."""

        def number(offset: int, size: int) -> int:
            return int.from_bytes(raw[offset : offset + size], "big")

        version, incompat = number(100, 2), number(216, 4)
        newest = version & VERSION_MASK == VERSION_5
        # The UUID users see can be changed; the one in all structures stays.
        own_uuid = not (newest and incompat & Incompat.META_UUID)
        return cls(
            block_size=number(4, 4),
            blocks=number(8, 8),
            realtime_blocks=number(16, 8),
            realtime_extents=number(24, 8),
            uuid=raw[32:48],
            log_start=number(48, 8),
            group_blocks=number(84, 4),
            groups=number(88, 4),
            log_blocks=number(96, 4),
            version=version,
            sector_size=number(102, 2),
            label=raw[108:120].split(b"\0", 1)[0].decode(errors="replace"),
            log_of_block_size=raw[120],
            log_of_sector_size=raw[121],
            log_of_group_blocks=raw[124],
            in_progress=raw[126],
            free=number(144, 8),
            features2=number(200, 4),
            bad_features2=number(204, 4),
            compat=number(208, 4),
            read_only=number(212, 4),
            incompat=incompat,
            log_incompat=number(220, 4),
            checksum=int.from_bytes(raw[224:228], "little"),
            meta_uuid=raw[32:48] if own_uuid else raw[248:264],
        )

    @property
    def checksummed(self) -> bool:
        """Whether structures carry checksums and say where they belong (version 5)."""
        return self.version & VERSION_MASK == VERSION_5

    @property
    def lazy_counts(self) -> bool:
        """Whether blocks of the free-space trees are in the superblock's count of free ones."""
        more = self.version & Version.MOREBITS
        return self.checksummed or bool(more and self.features2 & Features2.LAZYSBCOUNT)


# -- one allocation group --------------------------------------------------------------

GROUP_FREE_SPACE_MAGIC = b"XAGF"
GROUP_FREE_SPACE_CHECKSUM = 216
#: Sectors at the start of each group: superblock, AGF, AGI, AGFL.
GROUP_HEADER_SECTORS = 4
GROUP_FREE_SPACE_SECTOR = 1
SMALLEST_GROUP = 64


@dataclass(frozen=True, slots=True)
class GroupFreeSpace:
    """The AGF: free space of one allocation group; counts in blocks, addresses in the group."""

    magic: bytes
    version: int
    number: int
    length: int
    roots: tuple[int, int]
    levels: int
    list_count: int
    free: int
    longest: int
    tree_blocks: int
    uuid: bytes
    checksum: int

    @classmethod
    def parse(cls, raw: bytes) -> GroupFreeSpace:
        """Take an AGF apart; checks nothing."""
        fields = struct.unpack_from(">4sIIIIIIIIIIIIIIII", raw)
        return cls(
            magic=fields[0],
            version=fields[1],
            number=fields[2],
            length=fields[3],
            roots=(fields[4], fields[5]),
            levels=fields[7],
            list_count=fields[12],
            free=fields[13],
            longest=fields[14],
            tree_blocks=fields[15],
            uuid=raw[64:80],
            checksum=int.from_bytes(raw[216:220], "little"),
        )


# -- the free-space tree by block number ------------------------------------------------

TREE_MAGIC = {VERSION_4: int.from_bytes(b"ABTB", "big"), VERSION_5: int.from_bytes(b"AB3B", "big")}
TREE_CHECKSUM = 52
DEEPEST_TREE = 9
_TREE_HEADER_4 = [
    ("magic", ">u4"),
    ("level", ">u2"),
    ("records", ">u2"),
    ("left", ">u4"),
    ("right", ">u4"),
]
_TREE_HEADER_5 = [
    *_TREE_HEADER_4,
    ("sector", ">u8"),
    ("lsn", ">u8"),
    ("uuid", "V16"),
    ("owner", ">u4"),
    ("checksum", "<u4"),
]
TREE_HEADER = {VERSION_4: np.dtype(_TREE_HEADER_4), VERSION_5: np.dtype(_TREE_HEADER_5)}
#: What a sibling pointer holds where there is none.
NO_SIBLING = 0xFFFFFFFF
#: First block and length, both in blocks of the group; a key looks the same.
FREE_RECORD = 8
TREE_POINTER = 4

# -- the log -----------------------------------------------------------------------------

#: The log counts in sectors of 512 bytes ("basic blocks"), whatever the device has.
LOG_SECTOR = 512
LOG_MAGIC = 0xFEEDBABE
#: Of each basic block of a record, the first word is its cycle; a record header has it second.
LOG_VERSION_2 = 2
#: One header sector describes so many bytes of a record; a larger record has more of them.
LOG_HEADER_COVERS = 32768
LOG_LARGEST_RECORD = 262144
#: Records in flight at once: what lies further back than they reach is complete.
LOG_RECORDS_IN_FLIGHT = 8
#: magic, cycle, version, length, own place, tail, checksum, previous block, operations
LOG_HEADER = struct.Struct(">IIIIQQIII")
LOG_CHECKSUM = 32
LOG_HEADER_UUID = 304
LOG_HEADER_SIZE_FIELD = 320
#: Length of a header's structure on 64-bit and on 32-bit machines: checksums cover it.
LOG_HEADER_LENGTHS = (328, 324)
#: Length of the structure of the further header sectors.
LOG_MORE_HEADER_LENGTH = 260
#: transaction (overlaid by the cycle), length, client, flags, unused
LOG_OPERATION = struct.Struct(">IIBBH")
LOG_CLIENT = 0xAA
LOG_UNMOUNT = 0x20
