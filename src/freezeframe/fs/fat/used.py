"""What of a FAT filesystem is in use: clusters whose table entry is not zero."""

from __future__ import annotations

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.fs.base import Peers, State, UsedMap, verify_at_rest
from freezeframe.fs.bits import PIECE, UsedUnits
from freezeframe.fs.fat.structs import (
    ATTRIBUTE_LABEL,
    ATTRIBUTE_LONG_NAME,
    BOOT_SIZE,
    ENTRY_SIZE,
    Geometry,
    check_first_entries,
    entries,
    looks_like_fat,
    parse_boot,
    plain_label,
)
from freezeframe.fs.probe import peek

_DELETED = 0xE5
#: A multiple of 3 bytes, so that a piece of FAT12 begins with a whole pair of entries.
_PIECE = PIECE - PIECE % 12
#: How much of a root folder is looked through for the label.
_ROOT_LOOK = 64 << 10


class Fat:
    """FAT12, FAT16 and FAT32, sectors of 512 to 4096 bytes, one to four tables."""

    name = "fat"

    def recognise(self, reader: Reader) -> bool:
        """Whether the boot sector can only be FAT's. It has no magic of its own."""
        boot = peek(reader, 0, BOOT_SIZE)
        return bool(boot) and looks_like_fat(boot)

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return reserved sectors, tables, root folder, clusters in use, and what lies behind.

        Bad clusters count as used. Where the tables differ, a cluster that any of them
        uses is used. Raises `NotUnderstood` for a volume that is dirty or damaged.
        """
        del peers
        verify_at_rest("FAT", state)
        boot = peek(reader, 0, BOOT_SIZE)
        if not boot or not looks_like_fat(boot):
            raise NotUnderstood("FAT without its boot sector")
        geometry = parse_boot(boot)
        if geometry.span > reader.size:
            raise NotUnderstood("FAT that is larger than its partition")
        if geometry.dirty:
            raise NotUnderstood("FAT is marked dirty: it was not unmounted")
        for number in geometry.active:
            start = geometry.table_start + number * geometry.table_size
            check_first_entries(reader.read_at(start, 8), geometry)
        units, differ = _allocated(reader, geometry)
        end = geometry.data_start + geometry.clusters * geometry.cluster
        ends = Extents.of([(0, geometry.data_start), (end, reader.size)])
        used = units.extents() | ends
        root = geometry.data_start + (geometry.root_cluster - 2) * geometry.cluster
        if geometry.bits == 32 and not used.covers(root, root + geometry.cluster):
            raise NotUnderstood("FAT32 whose root folder lies in a free cluster")
        return UsedMap(
            geometry.kind,
            used,
            True,
            notes=("the copies of the allocation table differ: all are kept",) if differ else (),
            label=_label(reader, geometry) or geometry.label,
            uuid=geometry.serial,
            block_size=geometry.cluster,
            span=geometry.span,
        )


def _allocated(reader: Reader, geometry: Geometry) -> tuple[UsedUnits, bool]:
    """Return what any of the tables uses, and whether they differ."""
    units = UsedUnits(geometry.cluster, geometry.data_start - 2 * geometry.cluster)
    bits = geometry.bits
    per_piece = _PIECE * 8 // bits
    differ = False
    total = geometry.clusters + 2
    for first in range(0, total, per_piece):
        count = min(per_piece, total - first)
        offset = geometry.table_start + first * bits // 8
        length = -(-count * bits // 8)
        tables = [
            reader.read_at(offset + number * geometry.table_size, length)
            for number in range(geometry.tables)
        ]
        flags = entries(tables[0], bits, count) != 0
        for other in tables[1:]:
            if other != tables[0]:
                differ = True
                flags |= entries(other, bits, count) != 0
        if not first:
            # The first two entries are no clusters.
            flags[:2] = np.False_
        units.add(flags)
    return units, differ


def _label(reader: Reader, geometry: Geometry) -> str:
    """Return the label in the root folder: it is newer than the boot sector's."""
    if geometry.bits == 32:
        start = geometry.data_start + (geometry.root_cluster - 2) * geometry.cluster
        size = geometry.cluster
    else:
        start, size = geometry.root_start, geometry.root_size
    data = reader.read_at(start, min(size, _ROOT_LOOK))
    for offset in range(0, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE):
        first, attributes = data[offset], data[offset + 11]
        if not first:
            break
        long_name = attributes & ATTRIBUTE_LONG_NAME == ATTRIBUTE_LONG_NAME
        if attributes & ATTRIBUTE_LABEL and first != _DELETED and not long_name:
            return plain_label(data[offset : offset + 11])
    return ""


KIND = Fat()
