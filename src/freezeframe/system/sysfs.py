"""Block devices as the kernel shows them in /sys: what is part of what, and lies upon what.

Source: Documentation/ABI/stable/sysfs-block and testing/sysfs-fs-btrfs of Linux.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system import ioctl

SYS_BLOCK = Path("/sys/block")
_SYS_NUMBERS = Path("/sys/dev/block")
_SYS_BTRFS = Path("/sys/fs/btrfs")


def read_text(path: Path) -> str:
    """Return the one line of an attribute, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def read_number(path: Path) -> int:
    """Return an attribute that is a number, or 0."""
    text = read_text(path)
    return int(text) if text.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Node:
    """A whole disk, a partition, or a device made of others."""

    #: The kernel's name: `sda1`, `dm-0`, `cciss!c0d0`.
    name: str
    #: `8:1`, as mountinfo and sysfs write it.
    number: str
    folder: Path
    #: Number of the partition; 0 for whatever is none.
    partition: int

    @property
    def path(self) -> str:
        """Where it is found in /dev; a device-mapper volume by its name."""
        mapped = read_text(self.folder / "dm/name")
        if mapped and Path("/dev/mapper", mapped).exists():
            return f"/dev/mapper/{mapped}"
        return "/dev/" + self.name.replace("!", "/")

    @property
    def rdev(self) -> int:
        """Its number as `st_rdev` gives it."""
        major, minor = self.number.split(":")
        return os.makedev(int(major), int(minor))

    @property
    def size(self) -> int:
        """Length in bytes; the kernel counts sectors of 512 here, whatever the device's are."""
        return read_number(self.folder / "size") * 512

    @property
    def start(self) -> int:
        """Where a partition starts on its disk, in bytes; 0 for whatever is none."""
        return read_number(self.folder / "start") * 512

    @property
    def diskseq(self) -> int:
        """Number that no two disks of one boot share (5.15); 0 where the kernel has none."""
        return read_number(self.whole.folder / "diskseq")

    @property
    def dma_alignment(self) -> int:
        """In bytes, where memory has to start that the device reads and writes."""
        return read_number(self.whole.folder / "queue/dma_alignment") + 1

    @property
    def whole(self) -> Node:
        """Return the disk a partition is on; itself for everything else."""
        return _node(self.folder.parent) if self.partition else self

    def partitions(self) -> list[Node]:
        """Return the partitions the kernel knows of, by number."""
        folders = (path.parent for path in self.folder.glob("*/partition"))
        return sorted((_node(folder) for folder in folders), key=lambda node: node.partition)

    def holders(self) -> list[Node]:
        """Return the devices made of this one: device-mapper volumes, arrays, caches."""
        return _linked(self.folder / "holders")

    def slaves(self) -> list[Node]:
        """Return the devices this one is made of."""
        return _linked(self.folder / "slaves")

    @property
    def multipath(self) -> bool:
        """Whether it is one disk that device-mapper reaches by several paths, its slaves."""
        return read_text(self.folder / "dm/uuid").startswith("mpath-")


def _node(folder: Path) -> Node:
    name, number = folder.name, read_text(folder / "dev")
    return Node(name, number, folder, read_number(folder / "partition"))


def _linked(folder: Path) -> list[Node]:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
    return [_node((folder / name).resolve()) for name in names]


def node_of_number(number: str) -> Node | None:
    """Return the block device `major:minor`; None where there is none."""
    folder = _SYS_NUMBERS / number
    return _node(folder.resolve()) if folder.exists() else None


def node_of(path: str | Path) -> Node | None:
    """Return the block device a path names; None where it names none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return node_of_number(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")


def disks() -> list[Node]:
    """Return every block device that is no partition, in order of name."""
    try:
        names = sorted(entry.name for entry in SYS_BLOCK.iterdir())
    except OSError:
        return []
    return [_node((SYS_BLOCK / name).resolve()) for name in names]


# -- loop devices ---------------------------------------------------------------------


def loop_backing_file(node: Node) -> str:
    """Return the path of the file beneath a loop device; nothing where there is none."""
    return read_text(node.folder / "loop/backing_file")


def loop_backing(node: Node) -> tuple[int, int] | None:
    """Return (st_dev, st_ino) of the file beneath a loop device."""
    path = loop_backing_file(node)
    if not path:
        return None
    try:
        status = Path(path).stat()
    except OSError:
        # Deleted, or of another view of the files: the device itself knows.
        return asked_backing(node)
    return status.st_dev, status.st_ino


def asked_backing(node: Node) -> tuple[int, int] | None:
    """Return what a loop device itself says is beneath it: (st_dev, st_ino)."""
    try:
        descriptor = os.open(node.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return ioctl.loop_backing(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def loops_over(device: int, inode: int) -> list[Node]:
    """Return the loop devices over a file or device node (`st_dev`, `st_ino`)."""
    return [node for node, backing in _loops() if backing == (device, inode)]


def loops_over_device(number: str) -> list[Node]:
    """Return the loop devices over a block device, by whatever node it was named."""
    found = []
    for node, _ in _loops():
        below = node_of(loop_backing_file(node))
        if below is not None and below.number == number:
            found.append(node)
    return found


def _loops() -> Iterator[tuple[Node, tuple[int, int]]]:
    for node in disks():
        if node.name.startswith("loop") and (backing := loop_backing(node)) is not None:
            yield node, backing


# -- btrfs ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BtrfsVolume:
    """One btrfs filesystem the kernel has open (mounted), with all its devices."""

    uuid: str
    label: str
    devices: tuple[Node, ...]


def btrfs_volumes() -> list[BtrfsVolume]:
    """Return the btrfs filesystems in use: only those are listed with devices."""
    found = []
    for folder in sorted(_SYS_BTRFS.glob("*/devices")):
        devices = tuple(_linked(folder))
        found.append(BtrfsVolume(folder.parent.name, read_text(folder.parent / "label"), devices))
    return found
