"""Reading the trees of a btrfs: through any member, any copy, checked before it is believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, SourceError, UnreadableRange
from freezeframe.core.extents import Int64Array
from freezeframe.core.units import MIB
from freezeframe.fs.btrfs.checksums import valid_blocks
from freezeframe.fs.btrfs.chunks import ChunkMap, Place
from freezeframe.fs.btrfs.structs import (
    FSID_AT,
    HEADER,
    ITEM,
    POINTER,
    Superblock,
    TreeRoot,
)
from freezeframe.fs.bulk import Bytes, read_many

Flags = NDArray[np.bool_]
Records = NDArray[np.void]

#: Tree blocks are read and checked so many bytes at once.
_BATCH = 4 * MIB


class TreeReader:
    """The trees of one filesystem, read through the members that are there."""

    def __init__(
        self, superblock: Superblock, members: Mapping[int, Reader], chunks: ChunkMap
    ) -> None:
        self._superblock = superblock
        self._members = members
        #: Where logical addresses lie.
        self.chunks = chunks
        self._node = superblock.node
        self._batch = max(1, _BATCH // superblock.node)

    # -- whole trees --------------------------------------------------------------------

    def leaves(self, root: TreeRoot) -> Iterator[tuple[Bytes, Records]]:
        """Give the leaves of a tree, some at a time, in the order of their keys.

        Each time uint8 (n, node size) and the items of those leaves, one after the other
        (`ITEM`, with `data` counted from the start of the (n * node size) bytes). Level by
        level: a block is read once, and never one that was not pointed to by a block of the
        level above. Raises `NotUnderstood` at the first thing that is wrong.
        """
        pointers = self.root_pointer(root)
        for level in range(root.level, 0, -1):
            parts = [entries_of(rows, POINTER) for rows in self.blocks(pointers, root, level)]
            pointers = np.concatenate(parts)
            self._check_pointers(pointers, root)
        for rows in self.blocks(pointers, root, 0):
            yield rows, items_of(rows)

    def find(self, root: TreeRoot, key: tuple[int, int]) -> bytes:
        """Return the first item of an object and type; `NotUnderstood` where there is none."""
        pointers = self.root_pointer(root)
        for level in range(root.level, 0, -1):
            below = entries_of(next(self.blocks(pointers, root, level)), POINTER)
            # The item may be the last of the child whose first key is smaller.
            index = max(int(np.count_nonzero(_smaller(below, key))) - 1, 0)
            # Or the very first of the one that follows.
            pointers = below[index : index + 2]
        for rows in self.blocks(pointers, root, 0):
            items = items_of(rows)
            hits = np.flatnonzero((items["object"] == key[0]) & (items["type"] == key[1]))
            if len(hits):
                return item_data(rows, items, int(hits[0]))
        raise NotUnderstood(f"btrfs without an item {key} in tree {root.owner}")

    def root_pointer(self, root: TreeRoot) -> Records:
        """Return what points to a tree's first block."""
        pointer = np.zeros(1, POINTER)
        pointer["logical"] = root.logical
        pointer["generation"] = root.generation
        return pointer

    def _check_pointers(self, pointers: Records, root: TreeRoot) -> None:
        """Refuse a tree that has a block twice, or whose keys do not ascend over the level."""
        if len(np.unique(pointers["logical"])) != len(pointers):
            raise _broken(root, "points to a block twice")
        if not _ascending(pointers):
            raise _broken(root, "is not in order")

    # -- blocks -------------------------------------------------------------------------

    def blocks(self, pointers: Records, root: TreeRoot, level: int) -> Iterator[Bytes]:
        """Read what is pointed to (`POINTER`), in order, some at a time, all checked.

        Each time uint8 (n, node size). Raises `NotUnderstood`.
        """
        is_root = level == root.level
        for first in range(0, len(pointers), self._batch):
            wanted = pointers[first : first + self._batch]
            rows = self._read(wanted, root, level)
            entries = entries_of(rows, POINTER if level else ITEM)
            if not _ascending(entries):
                raise _broken(root, "is not in order")
            if not is_root:
                self._check_first_keys(rows, wanted, root)
            yield rows

    def _check_first_keys(self, rows: Bytes, wanted: Records, root: TreeRoot) -> None:
        key_size = 17
        below = rows[:, HEADER.itemsize : HEADER.itemsize + key_size]
        above = np.ascontiguousarray(wanted).view(np.uint8).reshape(len(wanted), -1)[:, :key_size]
        if not np.array_equal(below, above):
            raise _broken(root, "has a block whose first key is not what points to it")

    def _read(self, wanted: Records, root: TreeRoot, level: int) -> Bytes:
        addresses = wanted["logical"]
        if int(addresses.max()) >= 1 << 62:
            raise _broken(root, "points beyond all disks")
        logical = addresses.astype(np.int64)
        rows = self._first_copies(logical)
        for index in np.flatnonzero(~self._good(rows, wanted, root, level)).tolist():
            rows[index] = self._any_copy(wanted[index : index + 1], root, level)
        return rows

    def _good(self, rows: Bytes, wanted: Records, root: TreeRoot, level: int) -> Flags:
        """Tell which blocks are whole, of this filesystem, and just what was pointed to."""
        header = _headers(rows)
        entry = POINTER if level else ITEM
        room = (self._node - HEADER.itemsize) // entry.itemsize
        least = 0 if level == 0 and level == root.level else 1
        fsid = np.frombuffer(self._superblock.metadata_fsid, np.uint8)
        written = header["generation"]
        good: Flags = (
            (rows[:, FSID_AT : FSID_AT + 16] == fsid).all(axis=1)
            & (header["logical"] == wanted["logical"])
            & (written == wanted["generation"])
            & (written <= self._superblock.generation)
            & ((header["owner"] == root.owner) | root.shared)
            & (header["level"] == level)
            & (header["count"] >= least)
            & (header["count"] <= room)
        )
        good &= valid_blocks(self._superblock.checksum_type, rows)
        return good

    def _first_copies(self, logical: Int64Array) -> Bytes:
        """Read the first copy of each block that is there; zeros where none can be read."""
        rows = np.zeros((len(logical), self._node), np.uint8)
        plain: dict[int, list[tuple[int, int]]] = {}
        for index, address in enumerate(logical.tolist()):
            chunk = self.chunks.chunk_of(address, self._node)
            for copy in chunk.copies(address, self._node):
                if all(self._readable(place) for place in copy):
                    if len(copy) == 1:
                        plain.setdefault(copy[0].device, []).append((index, copy[0].offset))
                    else:
                        rows[index] = np.frombuffer(self._assemble(copy), np.uint8)
                    break
        for device, places in plain.items():
            indices, offsets = np.array(places, np.int64).T
            try:
                rows[indices] = read_many(self._members[device], offsets, self._node)
            except (UnreadableRange, SourceError):
                # They stay zeros, which no checksum allows: each is then tried by itself.
                continue
        return rows

    def _any_copy(self, wanted: Records, root: TreeRoot, level: int) -> Bytes:
        """Read one block from each of its copies until one is right."""
        address = int(wanted["logical"][0])
        chunk = self.chunks.chunk_of(address, self._node)
        for copy in chunk.copies(address, self._node):
            if not all(self._readable(place) for place in copy):
                continue
            row = np.frombuffer(self._assemble(copy), np.uint8).reshape(1, -1)
            if self._good(row, wanted, root, level)[0]:
                return row.reshape(-1)
        raise _broken(root, f"has no good copy of the block at {address}")

    def _readable(self, place: Place) -> bool:
        member = self._members.get(place.device)
        return member is not None and place.offset + place.length <= member.size

    def _assemble(self, copy: list[Place]) -> bytes:
        """Read the pieces of a copy; zeros where the medium fails."""
        pieces = []
        for place in copy:
            try:
                pieces.append(self._members[place.device].read_at(place.offset, place.length))
            except (UnreadableRange, SourceError):
                pieces.append(bytes(place.length))
        return b"".join(pieces)


# -- inside a block ---------------------------------------------------------------------


def _broken(root: TreeRoot, reason: str) -> NotUnderstood:
    return NotUnderstood(f"btrfs tree {root.owner} {reason}")


def _headers(rows: Bytes) -> Records:
    head = np.ascontiguousarray(rows[:, : HEADER.itemsize])
    headers: Records = head.view(HEADER).reshape(-1)
    return headers


def entries_of(rows: Bytes, kind: np.dtype[np.void]) -> Records:
    """Return the items or pointers of checked blocks, one block after the other."""
    room = (rows.shape[1] - HEADER.itemsize) // kind.itemsize
    body = rows[:, HEADER.itemsize : HEADER.itemsize + room * kind.itemsize]
    table = np.ascontiguousarray(body).view(kind).reshape(len(rows), room)
    counts = _headers(rows)["count"].astype(np.int64)
    entries: Records = table[np.arange(room) < counts[:, np.newaxis]]
    return entries


def items_of(rows: Bytes) -> Records:
    """Return the items of checked leaves, `data` counted from the first byte of `rows`.

    Data that would lie outside their leaf get size 0, which nothing here takes for an item.
    """
    items = entries_of(rows, ITEM)
    counts = _headers(rows)["count"].astype(np.int64)
    size = rows.shape[1]
    outside = HEADER.itemsize + items["data"].astype(np.int64) + items["size"] > size
    items["size"][outside] = 0
    wide = np.dtype([(n, "<u8" if n == "data" else ITEM[n].str) for n in ITEM.names or ()])
    placed = items.astype(wide)
    placed["data"] += (np.repeat(np.arange(len(rows)), counts) * size + HEADER.itemsize).astype(
        np.uint64
    )
    return placed


def item_data(rows: Bytes, items: Records, index: int) -> bytes:
    """Return the data of one of the items that came with `rows`."""
    start, size = int(items["data"][index]), int(items["size"][index])
    return rows.reshape(-1)[start : start + size].tobytes()


def _ascending(keys: Records) -> bool:
    owner, kind, offset = keys["object"], keys["type"], keys["offset"]
    same_owner = owner[1:] == owner[:-1]
    same_kind = kind[1:] == kind[:-1]
    later = offset[1:] > offset[:-1]
    rises = (owner[1:] > owner[:-1]) | (same_owner & ((kind[1:] > kind[:-1]) | (same_kind & later)))
    return bool(rises.all())


def _smaller(keys: Records, key: tuple[int, int]) -> Flags:
    smaller: Flags = (keys["object"] < key[0]) | (
        (keys["object"] == key[0]) & (keys["type"] < key[1])
    )
    return smaller
