"""Read the two copies of a GPT and judge them by their checksums."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, UnreadableRange
from freezeframe.core.units import align_up
from freezeframe.layout import structs
from freezeframe.layout.base import Region, Role
from freezeframe.layout.types import gpt_type_name


@dataclass(frozen=True, slots=True)
class GptCopy:
    """One copy of a GPT whose checksums hold. LBAs count sectors of `sector` bytes."""

    sector: int
    lba: int
    other_lba: int
    first_usable: int
    last_usable: int
    disk_guid: bytes
    entries_lba: int
    entry_count: int
    entry_size: int
    #: The header's whole sector, and all entries, as they lie on disk.
    header: bytes
    entries: bytes

    @property
    def entries_sectors(self) -> int:
        """How many sectors the entries take."""
        return align_up(len(self.entries), self.sector) // self.sector

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where header and entries lie: (start, stop) in bytes of the disk."""
        entries = self.entries_lba * self.sector
        return (
            (self.lba * self.sector, (self.lba + 1) * self.sector),
            (entries, entries + self.entries_sectors * self.sector),
        )

    @property
    def disk_id(self) -> str:
        """The disk's GUID as text, lower case."""
        return structs.guid_text(self.disk_guid)

    def same_content(self, other: GptCopy) -> bool:
        """Whether both say the same about disk and partitions."""
        return (
            self.disk_guid == other.disk_guid
            and self.entry_size == other.entry_size
            and self.entries == other.entries
        )

    def partitions(self) -> list[Region]:
        """Return its partitions in order of number, where the table says they lie."""
        return [self.partition(index) for index in self.used_entries()]

    def used_entries(self) -> list[int]:
        """Return the indices, from 0, of the entries that have a type."""
        rows = np.frombuffer(self.entries, np.uint8).reshape(self.entry_count, self.entry_size)
        used: list[int] = np.flatnonzero(rows[:, :16].any(axis=1)).tolist()
        return used

    def partition(self, index: int) -> Region:
        """Return the partition of entry `index`, from 0; its length is 0 if its end is wrong."""
        at = index * self.entry_size
        kind, own, first, last, attributes, name = structs.GPT_ENTRY.unpack_from(self.entries, at)
        type_code = structs.guid_text(kind)
        return Region(
            role=Role.PARTITION,
            start=first * self.sector,
            length=max(0, last + 1 - first) * self.sector,
            number=index + 1,
            type_code=type_code,
            type_name=gpt_type_name(type_code),
            name=name.decode("utf-16-le", "replace").split("\0", 1)[0],
            uuid=structs.guid_text(own),
            bootable=bool(attributes & structs.GPT_LEGACY_BOOTABLE),
        )


def read_copy(reader: Reader, sector: int, lba: int) -> GptCopy:
    """Read the copy of a GPT whose header lies at sector `lba`.

    Raises `NotUnderstood` with the reason where it is not there, damaged or unreadable.
    The checks are those of the UEFI specification 2.10, 5.3.2.
    """
    try:
        header = _read(reader, lba * sector, sector)
        return _parse(reader, sector, lba, header)
    except UnreadableRange as error:
        raise NotUnderstood(error.message) from error


def _read(reader: Reader, offset: int, length: int) -> bytes:
    if offset + length > reader.size:
        raise NotUnderstood("it lies beyond the disk's end")
    return reader.read_at(offset, length)


def _parse(reader: Reader, sector: int, lba: int, header: bytes) -> GptCopy:
    fields = structs.GPT_HEADER.unpack_from(header)
    signature, revision, header_size, header_crc = fields[:4]
    if signature != structs.GPT_SIGNATURE:
        raise NotUnderstood("it has no signature")
    if not structs.GPT_HEADER.size <= header_size <= sector:
        raise NotUnderstood(f"its header claims {header_size} bytes")
    if header_checksum(header[:header_size]) != header_crc:
        raise NotUnderstood("its header's checksum is wrong")
    if revision != structs.GPT_REVISION:
        raise NotUnderstood(f"its revision is {revision:#x}")
    own, other, first, last, guid, entries_lba, count, size, entries_crc = fields[5:]
    if own != lba:
        raise NotUnderstood(f"it says it lies at sector {own} and lies at {lba}")
    if size < structs.GPT_ENTRY.size or size & (size - 1) or size > structs.GPT_ENTRY_SIZE_LIMIT:
        raise NotUnderstood(f"its entries claim {size} bytes each")
    if not 0 < count * size <= structs.GPT_ENTRIES_LIMIT:
        raise NotUnderstood(f"it claims {count} entries")
    if entries_lba < 2:
        raise NotUnderstood(f"it claims its entries at sector {entries_lba}")
    entries = _read(reader, entries_lba * sector, count * size)
    if zlib.crc32(entries) != entries_crc:
        raise NotUnderstood("its entries' checksum is wrong")
    return GptCopy(sector, lba, other, first, last, guid, entries_lba, count, size, header, entries)


def header_checksum(header: bytes) -> int:
    """Return the CRC-32 of a header of just its size, its own field taken as zero."""
    at = structs.GPT_HEADER_CRC_AT
    return zlib.crc32(header[:at] + bytes(4) + header[at + 4 :])


@dataclass(frozen=True, slots=True)
class Gpt:
    """Both copies as far as they are good; at least one is."""

    sector: int
    primary: GptCopy | None
    backup: GptCopy | None
    #: What is wrong with them, for an administrator.
    notes: tuple[str, ...]
    #: Header and entries of both copies, the damaged one where it should be: bytes.
    primary_spans: tuple[tuple[int, int], ...]
    backup_spans: tuple[tuple[int, int], ...]

    @property
    def best(self) -> GptCopy:
        """The copy that counts: the primary, as every system has it, if it is good."""
        copy = self.primary or self.backup
        assert copy is not None
        return copy


def read_gpt(reader: Reader, sector: int) -> Gpt | None:
    """Read a GPT of sectors of `sector` bytes; None where neither copy is good."""
    last = reader.size // sector - 1
    if last < 2:
        return None
    notes = []
    primary, why_primary = _try(reader, sector, 1)
    lbas = [last] if primary is None else list(dict.fromkeys((primary.other_lba, last)))
    backup, why_backup = None, ""
    for lba in lbas:
        backup, reason = _try(reader, sector, lba)
        why_backup = why_backup or reason
        if backup is not None:
            break
    if primary is None and backup is None:
        return None
    if primary is None:
        notes.append(f"the primary GPT is damaged ({why_primary}); the backup is used")
    elif backup is None:
        notes.append(f"the backup GPT is damaged or missing ({why_backup}); the primary is used")
    elif not primary.same_content(backup):
        notes.append(
            "the two copies of the GPT disagree; the primary is used, and what only the"
            " backup says is kept as it is"
        )
    if backup is not None and backup.lba != last:
        notes.append(
            f"the backup GPT lies at sector {backup.lba}, not at the disk's end ({last}):"
            " the disk was enlarged"
        )
    room = structs.GPT_ENTRIES_ROOM
    ends = last * sector
    return Gpt(
        sector,
        primary,
        backup,
        tuple(notes),
        primary.spans if primary else ((sector, 2 * sector + room),),
        backup.spans if backup else ((max(0, ends - room), ends + sector),),
    )


def _try(reader: Reader, sector: int, lba: int) -> tuple[GptCopy | None, str]:
    try:
        return read_copy(reader, sector, lba), ""
    except NotUnderstood as error:
        return None, error.message


def looks_like_gpt(reader: Reader, sector: int) -> bool:
    """Whether sector 1 bears the signature, the rest of it good or not."""
    if 2 * sector > reader.size:
        return False
    try:
        return reader.read_at(sector, len(structs.GPT_SIGNATURE)) == structs.GPT_SIGNATURE
    except UnreadableRange:
        return False
