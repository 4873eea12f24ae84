"""What of an F2FS is in use: all metadata areas, and valid blocks of the segment table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import MIB
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.bits import UsedUnits
from freezeframe.fs.f2fs.structs import (
    BLOCK,
    HARMLESS_STATES,
    JOURNAL_AT,
    JOURNAL_SIZE,
    KNOWN_FEATURES,
    MAGIC,
    SEGMENT_BLOCKS,
    SIT_COUNT_MASK,
    SIT_ENTRIES,
    SIT_ENTRY,
    SIT_JOURNAL_ENTRY,
    SIT_JOURNAL_MOST,
    SUPERBLOCK_SIZE,
    SUPERBLOCKS_AT,
    Checkpoint,
    CheckpointState,
    Superblock,
    check_block,
    parse_checkpoint,
    parse_superblock,
)
from freezeframe.fs.probe import little, peek

_MAGIC = MAGIC.to_bytes(4, "little")
#: Blocks of the segment table that are read at once.
_PIECE = MIB // BLOCK
#: Summary blocks of a pack that was written at unmount: one for each open segment, then the
#: last block. The journal of the segment table lies in that of cold data, the third.
_LAST_SUMMARIES = 6
_COLD_DATA = 2


class F2fs:
    """F2FS on one device, cleanly unmounted; not zoned, not read-only images."""

    name = "f2fs"

    def recognise(self, reader: Reader) -> bool:
        """Whether one of the two superblocks has the magic."""
        return any(peek(reader, at, 4) == _MAGIC for at in SUPERBLOCKS_AT)

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return metadata areas, valid blocks, and what lies behind the filesystem.

        Raises `NotUnderstood` for one that is dirty, damaged, newer, or over several devices.
        """
        del peers
        # As at rest: a mounted one, frozen too, has a checkpoint without the mark of an unmount
        # (do_checkpoint in fs/f2fs/checkpoint.c), or was not written to since the last one.
        del state
        superblock, notes = _superblock(reader)
        if superblock.features & ~KNOWN_FEATURES:
            unknown = superblock.features & ~KNOWN_FEATURES
            raise NotUnderstood(f"F2FS with features that are not followed: {unknown:#x}")
        if superblock.size > reader.size:
            raise NotUnderstood("F2FS that is larger than its device")
        start, checkpoint = _checkpoint(reader, superblock)
        table = _segment_table(reader, superblock, checkpoint)
        _apply_journal(reader, start, checkpoint, table)
        used = _valid(superblock, checkpoint, table)
        fixed = [(0, superblock.main_at * BLOCK), (superblock.size, reader.size)]
        fixed.append(_log_of_nodes(superblock, checkpoint))
        return UsedMap(
            self.name,
            used | Extents.of(fixed),
            True,
            notes=notes,
            label=superblock.label,
            uuid=superblock.uuid,
            block_size=BLOCK,
            span=superblock.size,
        )


def _superblock(reader: Reader) -> tuple[Superblock, tuple[str, ...]]:
    """Return the first superblock that is good, as the kernel does."""
    problems = []
    for at in SUPERBLOCKS_AT:
        try:
            superblock = parse_superblock(peek(reader, at, SUPERBLOCK_SIZE))
        except NotUnderstood as error:
            problems.append(error)
        else:
            notes = tuple(f"first superblock: {problem.message}" for problem in problems)
            return superblock, notes
    raise problems[0]


# -- checkpoints ------------------------------------------------------------------------


def _checkpoint(reader: Reader, superblock: Superblock) -> tuple[int, Checkpoint]:
    """Return the newer of the two packs that are whole, and the block where it begins."""
    found = []
    problem = NotUnderstood("F2FS without a checkpoint")
    for number in range(2):
        start = superblock.checkpoint_at + number * SEGMENT_BLOCKS
        try:
            found.append((start, _pack(reader, start, superblock.payload)))
        except NotUnderstood as error:
            problem = error
    if not found:
        raise problem
    start, checkpoint = max(found, key=lambda pack: pack[1].version)
    if not checkpoint.states & CheckpointState.UNMOUNTED:
        raise NotUnderstood("F2FS that was not unmounted cleanly")
    if checkpoint.states & ~HARMLESS_STATES:
        raise NotUnderstood(f"F2FS in need of a check (state {checkpoint.states:#x})")
    if max(checkpoint.node_segments + checkpoint.data_segments) >= superblock.main_segments:
        raise NotUnderstood("F2FS whose open segments lie outside")
    return start, checkpoint


def _pack(reader: Reader, start: int, payload: int) -> Checkpoint:
    """Read a pack whose first and last block are whole and of the same version."""
    raw = reader.read_at(start * BLOCK, (1 + payload) * BLOCK)
    checkpoint = parse_checkpoint(raw, payload)
    least = payload + 1 + _LAST_SUMMARIES if checkpoint.states & CheckpointState.UNMOUNTED else 2
    if checkpoint.states & CheckpointState.COMPACT_SUMMARIES:
        least = payload + 3
    within = payload < checkpoint.summaries < checkpoint.pack_blocks
    if not least <= checkpoint.pack_blocks <= SEGMENT_BLOCKS or not within:
        raise NotUnderstood("an F2FS checkpoint that makes no sense")
    last = reader.read_at((start + checkpoint.pack_blocks - 1) * BLOCK, BLOCK)
    check_block(last)
    if little(last, 0, 8) != checkpoint.version:
        raise NotUnderstood("an F2FS checkpoint that was never finished")
    return checkpoint


# -- the segment table ------------------------------------------------------------------


def _segment_table(
    reader: Reader, superblock: Superblock, checkpoint: Checkpoint
) -> NDArray[np.void]:
    """Read one `SIT_ENTRY` a segment of the main area, each block from the set that counts."""
    blocks = -(-superblock.main_segments // SIT_ENTRIES)
    bits = np.unpackbits(np.frombuffer(checkpoint.sit_bitmap, np.uint8))
    if len(bits) < blocks:
        raise NotUnderstood("F2FS whose segment table has a bitmap that is too short")
    second = superblock.sit_segments // 2 * SEGMENT_BLOCKS
    size = SIT_ENTRIES * SIT_ENTRY.itemsize
    parts = []
    for first in range(0, blocks, _PIECE):
        count = min(_PIECE, blocks - first)
        # Both sets are read and one is chosen: simpler than hopping between them.
        sets = [
            np.frombuffer(reader.read_at((base + first) * BLOCK, count * BLOCK), np.uint8)
            for base in (superblock.sit_at, superblock.sit_at + second)
        ]
        chosen = np.where(
            bits[first : first + count, np.newaxis] != 0,
            sets[1].reshape(count, BLOCK)[:, :size],
            sets[0].reshape(count, BLOCK)[:, :size],
        )
        parts.append(np.ascontiguousarray(chosen).view(SIT_ENTRY).reshape(-1))
    return np.concatenate(parts)[: superblock.main_segments]


def _apply_journal(
    reader: Reader, start: int, checkpoint: Checkpoint, table: NDArray[np.void]
) -> None:
    """Put newer entries, which the checkpoint keeps in a summary block, into the table."""
    if checkpoint.states & CheckpointState.COMPACT_SUMMARIES:
        # The journal of the node table comes first.
        block, at = start + checkpoint.summaries, JOURNAL_SIZE
    else:
        block = start + checkpoint.pack_blocks - 1 - _LAST_SUMMARIES + _COLD_DATA
        at = JOURNAL_AT
    raw = reader.read_at(block * BLOCK, BLOCK)
    count = little(raw, at, 2)
    if count > SIT_JOURNAL_MOST:
        raise NotUnderstood("F2FS with a journal that makes no sense")
    journal = np.frombuffer(raw, SIT_JOURNAL_ENTRY, count, at + 2)
    if (journal["segment"] >= len(table)).any():
        raise NotUnderstood("F2FS with a journal of segments that do not exist")
    for entry in journal:
        table[int(entry["segment"])] = entry["entry"]


def _valid(superblock: Superblock, checkpoint: Checkpoint, table: NDArray[np.void]) -> Extents:
    """Return the valid blocks; `NotUnderstood` where counts and bits disagree."""
    units = UsedUnits(BLOCK, superblock.main_at * BLOCK)
    # 4096 segments at a time: 2 Mi flags.
    for first in range(0, len(table), 4096):
        part = table[first : first + 4096]
        bits = np.unpackbits(part["valid"], axis=1)
        if not np.array_equal(bits.sum(axis=1), part["blocks"] & SIT_COUNT_MASK):
            raise NotUnderstood("F2FS with segments whose bits and count disagree")
        units.add(bits.reshape(-1).astype(np.bool_))
    # Blocks set aside but never written are counted there and have no bit.
    if not checkpoint.valid_nodes <= units.flagged <= checkpoint.valid_blocks:
        raise NotUnderstood(
            f"F2FS with {units.flagged} valid blocks where {checkpoint.valid_blocks} should be"
        )
    return units.extents()


def _log_of_nodes(superblock: Superblock, checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the open segment of warm nodes, to be kept whole.

    A mount looks there for nodes written after the checkpoint. On a disk that had the same
    filesystem before, what a later mount wrote could lie there still, and be taken for them.
    """
    first = superblock.main_at + checkpoint.node_segments[1] * SEGMENT_BLOCKS
    return first * BLOCK, (first + SEGMENT_BLOCKS) * BLOCK


KIND = F2fs()
