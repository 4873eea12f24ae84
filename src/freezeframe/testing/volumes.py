"""What lies on a disk, as other programs see it: sfdisk, blkid and lvm, never our own parsers.

Everything works on raw files and on block devices, on kernels that parse no partition
tables, have no device-mapper and know neither FAT nor NTFS: each volume is reached by a
loop device of its own, FAT is left to mtools, NTFS to ntfs-3g.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freezeframe.core.errors import ToolFailed
from freezeframe.core.units import SECTOR
from freezeframe.system.interrupt import deferred
from freezeframe.system.loop import attached
from freezeframe.system.run import run

#: Leaves the machine's own LVM alone: no devices but the one named, no activation, no
#: device-mapper, nothing written below /etc/lvm.
LVM_OPTIONS = (
    "--driverloaded",
    "n",
    "--config",
    "devices{use_devicesfile=0} backup{backup=0 archive=0} global{event_activation=0}",
)
#: How each kind is mounted; what is not here is not mounted.
_MOUNT = {
    "ext4": ("mount", "-t", "ext4"),
    "xfs": ("mount", "-t", "xfs"),
    "btrfs": ("mount", "-t", "btrfs"),
    # Named streams as extended attributes: they are compared too.
    "ntfs": ("ntfs-3g", "-o", "streams_interface=xattr"),
}
#: A daemon (udev, an indexer) may look at a fresh mount for a moment.
_UMOUNT_TRIES = 20


@dataclass(frozen=True, slots=True)
class Volume:
    """A stretch of a disk that holds one thing. Bytes from the start of the disk."""

    #: `3 xfs`, or `7 lvm/root` for a logical volume.
    name: str
    #: As blkid says it: `vfat`, `ext4`, `xfs`, `btrfs`, `ntfs`, `swap`, `LVM2_member`; else `raw`.
    kind: str
    start: int
    length: int
    uuid: str = ""
    label: str = ""

    @property
    def mountable(self) -> bool:
        """Whether `mounted` can do it."""
        return self.kind in _MOUNT


@dataclass(frozen=True, slots=True)
class Survey:
    """One disk and all volumes on it, those inside LVM too, in order of offset."""

    path: Path
    sector: int
    #: `gpt`, `dos`, or `none` where the whole disk is one volume.
    table: str
    #: The table in lines that do not depend on the disk's path and size.
    lines: tuple[str, ...]
    volumes: tuple[Volume, ...]

    def volume(self, name: str) -> Volume:
        """Return the one volume whose name contains `name`; `KeyError` for any other number."""
        found = [v for v in self.volumes if name in v.name]
        if len(found) != 1:
            raise KeyError(name)
        return found[0]


class _Partition(msgspec.Struct):
    start: int
    size: int
    type: str
    uuid: str = ""
    name: str = ""
    bootable: bool = False
    attrs: str = ""


class _Table(msgspec.Struct):
    label: str
    id: str = ""
    partitions: list[_Partition] = msgspec.field(default_factory=list)


class _Dump(msgspec.Struct):
    partitiontable: _Table


def lvm(command: str, device: str, *arguments: str) -> bytes:
    """Run one LVM command on one device only and return what it printed."""
    line = ("lvm", command, "--devices", device, *LVM_OPTIONS, *arguments)
    return run(line, purpose="to handle LVM").stdout


def _logical_volumes(path: Path, sector: int, outer: Volume) -> list[Volume]:
    """Find the logical volumes that lie in one piece on a physical volume."""
    with part_attached(path, sector, outer) as device:
        units = ("--reportformat", "json", "--units", "b", "--nosuffix")
        pv_report = lvm("pvs", device, *units, "-o", "pe_start,vg_extent_size", device)
        lv_report = lvm("lvs", device, *units, "--segments", "-o", "lv_name,seg_pe_ranges")
        pv = json.loads(pv_report)["report"][0]["pv"][0]
        lvs = json.loads(lv_report)["report"][0]["seg"]
        found = []
        for lv in lvs:
            first, last = (int(n) for n in lv["seg_pe_ranges"].rsplit(":", 1)[1].split("-"))
            extent = int(pv["vg_extent_size"])
            start = outer.start + int(pv["pe_start"]) + first * extent
            name = f"{outer.name.split()[0]} lvm/{lv['lv_name']}"
            found.append(_probe(path, sector, name, start, (last - first + 1) * extent))
    return found


def _probe(path: Path, sector: int, name: str, start: int, length: int) -> Volume:
    """Ask blkid what a stretch of a disk holds; a name without a kind gets it appended."""
    raw = Volume(name, "raw", start, length)
    with part_attached(path, sector, raw) as device:
        # 2: nothing known there.
        text = run(("blkid", "-p", "-o", "export", device), ok=(0, 2)).stdout.decode()
    facts = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    kind = facts.get("TYPE", "raw")
    full = name if " " in name else f"{name} {kind}"
    return Volume(full, kind, start, length, facts.get("UUID", ""), facts.get("LABEL", ""))


def survey(path: Path, sector: int = SECTOR) -> Survey:
    """Find what lies on a disk or in a raw image, with `sector` bytes a sector.

    Raises `ToolFailed` where sfdisk or lvm cannot read their structures.
    """
    with attached(path, sector=sector, read_only=True) as device:
        size = int(run(("blockdev", "--getsize64", device)).stdout)
        if b"PTTYPE" not in run(("blkid", "-p", "-o", "export", device), ok=(0, 2)).stdout:
            return Survey(path, sector, "none", (), (_probe(path, sector, "0", 0, size),))
        dump = run(("sfdisk", "--json", device)).stdout.replace(device.encode(), b"disk")
    table = msgspec.json.decode(dump, type=_Dump).partitiontable
    lines = [f"{table.label} {table.id}"]
    volumes = []
    for raw in json.loads(dump)["partitiontable"].get("partitions", []):
        number = raw["node"].removeprefix("disk").lstrip("p")
        part = msgspec.convert(raw, _Partition)
        lines.append(f"{number} {part}")
        # An extended partition holds the logical ones, which are listed too.
        if table.label == "dos" and part.type in ("5", "f", "85"):
            continue
        volume = _probe(path, sector, number, part.start * sector, part.size * sector)
        volumes.append(volume)
        if volume.kind == "LVM2_member":
            volumes += _logical_volumes(path, sector, volume)
    volumes.sort(key=lambda v: v.start)
    return Survey(path, sector, table.label, tuple(lines), tuple(volumes))


@contextlib.contextmanager
def part_attached(
    path: Path, sector: int, volume: Volume, *, read_only: bool = True
) -> Iterator[str]:
    """Give a loop device that is just one volume; detach it in the end."""
    with attached(
        path, offset=volume.start, size=volume.length, sector=sector, read_only=read_only
    ) as device:
        yield device


@contextlib.contextmanager
def mounted(path: Path, sector: int, volume: Volume, *, read_only: bool = True) -> Iterator[Path]:
    """Give the root folder of a filesystem; unmount and detach it in the end.

    Read-only goes through a read-only loop device, so not even a journal can be replayed:
    a filesystem that would need it raises `ToolFailed`.
    """
    with (
        part_attached(path, sector, volume, read_only=read_only) as device,
        _empty_folder() as folder,
        mounted_device(device, volume.kind, folder, read_only=read_only),
    ):
        yield folder


@contextlib.contextmanager
def _empty_folder() -> Iterator[Path]:
    """Give a folder to mount on. Never emptied: were it still mounted, that would be files."""
    folder = Path(tempfile.mkdtemp(prefix="freezeframe-mount-"))
    try:
        yield folder
    finally:
        folder.rmdir()


@contextlib.contextmanager
def mounted_device(device: str, kind: str, folder: Path, *, read_only: bool) -> Iterator[None]:
    """Mount a device on an empty folder; unmount it in the end."""
    command = [*_MOUNT[kind], *(("-o", "ro") if read_only else ())]
    try:
        with deferred():
            run((*command, device, str(folder)), purpose=f"to mount {kind}")
        yield
    finally:
        # Asked of the kernel rather than remembered: a failed mount may be half there.
        with deferred():
            if folder.is_mount():
                unmount(folder)


def unmount(folder: Path) -> None:
    """Unmount, waiting a moment for whoever looks into it."""
    for attempt in range(_UMOUNT_TRIES):
        try:
            run(("umount", str(folder)))
        except ToolFailed:
            if attempt == _UMOUNT_TRIES - 1:
                raise
            time.sleep(0.1)
        else:
            return
