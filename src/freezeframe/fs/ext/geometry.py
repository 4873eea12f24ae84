"""Where the parts of an ext filesystem lie, from its superblock alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Int64Array
from freezeframe.core.units import KIB
from freezeframe.fs.ext.structs import (
    DESCRIPTOR_SIZE_64BIT,
    Compat,
    Incompat,
    ReadOnlyCompat,
    Superblock,
)

#: 256 TiB in groups of 128 MiB; a table of more is taken for damage.
_MOST_GROUPS = 1 << 21
_LARGEST_LOG_BLOCK = 6


@dataclass(frozen=True, slots=True)
class Geometry:
    """Checked sizes; bytes where they say so, else counts or block numbers."""

    superblock: Superblock
    #: In bytes.
    block_size: int
    #: Blocks to a cluster: 1 without bigalloc.
    ratio: int
    groups: int
    #: Descriptors to a block.
    descriptors_per_block: int
    #: Blocks all descriptors take.
    descriptor_blocks: int
    #: Blocks the inode table of one group takes.
    inode_table_blocks: int

    @property
    def span(self) -> int:
        """Bytes the filesystem covers."""
        return self.superblock.blocks * self.block_size

    @property
    def superblock_block(self) -> int:
        """The block the primary superblock lies in."""
        return 1 if self.block_size == KIB else 0

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of a block bitmap that mean something."""
        return self.superblock.clusters_per_group // 8

    def clusters_in(self, groups: Int64Array) -> Int64Array:
        """How many clusters each of these groups has; the last group may be short."""
        own = self.superblock
        left = own.blocks - own.first_data_block - groups * own.blocks_per_group
        return -(-np.minimum(left, own.blocks_per_group) // self.ratio)

    def starts_of(self, groups: Int64Array) -> Int64Array:
        """Return the first block of each of these groups."""
        return self.superblock.first_data_block + groups * self.superblock.blocks_per_group

    def has_superblock(self, groups: Int64Array) -> NDArrayBool:
        """Whether each of these groups begins with a copy of the superblock."""
        own = self.superblock
        if own.compat & Compat.SPARSE_SUPER2:
            return np.isin(groups, [0, *own.backup_groups])
        if not own.read_only & ReadOnlyCompat.SPARSE_SUPER:
            return np.ones(len(groups), np.bool_)
        powers = [base**n for base in (3, 5, 7) for n in range(22) if base**n <= _MOST_GROUPS]
        return np.isin(groups, [0, 1, *powers])

    def heads_of(self, groups: Int64Array) -> Int64Array:
        """Return the block of each group in which its superblock lies, if it has one."""
        heads = self.starts_of(groups)
        # With blocks of 1 KiB the boot block comes first; bigalloc counts it in group 0.
        return np.where(heads == 0, self.superblock_block, heads)

    def descriptor_locations(self) -> Int64Array:
        """Return the block numbers of the primary group descriptors, in order."""
        own = self.superblock
        numbers = np.arange(self.descriptor_blocks, dtype=np.int64)
        together = self.superblock_block + 1 + numbers
        if not own.incompat & Incompat.META_BG:
            return together
        groups = numbers * self.descriptors_per_block
        apart = self.heads_of(groups) + self.has_superblock(groups)
        return np.where(numbers < own.first_meta_group, together, apart)

    def head_extents(self) -> tuple[Int64Array, Int64Array]:
        """Return first blocks and ends of all superblocks, descriptors and their reserves."""
        own = self.superblock
        groups = np.arange(self.groups, dtype=np.int64)
        has = self.has_superblock(groups)
        meta = own.incompat & Incompat.META_BG
        together = own.first_meta_group if meta else self.descriptor_blocks
        first = self.heads_of(groups[has])
        last = first + 1 + together + own.reserved_descriptor_blocks
        if not meta:
            return first, last
        # Each block of descriptors lies in the first, second and last group it describes.
        place = groups % self.descriptors_per_block
        holds = np.isin(place, [0, 1, self.descriptors_per_block - 1])
        holds &= groups // self.descriptors_per_block >= own.first_meta_group
        copies = self.heads_of(groups[holds]) + has[holds]
        return np.concatenate([first, copies]), np.concatenate([last, copies + 1])


NDArrayBool = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def geometry_of(own: Superblock, size: int) -> Geometry:
    """Check the superblock's sizes against each other and the region of `size` bytes.

    Raises `NotUnderstood` where they cannot be.
    """
    if own.log_block_size > _LARGEST_LOG_BLOCK or own.log_cluster_size > 20:
        raise NotUnderstood("the ext superblock states an impossible block or cluster size")
    block_size = KIB << own.log_block_size
    bigalloc = bool(own.read_only & ReadOnlyCompat.BIGALLOC)
    if own.log_cluster_size < own.log_block_size:
        raise NotUnderstood("the ext superblock states clusters smaller than its blocks")
    ratio = 1 << (own.log_cluster_size - own.log_block_size)
    if not own.clusters_per_group or not own.inodes_per_group or not own.blocks:
        raise NotUnderstood("the ext superblock states empty groups")
    checks = (
        (bigalloc or ratio == 1, "clusters without bigalloc"),
        (own.blocks_per_group == own.clusters_per_group * ratio, "groups that do not fit"),
        (own.clusters_per_group <= 8 * block_size, "groups larger than a bitmap"),
        (own.clusters_per_group % 8 == 0, "groups of no whole bytes of bitmap"),
        (own.inodes_per_group <= 8 * block_size, "more inodes than a bitmap holds"),
        (own.first_data_block == (block_size == KIB and not bigalloc), "an odd first block"),
        (own.first_data_block < own.blocks, "no blocks"),
        (own.blocks * block_size <= size, "more blocks than the region holds"),
        (own.inode_size >= 128 and own.inode_size <= block_size, "an impossible inode size"),
        (own.inode_size.bit_count() == 1, "an impossible inode size"),
        (own.descriptor_size.bit_count() == 1, "an impossible descriptor size"),
        (own.descriptor_size <= block_size, "an impossible descriptor size"),
        (
            own.descriptor_size >= DESCRIPTOR_SIZE_64BIT or not own.incompat & Incompat.BIT64,
            "an impossible descriptor size",
        ),
    )
    for fine, complaint in checks:
        if not fine:
            raise NotUnderstood(f"the ext superblock states {complaint}")
    groups = -(-(own.blocks - own.first_data_block) // own.blocks_per_group)
    descriptors_per_block = block_size // own.descriptor_size
    descriptor_blocks = -(-groups // descriptors_per_block)
    if groups > _MOST_GROUPS or own.inodes != groups * own.inodes_per_group:
        raise NotUnderstood(f"the ext superblock states {groups} groups and {own.inodes} inodes")
    if own.incompat & Incompat.META_BG and own.first_meta_group > descriptor_blocks:
        raise NotUnderstood("the ext superblock states an impossible first meta block group")
    return Geometry(
        superblock=own,
        block_size=block_size,
        ratio=ratio,
        groups=groups,
        descriptors_per_block=descriptors_per_block,
        descriptor_blocks=descriptor_blocks,
        inode_table_blocks=-(-own.inodes_per_group * own.inode_size // block_size),
    )
