"""LUKS1 and LUKS2 containers: encrypted, so all of it is kept as it is.

Source: *LUKS1 On-Disk Format Specification* 1.2.3 and *LUKS2 On-Disk Format
Specification* 1.1.0. Binary fields are big-endian.
"""

from __future__ import annotations

import hashlib

import msgspec

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import MIB, SECTOR
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.probe import big, peek, text

_PRIMARY, _SECONDARY = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
#: Where the second header of LUKS2 can lie, by the size of the first.
_SECONDARY_OFFSETS = tuple(0x4000 << shift for shift in range(9))
_HEADER_2 = 4096
_SUM_OFFSET, _SUM_SIZE = 448, 64
#: Headers with key slots beyond that are no use beside the image.
_LARGEST_PIECE = 128 * MIB

_NOTE = "encrypted: kept whole as it is"


class _Config(msgspec.Struct):
    """The part of LUKS2's JSON that tells how much belongs to the header."""

    keyslots_size: str


class _Json(msgspec.Struct):
    config: _Config


class Luks:
    """LUKS1 and LUKS2; `luks-header.bin` is what `cryptsetup luksHeaderRestore` takes."""

    name = "luks"

    def recognise(self, reader: Reader) -> bool:
        """Whether there is a header, or the second header of LUKS2 whose first is lost."""
        if peek(reader, 0, 6) == _PRIMARY:
            return True
        return any(peek(reader, offset, 6) == _SECONDARY for offset in _SECONDARY_OFFSETS)

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return the whole region; raises `NotUnderstood` where the header is damaged."""
        del peers, state  # All of it, whatever happens inside.
        header = peek(reader, 0, _HEADER_2)
        if header[:6] != _PRIMARY:
            raise NotUnderstood("LUKS2 whose first header is damaged")
        version = big(header, 6, 2)
        if version not in (1, 2):
            raise NotUnderstood(f"LUKS of the unknown version {version}")
        piece = _header_1(reader, header) if version == 1 else _header_2(reader, header)
        return UsedMap(
            f"luks{version}",
            Extents.single(0, reader.size),
            True,
            notes=(_NOTE,),
            label=text(header[24:72]) if version == 2 else "",
            uuid=text(header[168:208]),
            pieces={"luks-header.bin": piece},
        )


def _header_1(reader: Reader, header: bytes) -> bytes:
    """Return all before the payload; at least the header where the payload lies elsewhere."""
    size = big(header, 104, 4) * SECTOR
    return reader.read_at(0, min(max(size, len(header)), _LARGEST_PIECE, reader.size))


def _header_2(reader: Reader, header: bytes) -> bytes:
    """Return both headers and the key slots, the first header's checksum verified."""
    size = big(header, 8, 8)
    if size not in _SECONDARY_OFFSETS or 2 * size > reader.size:
        raise NotUnderstood("LUKS2 with a header of an impossible size")
    first = reader.read_at(0, size)
    _check_sum(first)
    try:
        area = first[_HEADER_2:].split(b"\0", 1)[0]
        keyslots = int(msgspec.json.decode(area, type=_Json).config.keyslots_size)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood("LUKS2 whose description is damaged") from error
    if not 0 <= keyslots <= _LARGEST_PIECE or 2 * size + keyslots > reader.size:
        raise NotUnderstood("LUKS2 with an area of key slots of an impossible size")
    return reader.read_at(0, 2 * size + keyslots)


def _check_sum(first: bytes) -> None:
    name = text(first[72:104])
    if name not in ("sha256", "sha512", "sha1", "sha224", "sha384"):
        # Named by the specification as an example; others cannot be verified here.
        return
    blank = first[:_SUM_OFFSET] + bytes(_SUM_SIZE) + first[_SUM_OFFSET + _SUM_SIZE :]
    digest = hashlib.new(name, blank, usedforsecurity=False).digest()
    if first[_SUM_OFFSET : _SUM_OFFSET + len(digest)] != digest:
        raise NotUnderstood("LUKS2 whose first header does not match its checksum")


KIND = Luks()
