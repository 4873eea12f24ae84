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
from dataclasses import dataclass
from pathlib import Path

from freezeframe.block.base import Reader, Writer
from freezeframe.block.open import open_shared, open_target
from freezeframe.block.window import Window
from freezeframe.core.errors import TargetUnsuitable
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB, align_down, human_size
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.layout.base import Role, Table
from freezeframe.layout.recreate import last_usable
from freezeframe.layout.rewrite import Growth
from freezeframe.layout.shrink import can_shrink, shrink_filesystem, why_not
from freezeframe.layout.types import GPT_TYPES_OPAQUE, MBR_TYPE_CODES_OPAQUE
from freezeframe.restore.layouts import layout_of
from freezeframe.restore.writing import write_blobs

#: Signatures lie this close to either end of a partition, at most.
SIGNATURES = MIB
#: A filesystem needs room for its own structures and for moving things: this share of what
#: it uses, at least. Its tools know better, and are asked before the target is touched.
_SPARE = 32


@dataclass(frozen=True, slots=True)
class Shrink:
    """A filesystem that becomes smaller on its way to a target."""

    region: RegionRecord
    #: Bytes it has to fit into.
    length: int
    #: Where the private copy is made.
    scratch: str

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
        what = f"the {region.content} of partition {region.number}" if region.number else "it"
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
    parts = [r for r in disk.regions if r.role == Role.PARTITION]
    beyond = [r for r in parts if r.start + r.length > limit]
    if not beyond:
        return None
    if len(beyond) > 1:
        numbers = " and ".join(str(r.number) for r in beyond)
        raise TargetUnsuitable(
            f"partitions {numbers} reach beyond the {human_size(max(limit, 0))} there is room"
            " for: only the last one of a disk can be made smaller, none is moved",
            hint="choose a larger target, or restore the partitions one by one",
        )
    return _checked(beyond[0], align_down(limit, MIB) - beyond[0].start, scratch)


def _checked(region: RegionRecord, length: int, scratch: str) -> Shrink:
    """Return the plan for one region. Raises `TargetUnsuitable` where it cannot become so small."""
    name = f"partition {region.number}" if region.number else "the disk's content"
    opaque = region.type_code in GPT_TYPES_OPAQUE | MBR_TYPE_CODES_OPAQUE
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
    if blank:
        return data.total
    edges = Extents.of([(0, min(SIGNATURES, size)), (max(size - SIGNATURES, 0), size)])
    zero = part.used | (Extents.single(0, size) if zero_unused else edges)
    for start, stop in zero - data:
        target.zero(offset + start, stop - start)
    return data.total
