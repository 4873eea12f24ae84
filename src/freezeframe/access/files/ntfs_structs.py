"""NTFS folders, links and packed data as they lie on disk (little-endian).

Source: as `fs.ntfs.structs`; [MS-FSCC] for reparse points, [MS-XCA] for LZNT1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.probe import little

STANDARD_INFORMATION, REPARSE_POINT, INDEX_BITMAP = 0x10, 0xC0, 0xB0
FOLDER_INDEX = "$I30"
RECORD_IS_FOLDER = 0x0002

#: Attributes of files.
READ_ONLY, SYSTEM, IS_REPARSE_POINT = 0x1, 0x4, 0x400

TAG_MOUNT_POINT, TAG_LINK, TAG_UNIX_LINK = 0xA0000003, 0xA000000C, 0xA000001D

#: Files by which Unix links and devices are kept, those of Interix.
UNIX_LINK, UNIX_CHARACTER, UNIX_BLOCK = b"IntxLNK\1", b"IntxCHR\0", b"IntxBLK\0"

_REFERENCE = (1 << 48) - 1
_SHORT_NAME = 2
_LAST_ENTRY = 2
_ENTRY_HEADER, _NAME_AT = 16, 66
#: Between 1601 and 1970, in units of 100 ns.
_EPOCH = 116_444_736_000_000_000
_CHUNK = 4096


def moment(value: int) -> int:
    """Turn a time of NTFS into nanoseconds since 1970."""
    return (value - _EPOCH) * 100


class IndexName(NamedTuple):
    """A name in a folder."""

    record: int
    name: bytes


def index_names(data: bytes, header: int) -> Iterator[IndexName]:
    """Give the names of a node of a folder's index, whose header lies at `header`.

    Short names of DOS are left out: each such file has another. Raises `NotUnderstood`.
    """
    at = header + little(data, header, 4)
    stop = header + little(data, header + 4, 4)
    if not header < at <= stop <= len(data):
        raise NotUnderstood("a damaged folder")
    while at + _ENTRY_HEADER <= stop:
        length, size, flags = little(data, at + 8, 2), little(data, at + 10, 2), data[at + 12]
        if flags & _LAST_ENTRY:
            return
        if length < _ENTRY_HEADER + size or at + length > stop or size < _NAME_AT:
            break
        key = data[at + _ENTRY_HEADER : at + _ENTRY_HEADER + size]
        raw = key[_NAME_AT : _NAME_AT + 2 * key[64]]
        if key[65] != _SHORT_NAME and len(raw) == 2 * key[64]:
            yield IndexName(little(data, at, 8) & _REFERENCE, utf_8(raw))
        at += length
    raise NotUnderstood("a damaged folder")


def utf_8(raw: bytes) -> bytes:
    """Turn characters of UTF-16 into UTF-8; halves of them stay halves."""
    text = raw[: len(raw) & ~1].decode("utf-16-le", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def link_target(data: bytes) -> bytes | None:
    """Return where a reparse point leads; None where it is no link."""
    tag = little(data, 0, 4)
    body = data[8 : 8 + little(data, 4, 2)]
    if tag == TAG_UNIX_LINK:
        return body[4:]
    if tag not in (TAG_LINK, TAG_MOUNT_POINT) or len(body) < 8:
        return None
    start = 12 if tag == TAG_LINK else 8
    # The name to be shown, where there is one.
    shown = 4 if little(body, 6, 2) else 0
    at, size = start + little(body, shown, 2), little(body, shown + 2, 2)
    return utf_8(body[at : at + size]).replace(b"\\", b"/")


def unpack(data: bytes, size: int) -> bytes:
    """Unpack LZNT1: `size` bytes at most, zeros where it ends before; raises `NotUnderstood`."""
    result = bytearray()
    at = 0
    while len(result) < size and at + 2 <= len(data):
        header = little(data, at, 2)
        if not header:
            break
        length = (header & 0xFFF) + 1
        chunk = data[at + 2 : at + 2 + length]
        if len(chunk) < length:
            raise NotUnderstood("compressed data that are damaged")
        part = _unpack_chunk(chunk) if header & 0x8000 else chunk
        at += 2 + length
        # Each chunk begins where 4096 bytes end, however long the one before was.
        result += part[:_CHUNK].ljust(_CHUNK, b"\0")
    return bytes(result[:size]).ljust(size, b"\0")


def _unpack_chunk(data: bytes) -> bytes:
    out = bytearray()
    at = 0
    while at < len(data):
        flags = data[at]
        at += 1
        for bit in range(8):
            if at >= len(data):
                break
            if not flags >> bit & 1:
                out.append(data[at])
                at += 1
                continue
            token = little(data, at, 2)
            at += 2
            # The further into the chunk, the more bits the distance needs.
            bits = max((len(out) - 1).bit_length(), 4) if out else 4
            distance = (token >> (16 - bits)) + 1
            length = (token & ((1 << (16 - bits)) - 1)) + 3
            if distance > len(out) or len(out) + length > _CHUNK:
                raise NotUnderstood("compressed data that are damaged")
            for _ in range(length):
                out.append(out[-distance])
    return bytes(out)
