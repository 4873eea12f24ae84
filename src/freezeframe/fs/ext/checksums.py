"""Checksums of ext4: of the superblock, the group descriptors and the block bitmaps."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.bulk import Bytes
from freezeframe.fs.crc32c import crc32c, crc32c_rows
from freezeframe.fs.ext.structs import (
    CHECKSUM_CRC32C,
    DESCRIPTOR_CHECKSUM,
    DESCRIPTOR_SIZE_64BIT,
    SUPERBLOCK_CHECKSUM,
    Incompat,
    ReadOnlyCompat,
    Superblock,
)


@functools.cache
def _crc16_table() -> NDArray[np.uint16]:
    table = np.arange(256, dtype=np.uint16)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ 0xA001, table >> 1).astype(np.uint16)
    return table


def _crc16_rows(rows: Bytes) -> NDArray[np.uint16]:
    """CRC-16 (the reflected polynomial 0xA001, all ones before) of each row."""
    table = _crc16_table()
    state = np.full(len(rows), 0xFFFF, np.uint16)
    for column in range(rows.shape[1]):
        state = table[(state ^ rows[:, column]) & 0xFF] ^ (state >> 8)
    return state


def verify_superblock(superblock: Superblock, raw: bytes) -> None:
    """Raise `NotUnderstood` where the superblock has a checksum and it is wrong."""
    if not superblock.read_only & ReadOnlyCompat.METADATA_CSUM:
        return
    if superblock.checksum_type != CHECKSUM_CRC32C:
        raise NotUnderstood(f"ext checksums of type {superblock.checksum_type}")
    if crc32c(raw[:SUPERBLOCK_CHECKSUM]) != superblock.checksum:
        raise NotUnderstood("the ext superblock does not have the checksum it states")


def seed_of(superblock: Superblock) -> int:
    """Return what all other checksums start from."""
    if superblock.incompat & Incompat.CSUM_SEED:
        return superblock.checksum_seed
    return crc32c(superblock.uuid)


def wrong_descriptors(superblock: Superblock, raw: Bytes) -> NDArray[np.int64]:
    """Return the groups whose descriptor does not match its checksum, ascending.

    `raw` is uint8 (groups, descriptor size): all of them.
    """
    crc = superblock.read_only & ReadOnlyCompat.METADATA_CSUM
    if not (crc or superblock.read_only & ReadOnlyCompat.GDT_CSUM):
        return np.empty(0, np.int64)
    numbers = np.arange(len(raw), dtype="<u4").view(np.uint8).reshape(-1, 4)
    stored = raw[:, DESCRIPTOR_CHECKSUM : DESCRIPTOR_CHECKSUM + 2].copy().view("<u2")[:, 0]
    if crc:
        covered = np.concatenate([numbers, raw], axis=1)
        covered[:, 4 + DESCRIPTOR_CHECKSUM : 4 + DESCRIPTOR_CHECKSUM + 2] = 0
        computed = crc32c_rows(covered, seed_of(superblock)) & 0xFFFF
    else:
        uuid = np.broadcast_to(np.frombuffer(superblock.uuid, np.uint8), (len(raw), 16))
        parts = [uuid, numbers, raw[:, :DESCRIPTOR_CHECKSUM], raw[:, DESCRIPTOR_CHECKSUM + 2 :]]
        computed = _crc16_rows(np.concatenate(parts, axis=1)).astype(np.uint32)
    return np.flatnonzero(computed != stored).astype(np.int64)


def wrong_bitmaps(
    superblock: Superblock, bitmaps: Bytes, stored: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Tell which block bitmaps (uint8 (n, bytes a group)) do not match their stored CRC."""
    if not superblock.read_only & ReadOnlyCompat.METADATA_CSUM:
        return np.zeros(len(bitmaps), np.bool_)
    # Small descriptors have room for half of it.
    room = 0xFFFFFFFF if superblock.descriptor_size >= DESCRIPTOR_SIZE_64BIT else 0xFFFF
    computed = crc32c_rows(bitmaps, seed_of(superblock)) & np.uint32(room)
    wrong: NDArray[np.bool_] = computed != stored
    return wrong
