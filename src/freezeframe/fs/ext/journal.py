"""Whether the journal inside an ext filesystem holds anything not yet written back."""

from __future__ import annotations

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.ext import structs
from freezeframe.fs.ext.geometry import Geometry

_DEEPEST = 5


def verify_journal_empty(reader: Reader, geometry: Geometry, inode_table: int) -> None:
    """Raise `NotUnderstood` unless the journal is there and empty.

    `inode_table` is the block at which the table of the group of the journal's inode begins.
    A journal with a start is to be replayed, even where the flag for that got lost: e2fsck
    asks what to do then, and so the bitmaps cannot be relied on.
    """
    block = _first_block(_read_inode(reader, geometry, inode_table), reader, geometry)
    raw = _read_block(reader, geometry, block)
    fields = structs.JOURNAL_SUPERBLOCK.unpack_from(raw)
    magic, block_type, _, block_size, _, _, _, start, errno = fields
    if magic != structs.JOURNAL_MAGIC or block_type not in structs.JOURNAL_SUPERBLOCKS:
        raise NotUnderstood("the ext journal does not begin with a journal's superblock")
    if block_size != geometry.block_size:
        raise NotUnderstood(f"the ext journal states blocks of {block_size} bytes")
    if start:
        raise NotUnderstood("the ext journal holds transactions that were not written back")
    if errno:
        raise NotUnderstood(f"the ext journal was stopped by an error ({errno})")


def _read_inode(reader: Reader, geometry: Geometry, inode_table: int) -> bytes:
    own = geometry.superblock
    index = (own.journal_inode - 1) % own.inodes_per_group
    offset = inode_table * geometry.block_size + index * own.inode_size
    return reader.read_at(offset, own.inode_size)


def _read_block(reader: Reader, geometry: Geometry, block: int) -> bytes:
    if not 0 < block < geometry.superblock.blocks:
        raise NotUnderstood(f"the ext journal lies at block {block}, outside the filesystem")
    return reader.read_at(block * geometry.block_size, geometry.block_size)


def _first_block(inode: bytes, reader: Reader, geometry: Geometry) -> int:
    flags = int.from_bytes(inode[structs.INODE_FLAGS : structs.INODE_FLAGS + 4], "little")
    node = inode[structs.INODE_BLOCKS : structs.INODE_BLOCKS + structs.INODE_BLOCKS_SIZE]
    if not flags & structs.INODE_USES_EXTENTS:
        return int.from_bytes(node[:4], "little")
    for _ in range(_DEEPEST + 1):
        magic, entries, _, depth, _ = structs.EXTENT_HEADER.unpack_from(node)
        if magic != structs.EXTENT_MAGIC or not entries or depth > _DEEPEST:
            break
        at = structs.EXTENT_HEADER.size
        if depth == 0:
            logical, _, high, low = structs.EXTENT_LEAF.unpack_from(node, at)
            if logical:
                break
            return int(low) | int(high) << 32
        _, low, high, _ = structs.EXTENT_INDEX.unpack_from(node, at)
        node = _read_block(reader, geometry, int(low) | int(high) << 32)
    raise NotUnderstood("the inode of the ext journal makes no sense")
