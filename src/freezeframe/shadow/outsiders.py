"""What writes to disks past the filesystems on them: no freeze holds it, so the image says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freezeframe.shadow.stack import Stack
from freezeframe.system import sysfs
from freezeframe.system.holders import writers_of
from freezeframe.system.mounts import Swap, swaps
from freezeframe.system.sysfs import Node


@dataclass(frozen=True, slots=True)
class Stretch:
    """A range of a disk, in bytes."""

    #: The disk's device number.
    disk: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Outsider:
    """One thing that writes, or may write, past the filesystems."""

    kind: Literal["swap", "process", "unknown"]
    #: The device or swap file.
    path: str
    #: As an administrator says it: `/dev/sda2 is in use as swap`.
    text: str
    #: How to end it; nothing where that is not known.
    remedy: str = ""
    #: Where on the asked disks it writes; empty where that is not a plain range of one.
    stretches: tuple[Stretch, ...] = ()


def find_outsiders(disks: Sequence[Node], stack: Stack | None = None) -> list[Outsider]:
    """Return what writes to these disks, or devices on them, past any mounted filesystem.

    Swap (its marks never end: leave its stretches out), programs with a device open for
    writing, and devices the kernel holds for something not understood here: zfs, drbd, an
    exported device, a filesystem that was unmounted lazily. Needs root to see everything.
    """
    stack = stack or Stack()
    upon = _devices_upon(disks, stack)
    found = [_swap(swap, disks) for swap in swaps() if not _is_elsewhere(swap, disks, stack)]
    found += _processes(upon, disks)
    found += _unknown(upon, disks, stack)
    return found


def _devices_upon(disks: Sequence[Node], stack: Stack) -> dict[str, Node]:
    """Return the disks and every device that stands on one of them, by number."""
    wanted = {node.number for node in disks}
    found = {}
    for disk in sysfs.disks():
        for node in (disk, *disk.partitions()):
            if wanted & set(stack.below_device(node).nodes):
                found[node.number] = node
    return found


def _stretches(node: Node, disks: Sequence[Node]) -> tuple[Stretch, ...]:
    """Return where on the disks a device lies that is one of them, or a partition of one."""
    return tuple(
        Stretch(disk.number, node.start, node.size)
        for disk in disks
        if disk.number in (node.number, node.whole.number)
    )


def _is_elsewhere(swap: Swap, disks: Sequence[Node], stack: Stack) -> bool:
    node = sysfs.node_of(swap.path)
    below = stack.below_path(swap.path) if node is None else stack.below_device(node)
    return not below.unknown and not {disk.number for disk in disks} & set(below.nodes)


def _swap(swap: Swap, disks: Sequence[Node]) -> Outsider:
    node = sysfs.node_of(swap.path)
    return Outsider(
        kind="swap",
        path=swap.path,
        text=f"{swap.path} is in use as swap",
        remedy=f"swapoff {swap.path}",
        stretches=() if node is None else _stretches(node, disks),
    )


def _processes(upon: dict[str, Node], disks: Sequence[Node]) -> Iterator[Outsider]:
    # All at once first: mostly there is none, and each look goes through all processes.
    if not writers_of(upon.values()):
        return
    for node in upon.values():
        for use in writers_of([node]):
            yield Outsider(
                kind="process",
                path=node.path,
                text=f"{node.path} is {use.text}",
                remedy=use.remedy,
                stretches=_stretches(node, disks),
            )


def _unknown(upon: dict[str, Node], disks: Sequence[Node], stack: Stack) -> Iterator[Outsider]:
    """Give the devices that somebody in the kernel holds, and nothing else here explains."""
    explained = {node.number for device in stack.filesystems for node in stack.devices_of(device)}
    explained |= {node.number for swap in swaps() if (node := sysfs.node_of(swap.path))}
    for node in upon.values():
        known = node.number in explained or node.partitions() or node.holders()
        if known or not _is_claimed(node):
            continue
        yield Outsider(
            kind="unknown",
            path=node.path,
            text=f"{node.path} is held by something that is neither mounted nor a volume",
            stretches=_stretches(node, disks),
        )


def _is_claimed(node: Node) -> bool:
    """Whether the device cannot be had exclusively. Opens it for reading for a moment."""
    try:
        descriptor = os.open(Path(node.path), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        return error.errno == errno.EBUSY
    os.close(descriptor)
    return False
