"""NTFS on disk: boot sector, file records, attributes, run lists.

Source: the layout as documented by the Linux-NTFS project and used by ntfs-3g
(`include/ntfs-3g/layout.h`). All numbers are little-endian. Versions 1.2, 3.0 and 3.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.probe import little, power_of_two

SIGNATURE = b"NTFS    "
SIGNATURE_OFFSET = 3
BOOT_SIZE = 512
#: $Boot, always at the start: 8 KiB, or one cluster where that is larger.
BOOT_FILE_SIZE = 8192

#: What update sequences protect, whatever the device's own sector is.
BLOCK = 512

# File records with fixed numbers.
MFT, LOG_FILE, VOLUME, ROOT, BITMAP = 0, 2, 3, 5, 6

# Attribute types.
ATTRIBUTE_LIST, FILE_NAME, VOLUME_NAME, VOLUME_INFORMATION = 0x20, 0x30, 0x60, 0x70
DATA, INDEX_ROOT, INDEX_ALLOCATION = 0x80, 0x90, 0xA0
END = 0xFFFFFFFF

# Attribute flags. The low byte names the compression.
FLAG_COMPRESSED, FLAG_ENCRYPTED, FLAG_SPARSE = 0x00FF, 0x4000, 0x8000

# Volume flags that say the volume was not closed in peace.
VOLUME_DIRTY, VOLUME_CHKDSK_UNDERWAY = 0x0001, 0x4000

RECORD_IN_USE = 0x0001
_REFERENCE = (1 << 48) - 1
#: A run list names clusters by differences: 63 bits are more than there can be.
_LARGEST = 1 << 62


class BootSector(NamedTuple):
    """Its fields, raw."""

    jump: bytes
    oem: bytes
    bytes_per_sector: int
    sectors_per_cluster: int
    sectors: int
    mft_cluster: int
    mirror_cluster: int
    record_units: int
    index_units: int
    serial: int


_BOOT = struct.Struct("<3s8sHB26xQQQb3xb3xQ")


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the boot sector says, in bytes and clusters."""

    sector: int
    cluster: int
    #: Sectors of the volume. The backup boot sector lies after them.
    sectors: int
    #: Whole clusters in those sectors.
    clusters: int
    record: int
    index: int
    mft_cluster: int
    serial: int


def parse_boot(data: bytes) -> Geometry:
    """Read a boot sector of 512 bytes; `NotUnderstood` where it makes no sense."""
    boot = BootSector(*_BOOT.unpack_from(data))
    sector = boot.bytes_per_sector
    if not power_of_two(sector, 256, 4096):
        raise NotUnderstood(f"NTFS with sectors of {sector} bytes")
    # Above 128 sectors the byte is an exponent, negative: 0xF4 is 2 to the 12th.
    per_cluster = boot.sectors_per_cluster
    if per_cluster > 0x80:
        per_cluster = 1 << min(256 - per_cluster, 32)
    cluster = sector * per_cluster
    if not power_of_two(per_cluster, 1, 4096) or not power_of_two(cluster, 256, 2 << 20):
        raise NotUnderstood(f"NTFS with clusters of {per_cluster} sectors")
    record = _unit(boot.record_units, cluster)
    index = _unit(boot.index_units, cluster)
    # Below one block there would be nothing that an update sequence protects.
    if not power_of_two(record, BLOCK, 64 << 10) or not power_of_two(index, BLOCK, 2 << 20):
        raise NotUnderstood(f"NTFS with records of {record} and index blocks of {index} bytes")
    clusters = boot.sectors // per_cluster
    if not 0 < boot.mft_cluster < clusters:
        raise NotUnderstood("NTFS whose $MFT lies outside of the volume")
    return Geometry(
        sector, cluster, boot.sectors, clusters, record, index, boot.mft_cluster, boot.serial
    )


def _unit(value: int, cluster: int) -> int:
    """Return bytes of a record: so many clusters, or 2 to the minus so many bytes."""
    return value * cluster if value > 0 else 1 << min(-value, 40)


def unprotect(data: bytes, magic: bytes) -> bytes:
    """Check the update sequence of a record or page and put the replaced bytes back.

    Raises `NotUnderstood` where the magic is another or a block was torn.
    """
    if data[:4] != magic:
        raise NotUnderstood(f"NTFS record with {data[:4]!r} in place of {magic!r}")
    offset, count = little(data, 4, 2), little(data, 6, 2)
    blocks = len(data) // BLOCK
    # After the smallest header there is, a restart page's, and inside the first block.
    if count != blocks + 1 or offset % 2 or offset < 30 or offset + 2 * count > BLOCK - 2:
        raise NotUnderstood("NTFS record with an impossible update sequence")
    fixed = bytearray(data)
    number = data[offset : offset + 2]
    for block in range(blocks):
        end = (block + 1) * BLOCK
        if data[end - 2 : end] != number:
            raise NotUnderstood("NTFS record that was written only in part")
        fixed[end - 2 : end] = data[offset + 2 * block + 2 : offset + 2 * block + 4]
    return bytes(fixed)


class Run(NamedTuple):
    """Clusters in a row: of the attribute from `vcn`, of the volume from `lcn` (-1: a hole)."""

    vcn: int
    lcn: int
    length: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute, or one part of it where a list spreads it over records."""

    kind: int
    name: str
    flags: int
    #: The value where it lies in the record; empty otherwise.
    value: bytes = b""
    resident: bool = True
    lowest: int = 0
    highest: int = -1
    runs: tuple[Run, ...] = ()
    # Bytes; true only in the first part.
    allocated: int = 0
    size: int = 0
    initialized: int = 0


class ListEntry(NamedTuple):
    """Where a part of an attribute is."""

    kind: int
    name: str
    lowest: int
    record: int


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A record of the $MFT, unprotected."""

    number: int
    flags: int
    #: The record this one belongs to; 0 where it is the file's own.
    base: int
    attributes: tuple[Attribute, ...]
    #: Names that lead to it, the short ones of DOS included.
    links: int = 1


def parse_record(raw: bytes, number: int, clusters: int) -> FileRecord:
    """Read a file record; runs must lie in `clusters`. Raises `NotUnderstood`."""
    data = unprotect(raw, b"FILE")
    first, flags, used = little(data, 20, 2), little(data, 22, 2), little(data, 24, 4)
    if not flags & RECORD_IN_USE:
        raise NotUnderstood(f"NTFS record {number} is not in use")
    if not 42 <= first < used <= len(data):
        raise NotUnderstood(f"NTFS record {number} has impossible sizes")
    # Since 3.1 a record knows its number, and the update sequence begins after it.
    if little(data, 4, 2) >= 48 and little(data, 44, 4) != number & 0xFFFFFFFF:
        raise NotUnderstood(f"NTFS record {number} says it is another")
    base = little(data, 32, 8) & _REFERENCE
    attributes = tuple(_attributes(data[:used], first, clusters))
    return FileRecord(number, flags, base, attributes, little(data, 18, 2))


def _attributes(data: bytes, offset: int, clusters: int) -> list[Attribute]:
    found: list[Attribute] = []
    while offset + 4 <= len(data):
        kind, length = little(data, offset, 4), little(data, offset + 4, 4)
        if kind == END:
            return found
        if length < 24 or length % 8 or offset + length > len(data):
            break
        found.append(_attribute(data[offset : offset + length], kind, clusters))
        offset += length
    raise NotUnderstood("NTFS record whose attributes do not end")


def _attribute(data: bytes, kind: int, clusters: int) -> Attribute:
    name_start = little(data, 10, 2)
    name_stop = name_start + 2 * data[9]
    if name_stop > len(data):
        raise NotUnderstood("NTFS attribute with an impossible name")
    name = data[name_start:name_stop].decode("utf-16-le", "replace") if data[9] else ""
    flags = little(data, 12, 2)
    if not data[8]:
        size, start = little(data, 16, 4), little(data, 20, 2)
        if start + size > len(data):
            raise NotUnderstood("NTFS attribute whose value passes its end")
        value = data[start : start + size]
        return Attribute(kind, name, flags, value, size=size, initialized=size, allocated=size)
    if len(data) < 64:
        raise NotUnderstood("NTFS attribute that is too short")
    lowest, highest = little(data, 16, 8), little(data, 24, 8)
    runs = parse_runs(data[little(data, 32, 2) :], lowest, clusters)
    # An empty attribute says its highest cluster is -1.
    covered = sum(run.length for run in runs)
    if (lowest + covered - highest - 1) & ((1 << 64) - 1):
        raise NotUnderstood("NTFS attribute whose runs do not cover it")
    return Attribute(
        kind,
        name,
        flags,
        resident=False,
        lowest=lowest,
        highest=lowest + covered - 1,
        runs=runs,
        allocated=little(data, 40, 8),
        size=little(data, 48, 8),
        initialized=little(data, 56, 8),
    )


def parse_runs(data: bytes, lowest: int, clusters: int) -> tuple[Run, ...]:
    """Read a run list that begins at cluster `lowest` of its attribute.

    Raises `NotUnderstood` where a run leaves the volume of `clusters`, or there is no end.
    """
    runs: list[Run] = []
    vcn, lcn, offset = lowest, 0, 0
    while offset < len(data) and data[offset]:
        length_size, lcn_size = data[offset] & 15, data[offset] >> 4
        stop = offset + 1 + length_size + lcn_size
        if not 0 < length_size <= 8 or lcn_size > 8 or stop > len(data):
            raise NotUnderstood("NTFS run list that makes no sense")
        middle = offset + 1 + length_size
        length = little(data, offset + 1, length_size)
        lcn += int.from_bytes(data[middle:stop], "little", signed=True)
        outside = lcn_size and (lcn < 0 or lcn + length > clusters)
        if not 0 < length < _LARGEST or vcn + length >= _LARGEST or outside:
            raise NotUnderstood("NTFS run that leaves the volume")
        runs.append(Run(vcn, lcn if lcn_size else -1, length))
        vcn += length
        offset = stop
    if offset >= len(data):
        raise NotUnderstood("NTFS run list without an end")
    return tuple(runs)


def parse_list(data: bytes) -> list[ListEntry]:
    """Read the value of an attribute list; raises `NotUnderstood`."""
    entries = []
    offset = 0
    while offset + 26 <= len(data):
        length = little(data, offset + 4, 2)
        start = offset + data[offset + 7]
        stop = start + 2 * data[offset + 6]
        if length < 26 or offset + length > len(data) or stop > offset + length:
            break
        name = data[start:stop].decode("utf-16-le", "replace") if stop > start else ""
        kind, lowest = little(data, offset, 4), little(data, offset + 8, 8)
        entries.append(ListEntry(kind, name, lowest, little(data, offset + 16, 8) & _REFERENCE))
        offset += length
    if any(data[offset:]):
        raise NotUnderstood("NTFS attribute list that makes no sense")
    return entries
