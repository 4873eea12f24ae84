"""FAT12, FAT16 and FAT32 on disk: boot sector, table entries, root folder.

Source: Microsoft's *FAT: General Overview of On-Disk Format* 1.03, with the additions
Linux makes (`include/uapi/linux/msdos_fs.h`): a dirty bit in the boot sector, and FAT32
told by where the size of the table is kept. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.probe import little, power_of_two

BOOT_SIZE = 512
_BOOT_MAGIC = b"\x55\xaa"
#: Others that begin like FAT, told by the name in bytes 3 to 11.
_OTHERS = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-", b"ReFS\0\0\0\0")
_JUMPS = (0xEB, 0xE9)

# How many clusters there can be: below the first bound FAT12, below the second FAT16.
_FAT16_FROM, _FAT32_FROM = 4085, 65525
_MOST_CLUSTERS = 0x0FFFFFF5
#: Drivers differ by a few on where FAT12 ends.
_DISPUTED = range(_FAT16_FROM - 1, _FAT16_FROM + 3)

# In entry 1 of the table: set means closed in peace, and no error while reading or writing.
_CLEAN = {16: 0x8000, 32: 0x08000000}
_NO_ERROR = {16: 0x4000, 32: 0x04000000}
#: In the boot sector: set while mounted by Linux and Windows NT.
_STATE_DIRTY = 0x01

#: FAT32: only one table is kept up to date, the one the low bits name.
_MIRRORING_OFF, _ACTIVE_TABLE = 0x80, 0x0F

ENTRY_SIZE = 32
ATTRIBUTE_LABEL, ATTRIBUTE_LONG_NAME = 0x08, 0x0F


class _Common(NamedTuple):
    """The fields all three share, raw."""

    sector: int
    per_cluster: int
    reserved: int
    tables: int
    root_entries: int
    sectors_16: int
    media: int
    table_sectors_16: int
    sectors_32: int


_COMMON = struct.Struct("<11xHBHBHHBH8xI")


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the boot sector says, in bytes."""

    #: Bits of a table entry: 12, 16 or 32.
    bits: int
    sector: int
    cluster: int
    clusters: int
    #: Where the first table starts, the length of one, and how many there are.
    table_start: int
    table_size: int
    tables: int
    #: FAT12 and FAT16: where the root folder lies; FAT32: 0 bytes.
    root_start: int
    root_size: int
    #: FAT32: the first cluster of the root folder; 0 otherwise.
    root_cluster: int
    #: Where cluster 2, the first, starts.
    data_start: int
    #: Bytes the filesystem spans.
    span: int
    media: int
    dirty: bool
    #: The tables that are kept up to date.
    active: tuple[int, ...]
    serial: str
    label: str

    @property
    def kind(self) -> str:
        """`fat12`, `fat16` or `fat32`."""
        return f"fat{self.bits}"


def looks_like_fat(data: bytes) -> bool:
    """Whether a boot sector of 512 bytes can only be FAT's."""
    if data[510:512] != _BOOT_MAGIC or data[0] not in _JUMPS or data[3:11] in _OTHERS:
        return False
    raw = _Common(*_COMMON.unpack_from(data))
    return (
        power_of_two(raw.sector, 512, 4096)
        and power_of_two(raw.per_cluster, 1, 128)
        and raw.reserved > 0
        and 1 <= raw.tables <= 4
        and (raw.media == 0xF0 or raw.media >= 0xF8)
        and bool(raw.sectors_16 or raw.sectors_32)
        and bool(raw.table_sectors_16 or little(data, 36, 4))
    )


def parse_boot(data: bytes) -> Geometry:
    """Read a boot sector that looks like FAT; `NotUnderstood` where sizes contradict."""
    raw = _Common(*_COMMON.unpack_from(data))
    # FAT32 keeps the table's size elsewhere: all drivers tell it by that, not by the count
    # of clusters, as small volumes of FAT32 exist.
    wide = not raw.table_sectors_16
    table_sectors = little(data, 36, 4) if wide else raw.table_sectors_16
    sectors = raw.sectors_16 or raw.sectors_32
    root_start = raw.reserved + raw.tables * table_sectors
    root_sectors = -(-raw.root_entries * ENTRY_SIZE // raw.sector)
    data_start = root_start + root_sectors
    clusters = (sectors - data_start) // raw.per_cluster
    if clusters <= 0 or clusters > _MOST_CLUSTERS:
        raise NotUnderstood("FAT with an impossible number of clusters")
    bits = 32 if wide else 16 if clusters >= _FAT16_FROM else 12
    _check_type(data, bits, clusters, raw)
    if table_sectors * raw.sector * 8 < (clusters + 2) * bits:
        raise NotUnderstood("FAT whose table is too small for its clusters")
    if wide and little(data, 42, 2):
        raise NotUnderstood("FAT32 of an unknown version")
    extended = 64 if wide else 36
    signed = data[extended + 2] in (0x28, 0x29)
    serial = little(data, extended + 3, 4) if signed else 0
    label = data[extended + 7 : extended + 18] if data[extended + 2] == 0x29 else b""
    return Geometry(
        bits=bits,
        sector=raw.sector,
        cluster=raw.per_cluster * raw.sector,
        clusters=clusters,
        table_start=raw.reserved * raw.sector,
        table_size=table_sectors * raw.sector,
        tables=raw.tables,
        root_start=root_start * raw.sector,
        root_size=root_sectors * raw.sector,
        root_cluster=little(data, 44, 4) if wide else 0,
        data_start=data_start * raw.sector,
        span=sectors * raw.sector,
        media=raw.media,
        dirty=bool(data[extended + 1] & _STATE_DIRTY),
        active=_active(little(data, 40, 2) if wide else 0, raw.tables),
        serial=f"{serial >> 16:04X}-{serial & 0xFFFF:04X}" if signed else "",
        label=plain_label(label),
    )


def _active(flags: int, tables: int) -> tuple[int, ...]:
    if not flags & _MIRRORING_OFF:
        return tuple(range(tables))
    if flags & _ACTIVE_TABLE >= tables:
        raise NotUnderstood("FAT32 whose active table does not exist")
    return (flags & _ACTIVE_TABLE,)


def _check_type(data: bytes, bits: int, clusters: int, raw: _Common) -> None:
    if bits == 32 and raw.root_entries:
        raise NotUnderstood("FAT32 with a root folder of FAT16")
    if bits == 16 and clusters >= _FAT32_FROM:
        raise NotUnderstood("FAT16 with as many clusters as only FAT32 has")
    # The field is for show. Where it contradicts, somebody else may count otherwise.
    shown = data[82:90] if bits == 32 else data[54:62]
    for other in (12, 16, 32):
        if other != bits and shown.startswith(b"FAT%d" % other):
            raise NotUnderstood(f"FAT{bits} by its sizes that calls itself FAT{other}")
    if bits != 32 and clusters in _DISPUTED and not shown.startswith(b"FAT%d" % bits):
        raise NotUnderstood("FAT with a number of clusters that may be FAT12 or FAT16")


def plain_label(raw: bytes) -> str:
    """Return a label of 11 bytes as text; empty for `NO NAME`."""
    label = raw.decode("cp850", "replace").rstrip(" \0")
    return "" if label == "NO NAME" else label


def entries(data: bytes, bits: int, count: int) -> NDArray[np.uint32]:
    """Return `count` table entries from bytes that begin with one; FAT12's begin even."""
    if bits == 32:
        wide = np.frombuffer(data, "<u4", count)
        return (wide & np.uint32(0x0FFFFFFF)).astype(np.uint32)
    if bits == 16:
        return np.frombuffer(data, "<u2", count).astype(np.uint32)
    # Two entries of 12 bits in three bytes.
    pairs = (count + 1) // 2
    raw = np.frombuffer(data.ljust(pairs * 3, b"\0"), np.uint8, pairs * 3).astype(np.uint32)
    result = np.empty(pairs * 2, np.uint32)
    result[0::2] = raw[0::3] | (raw[1::3] & 15) << 8
    result[1::2] = raw[1::3] >> 4 | raw[2::3] << 4
    return result[:count]


def check_first_entries(data: bytes, geometry: Geometry) -> None:
    """Check entries 0 and 1 of a table: the medium, and the bits of a clean end.

    `data` holds at least 8 bytes. Raises `NotUnderstood`.
    """
    first, second = entries(data, geometry.bits, 2).tolist()
    ones = (1 << min(geometry.bits, 28)) - 1
    if first & 0xFF != geometry.media or first | 0xFF != ones:
        raise NotUnderstood("FAT whose table does not begin with its medium")
    if geometry.bits == 12:
        return
    if not second & _CLEAN[geometry.bits]:
        raise NotUnderstood("FAT is marked dirty: it was not unmounted")
    if not second & _NO_ERROR[geometry.bits]:
        raise NotUnderstood("FAT is marked as having had read or write errors")
