"""What of an image can be had as a disk of its own: disks, partitions, logical volumes."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from freezeframe.access.cache import BlobCache
from freezeframe.access.disk import ImageDisk
from freezeframe.block.base import Reader
from freezeframe.block.window import Window
from freezeframe.core.errors import UsageError
from freezeframe.fs.lvm import open_volumes
from freezeframe.image.manifest import DiskRecord, RegionRecord
from freezeframe.image.reader import ImageReader
from freezeframe.layout.base import Role

#: What of a name may be a file's.
_UNSAFE = re.compile(r"[^A-Za-z0-9._+@:,=-]")


class Level(enum.StrEnum):
    """What kind of part it is."""

    DISK = "disk"
    PARTITION = "partition"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Part:
    """One of them, readable."""

    level: Level
    #: Its place among the others, fit for paths: `sda`, `sda/p1`, `vg0/root`.
    name: str
    reader: Reader
    #: Bytes of it that the image holds.
    used: int
    #: What is in it, as manifests say it: `ext4`, `lvm2`; empty where that is not known.
    content: str = ""
    label: str = ""
    uuid: str = ""
    #: Its number on the disk; 0 where it is no partition.
    number: int = 0
    #: The disk's name; empty for a logical volume.
    disk: str = ""


def open_disks(image: ImageReader, cache: BlobCache) -> list[ImageDisk]:
    """Open every disk of an image; reads nothing yet."""
    return [ImageDisk(image, record, cache=cache) for record in image.manifest.disks]


def parts_of(disks: Sequence[ImageDisk]) -> list[Part]:
    """Return all parts of an image's disks, each disk before what is on it.

    Reads LVM's metadata where the image has any. Names are made fit for paths, and are unique.
    """
    found: list[Part] = []
    taken: set[str] = set()
    windows: list[Reader] = []
    for disk in disks:
        record = disk.record
        place = _unique(file_name(record.name), taken)
        whole = next((r for r in record.regions if r.role == Role.WHOLE), None)
        found.append(_disk_part(disk, record, place, whole))
        if whole is not None:
            windows.append(disk)
        for region in record.regions:
            if region.role == Role.PARTITION and region.length > 0:
                name = f"{record.name} partition {region.number}"
                window = Window(disk, region.start, region.length, name=name)
                windows.append(window)
                part_name = _unique(f"{place}/p{region.number}", taken)
                found.append(_partition_part(window, record, part_name, region))
    if any(r.content == "lvm2" for disk in disks for r in disk.record.regions):
        found += _volumes(disks, windows, taken)
    return found


def _disk_part(disk: ImageDisk, record: DiskRecord, name: str, whole: RegionRecord | None) -> Part:
    if whole is None:
        return Part(Level.DISK, name, disk, record.used, disk=record.name)
    return Part(
        Level.DISK,
        name,
        disk,
        record.used,
        whole.content,
        whole.label,
        whole.content_uuid,
        disk=record.name,
    )


def _partition_part(window: Window, record: DiskRecord, name: str, region: RegionRecord) -> Part:
    return Part(
        Level.PARTITION,
        name,
        window,
        region.used,
        region.content,
        region.label,
        region.content_uuid,
        region.number,
        record.name,
    )


def _volumes(disks: Sequence[ImageDisk], windows: Sequence[Reader], taken: set[str]) -> list[Part]:
    known = {
        f"{region.label}/{volume.name}": volume
        for disk in disks
        for region in disk.record.regions
        for volume in region.volumes
    }
    found = []
    for volume in open_volumes(windows):
        group, _, name = volume.name.partition("/")
        place = _unique(f"{file_name(group)}/{file_name(name)}", taken)
        record = known.get(volume.name)
        found.append(
            Part(
                Level.VOLUME,
                place,
                volume,
                record.used if record else volume.size,
                record.content if record else "",
                record.label if record else "",
                record.content_uuid if record else "",
            )
        )
    return found


def file_name(text: str) -> str:
    """Make one safe name of a path out of any text."""
    name = _UNSAFE.sub("_", text)[:200]
    return f"_{name}" if name.startswith(".") or not name else name


def _unique(name: str, taken: set[str]) -> str:
    """Return a name that no other has, and remember it."""
    number, wanted = 2, name
    while wanted in taken:
        wanted, number = f"{name}~{number}", number + 1
    taken.add(wanted)
    return wanted


def choose_part(
    image: ImageReader, cache: BlobCache, *, disk: str = "", partition: int | None, volume: str = ""
) -> Part:
    """Open the part of an image that was asked for: the disk, one partition, one volume.

    Raises `UsageError` where it is not there, or the image has several disks and none is named.
    """
    parts = parts_of(open_disks(image, cache))
    if volume:
        found = [part for part in parts if part.level is Level.VOLUME and part.name == volume]
        others = ", ".join(part.name for part in parts if part.level is Level.VOLUME) or "none"
        if not found:
            raise UsageError(f"the image has no volume {volume}", hint=f"it has: {others}")
        return found[0]
    disks = [part for part in parts if part.level is Level.DISK]
    if disk:
        record = image.manifest.disk(disk)
        disks = [part for part in disks if record is not None and part.disk == record.name]
    names = ", ".join(record.name for record in image.manifest.disks)
    if not disks:
        raise UsageError(f"the image has no disk {disk}", hint=f"it has: {names}")
    if len(disks) > 1:
        raise UsageError("the image holds several disks", hint=f"choose one by --disk: {names}")
    if partition is None:
        return disks[0]
    mine = [p for p in parts if p.level is Level.PARTITION and p.disk == disks[0].disk]
    for part in mine:
        if part.number == partition:
            return part
    numbers = ", ".join(str(part.number) for part in mine) or "none"
    raise UsageError(f"the disk has no partition {partition}", hint=f"it has: {numbers}")
