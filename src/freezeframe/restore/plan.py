"""What a restore will do to its target: decided, printable, then executed just so."""

from __future__ import annotations

from dataclasses import dataclass, replace

from freezeframe.core.errors import TargetUnsuitable, UsageError
from freezeframe.core.extents import Extents
from freezeframe.core.units import human_size
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import DiskBlobs
from freezeframe.layout.base import Role
from freezeframe.layout.recreate import RecreatePlan, plan_recreate
from freezeframe.restore.layouts import layout_of
from freezeframe.restore.shrink import SIGNATURES, Shrink, plan_shrink
from freezeframe.restore.survey import Survey


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
    #: The filesystem that is made smaller first, and is no part of `write`; None: none is.
    shrink: Shrink | None = None
    #: What the target was found to hold already; None where nobody looked.
    survey: Survey | None = None

    def describe(self) -> list[str]:
        """Say in sentences what is going to happen, in order."""
        what = f"disk {self.disk.name}"
        if self.partition is not None:
            what = f"partition {self.partition.number} of {what}"
        state = "a new file" if self.target.blank else "everything on it now is lost"
        if self.survey is not None:
            state = "what differs on it now is lost"
        lines = [
            f"restore {what} from image {self.image}",
            f"to {self.target.path} ({human_size(self.target.size)}; {state})",
        ]
        if self.shrink is not None:
            lines += self.shrink.describe()
        if self.discard:
            lines.append("discard the target's old content where the device can")
        if self.survey is not None:
            lines.append(
                f"{self.survey.differ} of {self.survey.chunks} chunks in use differ from the"
                f" target's: write {human_size(self.write.total)} of"
                f" {human_size(self.survey.compared)}"
            )
        elif self.shrink is not None:
            lines.append("write what it uses then")
            if self.write:
                lines.append(f"write {human_size(self.write.total)} of used data beside it")
        else:
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
    scratch: str = "",
) -> RestorePlan:
    """Decide what a restore of a disk, or of one partition of it, writes.

    With `scratch`, a folder for a private copy, a filesystem that does not fit is made smaller
    where that can be done. Raises `UsageError` where there is no such partition,
    `TargetUnsuitable` where the target is too small or its sectors do not fit.
    """
    region = _partition(disk, partition) if partition is not None else None
    if region is not None and grow:
        raise UsageError(
            "--grow extends the last partition of a whole disk",
            hint="restore the partition without it, then grow its filesystem",
        )
    shrink = plan_shrink(disk, region, target.size, scratch) if scratch else None
    write = blobs.used
    if shrink is not None:
        # Nor what lay between them, where something else will lie.
        write = write - shrink.taken - shrink.placed
    recreate = None
    start = 0
    if region is None:
        recreate = plan_recreate(
            layout_of(disk),
            write,
            target_size=target.size,
            target_sector=target.sector,
            grow=grow,
            last_filesystem=_last_filesystem(disk),
            content_end=_content_end(disk) if shrink is None else shrink.length,
            shrunk=shrink.growth if shrink is not None else None,
            moves=shrink.moves if shrink is not None else (),
        )
        write = recreate.write
        if shrink is not None:
            # Written before the table is fitted, as all the rest.
            recreate = replace(recreate, clear=recreate.clear - shrink.placed)
    else:
        start = region.start
        write = write.clip(start, start + region.length)
        if shrink is None:
            _check_room(region, write, target)
    occupied = write.shift(-start)
    if shrink is not None:
        # What becomes of the unused part of that is decided when it is written.
        occupied = occupied | shrink.placed.shift(-start)
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
        shrink=shrink,
    )


def only_changed(plan: RestorePlan, survey: Survey) -> RestorePlan:
    """Return the plan that writes only what a survey of its target found different."""
    recreate = plan.recreate
    if recreate is not None:
        recreate = replace(recreate, clear=recreate.clear & survey.zero)
    return replace(
        plan, write=survey.write, zero=plan.zero & survey.zero, recreate=recreate, survey=survey
    )


def to_zero(plan: RestorePlan) -> Extents:
    """Return all that a plan makes zeros besides what it writes, in bytes of the target."""
    return plan.zero | (plan.recreate.clear if plan.recreate is not None else Extents.empty())


def _partition(disk: DiskRecord, number: int) -> RegionRecord:
    region = disk.partition(number)
    if region is None:
        numbers = [str(r.number) for r in disk.regions if r.role == Role.PARTITION]
        raise UsageError(
            f"disk {disk.name} of the image has no partition {number}",
            hint=f"it has: {', '.join(numbers) or 'none'}",
        )
    return region


def _check_room(region: RegionRecord, write: Extents, target: Target) -> None:
    if target.size < region.length:
        raise TargetUnsuitable(
            f"{target.path} has {human_size(target.size)}, partition {region.number} has"
            f" {human_size(region.length)} ({human_size(write.total)} used)",
            hint="choose a target of at least that size, or add --shrink",
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
    return Extents.of([(0, min(SIGNATURES, size)), (max(size - SIGNATURES, 0), size)])
