"""A filesystem of an image made smaller than it was, for a target it does not fit on.

It is restored into a private sparse file, made smaller there by its own tools, and what it then
uses is written to the target. The image is only read, and the target is not touched before the
smaller filesystem is whole.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from freezeframe.block.base import Reader, Writer
from freezeframe.block.open import open_shared, open_target
from freezeframe.block.window import Window
from freezeframe.core.errors import TargetUnsuitable
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB, align_down, align_up, human_size
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.layout.base import Role, Table
from freezeframe.layout.recreate import last_usable
from freezeframe.layout.rewrite import Growth, Move
from freezeframe.layout.shrink import can_shrink, shrink_filesystem, why_not
from freezeframe.layout.types import GPT_TYPES_OPAQUE, MBR_TYPE_CODES_OPAQUE
from freezeframe.restore.layouts import layout_of
from freezeframe.restore.writing import write_blobs

#: Signatures lie this close to either end of a partition, at most.
SIGNATURES = MIB
#: A filesystem needs room for its own structures and for moving things: this share of what
#: it uses, at least. Its tools know better, and are asked before the target is touched.
_SPARE = 32
#: What works wherever its partition begins. NTFS and FAT know the place they were made at.
_MOVABLE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "swap", "luks1", "luks2", "lvm2")


@dataclass(frozen=True, slots=True)
class Shrink:
    """A filesystem that becomes smaller on its way to a target."""

    region: RegionRecord
    #: Bytes it has to fit into.
    length: int
    #: Where the private copy is made.
    scratch: str
    #: The partitions behind it, which move there as they are.
    moved: tuple[RegionRecord, ...] = ()

    @property
    def by(self) -> int:
        """How far those move, in bytes."""
        return self.region.length - self.length

    @property
    def moves(self) -> tuple[Move, ...]:
        """Where they begin then."""
        return tuple(Move(r.number, r.start, r.start - self.by, r.length) for r in self.moved)

    @property
    def taken(self) -> Extents:
        """All that is not written where it was, in bytes of the disk."""
        return Extents.of((r.start, r.start + r.length) for r in (self.region, *self.moved))

    @property
    def placed(self) -> Extents:
        """Where it is written instead, in bytes of the disk."""
        region = self.region
        spans = [(move.new_start, move.new_start + move.length) for move in self.moves]
        return Extents.of([(region.start, region.start + self.length), *spans])

    @property
    def growth(self) -> Growth | None:
        """The new end of its partition; None where it is in none."""
        region = self.region
        if region.role != Role.PARTITION:
            return None
        stop = region.start + region.length
        return Growth(region.number, region.start, stop, region.start + self.length)

    def describe(self) -> list[str]:
        """Say in sentences what is going to happen, in order."""
        region = self.region
        of = f" of partition {region.number}" if region.number else ""
        what = f"the {region.content}{of}"
        return [
            f"copy {what} ({human_size(region.used)}) into a private file in {self.scratch}",
            f"make it smaller there: from {human_size(region.length)} to"
            f" {human_size(self.length)}; if that cannot be done the target stays as it is",
        ]


def plan_shrink(
    disk: DiskRecord, region: RegionRecord | None, target_size: int, scratch: str
) -> Shrink | None:
    """Decide which filesystem becomes smaller, and how small; None where all fits as it is.

    `region` is the partition that is restored by itself, None for the whole disk: then it is
    the one that reaches beyond the target's end. Raises `TargetUnsuitable` where it cannot be
    made smaller, or there is more than one.
    """
    if region is not None:
        if target_size >= region.length:
            return None
        return _checked(region, align_down(target_size, MIB), scratch)
    if target_size >= disk.size:
        return None
    if disk.table == Table.NONE:
        whole = next((r for r in disk.regions if r.role == Role.WHOLE), None)
        if whole is None or (whole.understood and 0 < whole.span <= target_size):
            return None
        return _checked(whole, align_down(target_size, MIB), scratch)
    limit = last_usable(layout_of(disk), target_size)
    parts = sorted((r for r in disk.regions if r.role == Role.PARTITION), key=lambda r: r.start)
    if not parts or (end := max(r.start + r.length for r in parts)) <= limit:
        return None
    return _choose(disk, parts, limit, end, scratch)


def _choose(
    disk: DiskRecord, parts: list[RegionRecord], limit: int, end: int, scratch: str
) -> Shrink:
    """Choose the last partition that can be made so much smaller that all end before `limit`.

    Those behind it move by as much. Raises `TargetUnsuitable` where there is none, with the
    reason why it is not the last one.
    """
    last = parts[-1]
    by = align_up(end - limit, MIB)
    refused: TargetUnsuitable | None = None
    moved: list[RegionRecord] = []
    for region in reversed(parts):
        length = align_down(limit, MIB) - last.start if region is last else region.length - by
        try:
            return replace(_checked(region, length, scratch), moved=tuple(moved))
        except TargetUnsuitable as error:
            refused = refused or error
        if why := _why_not_moved(disk, region):
            refused = TargetUnsuitable(f"{refused.message}; {why}", hint=refused.hint)
            break
        moved.insert(0, region)
    assert refused is not None
    raise refused


def _why_not_moved(disk: DiskRecord, region: RegionRecord) -> str:
    """Say why a partition stays where it is; nothing where it can be moved."""
    name = f"partition {region.number} cannot be moved"
    if disk.table == Table.HYBRID or (disk.table == Table.MBR and region.number > 4):
        return f"{name}: its table has more than one entry for it"
    if _opaque(region) or region.content not in _MOVABLE:
        return f"{name}: {region.content or 'its content'} may know where it lies"
    return ""


def _opaque(region: RegionRecord) -> bool:
    return region.type_code in GPT_TYPES_OPAQUE | MBR_TYPE_CODES_OPAQUE


def _checked(region: RegionRecord, length: int, scratch: str) -> Shrink:
    """Return the plan for one region. Raises `TargetUnsuitable` where it cannot become so small."""
    name = f"partition {region.number}" if region.number else "the disk's content"
    opaque = _opaque(region)
    if opaque or not can_shrink(region.content):
        reason = "it is no filesystem" if opaque else why_not(region.content)
        raise TargetUnsuitable(
            f"{name} does not fit, and stays as it is: {reason}", hint="choose a larger target"
        )
    if length < region.used + region.used // _SPARE:
        raise TargetUnsuitable(
            f"{name} does not fit: {human_size(region.used)} of it are in use, and there is room"
            f" for {human_size(max(length, 0))}",
            hint="choose a larger target",
        )
    room = os.statvfs(scratch)
    if room.f_bavail * room.f_frsize < region.used:
        raise TargetUnsuitable(
            f"{scratch} has no room for {human_size(region.used)}, the private copy that is"
            " made smaller",
            hint="name a folder that has: --scratch",
        )
    return Shrink(region, length, scratch)


@dataclass(frozen=True, slots=True)
class Smaller:
    """A filesystem that was made smaller."""

    reader: Reader
    #: What of it is in use, in bytes from its start.
    used: Extents


@contextmanager
def made_smaller(
    shrink: Shrink, disk: DiskRecord, image: ImageReader, blobs: DiskBlobs, progress: Progress
) -> Iterator[Smaller]:
    """Give the smaller filesystem, for as long as the private copy of it lives.

    Raises `TargetUnsuitable` where it cannot be made that small, `RepositoryDamaged` where it
    cannot be read.
    """
    region = shrink.region
    with tempfile.TemporaryDirectory(prefix="freezeframe-shrink-", dir=shrink.scratch) as folder:
        path = Path(folder) / "filesystem"
        with open_target(path, size=region.length) as writer:
            _copy_out(region, image, blobs, writer, progress)
        progress.start(f"make the {region.content} smaller", 0)
        shrink_filesystem(str(path), region.content, shrink.length, disk.sector)
        with open_shared(path) as reader:
            inside = Window(reader, 0, shrink.length, name=f"the smaller {region.content}")
            found = used_map(inside)
            yield Smaller(inside, found.used)


def _copy_out(
    region: RegionRecord,
    image: ImageReader,
    blobs: DiskBlobs,
    writer: Writer,
    progress: Progress,
) -> None:
    inside = blobs.used.clip(region.start, region.start + region.length)
    progress.start("copy the filesystem", inside.total)
    write_blobs(inside - blobs.zero_extents(), region.start, image, blobs, writer, progress)


def write_smaller(
    part: Smaller,
    target: Writer,
    offset: int,
    progress: Progress,
    *,
    blank: bool,
    zero_unused: bool = False,
) -> int:
    """Write it to byte `offset` of the target, and zeros where old signatures could be.

    Returns how many bytes of data that were.
    """
    size = part.reader.size
    data = part.used & part.reader.data_extents()
    progress.start("write the smaller filesystem", data.total)
    for start, stop in data:
        for at in range(start, stop, MIB):
            length = min(MIB, stop - at)
            target.write_at(offset + at, part.reader.read_at(at, length))
            progress.advance(length)
    if not blank:
        _zero_around(part.used, data, size, target, offset, zero_unused=zero_unused)
    return data.total


def write_moved(
    shrink: Shrink,
    image: ImageReader,
    blobs: DiskBlobs,
    target: Writer,
    progress: Progress,
    *,
    blank: bool,
    zero_unused: bool = False,
) -> int:
    """Write the partitions behind it to their new places; return how many bytes of data."""
    written = 0
    for region in shrink.moved:
        used = blobs.used.clip(region.start, region.start + region.length)
        data = used - blobs.zero_extents()
        progress.start(f"write partition {region.number}", data.total)
        write_blobs(data, shrink.by, image, blobs, target, progress)
        written += data.total
        if not blank:
            inside, there = used.shift(-region.start), data.shift(-region.start)
            offset = region.start - shrink.by
            _zero_around(inside, there, region.length, target, offset, zero_unused=zero_unused)
    return written


def _zero_around(
    used: Extents, data: Extents, size: int, target: Writer, offset: int, *, zero_unused: bool
) -> None:
    """Make zeros of what is in use and holds nothing, and of where old signatures could be.

    `used` and `data` in bytes of a partition of `size` bytes at byte `offset` of the target.
    """
    edges = Extents.of([(0, min(SIGNATURES, size)), (max(size - SIGNATURES, 0), size)])
    zero = used | (Extents.single(0, size) if zero_unused else edges)
    for start, stop in zero - data:
        target.zero(offset + start, stop - start)
