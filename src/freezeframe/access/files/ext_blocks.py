"""Which blocks of an ext filesystem hold which of a file: extents, and the older pointers.

Source: Documentation/filesystems/ext4 of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.ext.structs import EXTENT_HEADER, EXTENT_INDEX, EXTENT_LEAF, EXTENT_MAGIC

#: Reads a block by number, or raises `NotUnderstood`.
ReadBlock = Callable[[int], bytes]
#: (first block of the file, where it lies, how many).
Run = tuple[int, int, int]

_DEEPEST = 5
#: A length above means: allocated, never written, reads as zeros.
_WRITTEN = 1 << 15
_DIRECT = 12


def extent_runs(read: ReadBlock, root: bytes, wanted: int, block_size: int) -> Iterator[Run]:
    """Give what an extent tree maps of the first `wanted` blocks and was written, ascending.

    Raises `NotUnderstood` where the tree is not in order.
    """
    del block_size  # as the older pointers need it
    reached = 0
    depth = EXTENT_HEADER.unpack_from(root)[3]
    if depth > _DEEPEST:
        raise NotUnderstood(f"a file with extents of depth {depth}")
    # What is still to be gone through, the next one last: (node, depth).
    waiting: list[tuple[bytes | int, int]] = [(root, depth)]
    while waiting:
        node, depth = waiting.pop()
        raw = read(node) if isinstance(node, int) else node
        count = _entries(raw, depth)
        if not count and raw is not root:
            # Else few blocks could make a tree that takes years to go through.
            raise NotUnderstood("a file with an empty node of extents")
        if depth:
            below: list[tuple[bytes | int, int]] = []
            for number in range(count):
                at = EXTENT_HEADER.size + number * EXTENT_INDEX.size
                _, low, high, _ = EXTENT_INDEX.unpack_from(raw, at)
                below.append((low | high << 32, depth - 1))
            waiting += reversed(below)
            continue
        for number in range(count):
            at = EXTENT_HEADER.size + number * EXTENT_LEAF.size
            first, length, high, low = EXTENT_LEAF.unpack_from(raw, at)
            written = length <= _WRITTEN
            length -= 0 if written else _WRITTEN
            if first < reached or not length:
                raise NotUnderstood("a file with extents out of order")
            reached = first + length
            if first >= wanted:
                return
            if written:
                yield first, low | high << 32, min(length, wanted - first)


def _entries(raw: bytes, depth: int) -> int:
    magic, count, most, found, _ = EXTENT_HEADER.unpack_from(raw)
    room = (len(raw) - EXTENT_HEADER.size) // EXTENT_LEAF.size
    if magic != EXTENT_MAGIC or found != depth or count > most or most > room:
        raise NotUnderstood("a file with a damaged extent tree")
    return int(count)


def indirect_runs(read: ReadBlock, root: bytes, wanted: int, block_size: int) -> Iterator[Run]:
    """Give what direct and indirect pointers map of the first `wanted` blocks, ascending."""
    pointers = np.frombuffer(root, "<u4")
    yield from _runs(pointers[:_DIRECT], 0, wanted)
    first, reach = _DIRECT, block_size // 4
    for level, pointer in enumerate(pointers[_DIRECT:].tolist(), 1):
        yield from _below(read, pointer, level, first, wanted, reach)
        first += reach**level


def _below(
    read: ReadBlock, pointer: int, level: int, first: int, wanted: int, reach: int
) -> Iterator[Run]:
    """Give what a block of pointers maps; `level` is 3 at most."""
    if not pointer or first >= wanted:
        return
    pointers = np.frombuffer(read(pointer), "<u4")
    if level == 1:
        yield from _runs(pointers, first, wanted)
        return
    for number in np.flatnonzero(pointers).tolist():
        start = first + number * reach ** (level - 1)
        yield from _below(read, int(pointers[number]), level - 1, start, wanted, reach)


def _runs(pointers: NDArray[np.uint32], first: int, wanted: int) -> Iterator[Run]:
    """Join pointers to neighbouring blocks; 0 is a hole."""
    places = pointers[: max(wanted - first, 0)].astype(np.int64)
    numbers = np.flatnonzero(places)
    if not len(numbers):
        return
    places = places[numbers]
    breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(places) != 1)) + 1
    starts = np.append(0, breaks)
    counts = np.diff(np.append(starts, len(numbers)))
    for number, place, count in zip(
        numbers[starts].tolist(), places[starts].tolist(), counts.tolist(), strict=True
    ):
        yield first + number, place, count
