"""Who uses a device or a disk image file, and whether that forbids reading or writing it.

What is found here explains; what enforces is O_EXCL on the device (`block.open`), which
also catches what no file of /proc or /sys tells.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system import sysfs
from freezeframe.system.beneath import backing_disks, lies_on
from freezeframe.system.mounts import Mount, all_mounts, swaps
from freezeframe.system.processes import Opener, openers_of_devices, openers_of_file, process_name
from freezeframe.system.sysfs import Node

__all__ = [
    "Use",
    "backing_disks",
    "lies_on",
    "openers",
    "read_only_users",
    "source_holders",
    "target_holders",
    "uses_of",
    "writers_of",
]

#: The kinds of device-mapper volumes, by the start of their uuid: what it is, how to end it.
_MAPPED = {
    "CRYPT": ("the encrypted volume", "cryptsetup close"),
    "LVM": ("the LVM volume", "lvchange -an"),
    "mpath": ("the multipath device", "multipath -f"),
}

#: A chain of devices upon devices is followed this far.
_DEEPEST = 8
#: Who has something open for writing is looked at so many times more, so many seconds apart.
_LOOKS = 5
_BETWEEN = 0.1


@dataclass(frozen=True, slots=True)
class Use:
    """One way a device or file is in use."""

    #: As an administrator says it: `mounted read-write at /srv`.
    text: str
    #: Whether it may write. What does not, does not forbid reading.
    writes: bool
    #: How to end it; nothing where that is not known.
    remedy: str = ""


def uses_of(path: str | Path) -> list[Use]:
    """Return how a block device (any part of it) or a file is in use; none for what is missing.

    Processes that only read are left out. Root sees everything; others what they may.
    """
    node = sysfs.node_of(path)
    if node is not None:
        return _uses_of_node(node, all_mounts(), 0)
    try:
        status = Path(path).stat()
    except OSError:
        return []
    if not stat.S_ISREG(status.st_mode):
        return []
    return _uses_of_file(status.st_dev, status.st_ino)


def source_holders(path: str | Path) -> tuple[str, ...]:
    """Return why a source cannot be imaged now, one reason a line; empty where it can."""
    return tuple(use.text for use in uses_of(path) if use.writes)


def target_holders(path: str | Path) -> tuple[str, ...]:
    """Return why a target must not be written now: a read-only mount is one reason, too."""
    return tuple(use.text for use in uses_of(path))


def read_only_users(node: Node) -> bool:
    """Whether a filesystem on this very device is mounted, and read-only."""
    uses = list(_mounts_on(node, all_mounts()))
    return bool(uses) and not any(use.writes for use in uses)


def openers(path: str | Path) -> list[Opener]:
    """Return the other processes that have a device (any part of it) or a file open."""
    node = sysfs.node_of(path)
    if node is not None:
        return _openers_of(_family(node))
    try:
        status = Path(path).stat()
    except OSError:
        return []
    return openers_of_file(status.st_dev, status.st_ino)


def writers_of(nodes: Iterable[Node]) -> list[Use]:
    """Return the other processes that have one of these very devices open for writing.

    Their partitions and disks are not looked at. Takes half a second where there are any:
    some only try a device for a moment.
    """
    members = list(nodes)
    return _written_by(lambda: _openers_of(members))


# -- devices --------------------------------------------------------------------------


def _family(node: Node) -> list[Node]:
    """Return the device and those that share its bytes: its partitions, or the disk it is on."""
    whole = node.whole
    return [node, whole] if node.partition else [node, *whole.partitions()]


def _uses_of_node(node: Node, mounts: list[Mount], depth: int) -> list[Use]:
    found = []
    for member in _family(node):
        prefix = "" if member.number == node.number else f"{member.path} is "
        uses = _direct_uses(member, mounts, depth)
        found += [Use(prefix + use.text, use.writes, use.remedy) for use in uses]
    return found + _written_by(lambda: _openers_of(_family(node)))


def _direct_uses(node: Node, mounts: list[Mount], depth: int) -> Iterator[Use]:
    """Give what uses this very device, not its partitions."""
    yield from _mounts_on(node, mounts)
    for swap in swaps():
        below = sysfs.node_of(swap.path) if swap.kind == "partition" else None
        if below is not None and below.number == node.number:
            yield Use("in use as swap", True, f"swapoff {swap.path}")
    for holder in node.holders():
        yield from _held_by(holder, mounts, depth)
    yield from _attached(sysfs.loops_over_device(node.number), mounts, depth)


def _held_by(holder: Node, mounts: list[Mount], depth: int) -> Iterator[Use]:
    """Give what a device made of another is, and what uses that in turn."""
    text, remedy = _made(holder)
    uses = _uses_of_node(holder, mounts, depth + 1) if depth < _DEEPEST else []
    for use in uses:
        # In the order in which they have to be ended.
        steps = "; ".join(step for step in (use.remedy, remedy) if step)
        yield Use(f"{text}, {use.text}", True, steps)
    if not uses:
        yield Use(text, True, remedy)


def _made(holder: Node) -> tuple[str, str]:
    """Return what a device is to those it is made of, and how to end it."""
    name = sysfs.read_text(holder.folder / "dm/name")
    if name:
        kind = sysfs.read_text(holder.folder / "dm/uuid").partition("-")[0]
        what, command = _MAPPED.get(kind, ("the device-mapper volume", "dmsetup remove"))
        return f"part of {what} {name}", f"{command} {holder.path if kind == 'LVM' else name}"
    if holder.name.startswith("md"):
        return f"a member of the RAID array {holder.path}", f"mdadm --stop {holder.path}"
    return f"held by {holder.path}", ""


def _mounts_on(node: Node, mounts: Iterable[Mount]) -> Iterator[Use]:
    """Give the mounted filesystems that use a device, each place of each once."""
    mounts = list(mounts)
    seen: set[tuple[str, int]] = set()
    for mount in mounts:
        part = _part_in(mount, node)
        if part is not None and (mount.point, mount.namespace) not in seen:
            seen.add((mount.point, mount.namespace))
            yield _mounted(mount, part)
    yield from _btrfs_on(node, mounts, bool(seen))
    # Ext3/4 name a journal of their own device `sda1-8`, and one on another device by it alone.
    if not seen and Path("/proc/fs/jbd2", node.name).exists():
        yield Use("the journal of a mounted filesystem", True)


def _part_in(mount: Mount, node: Node) -> str | None:
    """Return what a device is to a mount: `` for its filesystem, or what else; None for nothing."""
    if mount.device == node.number:
        return ""
    # Btrfs, FUSE and others have a number of their own and name the device.
    if mount.device.startswith("0:") and _names(mount.source, node):
        return ""
    if any(_names(second, node) for second in mount.second_devices):
        return "the log or realtime device of the filesystem "
    return None


def _names(path: str, node: Node) -> bool:
    below = sysfs.node_of(path) if path.startswith("/dev/") else None
    return below is not None and below.number == node.number


def _mounted(mount: Mount, part: str = "") -> Use:
    access = "read-only" if mount.read_only else "read-write"
    text = f"{part}mounted {access} at {mount.point}"
    remedy = f"umount {mount.point}"
    if mount.namespace:
        owner = f"pid {mount.namespace} ({process_name(mount.namespace)})"
        return Use(f"{text} in the view of {owner}", not mount.read_only, f"stop {owner}")
    if mount.point == "/":
        remedy = "start the machine from another medium"
    return Use(text, not mount.read_only, remedy)


def _btrfs_on(node: Node, mounts: Iterable[Mount], known: bool) -> Iterator[Use]:
    """Give the btrfs filesystems of several devices that this one belongs to."""
    for volume in sysfs.btrfs_volumes():
        numbers = {member.number for member in volume.devices}
        if known or node.number not in numbers:
            continue
        its = [m for m in mounts if m.kind == "btrfs" and _source_number(m) in numbers]
        for mount in its:
            yield _mounted(mount, "part of the btrfs ")
        if not its:
            # In use, and where is not to be seen: taken for the worse.
            yield Use(f"part of the mounted btrfs {volume.label or volume.uuid}", True)


def _source_number(mount: Mount) -> str:
    below = sysfs.node_of(mount.source)
    return below.number if below is not None else ""


# -- files and processes --------------------------------------------------------------


def _uses_of_file(device: int, inode: int) -> list[Use]:
    found = list(_attached(sysfs.loops_over(device, inode), all_mounts(), 0))
    return found + _written_by(lambda: openers_of_file(device, inode))


def _attached(loops: Iterable[Node], mounts: list[Mount], depth: int) -> Iterator[Use]:
    """Give the loop devices over something, and what uses them in turn."""
    for loop in loops:
        text = f"attached as {loop.path}"
        uses = _uses_of_node(loop, mounts, depth + 1) if depth < _DEEPEST else []
        for use in uses:
            yield Use(f"{text}, {use.text}", use.writes, use.remedy)
        if not uses:
            yield Use(text, False, f"losetup -d {loop.path}")


def _openers_of(nodes: Iterable[Node]) -> list[Opener]:
    found = list(nodes)
    return openers_of_devices(
        {node.rdev for node in found}, {node.name.rpartition("!")[2] for node in found}
    )


def _written_by(look: Callable[[], list[Opener]]) -> list[Use]:
    """Give the processes that have something open for writing, and go on having it.

    Some only try a device for a moment, as losetup does that looks for a free one.
    """
    writers = [process for process in look() if process.writing]
    for _ in range(_LOOKS):
        if not writers:
            return []
        time.sleep(_BETWEEN)
        still = {process.pid for process in look() if process.writing}
        writers = [process for process in writers if process.pid in still]
    return [Use(f"open for writing by {writer}", True, f"stop {writer}") for writer in writers]
