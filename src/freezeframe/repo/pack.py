"""Packs: sealed blobs back to back, a sealed header, and the header's length.

Follows restic's design document, section "Pack Format", for repositories of format 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from freezeframe.core.units import MIB
from freezeframe.repo.crypto import OVERHEAD, Buffer, SealBroken, Sealer

#: type (0 data, 1 tree), stored length, id.
_RAW = struct.Struct("<BI32s")
#: type (2 data, 3 tree), stored length, plain length, id.
_COMPRESSED = struct.Struct("<BII32s")
_LENGTH = struct.Struct("<I")

RAW_ENTRY = _RAW.size
COMPRESSED_ENTRY = _COMPRESSED.size
#: What a pack holds besides blobs and header entries: the header's seal and its length.
FRAME = OVERHEAD + _LENGTH.size
#: restic reads no larger header.
LARGEST_HEADER = 16 * MIB


class BlobKind(StrEnum):
    """What a blob is. The ids of the two kinds are separate name spaces."""

    DATA = "data"
    TREE = "tree"


_KINDS = (BlobKind.DATA, BlobKind.TREE)


class Entry(NamedTuple):
    """One blob of a pack. Lengths and offsets in bytes."""

    kind: BlobKind
    #: SHA-256 of the plain bytes.
    id: bytes
    offset: int
    #: As it is stored, sealed.
    length: int
    #: Before compression; 0 where it is stored raw.
    uncompressed: int

    @property
    def plain_length(self) -> int:
        """Its length when opened."""
        return self.uncompressed or self.length - OVERHEAD


class PackBroken(Exception):
    """A pack's header is not one. The caller knows which pack it was."""


def encode_header(entries: Iterable[Entry]) -> bytes:
    """Return the plain header; entries must be in the order of their blobs."""
    return b"".join(
        _COMPRESSED.pack(2 + _KINDS.index(kind), length, uncompressed, blob_id)
        if uncompressed
        else _RAW.pack(_KINDS.index(kind), length, blob_id)
        for kind, blob_id, _, length, uncompressed in entries
    )


def decode_header(header: Buffer) -> list[Entry]:
    """Return the entries of a plain header. Raises `PackBroken`."""
    entries: list[Entry] = []
    position = offset = 0
    while position < len(header):
        form = header[position]
        if form > 3:
            raise PackBroken(f"its header names a blob of unknown type {form}")
        layout = _COMPRESSED if form > 1 else _RAW
        if position + layout.size > len(header):
            raise PackBroken("its header ends within an entry")
        if form > 1:
            _, length, uncompressed, blob_id = _COMPRESSED.unpack_from(header, position)
        else:
            _, length, blob_id = _RAW.unpack_from(header, position)
            uncompressed = 0
        if length < OVERHEAD:
            raise PackBroken(f"its header names a blob of {length} bytes, too few to be sealed")
        entries.append(Entry(_KINDS[form & 1], blob_id, offset, length, uncompressed))
        position += layout.size
        offset += length
    return entries


def seal_header(sealer: Sealer, entries: Iterable[Entry]) -> list[bytes]:
    """Return what follows the blobs of a pack, in parts."""
    sealed = sealer.seal(encode_header(entries))
    return [*sealed, _LENGTH.pack(sum(map(len, sealed)))]


def header_length(tail: Buffer, pack_size: int) -> int:
    """Return the length of a sealed header from a pack's last four bytes.

    Raises `PackBroken` where that many bytes cannot be.
    """
    if len(tail) != _LENGTH.size:
        raise PackBroken("it is too short to be a pack")
    length: int = _LENGTH.unpack(tail)[0]
    if not OVERHEAD < length <= min(pack_size - _LENGTH.size, LARGEST_HEADER):
        raise PackBroken(f"its header cannot be {length} bytes long")
    return length


def open_header(sealer: Sealer, sealed: Buffer, pack_size: int) -> list[Entry]:
    """Return the entries of a sealed header (without its length).

    Raises `PackBroken` also where blobs and header do not fill the pack exactly.
    """
    try:
        entries = decode_header(sealer.open(sealed))
    except SealBroken as error:
        raise PackBroken(f"its header does not open: {error}") from error
    filled = sum(entry.length for entry in entries) + len(sealed) + _LENGTH.size
    if filled != pack_size:
        raise PackBroken(f"its header describes {filled} bytes, it has {pack_size}")
    return entries
