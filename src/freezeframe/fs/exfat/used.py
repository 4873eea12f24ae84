"""What of an exFAT filesystem is in use: its allocation bitmap, one bit a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.fs.base import Peers, State, UsedMap, verify_at_rest
from freezeframe.fs.bits import PIECE, UsedUnits
from freezeframe.fs.exfat.structs import (
    BOOT_SECTORS,
    BOOT_SIZE,
    END_OF_CHAIN,
    ENTRY_BITMAP,
    ENTRY_END,
    ENTRY_LABEL,
    ENTRY_SIZE,
    ENTRY_UPCASE,
    SIGNATURE,
    SIGNATURE_OFFSET,
    Geometry,
    check_sum,
    parse_boot,
)
from freezeframe.fs.probe import little, peek

#: A folder cannot be larger.
_LARGEST_FOLDER = 256 << 20
#: Table entries that are read at once, in bytes.
_TABLE_PIECE = 64 << 10


@dataclass(frozen=True, slots=True)
class _File:
    """What the root folder names: its first cluster, its length in bytes."""

    cluster: int
    length: int


@dataclass(slots=True)
class _Root:
    """What was found in the root folder."""

    bitmaps: list[_File]
    upcase: list[_File]
    clusters: list[int]
    label: str = ""


class Exfat:
    """exFAT 1.0 with any size of cluster and sector."""

    name = "exfat"

    def recognise(self, reader: Reader) -> bool:
        """Whether the boot sector carries exFAT's name."""
        return peek(reader, SIGNATURE_OFFSET, len(SIGNATURE)) == SIGNATURE

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return boot regions, table, clusters in use, and what lies behind.

        Raises `NotUnderstood` for a volume that is dirty, damaged, newer, or TexFAT.
        """
        del peers
        verify_at_rest("exFAT", state)
        geometry = parse_boot(peek(reader, 0, BOOT_SIZE) or bytes(BOOT_SIZE))
        if geometry.span > reader.size:
            raise NotUnderstood("exFAT that is larger than its partition")
        check_sum(reader.read_at(0, BOOT_SECTORS * geometry.sector), geometry.sector)
        root = _read_root(reader, geometry)
        if len(root.bitmaps) != 1 or len(root.upcase) != 1:
            raise NotUnderstood("exFAT without its one bitmap and its one table of capitals")
        bitmap = _chain(reader, geometry, root.bitmaps[0])
        units = _allocated(reader, geometry, root.bitmaps[0].length, bitmap)
        used = units.extents()
        upcase = _chain(reader, geometry, root.upcase[0])
        for cluster in (*root.clusters, *bitmap, *upcase):
            start = geometry.position(cluster)
            if not used.covers(start, start + geometry.cluster):
                raise NotUnderstood("exFAT whose bitmap calls its own metadata free")
        end = geometry.heap_start + geometry.clusters * geometry.cluster
        used |= Extents.of([(0, geometry.heap_start), (end, reader.size)])
        return UsedMap(
            self.name,
            used,
            True,
            notes=("it has recorded failures of its medium",) if geometry.media_failure else (),
            label=root.label,
            uuid=geometry.serial,
            block_size=geometry.cluster,
            span=geometry.span,
        )


def _allocated(reader: Reader, geometry: Geometry, length: int, clusters: list[int]) -> UsedUnits:
    needed = -(-geometry.clusters // 8)
    if length < needed:
        raise NotUnderstood("exFAT whose bitmap is too short")
    units = UsedUnits(geometry.cluster, geometry.heap_start)
    left = geometry.clusters
    for cluster in clusters:
        start = geometry.position(cluster)
        for offset in range(0, geometry.cluster, PIECE):
            size = min(PIECE, geometry.cluster - offset, -(-left // 8))
            if not size:
                return units
            units.add_bitmap(reader.read_at(start + offset, size), left)
            left -= min(left, size * 8)
    return units


def _read_root(reader: Reader, geometry: Geometry) -> _Root:
    """Read the root folder to its end, through the table."""
    root = _Root([], [], [])
    for cluster in _follow(reader, geometry, geometry.root_cluster, _LARGEST_FOLDER):
        root.clusters.append(cluster)
        data = reader.read_at(geometry.position(cluster), geometry.cluster)
        for offset in range(0, len(data), ENTRY_SIZE):
            entry = data[offset : offset + ENTRY_SIZE]
            if entry[0] == ENTRY_END:
                return root
            file = _File(little(entry, 20, 4), little(entry, 24, 8))
            if entry[0] == ENTRY_BITMAP:
                root.bitmaps.append(file)
            elif entry[0] == ENTRY_UPCASE:
                root.upcase.append(file)
            elif entry[0] == ENTRY_LABEL:
                characters = entry[2 : 2 + 2 * min(entry[1], 11)]
                root.label = characters.decode("utf-16-le", "replace")
    return root


def _chain(reader: Reader, geometry: Geometry, file: _File) -> list[int]:
    """Return all clusters of a file, as many as its length needs, no more."""
    if not 0 < file.length <= geometry.clusters * geometry.cluster:
        raise NotUnderstood("exFAT with a file of an impossible length")
    clusters = list(_follow(reader, geometry, file.cluster, file.length))
    if len(clusters) != -(-file.length // geometry.cluster):
        raise NotUnderstood("exFAT with a file whose chain is not its length")
    return clusters


def _follow(reader: Reader, geometry: Geometry, first: int, longest: int) -> Iterator[int]:
    """Give the clusters of a chain; `NotUnderstood` where it is longer than `longest` bytes."""
    # More than there are clusters: a chain that bites its tail.
    most = min(-(-longest // geometry.cluster), geometry.clusters)
    cluster, base, piece = first, -1, b""
    for _ in range(most):
        geometry.position(cluster)
        yield cluster
        if cluster * 4 // _TABLE_PIECE != base:
            base = cluster * 4 // _TABLE_PIECE
            start = base * _TABLE_PIECE
            size = min(_TABLE_PIECE, geometry.table_size - start)
            piece = reader.read_at(geometry.table_start + start, size)
        cluster = little(piece, cluster * 4 - base * _TABLE_PIECE, 4)
        if cluster == END_OF_CHAIN:
            return
    raise NotUnderstood("exFAT with a chain that does not end")


KIND = Exfat()
