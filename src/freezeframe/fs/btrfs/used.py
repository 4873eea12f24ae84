"""What one device of a btrfs holds: the extent tree, mapped through the chunks.

The extent tree notes every extent that any tree, file or snapshot needs as of the last
commit. Only a log tree (of fsync) is not in it; then all that chunks take counts as used.

A freeze commits (btrfs_freeze in fs/btrfs/super.c of Linux), so a frozen one is as one at
rest. In a live one, blocks of the last commit but one are written over: it is read as it is,
and given up at the first block that is none.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents, Int64Array
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.btrfs.chunks import Chunk, ChunkMap, parse_chunk, parse_system_chunks
from freezeframe.fs.btrfs.members import (
    Members,
    check_features,
    find_members,
    read_superblock,
)
from freezeframe.fs.btrfs.structs import (
    CHUNK_ITEM,
    CHUNKS_OBJECT,
    DEVICE_ITEM,
    DEVICES_OBJECT,
    EXTENT_ITEM,
    EXTENT_TREE,
    MAGIC,
    MAGIC_AT,
    MAGIC_UNFINISHED,
    METADATA_ITEM,
    RESERVED,
    ROOT_ITEM,
    SUPERBLOCK_AT,
    SUPERBLOCK_SIZE,
    SUPERBLOCKS_AT,
    Device,
    Superblock,
    TreeRoot,
    parse_device,
    parse_root,
)
from freezeframe.fs.btrfs.trees import Records, TreeReader, item_data
from freezeframe.fs.bulk import Gathered
from freezeframe.fs.probe import peek


class Btrfs:
    """btrfs on one device or several, all profiles; not zoned, no extent tree v2."""

    name = "btrfs"

    def recognise(self, reader: Reader) -> bool:
        """Whether the first superblock is there, a half-made one too."""
        return peek(reader, SUPERBLOCK_AT + MAGIC_AT, 8) in (MAGIC, MAGIC_UNFINISHED)

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return what this device holds of its filesystem.

        Where the extent tree cannot be read to its end, or there is a log tree, all that
        chunks take of the device counts as used, with a note. Raises `NotUnderstood` where
        not even the chunks are clear, or the extent tree of a live one cannot be read.
        """
        superblock = read_superblock(reader)
        check_features(superblock)
        own = superblock.device
        if own.size > reader.size:
            raise NotUnderstood("btrfs that is larger than its device")
        members = find_members(reader, superblock, peers)
        chunks, devices = read_chunks(superblock, members)
        _check_devices(superblock, members, chunks, devices)
        data, notes = _held(superblock, members, chunks, live=state is State.LIVE)
        fixed = [(at, min(at + SUPERBLOCK_SIZE, reader.size)) for at in SUPERBLOCKS_AT]
        # What lies behind the filesystem is not for it to say.
        fixed += [(0, min(RESERVED, reader.size)), (own.size, reader.size)]
        return UsedMap(
            self.name,
            data | Extents.of(fixed),
            True,
            notes=(*members.notes, *_missing(members, devices), *notes),
            label=superblock.label,
            uuid=str(superblock.fsid),
            block_size=superblock.sector,
            span=own.size,
        )


def _held(
    superblock: Superblock, members: Members, chunks: ChunkMap, *, live: bool
) -> tuple[Extents, tuple[str, ...]]:
    own = superblock.device.id
    if superblock.log_tree and not live:
        note = "it was not unmounted: there is a log tree"
    else:
        try:
            logical = _logical_extents(superblock, TreeReader(superblock, members.readers, chunks))
            return chunks.on_device(own, logical), ()
        except NotUnderstood as error:
            if live:
                raise
            note = error.message
    return chunks.allocated(own), (f"all allocated chunks count as used: {note}",)


# -- chunks and devices -----------------------------------------------------------------


def read_chunks(superblock: Superblock, members: Members) -> tuple[ChunkMap, list[Device]]:
    """Read the chunk tree by way of the system chunks that the superblock lists."""
    system = ChunkMap(parse_system_chunks(superblock.system_chunks, superblock.sector))
    trees = TreeReader(superblock, members.readers, system)
    chunks: list[Chunk] = []
    devices: list[Device] = []
    for rows, items in trees.leaves(superblock.chunk_tree):
        devices += [
            parse_device(item_data(rows, items, index))
            for index in _indices(items, DEVICES_OBJECT, DEVICE_ITEM)
        ]
        for index in _indices(items, CHUNKS_OBJECT, CHUNK_ITEM):
            start = int(items["offset"][index])
            chunk, _ = parse_chunk(start, item_data(rows, items, index), superblock.sector)
            chunks.append(chunk)
    return ChunkMap(chunks), devices


def _indices(items: Records, owner: int, kind: int) -> Iterator[int]:
    yield from np.flatnonzero((items["object"] == owner) & (items["type"] == kind)).tolist()


def _check_devices(
    superblock: Superblock, members: Members, chunks: ChunkMap, devices: list[Device]
) -> None:
    """Chunks must lie on devices of this filesystem, and inside of this one."""
    own = superblock.device
    known = {device.id: device for device in devices}
    if any(device.fsid != superblock.metadata_fsid for device in devices):
        raise NotUnderstood("a btrfs that sprouted from a seed device")
    if own.id not in known or known[own.id].uuid != own.uuid:
        raise NotUnderstood("a btrfs that does not know this device")
    for chunk in chunks.chunks:
        for stripe in chunk.stripes:
            device = known.get(stripe.device)
            if device is None or device.uuid != stripe.uuid:
                raise NotUnderstood(f"the btrfs chunk at {chunk.start} lies on an unknown device")
            reader = members.readers.get(stripe.device)
            if reader is not None and stripe.offset + chunk.stripe_size > reader.size:
                raise NotUnderstood(f"the btrfs chunk at {chunk.start} passes its device's end")


def _missing(members: Members, devices: list[Device]) -> Iterator[str]:
    for device in devices:
        if device.id not in members.readers:
            yield f"device {device.id} of this btrfs is not among the disks of this image"


# -- extents ----------------------------------------------------------------------------


def _logical_extents(superblock: Superblock, trees: TreeReader) -> Extents:
    """Return all extents of the extent tree, in logical bytes.

    Raises `NotUnderstood` where they are not what the superblock says they add up to.
    """
    gathered = Gathered()
    total = reached = 0
    for _, items in trees.leaves(_extent_root(superblock, trees)):
        starts, stops = _extents_of(items, superblock)
        if not len(starts):
            continue
        if int(starts[0]) < reached or (starts[1:] < stops[:-1]).any():
            raise NotUnderstood("btrfs with extents that overlap")
        if not trees.chunks.hold(starts, stops):
            raise NotUnderstood("btrfs with extents outside its chunks")
        reached = int(stops[-1])
        total += int((stops - starts).sum())
        gathered.add(Extents.from_arrays(starts, stops))
    if total != superblock.bytes_used:
        raise NotUnderstood(
            f"btrfs whose extents add up to {total} bytes, not to {superblock.bytes_used}"
        )
    return gathered.result()


def _extents_of(items: Records, superblock: Superblock) -> tuple[Int64Array, Int64Array]:
    """Return starts and stops of the extents among some items, in logical bytes."""
    data = items["type"] == EXTENT_ITEM
    metadata = items["type"] == METADATA_ITEM
    wanted = items[data | metadata]
    # A metadata item's offset is its level.
    node = np.uint64(superblock.node)
    lengths = np.where(wanted["type"] == METADATA_ITEM, node, wanted["offset"])
    far = np.uint64(1 << 61)
    odd = (wanted["object"] | lengths) % np.uint64(superblock.sector) != 0
    if odd.any() or (lengths == 0).any() or (wanted["object"] > far).any() or (lengths > far).any():
        raise NotUnderstood("btrfs with extents that make no sense")
    starts = wanted["object"].astype(np.int64)
    return starts, starts + lengths.astype(np.int64)


def _extent_root(superblock: Superblock, trees: TreeReader) -> TreeRoot:
    return parse_root(EXTENT_TREE, trees.find(superblock.root_tree, (EXTENT_TREE, ROOT_ITEM)))


KIND = Btrfs()
