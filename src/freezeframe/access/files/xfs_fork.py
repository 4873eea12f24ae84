"""Which blocks an inode's fork maps. Source: as `xfs_structs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from freezeframe.access.files.xfs_structs import (
    DEEPEST_TREE,
    EXTENT,
    TREE_HEADER,
    TREE_HEADER_SIZE,
    TREE_MAGICS,
    Format,
)
from freezeframe.core.errors import NotUnderstood

#: Reads bytes from the start of a block: its number (group and block within it), how many.
ReadBlock = Callable[[int, int], bytes]
_POINTER = 8


@dataclass(frozen=True, slots=True)
class Fork:
    """A part of an inode."""

    #: A `Format`.
    form: int
    #: Extents, where they are listed in it.
    count: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Extent:
    """Some blocks: of the file, where they lie (group and block within it), how many."""

    first: int
    block: int
    count: int


def fork_extents(fork: Fork, read: ReadBlock, block_size: int) -> Iterator[Extent]:
    """Give the extents of a fork that were written, ascending; raises `NotUnderstood`."""
    reached = 0
    for records in _records(fork, read, block_size):
        for at in range(0, len(records) - EXTENT.size + 1, EXTENT.size):
            high, low = EXTENT.unpack_from(records, at)
            first, count = (high & ((1 << 63) - 1)) >> 9, low & ((1 << 21) - 1)
            if first < reached or not count:
                raise NotUnderstood("a file with extents out of order")
            reached = first + count
            if not high >> 63:
                yield Extent(first, (high & 0x1FF) << 43 | low >> 21, count)


def _records(fork: Fork, read: ReadBlock, block_size: int) -> Iterator[bytes]:
    """Give lists of extents, in order."""
    if fork.form == Format.EXTENTS:
        if fork.count * EXTENT.size > len(fork.raw):
            raise NotUnderstood("a file with more extents than its inode holds")
        yield fork.raw[: fork.count * EXTENT.size]
        return
    if fork.form != Format.TREE:
        raise NotUnderstood("a file that is kept in an unknown way")
    level, count = int.from_bytes(fork.raw[:2], "big"), int.from_bytes(fork.raw[2:4], "big")
    room = (len(fork.raw) - 4) // EXTENT.size
    if not 0 < level < DEEPEST_TREE or not 0 < count <= room:
        raise NotUnderstood("a file with a damaged tree of extents")
    # The next one last: (block, its level). No block twice: the extents would not ascend.
    waiting = _pointers(fork.raw, 4 + room * _POINTER, count, level)
    while waiting:
        block, level = waiting.pop()
        raw = read(block, block_size)
        magic, found, count = TREE_HEADER.unpack_from(raw)
        start = TREE_HEADER_SIZE[4 + TREE_MAGICS.index(magic)] if magic in TREE_MAGICS else 0
        room = (block_size - start) // EXTENT.size
        if not start or found != level or not 0 < count <= room:
            raise NotUnderstood("a file with a damaged tree of extents")
        if level:
            waiting += _pointers(raw, start + room * _POINTER, count, level)
        else:
            yield raw[start : start + count * EXTENT.size]


def _pointers(raw: bytes, start: int, count: int, level: int) -> list[tuple[int, int]]:
    """Return what a node points to, the first one last, each with its level."""
    places = range(start, start + count * _POINTER, _POINTER)
    return [(int.from_bytes(raw[at : at + _POINTER], "big"), level - 1) for at in places][::-1]
