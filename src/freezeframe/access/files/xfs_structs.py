"""XFS inodes, extent lists, folders and attributes as they lie on disk (big-endian).

Source: "XFS Algorithms & Data Structures" (xfs-documentation), and xfs_format.h,
xfs_da_format.h and xfs_log_format.h of the Linux kernel.
"""

from __future__ import annotations

import enum
import struct

INODE_MAGIC = b"IN"
#: Where the data fork begins, by the inode's version.
FORKS_AT = {1: 100, 2: 100, 3: 176}
SMALLEST_INODE, LARGEST_INODE = 256, 2048


class Format(enum.IntEnum):
    """How a fork keeps what it holds."""

    DEVICE = 0
    LOCAL = 1
    EXTENTS = 2
    TREE = 3


#: Inode flags, of the old field and the new one.
FLAG_REALTIME = 1
FLAG2_BIG_TIME, FLAG2_BIG_COUNTS = 1 << 3, 1 << 4
#: Times of 64 bits count nanoseconds from here, in seconds.
BIG_TIME_FROM = -(1 << 31)

#: Four numbers in 128 bits: unwritten (1), offset (54), place (52), blocks (21).
EXTENT = struct.Struct(">QQ")

#: Long-format tree blocks: magic, level, records; the rest is checked by the image itself.
TREE_HEADER = struct.Struct(">4sHH")
TREE_MAGICS = (b"BMAP", b"BMA3")
TREE_HEADER_SIZE = {4: 24, 5: 72}
DEEPEST_TREE = 9

LINK_MAGIC, LINK_HEADER = b"XSLM", 56

# -- folders ----------------------------------------------------------------------------

#: Logical bytes of a folder from which on there are no names but indexes of them.
FOLDER_INDEX_AT = 32 << 30
FOLDER_HEADER_SIZE = {4: 16, 5: 64}
#: One block that holds names and index; blocks of names only.
SINGLE_MAGICS = (b"XD2B", b"XDB3")
DATA_MAGICS = (b"XD2D", b"XDD3")
FREE_TAG = 0xFFFF
#: At the end of a single block: index entries of 8 bytes, how many, how many of them stale.
SINGLE_TAIL = struct.Struct(">II")
INDEX_ENTRY = 8

# -- attributes -------------------------------------------------------------------------

ATTRIBUTE_LEAVES = (0xFBEE, 0x3BEE)
ATTRIBUTE_NODES = (0xFEBE, 0x3EBE)
LEAF_HEADER_SIZE = {4: 32, 5: 80}
NODE_HEADER_SIZE = {4: 16, 5: 64}
LINKS_SIZE = {4: 12, 5: 56}
#: hash, where name and value are, flags, unused
LEAF_ENTRY = struct.Struct(">IHBx")
REMOTE_MAGIC, REMOTE_HEADER = b"XARM", 56


class AttributeFlag(enum.IntFlag):
    """What an attribute's entry says of it."""

    LOCAL = 1
    ROOT = 2
    SECURE = 4
    PARENT = 8
    INCOMPLETE = 0x80
