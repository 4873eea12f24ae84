"""Which bytes of a partition table change when its disk gets another size.

Pure: reads the tables from the target, returns patches, writes nothing. Our own and not a
program's work, since the programs take every file for a disk of 512-byte sectors, none
accepts a table whose disk was cut short, and some lay out what they do not know anew. Only
what must change does: GUIDs, names, attributes, boot code and foreign fields stay.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, TargetUnsuitable
from freezeframe.core.extents import Extents
from freezeframe.layout import structs
from freezeframe.layout.gpt import GptCopy, header_checksum, read_copy
from freezeframe.layout.mbr import MbrEntry, disk_signature, read_chain, read_entries


@dataclass(frozen=True, slots=True)
class Growth:
    """A partition that gets a new end. Bytes of the disk."""

    number: int
    start: int
    old_stop: int
    new_stop: int


@dataclass(frozen=True, slots=True)
class Move:
    """A partition that lies elsewhere from now on, as long as it was. Bytes of the disk."""

    number: int
    start: int
    new_start: int
    length: int


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes for one place of the disk."""

    offset: int
    data: bytes


#: Patches in groups: each is durable before the next begins, and after each the disk has
#: at least one good table.
Groups = list[list[Patch]]


def table_patches(
    target: Reader,
    gpt: bool,
    sector: int,
    old_size: int,
    growth: Growth | None,
    moves: Sequence[Move] = (),
) -> Groups:
    """Return what fits the tables to the target's size, with one partition grown or none.

    Or made smaller, and then those behind it moved: of a GPT, or primary ones of an MBR.

    `target` holds the image's tables already; `old_size` is the imaged disk's, in bytes.
    Raises `TargetUnsuitable` where the image's table is not there, `NotUnderstood` where
    it makes no sense on a disk of this size: a partition passes the end.
    """
    first = target.read_at(0, max(sector, structs.MBR_SIZE))
    entries = read_entries(first)
    if entries is None:
        raise TargetUnsuitable(f"{target.name} holds no partition table that could be adapted")
    if gpt:
        return _gpt_patches(target, entries, sector, old_size, growth, moves)
    return _mbr_patches(target, first, entries, sector, growth, moves)


# -- GPT ----------------------------------------------------------------------------


def _gpt_patches(
    target: Reader,
    mbr: Sequence[MbrEntry],
    sector: int,
    old_size: int,
    growth: Growth | None,
    moves: Sequence[Move],
) -> Groups:
    copy = _good_copy(target, sector, old_size)
    last = target.size // sector - 1
    room = copy.entries_sectors
    last_usable = last - room - 1
    entries = copy.entries
    if growth is not None:
        ends = (growth.start, growth.new_stop)
        entries = _changed_entry(copy, entries, growth.number, growth.start, *ends)
    for move in moves:
        ends = (move.new_start, move.new_start + move.length)
        entries = _changed_entry(copy, entries, move.number, move.start, *ends)
    changed = _with_entries(copy, entries)
    for part in changed.partitions():
        if part.stop > (last_usable + 1) * sector:
            raise NotUnderstood(f"partition {part.number} passes the end of {target.name}")
    entries_lba = copy.entries_lba if copy.lba == 1 else 2
    if copy.lba != 1 and entries_lba + room > copy.first_usable:
        raise NotUnderstood(f"there is no room for a primary GPT on {target.name}")
    backup = [
        Patch((last - room) * sector, _padded(entries, room * sector)),
        Patch(last * sector, _header(changed, last, 1, last - room, last_usable)),
    ]
    primary = [
        Patch(entries_lba * sector, _padded(entries, room * sector)),
        Patch(sector, _header(changed, 1, last, entries_lba, last_usable)),
    ]
    written = Extents.of((p.offset, p.offset + len(p.data)) for p in (*backup, *primary))
    parts = Extents.of((p.start, p.stop) for p in (*copy.partitions(), *changed.partitions()))
    old = _old_backup(target, copy, old_size) - written - parts - Extents.single(0, sector)
    return [
        backup,
        primary + _protective_patches(mbr, sector, last, growth),
        [Patch(start, bytes(stop - start)) for start, stop in old],
    ]


def _good_copy(target: Reader, sector: int, old_size: int) -> GptCopy:
    reasons = []
    for lba in (1, old_size // sector - 1):
        try:
            return read_copy(target, sector, lba)
        except NotUnderstood as error:
            reasons.append(error.message)
    raise TargetUnsuitable(f"{target.name} holds no good GPT: {'; '.join(reasons)}")


def _old_backup(target: Reader, copy: GptCopy, old_size: int) -> Extents:
    """Return where the backup was, to be cleared lest somebody takes it for the real one."""
    sector = copy.sector
    found = Extents.empty()
    for lba in {copy.other_lba, old_size // sector - 1} - {1}:
        try:
            found = found | Extents.of(read_copy(target, sector, lba).spans)
        except NotUnderstood:
            continue
    return found.clip(0, target.size)


def _changed_entry(
    copy: GptCopy, entries: bytes, number: int, start: int, new_start: int, new_stop: int
) -> bytes:
    """Give a partition that begins at `start` a new place, all in bytes of the disk."""
    index = number - 1
    if not 0 <= index < copy.entry_count or copy.partition(index).start != start:
        raise TargetUnsuitable(f"partition {number} is not where the image says")
    at = index * copy.entry_size
    kind, own, _, _, attributes, name = structs.GPT_ENTRY.unpack_from(entries, at)
    changed = bytearray(entries)
    first, last = new_start // copy.sector, new_stop // copy.sector - 1
    structs.GPT_ENTRY.pack_into(changed, at, kind, own, first, last, attributes, name)
    return bytes(changed)


def _with_entries(copy: GptCopy, entries: bytes) -> GptCopy:
    return GptCopy(
        sector=copy.sector,
        lba=copy.lba,
        other_lba=copy.other_lba,
        first_usable=copy.first_usable,
        last_usable=copy.last_usable,
        disk_guid=copy.disk_guid,
        entries_lba=copy.entries_lba,
        entry_count=copy.entry_count,
        entry_size=copy.entry_size,
        header=copy.header,
        entries=entries,
    )


def _header(copy: GptCopy, lba: int, other: int, entries_lba: int, last_usable: int) -> bytes:
    """Return the header's sector with new places and checksums, all else as it was."""
    fields = list(structs.GPT_HEADER.unpack_from(copy.header))
    header_size = fields[2]
    fields[3] = 0
    fields[5:9] = [lba, other, copy.first_usable, last_usable]
    fields[10] = entries_lba
    fields[13] = zlib.crc32(copy.entries)
    header = bytearray(copy.header)
    structs.GPT_HEADER.pack_into(header, 0, *fields)
    fields[3] = header_checksum(bytes(header[:header_size]))
    structs.GPT_HEADER.pack_into(header, 0, *fields)
    return bytes(header)


def _padded(data: bytes, length: int) -> bytes:
    return data + bytes(length - len(data))


def _protective_patches(
    mbr: Sequence[MbrEntry], sector: int, last: int, growth: Growth | None
) -> list[Patch]:
    """Fit the MBR beside a GPT: the protective entry, and a hybrid one that grew."""
    entries = [entry for entry in mbr if not entry.empty]
    hybrid = len(entries) > 1
    patches = []
    for entry in entries:
        count = entry.count
        if entry.kind == structs.MBR_TYPE_PROTECTIVE:
            room = min(last + 1 - entry.start, structs.MBR_MAX_SECTOR)
            # In a hybrid MBR it only covers what the other entries leave.
            if entry.count == structs.MBR_MAX_SECTOR or (hybrid and entry.count <= room):
                continue
            count = room
        elif growth and _spans(entry, 0, sector) == (growth.start, growth.old_stop):
            count = (growth.new_stop - growth.start) // sector
        if count != entry.count and 0 < count <= structs.MBR_MAX_SECTOR:
            patches.append(_entry_patch(0, entry, count, 0))
    return patches


# -- MBR ----------------------------------------------------------------------------


def _mbr_patches(
    target: Reader,
    first: bytes,
    entries: Sequence[MbrEntry],
    sector: int,
    growth: Growth | None,
    moves: Sequence[Move],
) -> Groups:
    patches = [_moved_entry(entries, move, sector) for move in moves]
    end = target.size // sector
    extended = next((entry for entry in entries if entry.extended), None)
    if growth and growth.number <= structs.MBR_ENTRY_COUNT:
        entry = entries[growth.number - 1]
        _require(_spans(entry, 0, sector) == (growth.start, growth.old_stop), growth)
        patches.append(_entry_patch(0, entry, growth.new_stop // sector - entry.start, 0))
    elif growth:
        _require(extended is not None, growth)
        assert extended is not None
        patches += _logical_patches(target, extended, sector, disk_signature(first), growth)
    if extended is not None:
        stop = min(extended.start + extended.count, end)
        if growth and growth.number > structs.MBR_ENTRY_COUNT:
            stop = max(stop, growth.new_stop // sector)
        if extended.start < stop != extended.start + extended.count:
            patches.append(_entry_patch(0, extended, stop - extended.start, 0))
    return [patches]


def _moved_entry(entries: Sequence[MbrEntry], move: Move, sector: int) -> Patch:
    """Give a primary partition a new place. Its type and flag stay."""
    if not 0 < move.number <= structs.MBR_ENTRY_COUNT:
        raise TargetUnsuitable(f"partition {move.number} is a logical one: it cannot be moved")
    entry = entries[move.number - 1]
    if _spans(entry, 0, sector) != (move.start, move.start + move.length):
        raise TargetUnsuitable(f"partition {move.number} is not where the image says")
    first = move.new_start // sector
    at = structs.MBR_ENTRIES_AT + entry.slot * structs.MBR_ENTRY.size
    last = structs.chs(first + entry.count - 1)
    data = structs.MBR_ENTRY.pack(
        entry.flag, structs.chs(first), entry.kind, last, first, entry.count
    )
    return Patch(at, data)


def _logical_patches(
    target: Reader, extended: MbrEntry, sector: int, signature: str, growth: Growth
) -> list[Patch]:
    """Grow a logical partition: in its own boot record, and in the link that leads there."""
    chain = read_chain(target, extended, sector, signature)
    own = [
        logical.ebr
        for logical in chain.logicals
        if logical.partition
        and logical.partition.number == growth.number
        and logical.partition.start == growth.start
    ]
    _require(not chain.broken and len(own) == 1, growth)
    patches = []
    for logical in chain.logicals:
        record = read_entries(target.read_at(logical.ebr, structs.MBR_SIZE))
        assert record is not None
        base = logical.ebr // sector
        for entry in record:
            if logical.ebr == own[0] and not entry.empty and not entry.extended:
                count = growth.new_stop // sector - base - entry.start
                patches.append(_entry_patch(base * sector, entry, count, base))
            elif entry.extended and (extended.start + entry.start) * sector == own[0]:
                count = growth.new_stop // sector - own[0] // sector
                patches.append(_entry_patch(base * sector, entry, count, extended.start))
    return patches


def _require(holds: bool, growth: Growth) -> None:
    if not holds:
        raise TargetUnsuitable(f"partition {growth.number} is not where the image says")


def _spans(entry: MbrEntry, base: int, sector: int) -> tuple[int, int]:
    return (base + entry.start) * sector, (base + entry.start + entry.count) * sector


def _entry_patch(record: int, entry: MbrEntry, count: int, base: int) -> Patch:
    """Give a slot of the boot record at byte `record` a new length, and the CHS of its end."""
    at = record + structs.MBR_ENTRIES_AT + entry.slot * structs.MBR_ENTRY.size
    # Only the fields after the type: flag, first CHS and type stay whatever they are.
    last = structs.chs(base + entry.start + count - 1)
    data = structs.MBR_ENTRY.pack(0, bytes(3), 0, last, entry.start, count)
    return Patch(at + 5, data[5:])
