"""Turn what a table claims into regions that tile the disk, whatever it claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from freezeframe.core.extents import Extents
from freezeframe.layout.base import Region, Role

#: What the sectors of a GPT's copies are called; the second word follows where it is no good.
PRIMARY = "GPT primary"
BACKUP = "GPT backup"
DAMAGED = " (damaged)"

#: A crafted table may make as many as it has partitions.
_NOTES = 20

#: What a gap is called that is no free space: restoring it is sure, changing it is not.
UNCLEAR = "not understood"


@dataclass(frozen=True, slots=True)
class Claims:
    """What the tables of a disk say, before anything is checked against anything else."""

    #: Sectors of tables, in bytes; they win over whatever else claims them.
    tables: tuple[Region, ...]
    partitions: tuple[Region, ...]
    #: Bytes that belong to something no table of ours describes fully.
    unclear: Extents
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tiling:
    """Regions that tile [0, size) in order of offset."""

    regions: tuple[Region, ...]
    #: Bytes that must be kept whole, since the table makes no sense there.
    unclear: Extents
    notes: tuple[str, ...]


def on_disk(spans: Iterable[tuple[int, int]], size: int) -> Extents:
    """Return spans of any size, as tables claim them, cut to the disk: bytes."""
    return Extents.of((min(start, size), min(stop, size)) for start, stop in spans)


def table_region(start: int, stop: int, name: str) -> Region:
    """Make the region of a table's own sectors."""
    return Region(Role.TABLE, start, stop - start, type_name=name)


def tile(claims: Claims, size: int) -> Tiling:
    """Make regions of the claims. Partitions in conflict become gaps that are kept whole.

    A filesystem's own account of what it uses cannot be trusted where another partition
    or a table claims the same bytes, so such a partition is not looked into.
    """
    notes: list[str] = []
    tables = _clear_tables(claims.tables, size)
    partitions = _inside(claims.partitions, size, notes)
    taken = Extents.of((r.start, r.stop) for r in tables)
    confused = _conflicts(partitions, taken, notes)
    clear = [p for i, p in enumerate(partitions) if i not in confused]
    known = taken | Extents.of((p.start, p.stop) for p in clear)
    odd = Extents.of((partitions[i].start, partitions[i].stop) for i in confused)
    unclear = (odd | claims.unclear).clip(0, size)
    gaps = known.complement(size)
    regions = [*tables, *clear]
    regions += [Region(Role.GAP, a, b - a, type_name=UNCLEAR) for a, b in gaps & unclear]
    regions += [Region(Role.GAP, a, b - a) for a, b in gaps - unclear]
    regions.sort(key=lambda region: region.start)
    if len(notes) > _NOTES:
        notes[_NOTES:] = [f"and {len(notes) - _NOTES} more of the kind"]
    return Tiling(tuple(regions), unclear, (*claims.notes, *notes))


def _clear_tables(tables: Iterable[Region], size: int) -> list[Region]:
    """Cut tables to the disk and to each other: on a tiny disk both copies may meet."""
    cut: list[Region] = []
    reach = 0
    for table in sorted(tables, key=lambda region: region.start):
        start, stop = max(table.start, reach), min(table.stop, size)
        if start < stop:
            cut.append(replace(table, start=start, length=stop - start))
            reach = stop
    return cut


def _inside(partitions: Iterable[Region], size: int, notes: list[str]) -> list[Region]:
    """Keep what of the partitions lies on the disk, in order of offset."""
    kept = []
    for part in partitions:
        if part.length == 0 or part.start >= size:
            why = "has no length" if part.length == 0 else "begins beyond the disk's end"
            notes.append(f"partition {part.number} {why}: left out")
            continue
        if part.stop > size:
            notes.append(
                f"partition {part.number} passes the disk's end by {part.stop - size} bytes:"
                " the disk was cut short"
            )
            part = replace(part, length=size - part.start)
        kept.append(part)
    kept.sort(key=lambda region: (region.start, region.number))
    return kept


def _conflicts(partitions: Sequence[Region], taken: Extents, notes: list[str]) -> set[int]:
    """Return the indices of partitions that overlap a table or each other."""
    confused: set[int] = set()
    holder, reach = -1, 0
    for index, part in enumerate(partitions):
        if taken.touches(part.start, part.stop):
            notes.append(f"partition {part.number} covers sectors of a table: kept as it is")
            confused.add(index)
        if part.start < reach:
            # Two partitions that overlap later ones overlap each other there as well, so
            # comparing with the one that reaches furthest finds every conflict.
            other = partitions[holder]
            notes.append(
                f"partitions {other.number} and {part.number} overlap: both are kept as they are"
            )
            confused |= {holder, index}
        if part.stop > reach:
            holder, reach = index, part.stop
    return confused
