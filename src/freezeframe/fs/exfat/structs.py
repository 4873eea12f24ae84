"""exFAT on disk: boot region, table entries, root folder entries.

Source: Microsoft's *exFAT file system specification* 1.0. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from freezeframe.core.errors import NotUnderstood

SIGNATURE = b"EXFAT   "
SIGNATURE_OFFSET = 3
BOOT_SIZE = 512
#: Sectors of the boot region; the backup follows at once.
BOOT_SECTORS = 12
_SUMMED_SECTORS = 11
#: Flags and fill level change while mounted and are left out of the sum.
_NOT_SUMMED = (106, 107, 112)

_FLAG_SECOND_TABLE, _FLAG_DIRTY, _FLAG_MEDIA_FAILURE = 1, 2, 4

ENTRY_SIZE = 32
ENTRY_END, ENTRY_BITMAP, ENTRY_UPCASE, ENTRY_LABEL = 0x00, 0x81, 0x82, 0x83
#: Table entries above are no clusters: bad, or the last of a chain.
LARGEST_CLUSTER = 0xFFFFFFF6
END_OF_CHAIN = 0xFFFFFFFF


class BootSector(NamedTuple):
    """Its fields, raw."""

    oem: bytes
    zeros: bytes
    sectors: int
    table_start: int
    table_length: int
    heap_start: int
    clusters: int
    root_cluster: int
    serial: int
    revision: int
    flags: int
    sector_shift: int
    cluster_shift: int
    tables: int
    signature: int


_BOOT = struct.Struct("<3x8s53s8xQIIIIIIHHBBB399xH")


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the boot sector says, in bytes."""

    sector: int
    cluster: int
    clusters: int
    table_start: int
    table_size: int
    #: Where cluster 2, the first, starts.
    heap_start: int
    root_cluster: int
    span: int
    serial: str
    media_failure: bool

    def position(self, cluster: int) -> int:
        """Return where a cluster starts; `NotUnderstood` where there is none such."""
        if not 2 <= cluster < self.clusters + 2:
            raise NotUnderstood("exFAT that names a cluster it does not have")
        return self.heap_start + (cluster - 2) * self.cluster


def parse_boot(data: bytes) -> Geometry:
    """Read a boot sector of 512 bytes; `NotUnderstood` for what is dirty or impossible."""
    raw = BootSector(*_BOOT.unpack_from(data))
    if raw.signature != 0xAA55 or any(raw.zeros):
        raise NotUnderstood("exFAT with a damaged boot sector")
    if raw.revision >> 8 != 1:
        raise NotUnderstood(f"exFAT of the unknown version {raw.revision >> 8}")
    if raw.tables != 1 or raw.flags & _FLAG_SECOND_TABLE:
        raise NotUnderstood("exFAT with two tables (TexFAT)")
    if raw.flags & _FLAG_DIRTY:
        raise NotUnderstood("exFAT is marked dirty: it was not unmounted")
    if not 9 <= raw.sector_shift <= 12 or raw.sector_shift + raw.cluster_shift > 25:
        raise NotUnderstood("exFAT with impossible sizes of sector or cluster")
    sector = 1 << raw.sector_shift
    geometry = Geometry(
        sector=sector,
        cluster=sector << raw.cluster_shift,
        clusters=raw.clusters,
        table_start=raw.table_start * sector,
        table_size=raw.table_length * sector,
        heap_start=raw.heap_start * sector,
        root_cluster=raw.root_cluster,
        span=raw.sectors * sector,
        serial=f"{raw.serial >> 16:04X}-{raw.serial & 0xFFFF:04X}",
        media_failure=bool(raw.flags & _FLAG_MEDIA_FAILURE),
    )
    heap_end = geometry.heap_start + geometry.clusters * geometry.cluster
    if (
        geometry.table_start < 2 * BOOT_SECTORS * sector
        or geometry.table_size < (geometry.clusters + 2) * 4
        or geometry.heap_start < geometry.table_start + geometry.table_size
        or not 0 < geometry.clusters <= LARGEST_CLUSTER - 1
        or heap_end > geometry.span
    ):
        raise NotUnderstood("exFAT whose parts overlap or pass its end")
    return geometry


def check_sum(region: bytes, sector: int) -> None:
    """Check a boot region of 12 sectors by its sum; `NotUnderstood` where it differs."""
    total = 0
    for index, value in enumerate(region[: _SUMMED_SECTORS * sector]):
        if index not in _NOT_SUMMED:
            total = ((total << 31 & 0xFFFFFFFF | total >> 1) + value) & 0xFFFFFFFF
    stored = np.frombuffer(region, "<u4", sector // 4, _SUMMED_SECTORS * sector)
    if (stored != total).any():
        raise NotUnderstood("exFAT whose boot region does not match its checksum")
