"""Read an MBR and the chain of its logical partitions."""

from __future__ import annotations

from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.errors import UnreadableRange
from freezeframe.layout import structs
from freezeframe.layout.base import Region, Role
from freezeframe.layout.types import mbr_type_name

#: Kernels stop at 256 partitions; longer chains are crafted.
_CHAIN_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class MbrEntry:
    """One slot of an MBR or EBR. Sectors, relative as on disk."""

    slot: int
    flag: int
    kind: int
    start: int
    count: int

    @property
    def empty(self) -> bool:
        """Whether it describes nothing."""
        return self.kind == structs.MBR_TYPE_EMPTY or self.count == 0

    @property
    def extended(self) -> bool:
        """Whether it holds logical partitions, or leads to the next one."""
        return not self.empty and self.kind in structs.MBR_TYPES_EXTENDED


def read_entries(data: bytes) -> tuple[MbrEntry, ...] | None:
    """Return the four slots of a boot record (512 bytes or more).

    None where it is no boot record: no magic, or a boot indicator that no table has.
    """
    if data[structs.MBR_MAGIC_AT : structs.MBR_SIZE] != structs.MBR_MAGIC:
        return None
    entries = []
    for slot in range(structs.MBR_ENTRY_COUNT):
        at = structs.MBR_ENTRIES_AT + slot * structs.MBR_ENTRY.size
        flag, _, kind, _, start, count = structs.MBR_ENTRY.unpack_from(data, at)
        if flag not in (structs.MBR_INACTIVE, structs.MBR_ACTIVE):
            return None
        entries.append(MbrEntry(slot, flag, kind, start, count))
    return tuple(entries)


def disk_signature(data: bytes) -> str:
    """Return the disk's id in an MBR as 8 hex digits."""
    (value,) = structs.MBR_DISK_ID.unpack_from(data, structs.MBR_DISK_ID_AT)
    return f"{value:08x}"


def is_boot_sector(data: bytes) -> bool:
    """Whether sector 0 is that of a FAT, NTFS or exFAT filesystem on the disk itself.

    It ends with the same magic as an MBR, and its boot code lies where the MBR has its
    entries. Its name and geometry tell.
    """
    if data[0] not in structs.BOOT_SECTOR_JUMPS:
        return False
    if any(data[at : at + len(name)] == name for at, name in structs.BOOT_SECTOR_NAMES):
        return True
    # FAT of before the names: what must hold of its geometry is unlikely in boot code.
    sector, cluster, reserved, copies = structs.BOOT_SECTOR_GEOMETRY.unpack_from(
        data, structs.BOOT_SECTOR_GEOMETRY_AT
    )
    media = data[structs.BOOT_SECTOR_MEDIA_AT]
    return (
        sector in (512, 1024, 2048, 4096)
        and cluster > 0
        and cluster & (cluster - 1) == 0
        and reserved > 0
        and copies in (1, 2)
        and (media == 0xF0 or media >= 0xF8)
    )


def partition_of(entry: MbrEntry, number: int, base: int, sector: int, signature: str) -> Region:
    """Make the region of an entry whose start counts from sector `base` of the disk."""
    known = signature != "00000000"
    return Region(
        role=Role.PARTITION,
        start=(base + entry.start) * sector,
        length=entry.count * sector,
        number=number,
        type_code=f"0x{entry.kind:02x}",
        type_name=mbr_type_name(entry.kind),
        uuid=f"{signature}-{number:02x}" if known else "",
        bootable=entry.flag == structs.MBR_ACTIVE,
    )


@dataclass(frozen=True, slots=True)
class Logical:
    """One logical partition and the boot record that describes it. Bytes of the disk."""

    #: None where the record describes nothing (its partition was deleted).
    partition: Region | None
    ebr: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The logical partitions of one extended partition, in the order of the chain."""

    logicals: tuple[Logical, ...]
    #: Why the chain was not followed to its end; empty where it was.
    broken: str = ""
    #: What the last record claims that cannot be; bytes of the disk, (0, 0) for nothing.
    stray: tuple[int, int] = (0, 0)


def read_chain(
    reader: Reader, extended: MbrEntry, sector: int, signature: str, first_number: int = 5
) -> Chain:
    """Follow the chain of boot records from the start of an extended partition.

    Bounded: a loop, a record out of range, one that is no record, or too long a chain end
    it, with the reason in `broken`; what was found before stays.
    """
    start, stop = extended.start, extended.start + extended.count
    found: list[Logical] = []
    seen: set[int] = set()
    number = first_number
    at = start
    while True:
        reason = _unfit(at, start, stop, seen, sector, reader.size)
        if reason:
            return Chain(tuple(found), reason)
        seen.add(at)
        try:
            entries = read_entries(reader.read_at(at * sector, structs.MBR_SIZE))
        except UnreadableRange as error:
            return Chain(tuple(found), error.message)
        if entries is None:
            return Chain(tuple(found), f"sector {at} holds no boot record")
        data = [e for e in entries[:2] if not e.empty and not e.extended]
        links = [e for e in entries[:2] if e.extended]
        partition = None
        if data:
            partition = partition_of(data[0], number, at, sector, signature)
            number += 1
        if partition and not start * sector <= partition.start < partition.stop <= stop * sector:
            found.append(Logical(None, at * sector))
            reason = f"partition {partition.number} leaves the extended one"
            return Chain(tuple(found), reason, (partition.start, partition.stop))
        found.append(Logical(partition, at * sector))
        if len(data) > 1 or len(links) > 1 or not all(e.empty for e in entries[2:]):
            return Chain(tuple(found), f"the boot record at sector {at} has too many entries")
        if not links:
            return Chain(tuple(found))
        at = start + links[0].start


def _unfit(at: int, start: int, stop: int, seen: set[int], sector: int, size: int) -> str:
    """Say why no boot record can be at sector `at`; empty where it can."""
    if at in seen:
        return f"it leads back to sector {at}: a loop"
    if not start <= at < stop or (at + 1) * sector > size:
        return f"it leads to sector {at}, out of the extended partition or the disk"
    if len(seen) >= _CHAIN_LIMIT:
        return f"it has more than {_CHAIN_LIMIT} boot records"
    return ""
