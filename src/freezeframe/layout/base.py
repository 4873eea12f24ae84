"""The layout of one disk, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from freezeframe.core.extents import Extents


class Table(enum.StrEnum):
    """Which partition table a disk carries."""

    NONE = "none"
    MBR = "mbr"
    GPT = "gpt"
    #: A GPT whose MBR also lists some of its partitions.
    HYBRID = "hybrid"


class Role(enum.StrEnum):
    """What a region of a disk is there for."""

    TABLE = "table"  # partition table sectors: MBR, GPT headers and entries, EBRs
    GAP = "gap"  # between partitions: boot loaders hide here
    PARTITION = "partition"
    WHOLE = "whole"  # a disk with no table: one region, all of it


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a disk with one meaning. Offsets and lengths in bytes."""

    role: Role
    start: int
    length: int
    #: The partition's number as the kernel counts it; 0 for anything else.
    number: int = 0
    #: GPT type GUID (lower case) or MBR type (`0x83`).
    type_code: str = ""
    #: What people call that type: `EFI System`, `Linux filesystem`, `Linux swap`.
    type_name: str = ""
    #: The partition's own name and id (GPT), or `xxxxxxxx-nn` (MBR), as blkid says PARTUUID.
    name: str = ""
    uuid: str = ""
    bootable: bool = False

    @property
    def stop(self) -> int:
        """The byte after the region."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class DiskLayout:
    """A whole disk: its regions tile [0, size) without overlap, in order of offset."""

    table: Table
    size: int
    sector: int
    #: GPT disk GUID (lower case) or MBR signature (8 hex digits); empty without a table.
    disk_id: str
    regions: tuple[Region, ...]
    #: Bytes outside partitions that must be kept: tables, boot code, gaps that are not zero.
    used_outside: Extents
    #: Raw pieces and the field's own dumps, by file name (`[A-Za-z0-9._-]+`).
    pieces: Mapping[str, bytes] = field(default_factory=dict)
    #: What an administrator should know: disagreeing GPT copies, looping EBRs.
    notes: tuple[str, ...] = ()

    @property
    def partitions(self) -> tuple[Region, ...]:
        """Only the regions that are partitions, in order of offset."""
        return tuple(r for r in self.regions if r.role is Role.PARTITION)
