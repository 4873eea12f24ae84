"""Reading around sectors that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

from freezeframe.block.base import Reader
from freezeframe.core.errors import UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, align_down

#: What failed as a whole is tried in pieces of this many bytes, and what fails of these by
#: sectors. A dying disk takes seconds for each failure: with two steps, a dead MiB costs
#: 1 + 16 + 2048 reads, none of them twice, and one bad sector in it 1 + 16 + 128.
_PIECE = 64 * KIB


def read_salvaging(reader: Reader, offset: int, buffer: memoryview) -> Extents:
    """Fill `buffer` from `offset`, with zeros where the medium fails.

    Returns the bytes that could not be read, in bytes of the reader: whole sectors, cut to
    what was asked for; empty where all is well. Raises `SourceError` as the reader does.
    """
    try:
        reader.read_into(offset, buffer)
    except UnreadableRange:
        bad: list[tuple[int, int]] = []
        for start, stop in _pieces(offset, offset + len(buffer), max(_PIECE, reader.sector)):
            part = buffer[start - offset : stop - offset]
            if not _try(reader, start, part):
                bad += _by_sectors(reader, start, part)
        return Extents.of(bad)
    return Extents.empty()


def _by_sectors(reader: Reader, offset: int, buffer: memoryview) -> Iterator[tuple[int, int]]:
    """Read sector by sector; give those that fail."""
    for start, stop in _pieces(offset, offset + len(buffer), reader.sector):
        part = buffer[start - offset : stop - offset]
        if not _try(reader, start, part):
            part[:] = bytes(len(part))
            yield start, stop


def _try(reader: Reader, offset: int, buffer: memoryview) -> bool:
    try:
        reader.read_into(offset, buffer)
    except UnreadableRange:
        return False
    return True


def _pieces(start: int, stop: int, unit: int) -> Iterator[tuple[int, int]]:
    """Cut a range at multiples of `unit`."""
    while start < stop:
        end = min(align_down(start, unit) + unit, stop)
        yield start, end
        start = end
