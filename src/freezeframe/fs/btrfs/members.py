"""The devices of one btrfs, found among the regions of an image."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, SourceError, UnreadableRange
from freezeframe.fs.base import Peers
from freezeframe.fs.btrfs.checksums import valid_blocks
from freezeframe.fs.btrfs.structs import (
    KNOWN_INCOMPAT,
    KNOWN_READ_ONLY,
    MAGIC,
    MAGIC_AT,
    MAGIC_UNFINISHED,
    SUPER_FLAG_WRITTEN,
    SUPERBLOCK_AT,
    SUPERBLOCK_SIZE,
    Incompat,
    Superblock,
    parse_superblock,
)
from freezeframe.fs.probe import little, peek

#: As the kernel numbers the target of a replacement under way.
_REPLACEMENT = 0


@dataclass(frozen=True, slots=True)
class Members:
    """The members that are there, by device id, and what there is to say of the others."""

    readers: Mapping[int, Reader]
    notes: tuple[str, ...]


def read_superblock(reader: Reader) -> Superblock:
    """Read the superblock of a region; `NotUnderstood` where it is damaged or of no use."""
    raw = peek(reader, SUPERBLOCK_AT, SUPERBLOCK_SIZE)
    if raw[MAGIC_AT : MAGIC_AT + 8] == MAGIC_UNFINISHED:
        raise NotUnderstood("a btrfs whose making, or conversion, was never finished")
    if raw[MAGIC_AT : MAGIC_AT + 8] != MAGIC:
        raise NotUnderstood("not a btrfs")
    superblock = parse_superblock(raw)
    row = np.frombuffer(raw, np.uint8).reshape(1, -1)
    if not valid_blocks(superblock.checksum_type, row)[0] or little(raw, 0x30, 8) != SUPERBLOCK_AT:
        raise NotUnderstood("the btrfs superblock does not have the checksum it states")
    return superblock


def check_features(superblock: Superblock) -> None:
    """Raise `NotUnderstood` for features and states in which extents may lie elsewhere."""
    unknown = superblock.incompat & ~KNOWN_INCOMPAT
    if unknown:
        named = [f.name.lower().replace("_", "-") for f in Incompat if f & unknown and f.name]
        names = ", ".join(named) or f"{unknown:#x}"
        raise NotUnderstood(f"btrfs with features that are not followed: {names}")
    if not superblock.incompat & Incompat.MIXED_BACKREF:
        raise NotUnderstood("a btrfs of before 2009")
    unknown_read_only = superblock.read_only & ~KNOWN_READ_ONLY
    if unknown_read_only:
        raise NotUnderstood(f"btrfs with unknown read-only features: {unknown_read_only:#x}")
    if superblock.flags & ~SUPER_FLAG_WRITTEN:
        raise NotUnderstood(
            f"a btrfs seed device, dump, or under change (flags {superblock.flags:#x})"
        )
    if superblock.device.id == _REPLACEMENT:
        raise NotUnderstood("a btrfs device that another is just being replaced by")
    if superblock.device.fsid != superblock.metadata_fsid:
        raise NotUnderstood("a btrfs whose device belongs to another filesystem")


def find_members(reader: Reader, superblock: Superblock, peers: Peers) -> Members:
    """Find the other members of a filesystem by its id; the region itself is always one.

    A member of an older generation missed the last changes and does not count. Raises
    `NotUnderstood` where the region itself is the older one.
    """
    own = superblock.device
    found: dict[int, Reader] = {own.id: reader}
    notes = []
    doubled = set()
    for region in peers.regions() if superblock.device_count > 1 else ():
        other = _peer_superblock(region) if region is not reader else None
        if other is None or _identity(other) != _identity(superblock):
            continue
        device = other.device
        if device.id == own.id:
            continue
        if other.generation > superblock.generation:
            raise NotUnderstood("a btrfs member that missed the last changes of the others")
        if other.generation < superblock.generation:
            notes.append(f"{region.name} missed the last changes of its btrfs")
        elif device.id in found:
            doubled.add(device.id)
        else:
            found[device.id] = region
    for device_id in sorted(doubled):
        del found[device_id]
        notes.append(f"device {device_id} of this btrfs is there more than once")
    return Members(found, tuple(notes))


def _identity(superblock: Superblock) -> tuple[uuid.UUID, bytes]:
    return superblock.fsid, superblock.metadata_fsid


def _peer_superblock(region: Reader) -> Superblock | None:
    try:
        return read_superblock(region)
    except (NotUnderstood, UnreadableRange, SourceError):
        return None
