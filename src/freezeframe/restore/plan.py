"""What a restore will do to its target: decided, printable, then executed just so."""

from __future__ import annotations

from dataclasses import dataclass

from freezeframe.core.errors import TargetUnsuitable, UsageError
from freezeframe.core.extents import Extents
from freezeframe.core.units import MIB, human_size
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import DiskBlobs
from freezeframe.layout.base import DiskLayout, Region, Role, Table
from freezeframe.layout.recreate import RecreatePlan, plan_recreate

#: Signatures lie this close to either end of a partition, at most.
_SIGNATURES = MIB


@dataclass(frozen=True, slots=True)
class Target:
    """Where a restore goes, as values: nothing is opened for writing to make a plan."""

    path: str
    #: In bytes; for a file that does not exist yet, what it is going to be.
    size: int
    #: 0 for a file, which takes a table of any sector size.
    sector: int
    #: A new file: reads as zeros everywhere.
    blank: bool


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """All that a restore writes, in bytes."""

    image: str
    disk: DiskRecord
    partition: RegionRecord | None
    target: Target
    #: Byte 0 of the target is this byte of the disk.
    start: int
    #: Bytes of the disk that are written (or made zeros).
    write: Extents
    #: Bytes of the target that are made zeros besides.
    zero: Extents
    #: Bytes of the target that are given back to the device first, where it can.
    discard: Extents
    #: How the partition table is adapted afterwards; None for a partition alone.
    recreate: RecreatePlan | None

    def describe(self) -> list[str]:
        """Say in sentences what is going to happen, in order."""
        what = f"disk {self.disk.name}"
        if self.partition is not None:
            what = f"partition {self.partition.number} of {what}"
        state = "a new file" if self.target.blank else "everything on it now is lost"
        lines = [
            f"restore {what} from image {self.image}",
            f"to {self.target.path} ({human_size(self.target.size)}; {state})",
        ]
        if self.discard:
            lines.append("discard the target's old content where the device can")
        lines.append(f"write {human_size(self.write.total)} of used data")
        if self.zero:
            lines.append(f"write zeros over {human_size(self.zero.total)} besides")
        if self.recreate is not None:
            lines += self.recreate.describe()
        lost = sum(stop - start for start, stop in self.disk.unreadable)
        if lost:
            lines.append(
                f"note: {human_size(lost)} could not be read when the image was made"
                " and will be zeros"
            )
        return lines


def plan_restore(
    image: str,
    disk: DiskRecord,
    blobs: DiskBlobs,
    target: Target,
    *,
    partition: int | None = None,
    grow: bool = False,
    zero_unused: bool = False,
    discard: bool = True,
) -> RestorePlan:
    """Decide what a restore of a disk, or of one partition of it, writes.

    Raises `UsageError` where there is no such partition, `TargetUnsuitable` where the
    target is too small or its sectors do not fit.
    """
    region = None
    recreate = None
    if partition is None:
        start, write = 0, blobs.used
        recreate = plan_recreate(
            layout_of(disk),
            blobs.used,
            target_size=target.size,
            target_sector=target.sector,
            grow=grow,
            last_filesystem=_last_filesystem(disk),
            content_end=_content_end(disk),
        )
        write = recreate.write
    else:
        region = disk.partition(partition)
        if region is None:
            numbers = [str(r.number) for r in disk.regions if r.role == Role.PARTITION]
            raise UsageError(
                f"disk {disk.name} of the image has no partition {partition}",
                hint=f"it has: {', '.join(numbers) or 'none'}",
            )
        start = region.start
        write = blobs.used.clip(start, start + region.length)
        _check_room(region, write, target, grow)
    occupied = write.shift(-start)
    rest = occupied.complement(target.size)
    if target.blank:
        zero = Extents.empty()
    elif zero_unused:
        zero = rest
    else:
        # On a whole disk the recreate plan does that, for every partition.
        zero = rest & _edges(target.size) if region is not None else Extents.empty()
    return RestorePlan(
        image=image,
        disk=disk,
        partition=region,
        target=target,
        start=start,
        write=write,
        zero=zero,
        discard=Extents.empty()
        if target.blank or zero_unused or not discard
        else Extents.single(0, target.size),
        recreate=recreate,
    )


def _check_room(region: RegionRecord, write: Extents, target: Target, grow: bool) -> None:
    if grow:
        raise UsageError(
            "--grow extends the last partition of a whole disk",
            hint="restore the partition without it, then grow its filesystem",
        )
    if target.size < region.length:
        raise TargetUnsuitable(
            f"{target.path} has {human_size(target.size)}, partition {region.number} has"
            f" {human_size(region.length)} ({human_size(write.total)} used)",
            hint="choose a target of at least that size",
        )


def _last_filesystem(disk: DiskRecord) -> str:
    """Return what is in the last partition, or in a disk without any."""
    filled = [r for r in disk.regions if r.role in (Role.PARTITION, Role.WHOLE)]
    return max(filled, key=lambda r: r.start).content if filled else ""


def _content_end(disk: DiskRecord) -> int:
    """Return where the one filesystem of a disk without a table ends; 0 where unknown."""
    return next((r.span for r in disk.regions if r.role == Role.WHOLE and r.understood), 0)


def _edges(size: int) -> Extents:
    """Return where other programs look for signatures: what an older content left there."""
    return Extents.of([(0, min(_SIGNATURES, size)), (max(size - _SIGNATURES, 0), size)])


def layout_of(disk: DiskRecord) -> DiskLayout:
    """Turn a disk of a manifest back into the layout it was made from, without pieces."""
    regions = tuple(
        Region(
            role=Role(r.role),
            start=r.start,
            length=r.length,
            number=r.number,
            type_code=r.type_code,
            type_name=r.type_name,
            name=r.name,
            uuid=r.uuid,
            bootable=r.bootable,
        )
        for r in disk.regions
    )
    outside = Extents.of(
        (r.start, r.start + r.length) for r in disk.regions if r.role in (Role.TABLE, Role.GAP)
    )
    return DiskLayout(
        table=Table(disk.table),
        size=disk.size,
        sector=disk.sector,
        disk_id=disk.disk_id,
        regions=regions,
        used_outside=outside,
    )
