"""LVM2 as it lies on a physical volume, before its text begins; all numbers little-endian.

Source: LVM2's `label.h`, `format_text/layout.h` and `crc.c`. Sectors are of 512 bytes,
whatever the disk's own are.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import MIB, SECTOR
from freezeframe.fs.probe import little

#: The label lies in one of the first sectors, mostly the second.
LABEL_SECTORS = 4
LABEL_ID = b"LABELONE"
LABEL_TYPE = b"LVM2 001"
LABEL_TYPE_AT = 24
#: id, own sector, checksum of what follows up to the sector's end, offset of the header, type.
LABEL = struct.Struct("<8sQII8s")
_LABEL_CHECKED_FROM = 20

UUID_LENGTH = 32
#: UUID and size of the device; then two lists of (offset, size), each ended by zeros.
_PV_HEADER = struct.Struct(f"<{UUID_LENGTH}sQ")
_AREA = struct.Struct("<QQ")
#: After the lists: version and flags; then a list of boot loader areas.
_EXTENSION = struct.Struct("<II")
_PV_USED = 1

MDA_HEADER_SIZE = 512
_MDA_MAGIC = b" LVM2 x[5A%r0N*>"
#: checksum of the rest, magic, version, own offset on the device, size of the area.
_MDA_HEADER = struct.Struct("<I16sIQQ")
#: offset from the area's start, length, checksum, flags. The first one is the current text.
_LOCATION = struct.Struct("<QQII")
_IGNORED = 1
#: Text of ten thousands of volumes is smaller.
LONGEST_TEXT = 32 * MIB


def checksum(data: bytes) -> int:
    """Return LVM's CRC-32: its own start, nothing inverted at the end."""
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Area:
    """A stretch of the device, in bytes."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """The byte after it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Header:
    """What a physical volume says of itself."""

    #: 32 characters, without dashes.
    uuid: str
    data: tuple[Area, ...]
    metadata: tuple[Area, ...]
    boot: tuple[Area, ...]
    #: Whether it belongs to a volume group, where it says so at all.
    in_group: bool


def dashed(uuid: str) -> str:
    """Write an LVM UUID as its tools do, with dashes."""
    edges = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(uuid[a:b] for a, b in itertools.pairwise(edges))


def find_label(raw: bytes) -> int:
    """Return where the label is in the first sectors, -1 where there is none."""
    for at in range(0, min(len(raw), LABEL_SECTORS * SECTOR), SECTOR):
        kind = raw[at + LABEL_TYPE_AT : at + LABEL_TYPE_AT + 8]
        if raw[at : at + 8] == LABEL_ID and kind == LABEL_TYPE:
            return at
    return -1


def parse_header(raw: bytes, size: int) -> Header:
    """Read label and header from the first sectors of a device of `size` bytes.

    Raises `NotUnderstood` where they are damaged or name areas outside the device.
    """
    at = find_label(raw)
    if at < 0:
        raise NotUnderstood("not an LVM2 physical volume")
    sector = raw[at : at + SECTOR]
    _, number, crc, offset, _ = LABEL.unpack_from(sector)
    if number != at // SECTOR or crc != checksum(sector[_LABEL_CHECKED_FROM:]):
        raise NotUnderstood("the LVM label does not have the checksum it states")
    try:
        uuid, _ = _PV_HEADER.unpack_from(sector, offset)
        data, position = _areas(sector, offset + _PV_HEADER.size)
        metadata, position = _areas(sector, position)
        # The checksum covers it, and older ones have zeros here.
        _, flags = _EXTENSION.unpack_from(sector, position)
        boot, _ = _areas(sector, position + _EXTENSION.size)
    except struct.error as error:
        raise NotUnderstood("an LVM header that passes its sector") from error
    if any(area.stop > size for area in (*metadata, *boot)):
        raise NotUnderstood("an LVM header with areas outside its device")
    name = uuid.decode("ascii", "replace")
    return Header(name, data, metadata, boot, bool(flags & _PV_USED))


def _areas(sector: bytes, position: int) -> tuple[tuple[Area, ...], int]:
    found: list[Area] = []
    while True:
        start, length = _AREA.unpack_from(sector, position)
        position += _AREA.size
        if not start:
            return tuple(found), position
        found.append(Area(start, length))


@dataclass(frozen=True, slots=True)
class TextLocation:
    """Where in a metadata area the current text lies."""

    #: From the start of the area; the text goes round at the area's end.
    offset: int
    length: int
    checksum: int
    ignored: bool


def parse_metadata_header(raw: bytes, area: Area) -> TextLocation | None:
    """Read the header of a metadata area (512 bytes); None where it holds no text.

    Raises `NotUnderstood` where it is damaged or places the text outside.
    """
    crc, magic, version, start, size = _MDA_HEADER.unpack_from(raw)
    if magic != _MDA_MAGIC or crc != checksum(raw[4:MDA_HEADER_SIZE]):
        raise NotUnderstood("an LVM metadata area does not have the checksum it states")
    if version != 1 or start != area.start or size > area.length:
        raise NotUnderstood("an LVM metadata area that makes no sense")
    offset, length, text_checksum, flags = _LOCATION.unpack_from(raw, _MDA_HEADER.size)
    ignored = bool(flags & _IGNORED)
    if not offset and not ignored:
        return None
    if not ignored and (
        not MDA_HEADER_SIZE <= offset < size
        or not 0 < length <= min(size - MDA_HEADER_SIZE, LONGEST_TEXT)
    ):
        raise NotUnderstood("an LVM metadata area whose text lies outside")
    return TextLocation(offset, length, text_checksum, ignored)


def ring_size(raw: bytes) -> int:
    """Return the size of a metadata area as its own header has it, in bytes."""
    return little(raw, 32, 8)
