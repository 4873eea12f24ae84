"""What stands on what: mounted filesystems, devices and loop files, as one look at them.

Sources: mountinfo of every view of the machine, /sys/block, /sys/fs/btrfs. A filesystem is
known by the device number that mountinfo gives (`8:1`, or `0:42` for btrfs and others whose
number is none of a device): it is the same for all mounts of it, which `st_dev` is not on
btrfs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.system import sysfs
from freezeframe.system.freeze import btrfs_uuid
from freezeframe.system.mounts import Mount, all_mounts
from freezeframe.system.sysfs import Node

_MOUNT_NUMBER = re.compile(r"^mnt_id:\s*(\d+)", re.MULTILINE)
_JOURNALS = Path("/proc/fs/jbd2")
_EXT = Path("/sys/fs/ext4")


@dataclass(slots=True)
class Below:
    """Everything something stands on, down to the bottom."""

    #: Devices by number, partitions and whole disks alike.
    nodes: dict[str, Node] = field(default_factory=dict)
    #: Filesystems that hold files it stands on.
    filesystems: set[str] = field(default_factory=set)
    #: Whether something beneath could not be found out: it may be anything.
    unknown: bool = False


def way_to(mount: Mount) -> str:
    """Return the path by which this program reaches a mount, in another's view too."""
    if not mount.namespace:
        return mount.point
    return f"/proc/{mount.namespace}/root{mount.point}".rstrip("/")


def mount_number(descriptor: int) -> int:
    """Return the kernel's number of the mount a descriptor was opened through; 0: not known."""
    found = _MOUNT_NUMBER.search(sysfs.read_text(Path(f"/proc/self/fdinfo/{descriptor}")))
    return int(found[1]) if found else 0


class Stack:
    """All mounted filesystems and devices at one moment."""

    def __init__(self, mounts: Iterable[Mount] | None = None) -> None:
        self.mounts = all_mounts() if mounts is None else list(mounts)
        self._volumes = sysfs.btrfs_volumes()
        self._by_number = {mount.number: mount for mount in self.mounts if mount.number}
        #: Filesystem → its mounts, our own first.
        self.filesystems: dict[str, list[Mount]] = {}
        for mount in self.mounts:
            self.filesystems.setdefault(mount.device, []).append(mount)
        self._nodes: dict[str, list[Node]] = {}

    def filesystem_of(self, path: str | Path) -> str:
        """Return the filesystem a path lies on (links followed); nothing for none known.

        Of what does not exist yet, the folder counts. Nothing is opened but the name: no
        device, no pipe, no dead network server's file.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return self.filesystem_of(path.parent) if path.parent != path else ""
        except OSError:
            return ""
        try:
            mount = self._by_number.get(mount_number(descriptor))
        finally:
            os.close(descriptor)
        return mount.device if mount is not None else ""

    def devices_of(self, filesystem: str) -> list[Node]:
        """Return the devices a filesystem writes to: its own, its members, its journal's."""
        if filesystem not in self._nodes:
            self._nodes[filesystem] = self._find_devices(filesystem)
        return self._nodes[filesystem]

    def overlaid(self, filesystem: str) -> list[str]:
        """Return the folders that an overlay is made of, its upper one first; of others none."""
        folders = [
            folder
            for mount in self.filesystems.get(filesystem, ())
            if mount.kind == "overlay"
            for folder in (mount.option("upperdir"), *mount.option("lowerdir").split(":"))
        ]
        # Named in the view of whoever mounted it; absolute or not to be found.
        return [folder for folder in folders if folder.startswith("/")]

    def below_filesystem(self, filesystem: str) -> Below:
        """Return what a filesystem stands on; it itself is not in it."""
        found = Below()
        self._descend_filesystem(filesystem, found)
        found.filesystems.discard(filesystem)
        return found

    def below_device(self, node: Node) -> Below:
        """Return what a device stands on, itself included."""
        found = Below()
        self._descend(node, found)
        return found

    def below_path(self, path: str | Path) -> Below:
        """Return what a file or folder stands on, its filesystem included."""
        found = Below()
        filesystem = self.filesystem_of(path)
        if filesystem:
            found.filesystems.add(filesystem)
            self._descend_filesystem(filesystem, found)
        return found

    # -- downwards ----------------------------------------------------------------------

    def _descend_filesystem(self, filesystem: str, found: Below) -> None:
        for node in self.devices_of(filesystem):
            self._descend(node, found)
        for folder in self.overlaid(filesystem):
            self._stand_on_file(folder, found)

    def _descend(self, node: Node, found: Below) -> None:
        if node.number in found.nodes:
            return
        found.nodes[node.number] = node
        for below in (node.whole, *node.slaves()):
            self._descend(below, found)
        backing = sysfs.loop_backing_file(node)
        if not backing:
            return
        device = sysfs.node_of(backing)
        if device is not None:
            self._descend(device, found)
            return
        self._stand_on_loop_file(node, backing, found)

    def _stand_on_loop_file(self, node: Node, backing: str, found: Below) -> None:
        asked = sysfs.asked_backing(node)
        try:
            status = Path(backing).stat()
        except OSError:
            status = None
        here = (status.st_dev, status.st_ino) if status is not None else None
        if here is not None and asked in (None, here):
            self._stand_on_file(backing, found)
            return
        # Deleted, or of another view: another file may have that path in ours.
        number = f"{os.major(asked[0])}:{os.minor(asked[0])}" if asked is not None else ""
        if number in self.filesystems:
            self._add(number, found)
        else:
            found.unknown = True

    def _stand_on_file(self, path: str, found: Below) -> None:
        filesystem = self.filesystem_of(path)
        if filesystem:
            self._add(filesystem, found)
        else:
            found.unknown = True

    def _add(self, filesystem: str, found: Below) -> None:
        if filesystem not in found.filesystems:
            found.filesystems.add(filesystem)
            self._descend_filesystem(filesystem, found)

    # -- a filesystem's own devices -----------------------------------------------------

    def _find_devices(self, filesystem: str) -> list[Node]:
        mounts = self.filesystems.get(filesystem, [])
        if not mounts:
            return []
        found: dict[str, Node] = {}
        names = [name for mount in mounts for name in mount.second_devices]
        if filesystem.startswith("0:"):
            # Those with a number of their own name a device; bcachefs several, with colons.
            names += [name for mount in mounts for name in mount.source.split(":")]
        own = sysfs.node_of_number(filesystem)
        named = (sysfs.node_of(name) for name in names if name.startswith("/dev/"))
        for node in (own, *named):
            if node is not None:
                found[node.number] = node
        if mounts[0].kind == "btrfs":
            members = self._btrfs_members(mounts, set(found))
            found |= {member.number: member for member in members}
        if own is not None and mounts[0].kind in ("ext3", "ext4"):
            found |= {node.number: node for node in _external_journal(own)}
        return list(found.values())

    def _btrfs_members(self, mounts: list[Mount], named: set[str]) -> list[Node]:
        for volume in self._volumes:
            if named & {member.number for member in volume.devices}:
                return list(volume.devices)
        # It was mounted by a name that is gone (`/dev/root`): the filesystem itself knows.
        uuid = self._ask_uuid(mounts)
        return [
            member
            for volume in self._volumes
            if volume.uuid == uuid or not uuid
            for member in volume.devices
        ]

    @staticmethod
    def _ask_uuid(mounts: list[Mount]) -> str:
        for mount in mounts:
            try:
                descriptor = os.open(way_to(mount), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                if mount_number(descriptor) in (0, mount.number):
                    return btrfs_uuid(descriptor)
            finally:
                os.close(descriptor)
        return ""


def _external_journal(node: Node) -> list[Node]:
    """Return the device of an ext3/4's journal where it is another one.

    No option names it. But the journal has a thread, whose name is `jbd2/` and that of the
    journal: `sda1-8` for a file of the filesystem itself, `sdb1` for a device. The kernel
    may cut the thread's name, so what it can mean is looked up among all journals.
    """
    thread = sysfs.read_number(_EXT / node.name / "journal_task")
    name = sysfs.read_text(Path(f"/proc/{thread}/comm")).removeprefix("jbd2/")
    if not thread or not name or name.startswith(f"{node.name}-"):
        return []
    try:
        journals = [entry.name for entry in _JOURNALS.iterdir()]
    except OSError:
        return []
    found = (sysfs.node_of(f"/dev/{each}") for each in journals if each.startswith(name))
    return [other for other in found if other is not None and other.number != node.number]
