"""Start and stop tracking writes to disks, and tell what is tracked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freezeframe.core.errors import FreezeframeError, UsageError
from freezeframe.system import sysfs
from freezeframe.system.beneath import beneath
from freezeframe.system.disks import list_disks
from freezeframe.system.mounts import Mount, own_mounts
from freezeframe.system.sysfs import Node
from freezeframe.tracking import TrackerStatus, open_running, running, start
from freezeframe.tracking.tracker import stop_number


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one disk."""

    path: str
    #: `started`, `running`, `stopped`, `not tracked` or `failed`.
    state: str
    #: Why, where there is something to say.
    reason: str = ""
    hint: str = ""


def start_tracking(paths: Sequence[str] = ()) -> Iterator[Outcome]:
    """Track the disks named, or every disk that holds a mounted filesystem.

    A disk that cannot be tracked does not keep the others from it. Needs root. Raises
    `UsageError` for a path that is no block device.
    """
    for node in _nodes(paths) if paths else disks_in_use():
        try:
            yield _start(node)
        except FreezeframeError as error:
            yield Outcome(node.path, "failed", error.message, error.hint)


def _start(node: Node) -> Outcome:
    before = open_running(node)
    generation = before.generation if before is not None else ""
    if before is not None:
        before.close()
    with start(node) as tracker:
        if tracker.generation == generation:
            return Outcome(node.path, "running")
        return Outcome(node.path, "started", tracker.record.replaced)


def stop_tracking(paths: Sequence[str] = ()) -> Iterator[Outcome]:
    """Stop tracking the disks named, or all: the next image of each is read in full."""
    if paths:
        numbers = {node.number: node.path for node in _nodes(paths)}
    else:
        numbers = {status.disk.number: f"/dev/{status.disk.name}" for status in running()}
    for number, path in numbers.items():
        try:
            stopped = stop_number(number)
        except FreezeframeError as error:
            yield Outcome(path, "failed", error.message, error.hint)
        else:
            yield Outcome(path, "stopped" if stopped else "not tracked")


def tracked() -> list[TrackerStatus]:
    """Return what is tracked."""
    return running()


def disks_in_use() -> list[Node]:
    """Return the disks at the bottom of all mounted filesystems, by name; swap does not count.

    A filesystem on LVM, RAID or a loop device counts for the disks beneath: that is where
    its writes arrive. Memory, optical drives and read-only devices are left out.
    """
    known = {disk.name for disk in list_disks() if not disk.read_only}
    found: dict[str, Node] = {}
    for mount in own_mounts():
        if not _on_a_device(mount):
            continue
        for node in beneath(mount.point).nodes.values():
            if _is_bottom(node) and node.name in known and not sysfs.loop_backing_file(node):
                found[node.name] = node
    return [found[name] for name in sorted(found)]


def _is_bottom(node: Node) -> bool:
    """Whether a device is a disk and not made of others; several paths to one count as one."""
    if node.partition or any(holder.multipath for holder in node.holders()):
        return False
    return node.multipath or not node.slaves()


def _on_a_device(mount: Mount) -> bool:
    """Whether a mount is worth following; one of the network may not even answer."""
    return mount.source.startswith("/dev/") or sysfs.node_of_number(mount.device) is not None


def _nodes(paths: Sequence[str]) -> list[Node]:
    found: dict[str, Node] = {}
    for path in paths:
        node = sysfs.node_of(path)
        if node is None:
            raise UsageError(
                f"{path} is no block device",
                hint="name a disk: freezeframe disks lists them",
            )
        found[node.whole.number] = node.whole
    return list(found.values())
