"""Which mounted filesystems lie on some disks, in the order in which they can be frozen."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.stack import Below, Stack, mount_number, way_to
from freezeframe.system.mounts import Mount
from freezeframe.system.sysfs import Node

#: Kinds that have no freeze operation (measured; others are asked when the time comes).
_NO_FREEZING = frozenset({
    "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "fuse", "tmpfs", "ramfs", "overlay",
    "hfs", "hfsplus", "udf", "iso9660", "squashfs", "erofs", "zfs",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Way:
    """A path by which a filesystem is reached, and the number of the mount that is there."""

    path: str
    mount: int


@dataclass(frozen=True, slots=True)
class MountedFilesystem:
    """One mounted filesystem (a superblock), however often it is mounted."""

    #: The device number that all its mounts show: `8:1`, or `0:42` for btrfs.
    device: str
    kind: str
    #: Where it is mounted, as an administrator knows it; in whose view, where not in ours.
    point: str
    #: Ways to it, the best first.
    ways: tuple[Way, ...]
    #: Numbers of all devices beneath it: members, partitions, volumes, whole disks.
    numbers: frozenset[str]
    #: Those of its own: `/dev/sda1`; several for btrfs, or with a journal elsewhere.
    devices: tuple[str, ...]
    #: Nothing writes to it, so there is nothing to freeze.
    read_only: bool
    #: Whether its kind can be frozen. What is not known is tried: `Freezer.flush` tells.
    freezes: bool
    #: Other filesystems of the set (`device`) that hold files it lies on.
    sits_on: frozenset[str] = frozenset()
    #: Those of `numbers` that are made of no others: disks and partitions at the bottom.
    bottom: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class OnDisks:
    """The filesystems on some disks at one moment."""

    #: In the order of freezing: what lies on a file of another comes before that other.
    filesystems: tuple[MountedFilesystem, ...]
    #: Numbers of the disks asked for.
    disks: tuple[str, ...]
    #: Kinds that no device number leads to their disks (zfs): they may lie on these.
    untold: tuple[str, ...] = ()

    def same_as(self, other: OnDisks) -> bool:
        """Whether the same filesystems, as writable, were there at both moments."""
        return self._identity() == other._identity()

    def _identity(self) -> set[tuple[str, str, frozenset[str], frozenset[str]]]:
        # One that is read-only is not frozen, so it may come and go. What lies between it and
        # the bottom may too: copy-on-write is put beneath a volume, and taken away.
        writable = (f for f in self.filesystems if not f.read_only)
        return {(f.device, f.kind, frozenset(f.devices), f.bottom) for f in writable}


def find_filesystems(disks: Sequence[Node], stack: Stack | None = None) -> OnDisks:
    """Return every mounted filesystem with any of its data on one of these disks.

    Through partitions, device-mapper (LVM, LUKS), md, loop devices on files of such
    filesystems, btrfs of several devices, journals on other devices; in every view of the
    machine that root may see, each once. Filesystems without a device (overlay, tmpfs) are
    not among them: an overlay writes to its upper filesystem, which is. What cannot be
    followed to the bottom counts as lying on these disks. Takes some milliseconds.
    """
    stack = stack or Stack()
    wanted = {node.number for node in disks}
    found: dict[str, MountedFilesystem] = {}
    unknown: set[str] = set()
    for device, mounts in stack.filesystems.items():
        own = stack.devices_of(device)
        if not own:
            continue
        below = stack.below_filesystem(device)
        if below.unknown or wanted & set(below.nodes):
            found[device] = _described(mounts, own, below)
            if below.unknown:
                unknown.add(device)
    names = set(found)
    # What may lie on anything comes before everything that is known better.
    for device in unknown:
        known = found[device].sits_on | (names - unknown)
        found[device] = replace(found[device], sits_on=known)
    kept = {device: replace(each, sits_on=each.sits_on & names) for device, each in found.items()}
    order = freezing_order({device: each.sits_on for device, each in kept.items()})
    untold = {mounts[0].kind for mounts in stack.filesystems.values()} & {"zfs"}
    return OnDisks(
        tuple(kept[device] for device in order), tuple(sorted(wanted)), tuple(sorted(untold))
    )


def freezing_order(sits_on: Mapping[str, Set[str]]) -> list[str]:
    """Return the names so that each comes before those it sits on; else as they were.

    `sits_on` need not be transitive. Names it does not have as keys are left out. A circle
    cannot be made on a machine; what is in one comes last.
    """
    left = dict(sits_on)
    order: list[str] = []
    while left:
        beneath = {name for below in left.values() for name in below}
        ready = [name for name in left if name not in beneath] or list(left)
        order += ready
        for name in ready:
            del left[name]
    return order


def open_filesystem(filesystem: MountedFilesystem) -> int:
    """Return a descriptor of a mounted filesystem, for the calls that concern it as a whole.

    Makes sure that it is that filesystem: another may be mounted over it. `FreezeError`
    where no way leads there. The caller closes it; until then it cannot be unmounted.
    """
    for way in filesystem.ways:
        try:
            # Only named at first: opening a device or a pipe has effects.
            named = os.open(way.path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            mode = os.fstat(named).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                continue
            if way.mount and mount_number(named) not in (0, way.mount):
                continue
            return os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        finally:
            os.close(named)
    raise FreezeError(
        f"the {filesystem.kind} mounted at {filesystem.point} cannot be reached",
        hint="it was unmounted, or something else is mounted over it: unmount that, and try again",
    )


def disks_beneath(
    path: str | Path, disks: Sequence[Node], stack: Stack | None = None
) -> list[Node]:
    """Return those of the disks that what is written to a path goes to.

    For a repository, a log file, `/proc/self/fd/1`. All of them where that cannot be found
    out; none for what is in memory, on the network or a terminal. See `held_up` for what
    follows: a path may lie on a disk and yet on no filesystem that is frozen.
    """
    below = (stack or Stack()).below_path(path)
    return [node for node in disks if below.unknown or node.number in below.nodes]


def held_up(
    path: str | Path, filesystems: Iterable[MountedFilesystem], stack: Stack | None = None
) -> list[MountedFilesystem]:
    """Return the filesystems whose freezing holds up who writes to a path.

    The one it lies on, and those beneath that by way of loop files and overlays; all of
    them where that cannot be found out.
    """
    below = (stack or Stack()).below_path(path)
    return [each for each in filesystems if below.unknown or each.device in below.filesystems]


def _described(mounts: list[Mount], own: list[Node], below: Below) -> MountedFilesystem:
    # Our own view first; in it what was mounted first: mostly the place people know it by.
    first = mounts[0]
    seen = f" (in the view of process {first.namespace})" if first.namespace else ""
    return MountedFilesystem(
        device=first.device,
        kind=first.kind,
        point=first.point + seen,
        ways=tuple(Way(way_to(mount), mount.number) for mount in mounts),
        numbers=frozenset(below.nodes),
        devices=tuple(node.path for node in own),
        read_only=first.read_only,
        freezes=first.kind.partition(".")[0] not in _NO_FREEZING,
        sits_on=frozenset(below.filesystems),
        bottom=frozenset(node.number for node in below.nodes.values() if not node.slaves()),
    )
