"""What lies beneath a folder: its filesystem's devices, and what those are made of."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.system import sysfs
from freezeframe.system.mounts import Mount, own_mounts
from freezeframe.system.sysfs import Node


@dataclass(frozen=True, slots=True)
class Beneath:
    """Everything whose overwriting would destroy what lies in a folder."""

    #: Devices by number (`8:1`): filesystem's, partitions, whole disks, members of arrays.
    nodes: dict[str, Node] = field(default_factory=dict)
    #: Files that loop devices stand on: (`st_dev`, `st_ino`).
    files: set[tuple[int, int]] = field(default_factory=set)


def beneath(path: str | Path) -> Beneath:
    """Follow the filesystem a path lies on down to its disks.

    Through partitions, device-mapper, md, loop devices, btrfs and overlay. Network and
    memory filesystems have nothing beneath.
    """
    found = Beneath()
    _add_filesystem(str(path), found, depth=0)
    return found


def backing_disks(path: str | Path) -> set[str]:
    """Return the disks at the bottom of the filesystem a path lies on: `/dev/sda`."""
    return {
        node.path
        for node in beneath(path).nodes.values()
        if not node.partition and not node.slaves() and not sysfs.loop_backing_file(node)
    }


def lies_on(path: str | Path, device: str | Path) -> bool:
    """Whether overwriting `device` (a block device or a disk image file) would destroy `path`."""
    below = beneath(path)
    node = sysfs.node_of(device)
    if node is None:
        return _identity(device) in below.files
    if node.number in below.nodes:
        return True
    # A loop device over one of those is another name for it.
    backing = sysfs.loop_backing_file(node)
    return bool(backing) and lies_on(path, backing)


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


#: Loops upon loops, overlays upon overlays: nobody has more.
_DEEPEST = 16


def _add_filesystem(path: str, found: Beneath, depth: int) -> None:
    """Add what the filesystem under a path stands on."""
    identity = _identity(path)
    if identity is None or depth > _DEEPEST:
        return
    number = f"{os.major(identity[0])}:{os.minor(identity[0])}"
    mount = _mount_of(path)
    node = sysfs.node_of_number(number)
    if node is not None:
        _add_node(node, found, depth)
    if mount is None:
        return
    # Btrfs and others give files a device number of their own.
    for name in (mount.source, *mount.second_devices):
        other = sysfs.node_of(name) if name.startswith("/") else None
        if other is not None:
            _add_node(other, found, depth)
    if mount.kind == "overlay":
        for folder in (mount.option("upperdir"), *mount.option("lowerdir").split(":")):
            if folder:
                _add_filesystem(folder, found, depth + 1)


def _mount_of(path: str) -> Mount | None:
    """Return the mount a path lies on: the longest, and the last of several on one another."""
    real = os.path.realpath(path)
    best: Mount | None = None
    for mount in own_mounts():
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _add_node(node: Node, found: Beneath, depth: int) -> None:
    """Add a device and everything it is made of."""
    if node.number in found.nodes or depth > _DEEPEST:
        return
    found.nodes[node.number] = node
    _add_node(node.whole, found, depth + 1)
    for slave in node.slaves():
        _add_node(slave, found, depth + 1)
    for volume in sysfs.btrfs_volumes():
        if any(member.number == node.number for member in volume.devices):
            for member in volume.devices:
                _add_node(member, found, depth + 1)
    backing = sysfs.loop_backing_file(node)
    if not backing:
        return
    below = sysfs.node_of(backing)
    if below is not None:
        _add_node(below, found, depth + 1)
        return
    identity = sysfs.loop_backing(node)
    if identity is not None:
        found.files.add(identity)
    _add_filesystem(backing, found, depth + 1)
