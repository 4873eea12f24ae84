"""Bytes that filesystems keep compressed, never more of them than was asked for."""

from __future__ import annotations

import io
import zlib

import zstandard

from freezeframe.core.errors import NotUnderstood

#: btrfs packs 128 KiB at once, NTFS 64 KiB: no window is larger.
_LARGEST_WINDOW = 1 << 20


def unzlib(data: bytes, size: int) -> bytes:
    """Unpack zlib's form: `size` bytes at most; raises `NotUnderstood`."""
    try:
        return zlib.decompressobj().decompress(data, size)
    except zlib.error as error:
        raise NotUnderstood(f"compressed data that are damaged: {error}") from error


def unzstd(data: bytes, size: int) -> bytes:
    """Unpack Zstandard's form: `size` bytes at most; raises `NotUnderstood`."""
    try:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        # One frame; zeros follow it up to the end of the sector.
        with unpacker.stream_reader(io.BytesIO(data)) as stream:
            return stream.read(size)
    except zstandard.ZstdError as error:
        raise NotUnderstood(f"compressed data that are damaged: {error}") from error


def unlzo(data: bytes, size: int, sector: int) -> bytes:
    """Unpack what btrfs keeps in LZO's form: segments, each with its length before it.

    Source: fs/btrfs/lzo.c of Linux. No length crosses the border of a sector.
    """
    total = min(int.from_bytes(data[:4], "little"), len(data))
    result = bytearray()
    at = 4
    while at + 4 <= total and len(result) < size:
        if sector - at % sector < 4:
            at += sector - at % sector
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if not length or at + length > len(data):
            raise NotUnderstood("compressed data that are damaged")
        result += lzo1x(data[at : at + length], min(sector, size - len(result)))
        at += length
    return bytes(result)


def lzo1x(data: bytes, most: int) -> bytes:
    """Unpack one LZO1X stream: `most` bytes at most; raises `NotUnderstood`.

    Source: Documentation/staging/lzo.rst of Linux.
    """
    try:
        return bytes(_lzo1x(data, most)[:most])
    except IndexError as error:
        raise NotUnderstood("compressed data that are damaged") from error


def _lzo1x(data: bytes, most: int) -> bytearray:
    out = bytearray()
    at, state = 0, 0
    if data[0] > 17:
        count, at = data[0] - 17, 1
        out += data[at : at + count]
        at += count
        state = min(count, 4)
    while len(out) < most:
        code = data[at]
        at += 1
        if code < 16 and state == 0:
            count, at = (code + 3, at) if code else _long(data, at, 15 + 3)
            out += data[at : at + count]
            at += count
            state = 4
            continue
        if code < 16:
            distance = (data[at] << 2) + (code >> 2) + (1 if state < 4 else 2049)
            length, at, trailing = 2 if state < 4 else 3, at + 1, code & 3
        elif code >= 64:
            distance = (data[at] << 3) + (code >> 2 & 7) + 1
            length, at, trailing = (code >> 5) + 1, at + 1, code & 3
        else:
            short = 31 if code >= 32 else 7
            length, at = ((code & short) + 2, at) if code & short else _long(data, at, short + 2)
            low = data[at] | data[at + 1] << 8
            at, trailing = at + 2, low & 3
            distance = (low >> 2) + 1
            if code < 32:
                distance += 0x3FFF + ((code & 8) << 11)
                if distance == 0x4000:
                    return out  # the end
        if distance > len(out):
            raise NotUnderstood("compressed data that are damaged")
        length = min(length, most - len(out))
        for _ in range(length // distance):
            out += out[-distance:]
        if rest := length % distance:
            start = len(out) - distance
            out += out[start : start + rest]
        out += data[at : at + trailing]
        at += trailing
        state = trailing
    return out


def _long(data: bytes, at: int, base: int) -> tuple[int, int]:
    """Read a length that did not fit: 255 for each zero byte, then the rest."""
    start = at
    while data[at] == 0:
        at += 1
    return base + (at - start) * 255 + data[at], at + 1
