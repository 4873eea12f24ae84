"""Small looks at a region that may be too short, and numbers out of bytes."""

from __future__ import annotations

from freezeframe.block.base import Reader


def peek(reader: Reader, offset: int, length: int) -> bytes:
    """Read `length` bytes at `offset`; nothing (`b""`) where the region is too short.

    A negative `offset` counts from the region's end. Raises `UnreadableRange`.
    """
    start = offset if offset >= 0 else reader.size + offset
    if start < 0 or start + length > reader.size:
        return b""
    return reader.read_at(start, length)


def little(data: bytes, offset: int, size: int) -> int:
    """Return the unsigned little-endian number of `size` bytes at `offset` of `data`."""
    return int.from_bytes(data[offset : offset + size], "little")


def big(data: bytes, offset: int, size: int) -> int:
    """Return the unsigned big-endian number of `size` bytes at `offset` of `data`."""
    return int.from_bytes(data[offset : offset + size], "big")


def text(raw: bytes, encoding: str = "utf-8") -> str:
    """Decode a padded field up to its first NUL, whatever bytes it has."""
    return raw.decode(encoding, "replace").split("\0", 1)[0].strip()


def power_of_two(value: int, low: int, high: int) -> bool:
    """Whether `value` is a power of two in [low, high]."""
    return low <= value <= high and value & (value - 1) == 0
