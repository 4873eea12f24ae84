"""Fit the tables of a restored disk to the disk it now lies on: plan, then just that.

The image's used bytes go to the target first, tables included. What is left then is what
another size asks for: the backup GPT belongs at the end, and the last partition may grow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freezeframe.block.base import Writer
from freezeframe.block.open import open_target
from freezeframe.core.errors import NotUnderstood, TargetUnsuitable
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB, align_down, human_size
from freezeframe.layout import structs
from freezeframe.layout.base import DiskLayout, Region, Role, Table
from freezeframe.layout.growth import NOT_GROWN, NotGrown, can_grow, grow_filesystem
from freezeframe.layout.reread import reread_table
from freezeframe.layout.rewrite import Growth, Move, table_patches
from freezeframe.layout.tiles import BACKUP, DAMAGED, PRIMARY, UNCLEAR
from freezeframe.layout.types import GPT_TYPES_OPAQUE, MBR_TYPE_CODES_OPAQUE

#: Where other programs look for signatures: at both ends of a disk and of each partition.
_SIGNATURES = MIB


@dataclass(frozen=True, slots=True)
class RecreatePlan:
    """What happens to a target besides writing data: a value, printable, then executed."""

    table: Table
    #: Bytes a sector of the table.
    sector: int
    #: Bytes of the imaged disk, and of the target.
    old_size: int
    target_size: int
    #: Which of the image's used bytes are to be written to the target, before `execute_recreate`.
    write: Extents
    #: Stretches where something older could be mistaken for part of this disk; made zeros.
    clear: Extents
    #: Whether the tables are to be fitted to the target's size.
    fit: bool
    #: The partition that gets a new end; None where none does.
    growth: Growth | None
    #: Partitions that lie elsewhere from now on, their content written there by the caller.
    moves: tuple[Move, ...]
    #: The kind of filesystem that grows, and where it will lie: (start, length) in bytes.
    filesystem: str
    filesystem_at: tuple[int, int]
    #: What the user should know of what will not be done.
    remarks: tuple[str, ...]

    @property
    def is_gpt(self) -> bool:
        """Whether there is a GPT, hybrid or not."""
        return self.table in (Table.GPT, Table.HYBRID)

    def describe(self) -> list[str]:
        """Say in sentences what is going to happen, in order."""
        lines = []
        if self.fit and self.is_gpt and self.target_size != self.old_size:
            lines.append(
                f"move the backup GPT from the end of {human_size(self.old_size)}"
                f" to the end of {human_size(self.target_size)}; all ids stay"
            )
        elif self.fit and self.target_size < self.old_size:
            lines.append(
                f"cut the extended partition, if it is longer, to {human_size(self.target_size)}"
            )
        if self.growth:
            old, new = self.growth.old_stop, self.growth.new_stop
            lines.append(
                f"{'grow' if new > old else 'shrink'} partition {self.growth.number} from"
                f" {human_size(old - self.growth.start)} to {human_size(new - self.growth.start)}"
            )
        lines += [
            f"move partition {move.number} from {human_size(move.start)}"
            f" to {human_size(move.new_start)}"
            for move in self.moves
        ]
        if self.filesystem:
            lines.append(f"grow its {self.filesystem} to {human_size(self.filesystem_at[1])}")
        return lines + [f"note: {remark}" for remark in self.remarks]


def plan_recreate(
    layout: DiskLayout,
    used: Extents,
    *,
    target_size: int,
    target_sector: int,
    grow: bool,
    last_filesystem: str,
    content_end: int = 0,
    shrunk: Growth | None = None,
    moves: tuple[Move, ...] = (),
) -> RecreatePlan:
    """Decide how a disk's tables are fitted to a target.

    `used` are the image's used bytes. `target_sector` is the target's logical sector in
    bytes; 0 for a raw file, which takes any. `last_filesystem` is what the used map calls
    the content of the last partition by offset (of the whole disk where there is no
    table). `content_end` is where the content of a disk without a table ends, in bytes:
    only if it is known can such a disk become smaller. `shrunk` is a partition that gets an
    earlier end, `moves` are those behind it that move there; the caller writes their content,
    `used` holds nothing of them, and nothing of their places is to be cleared.

    Raises `TargetUnsuitable` where the target cannot take the disk, with the reason. Of
    `layout`, pieces and `used_outside` do not matter.
    """
    if layout.table is not Table.NONE and target_sector not in (0, layout.sector):
        raise TargetUnsuitable(
            f"the disk's table counts in sectors of {layout.sector} bytes,"
            f" the target's have {target_sector}",
            hint="choose a target with the same sectors, or restore to a raw file",
        )
    if shrunk is not None:
        layout = _rearranged(layout, shrunk, moves)
    _check_room(layout, used, target_size, content_end)
    growth, remarks = _plan_growth(layout, target_size) if grow else (shrunk, [])
    resized = target_size != layout.size
    gpt = layout.table in (Table.GPT, Table.HYBRID)
    fit = growth is not None or (layout.table is not Table.NONE and _must_fit(layout, target_size))
    kind, at = "", (0, 0)
    if growth is not None and growth is not shrunk:
        kind, at = last_filesystem, (growth.start, growth.new_stop - growth.start)
    elif grow and layout.table is Table.NONE and target_size > layout.size:
        kind, at = last_filesystem, (0, target_size)
    if (growth or at[1]) and not can_grow(kind):
        why = f"nobody knows how to grow {kind or 'what is in it'}"
        remarks.append(NOT_GROWN.get(kind, why))
        kind = ""
    if kind == "ntfs":
        remarks.append("Windows checks the grown NTFS when it starts")
    write = used.clip(0, target_size)
    if resized and gpt and target_size < layout.size:
        write = write - _backup_table(layout)
    return RecreatePlan(
        table=layout.table,
        sector=layout.sector,
        old_size=layout.size,
        target_size=target_size,
        write=write,
        clear=_signatures(layout, growth, target_size) - write,
        fit=fit,
        growth=growth,
        moves=moves,
        filesystem=kind,
        filesystem_at=at if kind else (0, 0),
        remarks=tuple(remarks),
    )


def _rearranged(layout: DiskLayout, growth: Growth, moves: tuple[Move, ...]) -> DiskLayout:
    """Return a layout as it will be when its partitions have their new places."""
    starts = {move.number: move.new_start for move in moves}

    def placed(region: Region) -> Region:
        if region.role is not Role.PARTITION:
            return region
        if region.number == growth.number:
            return replace(region, length=growth.new_stop - region.start)
        return replace(region, start=starts.get(region.number, region.start))

    regions = sorted(map(placed, layout.regions), key=lambda region: region.start)
    return replace(layout, regions=tuple(regions))


def _must_fit(layout: DiskLayout, target_size: int) -> bool:
    if layout.table is Table.MBR:
        return target_size < layout.size
    return target_size != layout.size


# -- room ---------------------------------------------------------------------------


def _check_room(layout: DiskLayout, used: Extents, target_size: int, content_end: int) -> None:
    """Raise `TargetUnsuitable` unless all that counts lies before the target's end."""
    if target_size >= layout.size:
        return
    sizes = f"the target has {human_size(target_size)}, the disk {human_size(layout.size)}"
    if layout.table is Table.NONE:
        if not content_end:
            raise TargetUnsuitable(
                f"{sizes}, and where the content of a disk without a partition table ends"
                " is not known",
                hint="choose a target of at least the disk's size",
            )
        _check_before(used, max(content_end, used.end), target_size, sizes)
        return
    limit = last_usable(layout, target_size)
    for part in layout.partitions:
        if part.stop > limit:
            raise TargetUnsuitable(
                f"{sizes}: partition {part.number} ends at {human_size(part.stop)},"
                f" beyond the {human_size(max(limit, 0))} there is room for",
                hint="add --shrink, which makes a filesystem smaller, or choose a larger target",
            )
    if layout.table is not Table.MBR and any(
        r.type_name == PRIMARY + DAMAGED for r in layout.regions
    ):
        raise TargetUnsuitable(
            f"{sizes}, and only the GPT at the disk's end is good",
            hint="restore to a target of at least the disk's size",
        )
    counted = used - _backup_table(layout)
    _check_before(counted, counted.end, limit, sizes)


def _check_before(used: Extents, end: int, limit: int, sizes: str) -> None:
    if end > limit:
        beyond = used.clip(limit, max(limit, end)).total
        raise TargetUnsuitable(
            f"{sizes}: content reaches to {human_size(end)}"
            f" ({human_size(beyond)} used beyond {human_size(max(limit, 0))})",
            hint="choose a larger target",
        )


def _backup_table(layout: DiskLayout) -> Extents:
    return Extents.of((r.start, r.stop) for r in layout.regions if r.type_name.startswith(BACKUP))


def last_usable(layout: DiskLayout, size: int) -> int:
    """Return the byte where partitions must end on a disk of `size` bytes."""
    if layout.table is Table.MBR:
        return min(align_down(size, layout.sector), structs.MBR_MAX_SECTOR * layout.sector)
    room = structs.GPT_ENTRIES_ROOM + layout.sector
    for name in (PRIMARY, BACKUP):
        spans = [r.length for r in layout.regions if r.type_name.startswith(name)]
        room = max(room, sum(spans))
    return align_down(size, layout.sector) - room


# -- growing ------------------------------------------------------------------------


def _plan_growth(layout: DiskLayout, target_size: int) -> tuple[Growth | None, list[str]]:
    """Decide the last partition's new end; None with the reason where it stays."""
    if layout.table is Table.NONE:
        return None, []
    if any(r.type_name == UNCLEAR for r in layout.regions):
        raise TargetUnsuitable(
            "parts of the disk's table are not understood: nothing can be grown safely",
            hint="restore without --grow",
        )
    if not layout.partitions:
        return None, ["there is no partition that could grow"]
    part = max(layout.partitions, key=lambda region: region.start)
    if part.type_code in GPT_TYPES_OPAQUE or part.type_code in MBR_TYPE_CODES_OPAQUE:
        return None, [
            f"partition {part.number} ({part.type_name}) keeps its size: not a filesystem"
        ]
    limit = _growth_limit(layout, part, target_size)
    # Whole MiB, as every tool aligns them.
    stop = align_down(limit, MIB)
    if stop <= part.stop:
        return None, [f"there is no room behind partition {part.number} to grow it"]
    return Growth(part.number, part.start, part.stop, stop), []


def _growth_limit(layout: DiskLayout, part: Region, target_size: int) -> int:
    limit = last_usable(layout, target_size)
    for region in layout.regions:
        if (
            region.start >= part.stop
            and region.role is Role.TABLE
            and not region.type_name.startswith(BACKUP)
        ):
            limit = min(limit, region.start)
    return limit


def _signatures(layout: DiskLayout, growth: Growth | None, target_size: int) -> Extents:
    """Return where an older table or filesystem of the target could still be seen."""
    spans = [(0, layout.size if layout.table is Table.NONE else target_size)]
    spans += [(0, target_size)]
    spans += [(part.start, part.stop) for part in layout.partitions]
    spans += [(growth.start, growth.new_stop)] if growth else []
    ends = Extents.of(
        edge
        for start, stop in spans
        for edge in (
            (start, min(start + _SIGNATURES, stop)),
            (max(start, stop - _SIGNATURES), stop),
        )
    )
    return ends.clip(0, target_size)


# -- doing it -----------------------------------------------------------------------


def execute_recreate(plan: RecreatePlan, path: str, progress: Progress) -> tuple[str, ...]:
    """Do what the plan says to the target at `path`, a device or raw file.

    To be called when `plan.write` of the image has been written there, and nobody has it
    open. Returns what could not be done and was left as it is, told as notes as well: a
    filesystem that keeps its size is whole. Raises `TargetUnsuitable` where the target
    does not hold the image's table, `ToolFailed` where a program failed halfway.
    """
    progress.start("fit the table", 0)
    undone = []
    with open_target(path) as target:
        if target.size != plan.target_size:
            raise TargetUnsuitable(
                f"{path} has {target.size} bytes, the plan was made for {plan.target_size}"
            )
        for start, stop in plan.clear:
            target.zero(start, stop - start)
        target.flush()
        try:
            _fit(plan, target)
        except NotUnderstood as error:
            if plan.target_size < plan.old_size:
                raise TargetUnsuitable(error.message) from error
            # It is as it was on the imaged disk, and nothing is lost by that.
            undone.append(f"the table is not fitted to the larger disk: {error.message}")
    if plan.filesystem and not undone:
        progress.start(f"grow {plan.filesystem}", 0)
        try:
            grow_filesystem(path, plan.filesystem, *plan.filesystem_at, plan.sector)
        except NotGrown as error:
            undone.append(f"the {plan.filesystem} keeps its size: {error.message}")
    undone += reread_table(path)
    for note in undone:
        progress.note(note)
    return tuple(undone)


def _fit(plan: RecreatePlan, target: Writer) -> None:
    if not plan.fit:
        return
    groups = table_patches(target, plan.is_gpt, plan.sector, plan.old_size, plan.growth, plan.moves)
    for group in groups:
        for patch in group:
            target.write_at(patch.offset, patch.data)
        target.flush()
