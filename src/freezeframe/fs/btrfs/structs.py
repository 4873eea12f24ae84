"""btrfs as it lies on disk; all numbers little-endian.

Source: the btrfs on-disk format documentation and the kernel's `btrfs_tree.h`.
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass

import numpy as np

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import GIB, KIB, MIB
from freezeframe.fs.probe import little, power_of_two, text

SUPERBLOCK_AT = 64 * KIB
SUPERBLOCK_SIZE = 4096
#: The superblock and its mirrors; those past the device's end do not exist.
SUPERBLOCKS_AT = (SUPERBLOCK_AT, 64 * MIB, 256 * GIB)
#: Left to boot loaders: nothing is ever allocated before it.
RESERVED = MIB

MAGIC = b"_BHRfS_M"
#: What mkfs and btrfs-convert write until they are through.
MAGIC_UNFINISHED = b"!BHRfS_M"
MAGIC_AT = 64

CHECKSUM_SIZE = 32
#: Data of all striped profiles moves to the next stripe after so many bytes.
STRIPE_LENGTH = 64 * KIB
MAX_LEVEL = 7
LARGEST_NODE = 64 * KIB

#: The bit that says the superblock was once written; no other is understood (seed device,
#: metadata dump, change of UUID or checksums under way).
SUPER_FLAG_WRITTEN = 1


class Incompat(enum.IntFlag):
    """Features a driver must know to read at all."""

    MIXED_BACKREF = 1 << 0
    DEFAULT_SUBVOLUME = 1 << 1
    MIXED_GROUPS = 1 << 2
    COMPRESS_LZO = 1 << 3
    COMPRESS_ZSTD = 1 << 4
    BIG_METADATA = 1 << 5
    EXTENDED_IREF = 1 << 6
    RAID56 = 1 << 7
    SKINNY_METADATA = 1 << 8
    NO_HOLES = 1 << 9
    METADATA_UUID = 1 << 10
    RAID1C34 = 1 << 11
    ZONED = 1 << 12
    EXTENT_TREE_V2 = 1 << 13
    RAID_STRIPE_TREE = 1 << 14
    SIMPLE_QUOTA = 1 << 16


#: The others change where extents are noted or where they lie. A plain number: the complement
#: of a flag has no bits that were never named.
KNOWN_INCOMPAT = int(
    Incompat.MIXED_BACKREF
    | Incompat.DEFAULT_SUBVOLUME
    | Incompat.MIXED_GROUPS
    | Incompat.COMPRESS_LZO
    | Incompat.COMPRESS_ZSTD
    | Incompat.BIG_METADATA
    | Incompat.EXTENDED_IREF
    | Incompat.RAID56
    | Incompat.SKINNY_METADATA
    | Incompat.NO_HOLES
    | Incompat.METADATA_UUID
    | Incompat.RAID1C34
    | Incompat.SIMPLE_QUOTA
)


class ReadOnlyCompat(enum.IntFlag):
    """Features a driver must know to write."""

    FREE_SPACE_TREE = 1 << 0
    FREE_SPACE_TREE_VALID = 1 << 1
    VERITY = 1 << 2
    BLOCK_GROUP_TREE = 1 << 3


KNOWN_READ_ONLY = int(
    ReadOnlyCompat.FREE_SPACE_TREE
    | ReadOnlyCompat.FREE_SPACE_TREE_VALID
    | ReadOnlyCompat.VERITY
    | ReadOnlyCompat.BLOCK_GROUP_TREE
)


class Profile(enum.IntFlag):
    """How a chunk lies on its devices; none of them: one stripe, one device."""

    RAID0 = 1 << 3
    RAID1 = 1 << 4
    DUP = 1 << 5
    RAID10 = 1 << 6
    RAID5 = 1 << 7
    RAID6 = 1 << 8
    RAID1C3 = 1 << 9
    RAID1C4 = 1 << 10


#: Data, system, metadata.
CHUNK_KINDS = 0b111
PROFILES = 0b111_1111_1000

# -- trees ------------------------------------------------------------------------------

ROOT_TREE = 1
EXTENT_TREE = 2
CHUNK_TREE = 3

#: Object ids and types of the items that are looked for.
DEVICES_OBJECT = 1
CHUNKS_OBJECT = 256
ROOT_ITEM = 132
EXTENT_ITEM = 168
METADATA_ITEM = 169
DEVICE_ITEM = 216
CHUNK_ITEM = 228

_KEY = [("object", "<u8"), ("type", "u1"), ("offset", "<u8")]
KEY = np.dtype(_KEY)

#: At the start of every tree block.
HEADER = np.dtype(
    [
        ("checksum", "V32"),
        ("fsid", "V16"),
        ("logical", "<u8"),
        ("flags", "<u8"),
        ("chunk_tree_uuid", "V16"),
        ("generation", "<u8"),
        ("owner", "<u8"),
        ("count", "<u4"),
        ("level", "u1"),
    ]
)
FSID_AT = 32
#: In leaves, after the header; `data` is counted from the header's end.
ITEM = np.dtype([*_KEY, ("data", "<u4"), ("size", "<u4")])
#: In all other blocks, after the header.
POINTER = np.dtype([*_KEY, ("logical", "<u8"), ("generation", "<u8")])

# -- items ------------------------------------------------------------------------------

#: length, owner, stripe length, type, 3 I/O sizes, number of stripes, of sub-stripes.
CHUNK = struct.Struct("<QQQQIIIHH")
#: device id, offset on the device, the device's UUID.
STRIPE = struct.Struct("<QQ16s")
#: device id, size, bytes allocated, 3 I/O sizes, type, generation, start, group, speeds,
#: UUID of the device, id of the filesystem.
DEVICE = struct.Struct("<QQQIIIQQQIBB16s16s")
#: What is looked at of a root item: an inode of 160 bytes comes first.
ROOT_GENERATION_AT = 160
ROOT_LOGICAL_AT = 176
ROOT_LEVEL_AT = 238
ROOT_ITEM_LEAST = 239
DISK_KEY = struct.Struct("<QBQ")


@dataclass(frozen=True, slots=True)
class Device:
    """One member of a filesystem, as a device item tells it."""

    id: int
    #: Bytes of it that the filesystem may use.
    size: int
    uuid: bytes
    fsid: bytes


def parse_device(raw: bytes) -> Device:
    """Read a device item; `NotUnderstood` where it is too short."""
    if len(raw) < DEVICE.size:
        raise NotUnderstood("btrfs with a device item that is too short")
    fields = DEVICE.unpack_from(raw)
    return Device(int(fields[0]), int(fields[1]), bytes(fields[12]), bytes(fields[13]))


@dataclass(frozen=True, slots=True)
class TreeRoot:
    """Where a tree begins."""

    owner: int
    logical: int
    level: int
    #: When the root block was written; the block must say the same.
    generation: int
    #: A subvolume's: snapshots have blocks in common, which name the first that had them.
    shared: bool = False


def parse_root(owner: int, raw: bytes, *, shared: bool = False) -> TreeRoot:
    """Return where a tree begins, from its root item; raises `NotUnderstood`."""
    if len(raw) < ROOT_ITEM_LEAST or raw[ROOT_LEVEL_AT] > MAX_LEVEL:
        raise NotUnderstood("btrfs with a root item that makes no sense")
    logical, generation = little(raw, ROOT_LOGICAL_AT, 8), little(raw, ROOT_GENERATION_AT, 8)
    return TreeRoot(owner, logical, raw[ROOT_LEVEL_AT], generation, shared)


@dataclass(frozen=True, slots=True)
class Superblock:
    """The superblock of one member."""

    fsid: uuid.UUID
    #: What tree blocks and devices carry: the same as `fsid` unless that was changed later.
    metadata_fsid: bytes
    generation: int
    root_tree: TreeRoot
    chunk_tree: TreeRoot
    log_tree: int
    bytes_used: int
    device_count: int
    sector: int
    node: int
    flags: int
    incompat: int
    read_only: int
    checksum_type: int
    device: Device
    label: str
    #: Chunk items with their keys: what it takes to read the chunk tree.
    system_chunks: bytes


def parse_superblock(raw: bytes) -> Superblock:
    """Read a superblock of 4096 bytes; its checksum, features and state are not judged here.

    Raises `NotUnderstood` where sizes are impossible.
    """
    sector, node = little(raw, 0x90, 4), little(raw, 0x94, 4)
    array = little(raw, 0xA0, 4)
    levels = raw[0xC6], raw[0xC7]
    if not power_of_two(sector, 512, LARGEST_NODE) or not power_of_two(node, sector, LARGEST_NODE):
        raise NotUnderstood(f"btrfs with sectors of {sector} and nodes of {node} bytes")
    if array > 2048 or max(levels) > MAX_LEVEL:
        raise NotUnderstood("btrfs with a superblock that makes no sense")
    fsid, incompat = raw[0x20:0x30], little(raw, 0xBC, 8)
    changed = bool(incompat & Incompat.METADATA_UUID)
    return Superblock(
        fsid=uuid.UUID(bytes=fsid),
        metadata_fsid=raw[0x23B:0x24B] if changed else fsid,
        generation=little(raw, 0x48, 8),
        root_tree=TreeRoot(ROOT_TREE, little(raw, 0x50, 8), levels[0], little(raw, 0x48, 8)),
        chunk_tree=TreeRoot(CHUNK_TREE, little(raw, 0x58, 8), levels[1], little(raw, 0xA4, 8)),
        log_tree=little(raw, 0x60, 8),
        bytes_used=little(raw, 0x78, 8),
        device_count=little(raw, 0x88, 8),
        sector=sector,
        node=node,
        flags=little(raw, 0x38, 8),
        incompat=incompat,
        read_only=little(raw, 0xB4, 8),
        checksum_type=little(raw, 0xC4, 2),
        device=parse_device(raw[0xC9 : 0xC9 + DEVICE.size]),
        label=text(raw[0x12B : 0x12B + 256]),
        system_chunks=raw[0x32B : 0x32B + array],
    )
