"""A stretch of a reader, as a reader of its own: a partition of a disk."""

from __future__ import annotations

from freezeframe.block.base import Reader, verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import SourceError
from freezeframe.core.extents import Extents


class Window(Closing):
    """Bytes [start, start + size) of `base`, numbered from 0. Closing it leaves `base` open."""

    def __init__(self, base: Reader, start: int, size: int, *, name: str = "") -> None:
        if start < 0 or size < 0 or start + size > base.size:
            raise SourceError(f"{base.name}: a region of {size} bytes at {start} passes its end")
        self.base = base
        self.start = start
        self.size = size
        self.sector = base.sector
        self.name = name or f"{base.name}@{start}"

    def _check(self, offset: int, length: int) -> None:
        verify_inside(self.name, self.size, offset, length)

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset` of the window."""
        self._check(offset, length)
        return self.base.read_at(self.start + offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the window."""
        self._check(offset, len(buffer))
        self.base.read_into(self.start + offset, buffer)

    def data_extents(self) -> Extents:
        """Return the base's data extents inside the window."""
        inside = self.base.data_extents().clip(self.start, self.start + self.size)
        return inside.shift(-self.start)

    def close(self) -> None:
        """Do nothing: the base belongs to somebody else."""
