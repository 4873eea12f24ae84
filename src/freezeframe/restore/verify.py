"""Read an image back: through decryption and hashes, or against a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import DiskBlobs, ImageReader
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
    disks: list[tuple[ImageReader, DiskRecord, DiskBlobs]] = []
    for image in images:
        for record in image.manifest.disks:
            try:
                disks.append((image, record, image.disk_blobs(record)))
            except FreezeframeError as error:
                damage.append(_damage(image, record, 0, record.size, error.message))
    bad = _bad_blobs([(image, blobs) for image, _, blobs in disks], progress, threads)
    for image, record, blobs in disks if bad else ():
        for number in np.flatnonzero(~blobs.zero).tolist():
            if reason := bad.get(blobs.ids[number].tobytes()):
                start = int(blobs.starts[number])
                stop = start + int(blobs.lengths[number])
                damage.append(_damage(image, record, start, stop, reason))
    return damage


def _bad_blobs(
    disks: Sequence[tuple[ImageReader, DiskBlobs]], progress: Progress, threads: int | None
) -> dict[bytes, str]:
    """Read each blob of these disks once; return those that are damaged, with the reason."""
    if not disks:
        return {}
    image = disks[0][0]
    ids = np.unique(np.concatenate([blobs.ids[~blobs.zero] for _, blobs in disks]), axis=0)
    found = image.index.find_many(BlobKind.DATA, ids)
    progress.start("verify", int(found.plain_lengths.sum()))
    bad: dict[bytes, str] = {}

    def check(number: int) -> None:
        blob_id = ids[number].tobytes()
        try:
            image.blobs.read(BlobKind.DATA, blob_id)
        except FreezeframeError as error:
            bad[blob_id] = error.message
        progress.advance(int(found.plain_lengths[number]))

    # In the order they lie in the packs: each pack is read once, from its start to its end.
    run_workers(np.lexsort((found.offsets, found.packs)).tolist(), lambda: check, threads=threads)
    return bad


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
        damage.append(_damage(image, record, start + device.size, compare.end, reason))
        compare = compare.clip(start, start + device.size)
    progress.start(f"compare with {device.name}", compare.total)
    found: list[tuple[int, int]] = []

    def check(number: int) -> None:
        low = int(blobs.starts[number])
        parts = compare.clip(low, low + int(blobs.lengths[number]))
        data = _blob(image, blobs, number)
        for first, last in parts:
            real = device.read_at(first - start, last - first)
            if real != data[first - low : last - low]:
                different = _differing(real, data[first - low : last - low])
                found.extend((first + a, first + b) for a, b in different)
        progress.advance(parts.total)

    numbers = [
        n
        for n in range(len(blobs.starts))
        if compare.touches(int(blobs.starts[n]), int(blobs.starts[n] + blobs.lengths[n]))
    ]
    run_workers(numbers, lambda: check, threads=threads)
    differing = Extents.of(found)
    for region in record.regions:
        for a, b in differing.clip(region.start, region.start + region.length):
            damage.append(_damage(image, record, a, b, f"differs from {device.name}"))
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


def _blob(image: ImageReader, blobs: DiskBlobs, number: int) -> bytes:
    if blobs.zero[number]:
        return bytes(int(blobs.lengths[number]))
    return image.blobs.read(BlobKind.DATA, blobs.ids[number].tobytes())


def _differing(one: bytes, two: bytes) -> list[tuple[int, int]]:
    """Return the differing ranges, grown to whole sectors of 512 bytes (or the end)."""
    bits: NDArray[np.bool_] = np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8)
    found = Extents.from_blocks(np.unique(np.flatnonzero(bits) // _GRAIN), _GRAIN)
    return list(found.clip(0, len(one)))


def _damage(image: ImageReader, record: DiskRecord, start: int, stop: int, reason: str) -> Damage:
    region = record.region_at(start)
    where = "beyond its end"
    if region is not None:
        where = region.role
        if region.number:
            where += f" {region.number}"
        if region.content:
            where += f" ({region.content})"
    return Damage(image.snapshot.short_id, record.name, start, stop, where, reason)
