"""Find out what a disk consists of: its table, partitions, gaps, and what of it to keep."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Sequence
from pathlib import Path

from freezeframe.block.base import Reader
from freezeframe.core.errors import UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.layout import structs
from freezeframe.layout.base import DiskLayout, Region, Role, Table
from freezeframe.layout.foreign import array_member, foreign_table
from freezeframe.layout.gaps import gap_content
from freezeframe.layout.gpt import Gpt, looks_like_gpt, read_gpt
from freezeframe.layout.mbr import (
    Chain,
    MbrEntry,
    disk_signature,
    is_boot_sector,
    partition_of,
    read_chain,
    read_entries,
)
from freezeframe.layout.pieces import boot_gap_piece, gpt_pieces, sfdisk_dump
from freezeframe.layout.tiles import BACKUP, DAMAGED, PRIMARY, Claims, on_disk, table_region, tile
from freezeframe.layout.types import GPT_TYPES_OPAQUE, MBR_TYPE_CODES_OPAQUE

#: Sectors a table may count in; the reader's own is tried first.
_SECTORS = (512, 4096)


def capture(reader: Reader, path: str | None = None, *, keep_gaps: bool = False) -> DiskLayout:
    """Return the layout of a disk. Bounded in time and memory, whatever the disk holds.

    `path` is where the disk can be opened by other programs (for `sfdisk --dump`), None
    where there is no such place. `keep_gaps` keeps all unallocated space; without it what
    lies more than 64 MiB into a larger gap is left out, and a note says so.

    Whatever the table leaves unclear (partitions that overlap, a broken chain of logical
    partitions, a GPT of which no copy is good) is in `used_outside` entirely, whatever the
    role of its region. Raises `SourceError` where the disk vanished; unreadable sectors
    are notes.
    """
    sector = reader.sector
    if reader.size < structs.MBR_SIZE:
        return _whole(reader, sector)
    try:
        first = reader.read_at(0, min(reader.size, sector))
    except UnreadableRange as error:
        return _whole(reader, sector, f"no table can be read: {error.message}", keep=True)
    entries = read_entries(first)
    if entries is None or all(entry.empty for entry in entries):
        return _without_table(reader, first)
    if is_boot_sector(first):
        note = (
            "sector 0 is a filesystem's boot sector and a partition table at once:"
            " all of the disk is kept as it is"
        )
        return _whole(reader, sector, note, keep=True)
    if any(entry.kind == structs.MBR_TYPE_PROTECTIVE for entry in entries):
        return _with_gpt(reader, path, first, entries, keep_gaps)
    if all(entry.empty or entry.start * sector >= reader.size for entry in entries):
        note = "every partition of the MBR begins beyond the disk's end"
        return _whole(reader, sector, note, keep=True)
    return _with_mbr(reader, path, first, entries, keep_gaps)


def _whole(reader: Reader, sector: int, note: str = "", *, keep: bool = False) -> DiskLayout:
    """Make a layout of one region; `keep` if no filesystem's word on it can be trusted."""
    regions = (Region(Role.WHOLE, 0, reader.size),) if reader.size else ()
    used = Extents.single(0, reader.size) if keep else Extents.empty()
    notes = (note,) if note else ()
    return DiskLayout(Table.NONE, reader.size, sector, "", regions, used, notes=notes)


def _without_table(reader: Reader, first: bytes) -> DiskLayout:
    if is_boot_sector(first):
        return _whole(reader, reader.sector)
    if foreign := foreign_table(reader):
        note = f"there is {foreign}, which is not looked into: all of the disk is kept as it is"
        return _whole(reader, reader.sector, note, keep=True)
    if not any(looks_like_gpt(reader, size) for size in _SECTORS):
        return _whole(reader, reader.sector)
    # Nothing that takes a disk as a whole leaves the signature there.
    note = (
        "there is a GPT without a protective MBR, which no system uses:"
        " all of the disk is kept as it is"
    )
    return _whole(reader, reader.sector, note, keep=True)


# -- GPT ----------------------------------------------------------------------------


def _with_gpt(
    reader: Reader,
    path: str | None,
    first: bytes,
    entries: Sequence[MbrEntry],
    keep_gaps: bool,
) -> DiskLayout:
    for sector in dict.fromkeys((reader.sector, *_SECTORS)):
        gpt = read_gpt(reader, sector)
        if gpt is not None:
            break
    else:
        note = (
            "the MBR says there is a GPT, and neither of its copies is good:"
            " all of the disk is kept as it is"
        )
        return _whole(reader, reader.sector, note, keep=True)
    parts = tuple(gpt.best.partitions())
    hybrid = [e for e in entries if not e.empty and e.kind != structs.MBR_TYPE_PROTECTIVE]
    unlisted = _unlisted(hybrid, parts, sector, reader.size)
    strangers = _strangers(gpt, parts, reader.size) | unlisted
    notes = list(gpt.notes)
    if sector != reader.sector:
        notes.append(f"the GPT counts in sectors of {sector} bytes")
    if unlisted:
        notes.append("the hybrid MBR lists what the GPT does not: kept as it is")
    claims = Claims(_gpt_tables(gpt), parts, strangers, tuple(notes))
    pieces = {"mbr.bin": first, **gpt_pieces(reader, gpt)}
    layout = DiskLayout(
        table=Table.HYBRID if hybrid else Table.GPT,
        size=reader.size,
        sector=sector,
        disk_id=gpt.best.disk_id,
        regions=(),
        used_outside=_opaque(parts, GPT_TYPES_OPAQUE, reader.size),
        pieces=pieces,
    )
    return _finish(reader, path, layout, claims, keep_gaps or not parts)


def _gpt_tables(gpt: Gpt) -> tuple[Region, ...]:
    primary = PRIMARY if gpt.primary else PRIMARY + DAMAGED
    backup = BACKUP if gpt.backup else BACKUP + DAMAGED
    spans = [(primary, span) for span in gpt.primary_spans]
    spans += [(backup, span) for span in gpt.backup_spans]
    regions = [table_region(0, gpt.sector, "MBR")]
    for name, (start, stop) in sorted(spans, key=lambda item: item[1]):
        last = regions[-1]
        if last.type_name == name and last.stop == start:
            regions[-1] = table_region(last.start, stop, name)
        else:
            regions.append(table_region(start, stop, name))
    return tuple(regions)


def _strangers(gpt: Gpt, parts: Sequence[Region], size: int) -> Extents:
    """Return the bytes of partitions that only the copy not used knows."""
    if gpt.primary is None or gpt.backup is None or gpt.primary.same_content(gpt.backup):
        return Extents.empty()
    known = {(part.start, part.stop) for part in parts}
    spans = [(part.start, part.stop) for part in gpt.backup.partitions()]
    return on_disk((span for span in spans if span not in known), size)


def _unlisted(
    entries: Sequence[MbrEntry], parts: Sequence[Region], sector: int, size: int
) -> Extents:
    """Return the bytes of partitions that only the hybrid MBR knows."""
    known = {(part.start, part.stop) for part in parts}
    spans = [(e.start * sector, (e.start + e.count) * sector) for e in entries]
    return on_disk((span for span in spans if span not in known), size)


# -- MBR ----------------------------------------------------------------------------


def _with_mbr(
    reader: Reader,
    path: str | None,
    first: bytes,
    entries: Sequence[MbrEntry],
    keep_gaps: bool,
) -> DiskLayout:
    sector = reader.sector
    signature = disk_signature(first)
    parts = [
        partition_of(entry, entry.slot + 1, 0, sector, signature)
        for entry in entries
        if not entry.empty and not entry.extended
    ]
    tables = [table_region(0, sector, "MBR")]
    pieces = {"mbr.bin": first}
    notes = []
    unclear = Extents.empty()
    for place, entry in enumerate(e for e in entries if e.extended):
        span = Extents.single(entry.start * sector, (entry.start + entry.count) * sector)
        if place > 0:
            notes.append("there is more than one extended partition: kept as they are")
            unclear = unclear | span
            continue
        chain = read_chain(reader, entry, sector, signature)
        if chain.broken:
            notes.append(
                f"the chain of logical partitions is broken ({chain.broken}): what it does not"
                " describe of the extended partition is kept as it is"
            )
            unclear = unclear | span | on_disk([chain.stray], reader.size)
        parts += [logical.partition for logical in chain.logicals if logical.partition]
        tables += [
            table_region(logical.ebr, logical.ebr + sector, "EBR") for logical in chain.logicals
        ]
        pieces |= _ebr_pieces(reader, chain)
    why = ""
    if _may_count_in_4096(reader, path, parts) and not keep_gaps:
        why = (
            "this MBR may count in sectors of 4096 bytes, a file does not tell: it is read"
            " as 512, and all unallocated space is kept"
        )
    layout = DiskLayout(
        table=Table.MBR,
        size=reader.size,
        sector=sector,
        disk_id=signature,
        regions=(),
        used_outside=_opaque(parts, MBR_TYPE_CODES_OPAQUE, reader.size),
        pieces=pieces,
    )
    claims = Claims(tuple(tables), tuple(parts), unclear, tuple(notes))
    keep_gaps = keep_gaps or not parts or bool(why)
    return _finish(reader, path, layout, claims, keep_gaps, why)


def _ebr_pieces(reader: Reader, chain: Chain) -> dict[str, bytes]:
    return {
        f"ebr-{number}.bin": reader.read_at(logical.ebr, structs.MBR_SIZE)
        for number, logical in enumerate(chain.logicals, 1)
    }


def _may_count_in_4096(reader: Reader, path: str | None, parts: Sequence[Region]) -> bool:
    """Whether a raw file may be the image of a disk with larger sectors than it shows.

    An MBR does not say in what it counts. Only where every partition lies in the first
    eighth of the file can it be sectors of 4096.
    """
    if reader.sector != structs.MBR_SIZE or _is_block_device(path):
        return False
    factor = max(_SECTORS) // reader.sector
    return all(part.stop * factor <= reader.size for part in parts)


def _is_block_device(path: str | None) -> bool:
    if path is None:
        return False
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False


# -- both ---------------------------------------------------------------------------


def _opaque(parts: Sequence[Region], types: frozenset[str], size: int) -> Extents:
    """Return the bytes of partitions whose type says that nobody should look inside."""
    return on_disk(((p.start, p.stop) for p in parts if p.type_code in types), size)


def _array_note(reader: Reader, regions: Sequence[Region]) -> list[str]:
    """Say that the disk is a member of an array, if it is and not just its last partition."""
    offset, array = array_member(reader)
    if not array or any(r.start <= offset < r.stop for r in regions if r.role is Role.PARTITION):
        return []
    return [
        f"the disk is a member of an array ({array}), which may lay out its partitions"
        " otherwise: all of the disk is kept as it is"
    ]


def _finish(
    reader: Reader,
    path: str | None,
    layout: DiskLayout,
    claims: Claims,
    keep_gaps: bool,
    why: str = "",
) -> DiskLayout:
    """Tile the disk and collect what lies outside of partitions."""
    size = reader.size
    tiling = tile(claims, size)
    tables = Extents.of((r.start, r.stop) for r in tiling.regions if r.role is Role.TABLE)
    content, dropped = gap_content(reader, tiling.regions, keep_all=keep_gaps, why=why)
    used = tables | content | tiling.unclear | layout.used_outside
    array = _array_note(reader, tiling.regions)
    if array:
        used, dropped = Extents.single(0, size), array
    pieces = dict(layout.pieces)
    pieces |= boot_gap_piece(reader, tiling.regions, content)
    dump, no_dump = sfdisk_dump(path, layout.sector)
    pieces |= dump
    return dataclasses.replace(
        layout,
        regions=tiling.regions,
        used_outside=used,
        pieces=pieces,
        notes=(*tiling.notes, *dropped, *no_dump),
    )
