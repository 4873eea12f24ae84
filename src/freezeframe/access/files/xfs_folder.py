"""Names in XFS folders. Source: as `xfs_structs`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from freezeframe.access.files.xfs_structs import (
    DATA_MAGICS,
    FOLDER_HEADER_SIZE,
    FOLDER_INDEX_AT,
    FREE_TAG,
    INDEX_ENTRY,
    SINGLE_MAGICS,
    SINGLE_TAIL,
)
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.probe import big

NAMES_UP_TO = FOLDER_INDEX_AT
#: Names and the numbers of their inodes.
Names = Iterator[tuple[bytes, int]]


def short_names(raw: bytes, *, types: bool) -> Names:
    """Give the names of a folder that lies in its inode."""
    count, wide = raw[0], raw[1]
    size = 8 if wide else 4
    at = 2 + size
    for _ in range(count):
        length = raw[at] if at < len(raw) else 0
        number = at + 3 + length + types
        if not length or number + size > len(raw):
            raise NotUnderstood("a damaged folder")
        yield raw[at + 3 : at + 3 + length], big(raw, number, size)
        at = number + size


def names(blocks: Iterable[bytes], version: int, *, types: bool) -> Names:
    """Give the names of a folder's blocks, without `.` and `..`."""
    for block in blocks:
        if block[:4] in SINGLE_MAGICS:
            count, _ = SINGLE_TAIL.unpack_from(block, len(block) - SINGLE_TAIL.size)
            stop = len(block) - SINGLE_TAIL.size - count * INDEX_ENTRY
        elif block[:4] in DATA_MAGICS:
            stop = len(block)
        else:
            raise NotUnderstood("a folder with a damaged block")
        yield from _names(block, FOLDER_HEADER_SIZE[version], stop, types=types)


def _names(block: bytes, at: int, stop: int, *, types: bool) -> Names:
    while at < stop:
        if big(block, at, 2) == FREE_TAG:
            length = big(block, at + 2, 2)
        else:
            size = block[at + 8] if at + 8 < stop else 0
            # Number, length of the name, the name, its kind, where the entry begins.
            length = (8 + 1 + size + types + 2 + 7) & ~7
            name = block[at + 9 : at + 9 + size]
            if not size or at + length > stop:
                raise NotUnderstood("a folder with a damaged block")
            if name not in (b".", b".."):
                yield name, big(block, at, 8)
        if length < 8 or length % 8:
            raise NotUnderstood("a folder with a damaged block")
        at += length
