"""The used map of XFS: all but the free extents of its allocation groups.

The log is in use, and so are the blocks that each group keeps in reserve for its trees
(AGFL): few, and nobody needs to vouch for them.

A freeze writes all metadata back to its place and waits for it, then leaves the log dirty on
purpose, so that what is still open and unlinked is freed by the next mount (xfs_fs_freeze,
xfs_log_quiesce in fs/xfs of Linux). So a frozen one has its trees as they are, behind a log
that looks as after a crash, and a superblock whose counts are old.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.bulk import MOST_RANGES
from freezeframe.fs.xfs import structs
from freezeframe.fs.xfs.freespace import (
    checksums_match,
    group_length,
    header_blocks,
    read_group,
)
from freezeframe.fs.xfs.log import verify_log_clean
from freezeframe.fs.xfs.structs import (
    VERSION_4,
    VERSION_5,
    VERSION_MASK,
    Features2,
    Incompat,
    LogIncompat,
    ReadOnlyCompat,
    Superblock,
    Version,
)


@dataclass(frozen=True, slots=True)
class XfsKind:
    """The parser of XFS."""

    name: str = "xfs"

    def recognise(self, reader: Reader) -> bool:
        """Look for the superblock's magic number at the start."""
        if reader.size < structs.SMALLEST_SECTOR:
            return False
        return reader.read_at(0, 4) == structs.SUPERBLOCK_MAGIC

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Tell what is in use; raises `NotUnderstood` where that is not certain."""
        del peers  # Filesystems with parts elsewhere are left to the caller, whole.
        if not self.recognise(reader):
            raise NotUnderstood("no XFS superblock")
        own = Superblock.parse(reader.read_at(0, structs.SMALLEST_SECTOR))
        _verify_known(own)
        _verify_sizes(own, reader.size)
        _verify_checksum(reader, own)
        _verify_one_device(own)
        if state is State.AT_REST:
            verify_log_clean(reader, *log_range(own), own.uuid)
        free, notes = _free(reader, own, state)
        used = Extents.single(0, reader.size) - free
        return UsedMap(
            kind="xfs",
            used=used,
            understood=True,
            notes=notes,
            label=own.label,
            uuid=str(uuid.UUID(bytes=own.uuid)),
            block_size=own.block_size,
            span=own.blocks * own.block_size,
        )


def _all(
    features: type[Version]
    | type[Features2]
    | type[ReadOnlyCompat]
    | type[Incompat]
    | type[LogIncompat],
) -> int:
    return sum(int(feature) for feature in features)


def _verify_known(own: Superblock) -> None:
    number = own.version & VERSION_MASK
    if number not in (VERSION_4, VERSION_5):
        raise NotUnderstood(f"XFS of version {number}")
    if own.in_progress:
        raise NotUnderstood("the making of this XFS filesystem was never finished")
    unknown = own.version & ~VERSION_MASK & ~_all(Version)
    needed = Version.DIRV2 | Version.EXTFLG
    if unknown or own.version & needed != needed:
        raise NotUnderstood(f"an unknown version of XFS: {own.version:#x}")
    if own.version & Version.MOREBITS and own.features2 & ~_all(Features2):
        raise NotUnderstood(f"unknown features of XFS: {own.features2:#x}")
    if number == VERSION_4:
        return
    for word, bits in (
        ("compatible", own.compat),
        ("read-only compatible", own.read_only & ~_all(ReadOnlyCompat)),
        ("incompatible", own.incompat & ~_all(Incompat)),
        ("log", own.log_incompat & ~_all(LogIncompat)),
    ):
        if bits:
            raise NotUnderstood(f"unknown {word} features of XFS: {bits:#x}")
    if own.incompat & Incompat.NEEDS_REPAIR:
        raise NotUnderstood("the XFS filesystem is marked as damaged: run xfs_repair")


def _verify_sizes(own: Superblock, size: int) -> None:
    log_group, log_block = _log_place(own)
    checks = (
        (512 <= own.block_size <= 65536, "an impossible block size"),
        (own.block_size == 1 << (own.log_of_block_size & 63), "two block sizes"),
        (
            structs.SMALLEST_SECTOR <= own.sector_size <= structs.LARGEST_SECTOR,
            "an impossible sector size",
        ),
        (own.sector_size == 1 << (own.log_of_sector_size & 63), "two sector sizes"),
        (own.sector_size <= own.block_size, "sectors larger than blocks"),
        (own.group_blocks >= structs.SMALLEST_GROUP, "groups of too few blocks"),
        (own.log_of_group_blocks <= 32, "an impossible group size"),
        (
            (own.group_blocks - 1).bit_length() == own.log_of_group_blocks,
            "two sizes of a group",
        ),
        (own.groups >= 1 and own.blocks <= own.groups * own.group_blocks, "too few groups"),
        (own.blocks > (own.groups - 1) * own.group_blocks, "too many groups"),
        (own.blocks * own.block_size <= size, "more blocks than the region holds"),
    )
    for fine, complaint in checks:
        if not fine:
            raise NotUnderstood(f"the XFS superblock states {complaint}")
    last_group = group_length(own, own.groups - 1)
    if last_group <= header_blocks(own):
        raise NotUnderstood("the XFS superblock states a last group without room")
    if own.log_start and (
        log_group >= own.groups
        or not own.log_blocks
        or log_block < header_blocks(own)
        or log_block + own.log_blocks > group_length(own, log_group)
    ):
        raise NotUnderstood("the XFS superblock states a log outside the filesystem")


def _verify_checksum(reader: Reader, own: Superblock) -> None:
    if not own.checksummed:
        return
    rows = np.frombuffer(reader.read_at(0, own.sector_size), np.uint8).reshape(1, -1)
    if not checksums_match(rows, structs.SUPERBLOCK_CHECKSUM)[0]:
        raise NotUnderstood("the XFS superblock does not have the checksum it states")


def _verify_one_device(own: Superblock) -> None:
    if not own.log_start:
        raise NotUnderstood("the XFS log is on another device")
    if own.realtime_blocks or own.realtime_extents:
        raise NotUnderstood("the XFS filesystem has a realtime part on another device")


def _log_place(own: Superblock) -> tuple[int, int]:
    """Return the group of the log and its first block there."""
    group = own.log_start >> own.log_of_group_blocks
    return group, own.log_start & ((1 << own.log_of_group_blocks) - 1)


def log_range(own: Superblock) -> tuple[int, int]:
    """Return where the log begins and how long it is, in bytes."""
    group, block = _log_place(own)
    return (group * own.group_blocks + block) * own.block_size, own.log_blocks * own.block_size


def _free(reader: Reader, own: Superblock, state: State) -> tuple[Extents, tuple[str, ...]]:
    """Bytes of all free extents, counted against the headers and the superblock; and notes.

    Of a live filesystem, a group that is just changing has none.
    """
    starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    trees, kept = [], 0
    free = moving = 0
    for number in range(own.groups):
        try:
            group = read_group(reader, own, number)
        except NotUnderstood:
            if state is not State.LIVE:
                raise
            moving += 1
            continue
        free += group.agf.free + group.agf.list_count
        trees.append(group.agf.tree_blocks)
        first = group.starts + number * own.group_blocks
        last = first + group.lengths
        if kept + len(first) > MOST_RANGES:
            # Too many to hold: the rest of the small ones count as used.
            large = group.lengths >= 256
            first, last = first[large], last[large]
        kept += len(first)
        starts.append(first)
        stops.append(last)
    # Only a lazy superblock counts the trees' own blocks as free.
    expected = {free + sum(trees)} if own.lazy_counts else {free, free + sum(trees)}
    if state is State.AT_REST and own.free not in expected:
        raise NotUnderstood(
            f"the XFS superblock counts {own.free} free blocks, its groups {free + sum(trees)}"
        )
    notes = (f"{moving} of its groups were changing: they count as used",) if moving else ()
    found = Extents.from_arrays(
        np.concatenate(starts) * own.block_size, np.concatenate(stops) * own.block_size
    )
    return found, notes
