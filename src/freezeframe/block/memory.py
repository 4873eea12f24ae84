"""A disk in memory."""

from __future__ import annotations

from freezeframe.block.base import verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import TargetUnsuitable
from freezeframe.core.extents import Extents


class MemoryBlocks(Closing):
    """Reader and writer over a bytearray it owns, of `size` bytes or holding `data`."""

    def __init__(
        self, data: bytes | bytearray | int, *, name: str = "memory", sector: int = 512
    ) -> None:
        self._data = bytearray(data)
        self.name = name
        self.sector = sector
        self.size = len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        verify_inside(self.name, self.size, offset, length)
        return bytes(memoryview(self._data)[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        buffer[:] = self.read_at(offset, len(buffer))

    def data_extents(self) -> Extents:
        """Return everything: memory knows no holes."""
        return Extents.single(0, self.size)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`."""
        if offset < 0 or offset + len(data) > self.size:
            raise TargetUnsuitable(f"{self.name}: {len(data)} bytes at {offset} pass its end")
        self._data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros."""
        self.write_at(offset, bytes(length))

    def discard(self, offset: int, length: int) -> bool:
        """Do nothing: memory has nothing to give back."""
        del offset, length
        return False

    def flush(self) -> None:
        """Do nothing: memory is as stable as it gets."""

    def close(self) -> None:
        """Do nothing."""
