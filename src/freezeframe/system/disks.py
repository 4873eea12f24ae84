"""The machine's disks, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system import sysfs
from freezeframe.system.holders import uses_of
from freezeframe.system.mounts import own_mounts
from freezeframe.system.sysfs import Node

#: Devices nobody images: memory, optical and floppy drives, bare flash.
_NO_DISKS = re.compile(r"(ram|zram|sr|fd|mtdblock|mtd)\d")
_UDEV = Path("/run/udev/data")


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition the kernel knows of."""

    name: str
    path: str
    number: int
    #: In bytes from the start of the disk.
    start: int
    #: In bytes.
    size: int
    #: Where its filesystem is mounted, in our own view.
    mounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disk:
    """One block device that is no partition: a drive, an array, a volume, a loop device."""

    name: str
    path: str
    #: In bytes.
    size: int
    #: In bytes: what is addressed, and what the medium writes at once.
    logical_sector: int
    physical_sector: int
    model: str
    serial: str
    wwn: str
    removable: bool
    rotational: bool
    read_only: bool
    #: Number that no two disks of one boot share; 0 where the kernel has none.
    diskseq: int
    partitions: tuple[Partition, ...]
    #: Where a filesystem on the disk itself is mounted, in our own view.
    mounts: tuple[str, ...]
    #: Who uses it or part of it, as an administrator says it.
    holders: tuple[str, ...]
    #: Paths of the devices it is made of; empty for a drive.
    made_of: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class About:
    """What a source is, besides its bytes; empty where that is not known."""

    model: str = ""
    serial: str = ""
    wwn: str = ""


def list_disks() -> list[Disk]:
    """Return every disk of the machine that holds anything, in order of name.

    Left out: memory disks, loop devices with no file, drives with no medium, optical drives,
    and the hidden paths of multipath NVMe.
    """
    return [_disk(node) for node in sysfs.disks() if _counts(node)]


def describe_disk(path: str | Path) -> Disk | None:
    """Return the disk a device path names, or that its partition is on; None for no device."""
    node = sysfs.node_of(path)
    return _disk(node.whole) if node is not None else None


def describe_source(path: str | Path) -> About:
    """Tell the make and number of the drive behind a path; nothing for a file."""
    node = sysfs.node_of(path)
    return _about(node.whole) if node is not None else About()


def _counts(node: Node) -> bool:
    hidden = sysfs.read_number(node.folder / "hidden")
    return not hidden and node.size > 0 and _NO_DISKS.match(node.name) is None


def _disk(node: Node) -> Disk:
    about = _about(node)
    queue = node.folder / "queue"
    return Disk(
        name=node.name,
        path=node.path,
        size=node.size,
        logical_sector=sysfs.read_number(queue / "logical_block_size") or 512,
        physical_sector=sysfs.read_number(queue / "physical_block_size") or 512,
        model=about.model,
        serial=about.serial,
        wwn=about.wwn,
        removable=sysfs.read_number(node.folder / "removable") == 1,
        rotational=sysfs.read_number(queue / "rotational") == 1,
        read_only=sysfs.read_number(node.folder / "ro") == 1,
        diskseq=node.diskseq,
        partitions=tuple(_partition(part) for part in node.partitions()),
        mounts=_mounts(node),
        holders=tuple(use.text for use in uses_of(node.path)),
        made_of=tuple(below.path for below in node.slaves()),
    )


def _partition(node: Node) -> Partition:
    return Partition(
        name=node.name,
        path=node.path,
        number=node.partition,
        # The kernel counts sectors of 512 here, whatever the disk's are.
        start=sysfs.read_number(node.folder / "start") * 512,
        size=node.size,
        mounts=_mounts(node),
    )


def _mounts(node: Node) -> tuple[str, ...]:
    found = [
        mount.point
        for mount in own_mounts()
        if mount.device == node.number or mount.source == node.path
    ]
    return tuple(dict.fromkeys(found))


def _about(node: Node) -> About:
    """Ask the driver, then what udev noted."""
    folder = node.folder
    noted = _udev(node)
    backing = sysfs.loop_backing_file(node)
    vendor = sysfs.read_text(folder / "device/vendor")
    model = sysfs.read_text(folder / "device/model") or noted.get("ID_MODEL", "")
    # SCSI names the maker apart; virtio and NVMe give numbers there, and ATA says so only.
    if model and vendor and not vendor.startswith("0x") and vendor != "ATA":
        model = f"{vendor} {model}"
    serial = (
        sysfs.read_text(folder / "serial")
        or sysfs.read_text(folder / "device/serial")
        or _unit_serial(folder / "device/vpd_pg80")
        or noted.get("ID_SERIAL_SHORT", "")
    )
    wwn = (
        sysfs.read_text(folder / "wwid")
        or sysfs.read_text(folder / "device/wwid")
        or noted.get("ID_WWN", "")
    )
    return About(model or (f"file {backing}" if backing else ""), serial, wwn)


def _unit_serial(path: Path) -> str:
    """Read the SCSI page "unit serial number": four bytes of header, then text (SPC-4 7.8.15)."""
    try:
        page = path.read_bytes()
    except OSError:
        return ""
    return page[4:].decode("ascii", errors="replace").strip(" \0")


def _udev(node: Node) -> dict[str, str]:
    lines = sysfs.read_text(_UDEV / f"b{node.number}").splitlines()
    pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
    return {key: value for key, _, value in pairs}
