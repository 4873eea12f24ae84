"""Read an image back: through decryption and hashes, or against a device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.block.salvage import read_salvaging
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import CHUNK
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.repo.index import Columns
from freezeframe.repo.pack import BlobKind
from freezeframe.system.workers import run_workers

#: Differences are told apart by this many bytes: what a user can do anything with.
_GRAIN = 512


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of an image that is not what it must be."""

    image: str
    disk: str
    #: Bytes of the disk.
    start: int
    stop: int
    #: What lies there: `partition 2 (ext4)`, `table`.
    where: str
    reason: str


def verify_images(
    images: Sequence[ImageReader], progress: Progress, *, threads: int | None = None
) -> list[Damage]:
    """Read every blob of every disk of these images and check it; return what is damaged.

    A blob that several images share is read once, and each of them is named where it is bad.
    An image whose trees are damaged is one finding; the others are still verified.
    """
    damage: list[Damage] = []
    if not images:
        return damage
    columns = images[0].index.columns(BlobKind.DATA)
    wanted = np.zeros(len(columns), np.bool_)
    for image in images:
        for record in image.manifest.disks:
            blobs, found = _trees(image, record)
            damage += found
            wanted[columns.search(blobs.ids[~blobs.zero])] = True
            # Each disk's blobs are looked up again where some are bad: many images of a large
            # disk would not fit into memory together.
            del blobs
    bad = _bad_blobs(images[0], columns, np.flatnonzero(wanted), progress, threads)
    for image in images if bad else ():
        for record in image.manifest.disks:
            damage += _damaged_blobs(image, record, columns, bad)
    return damage


def _trees(image: ImageReader, record: DiskRecord) -> tuple[DiskBlobs, list[Damage]]:
    """Read a disk's trees and its layout's pieces; return what is known, and what is damaged."""
    damage: list[Damage] = []

    def tell(start: int, stop: int, error: FreezeframeError) -> None:
        damage.extend(_damages(image, record, start, stop, error.message))

    blobs = image.disk_blobs(record, on_damage=tell)
    try:
        image.pieces(record)
    except FreezeframeError as error:
        short = image.snapshot.short_id
        damage.append(Damage(short, record.name, 0, 0, "its layout's files", error.message))
    return blobs, damage


def _damaged_blobs(
    image: ImageReader, record: DiskRecord, columns: Columns, bad: dict[int, str]
) -> Iterator[Damage]:
    blobs = image.disk_blobs(record, on_damage=_pass)
    rows = columns.search(blobs.ids)
    rows[blobs.zero] = -1
    for number in np.flatnonzero(np.isin(rows, list(bad))).tolist():
        start = int(blobs.starts[number])
        stop = start + int(blobs.lengths[number])
        yield from _damages(image, record, start, stop, bad[int(rows[number])])


def _pass(start: int, stop: int, error: FreezeframeError) -> None:
    """Say nothing: it has been told."""


def _bad_blobs(
    image: ImageReader,
    columns: Columns,
    rows: NDArray[np.int64],
    progress: Progress,
    threads: int | None,
) -> dict[int, str]:
    """Read each of these blobs (rows of the index) once; return those damaged, and why."""
    # In the order they lie in the packs: each pack is read once, from its start to its end.
    ordered = rows[np.lexsort((columns.offsets[rows], columns.packs[rows]))]
    progress.start("verify", int(columns.lengths[ordered].sum(dtype=np.int64)))
    bad: dict[int, str] = {}

    def check(group: NDArray[np.int64]) -> None:
        ids = columns.ids(group)
        try:
            image.blobs.read_run(BlobKind.DATA, ids, columns.found(group))
        except FreezeframeError:
            for row, blob_id in zip(group.tolist(), ids, strict=True):
                try:
                    image.blobs.read(BlobKind.DATA, blob_id.tobytes())
                except FreezeframeError as error:
                    bad[row] = error.message
        progress.advance(int(columns.lengths[group].sum(dtype=np.int64)))

    run_workers(_together(columns, ordered), lambda: check, threads=threads)
    return bad


def _together(columns: Columns, ordered: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split rows, as they lie in the packs, into pieces that are read in one go.

    A piece is of one pack and ends once it has a chunk's bytes.
    """
    packs = columns.packs[ordered]
    for pack in np.split(ordered, np.flatnonzero(np.diff(packs)) + 1):
        ends = np.cumsum(columns.lengths[pack], dtype=np.int64)
        yield from np.split(pack, np.flatnonzero(np.diff((ends - 1) // CHUNK)) + 1)


def verify_against(
    image: ImageReader,
    record: DiskRecord,
    device: Reader,
    progress: Progress,
    *,
    threads: int | None = None,
    start: int = 0,
    length: int | None = None,
) -> list[Damage]:
    """Compare what a disk's image holds with a device; return where they differ.

    Byte 0 of the device is byte `start` of the disk, and `length` bytes (default: all that
    follow) are compared. Only used bytes count, and not those that could not be read when
    the image was made.
    """
    blobs = image.disk_blobs(record)
    end = start + length if length is not None else record.size
    compare = blobs.used.clip(start, end) - Extents.of(record.unreadable)
    damage: list[Damage] = []
    if device.size < compare.end - start:
        reason = f"{device.name} ends at {device.size} bytes"
        damage += _damages(image, record, start + device.size, compare.end, reason)
        compare = compare.clip(start, start + device.size)
    progress.start(f"compare with {device.name}", compare.total)
    # What is zeros in the image, and a hole in a file, is the same without looking.
    holes = compare & blobs.zero_extents()
    holes = holes - device.data_extents().shift(start)
    progress.advance(holes.total)
    compare = compare - holes
    found: list[tuple[int, int]] = []
    unreadable: list[tuple[int, int]] = []

    def check(group: tuple[int, int]) -> None:
        low = int(blobs.starts[group[0]])
        data = image.read_group(blobs, *group)
        parts = compare.clip(low, low + len(data))
        for first, last in parts:
            real = bytearray(last - first)
            bad = read_salvaging(device, first - start, memoryview(real))
            unreadable.extend(bad.shift(start))
            if real != data[first - low : last - low]:
                different = _differing(real, data[first - low : last - low])
                found.extend((first + a, first + b) for a, b in different)
        progress.advance(parts.total)

    numbers = np.flatnonzero(blobs.touching(compare))
    run_workers(blobs.groups(numbers), lambda: check, threads=threads)
    lost = Extents.of(unreadable)
    for extents, reason in (
        (Extents.of(found) - lost, f"differs from {device.name}"),
        (lost, f"cannot be read from {device.name}"),
    ):
        for a, b in extents:
            damage += _damages(image, record, a, b, reason)
    return damage


def merge(damage: Sequence[Damage]) -> list[Damage]:
    """Join damages that touch and have the same reason, so that a long stretch is one line."""
    joined: list[Damage] = []
    for item in damage:
        last = joined[-1] if joined else None
        if last is not None and (last.image, last.disk, last.where, last.reason, last.stop) == (
            item.image,
            item.disk,
            item.where,
            item.reason,
            item.start,
        ):
            joined[-1] = Damage(
                item.image, item.disk, last.start, item.stop, item.where, item.reason
            )
        else:
            joined.append(item)
    return joined


def _differing(one: bytes | bytearray, two: bytes) -> list[tuple[int, int]]:
    """Return the differing ranges, grown to whole sectors of 512 bytes (or the end)."""
    bits: NDArray[np.bool_] = np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8)
    found = Extents.from_blocks(np.unique(np.flatnonzero(bits) // _GRAIN), _GRAIN)
    return list(found.clip(0, len(one)))


def _damages(
    image: ImageReader, record: DiskRecord, start: int, stop: int, reason: str
) -> Iterator[Damage]:
    """Name a damaged stretch region by region; none of it may go without a name."""
    borders = {edge for r in record.regions for edge in (r.start, r.start + r.length)}
    cuts = [start, *sorted(edge for edge in borders if start < edge < stop), stop]
    for first, last in itertools.pairwise(cuts):
        where = _where(record.region_at(first))
        yield Damage(image.snapshot.short_id, record.name, first, last, where, reason)


def _where(region: RegionRecord | None) -> str:
    if region is None:
        return "beyond its end"
    number = f" {region.number}" if region.number else ""
    content = f" ({region.content})" if region.content else ""
    return f"{region.role}{number}{content}"
