"""What of an NTFS volume is in use: its $Bitmap, one bit a cluster."""

from __future__ import annotations

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.fs.base import Peers, State, UsedMap, verify_at_rest
from freezeframe.fs.bits import PIECE, UsedUnits
from freezeframe.fs.ntfs.clean import check_clean
from freezeframe.fs.ntfs.structs import (
    BITMAP,
    BOOT_FILE_SIZE,
    BOOT_SIZE,
    DATA,
    SIGNATURE,
    SIGNATURE_OFFSET,
    Run,
    parse_boot,
)
from freezeframe.fs.ntfs.volume import Stream, Volume
from freezeframe.fs.probe import peek


class Ntfs:
    """NTFS 1.2, 3.0 and 3.1 with any size of cluster and sector."""

    name = "ntfs"

    def recognise(self, reader: Reader) -> bool:
        """Whether the boot sector carries NTFS's name."""
        return peek(reader, SIGNATURE_OFFSET, len(SIGNATURE)) == SIGNATURE

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return clusters in use, the boot sector and its backup, and what lies behind.

        Raises `NotUnderstood` for a volume that is dirty, hibernated, damaged or newer.
        """
        del peers
        verify_at_rest("NTFS", state)
        geometry = parse_boot(peek(reader, 0, BOOT_SIZE) or bytes(BOOT_SIZE))
        # The backup boot sector is one more, but a volume without it does mount.
        if geometry.sectors * geometry.sector > reader.size:
            raise NotUnderstood("NTFS that is larger than its partition")
        volume = Volume(reader, geometry)
        label = check_clean(volume)
        used, bitmap = _allocated(volume)
        _check_marked(volume, used, (*volume.mft_runs, *bitmap.runs))
        end = geometry.clusters * geometry.cluster
        used |= Extents.of([(0, min(BOOT_FILE_SIZE, reader.size)), (end, reader.size)])
        return UsedMap(
            self.name,
            used,
            True,
            label=label,
            uuid=f"{geometry.serial:016X}",
            block_size=geometry.cluster,
            span=min((geometry.sectors + 1) * geometry.sector, reader.size),
        )


def _allocated(volume: Volume) -> tuple[Extents, Stream]:
    clusters = volume.geometry.clusters
    needed = -(-clusters // 8)
    bitmap = volume.stream(BITMAP, DATA)
    if bitmap is None:
        raise NotUnderstood("NTFS without a bitmap")
    if bitmap.resident or not bitmap.plain:
        raise NotUnderstood("NTFS whose bitmap is resident, sparse, compressed or encrypted")
    units = UsedUnits(volume.geometry.cluster)
    for offset in range(0, needed, PIECE):
        data = volume.read(bitmap, offset, min(PIECE, needed - offset))
        units.add_bitmap(data, clusters - offset * 8)
    return units.extents(), bitmap


def _check_marked(volume: Volume, used: Extents, runs: tuple[Run, ...]) -> None:
    """Refuse a bitmap that says its own clusters are free: it is not the bitmap."""
    cluster = volume.geometry.cluster
    for run in runs:
        if run.lcn >= 0 and not used.covers(run.lcn * cluster, (run.lcn + run.length) * cluster):
            raise NotUnderstood("NTFS whose bitmap calls its own metadata free")


KIND = Ntfs()
