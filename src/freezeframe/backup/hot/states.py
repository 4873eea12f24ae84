"""What may be believed of each region of a disk in use: who writes to it, and who stops."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from freezeframe.core.extents import Extents
from freezeframe.fs.base import State
from freezeframe.image.manifest import Consistency
from freezeframe.layout.base import DiskLayout, Role
from freezeframe.shadow.filesystems import MountedFilesystem
from freezeframe.shadow.outsiders import Outsider
from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node


@dataclass(frozen=True, slots=True)
class RegionState:
    """How one region of a disk in use is taken."""

    #: FROZEN where every filesystem on it is frozen, AT_REST where nobody uses it, LIVE where
    #: somebody writes on through the freeze: then all of it counts as used.
    state: State
    #: What may be said of it in the image.
    consistency: Consistency
    #: Why it is not frozen; nothing where there is nothing to say.
    note: str = ""
    #: Logical volumes on it that are frozen, by `group/volume`.
    volumes: Mapping[str, State] | None = None


def region_states(
    node: Node,
    layout: DiskLayout,
    filesystems: Sequence[MountedFilesystem],
    unfreezable: Iterable[str],
    outsiders: Sequence[Outsider],
) -> dict[int, RegionState]:
    """Return the state of each region that may hold something, by its start in bytes.

    `node` is the device that is imaged, `unfreezable` the device numbers (`MountedFilesystem.
    device`) of the filesystems that write on.
    """
    partitions = {part.start - node.start: part for part in node.partitions()}
    cannot = set(unfreezable)
    found: dict[int, RegionState] = {}
    for region in layout.regions:
        if region.role not in (Role.PARTITION, Role.WHOLE):
            # Nobody mounts it; should anybody write to it, its marks will tell.
            found[region.start] = RegionState(State.AT_REST, Consistency.FROZEN)
            continue
        here = node if region.role is Role.WHOLE else partitions.get(region.start)
        if here is None:
            # The kernel knows no such partition, so nobody can have mounted it.
            found[region.start] = RegionState(State.AT_REST, Consistency.FROZEN)
            continue
        raw = [each for each in outsiders if _concerns(each, node, here, region.length)]
        found[region.start] = _state(here, filesystems, cannot, raw)
    return found


def stirred_states(
    states: Mapping[int, RegionState], layout: DiskLayout, stirred: Extents, moving: Extents
) -> dict[int, RegionState]:
    """Return the states as they turned out: what was written to in the freeze was not frozen.

    `stirred` was written to and read again until nothing came any more, `moving` until the
    freeze had to end; both in bytes of the disk.
    """
    found = dict(states)
    for region in layout.regions:
        # What was not there when the image was begun: a partition made meanwhile.
        state = found.get(region.start, RegionState(State.LIVE, Consistency.CRASH))
        if moving.touches(region.start, region.stop):
            note = "written to all through the freeze: parts of it may be of different moments"
            state = replace(state, consistency=Consistency.MOVING, note=note)
        elif stirred.touches(region.start, region.stop) and state.state is not State.LIVE:
            note = "something other than its filesystem wrote to it during the freeze"
            state = replace(state, consistency=Consistency.CRASH, note=note)
        found[region.start] = state
    return found


def _state(
    node: Node,
    filesystems: Sequence[MountedFilesystem],
    cannot: set[str],
    raw: Sequence[Outsider],
) -> RegionState:
    above = list(_directly_on(node, filesystems))
    writable = [each for each in above if not each.read_only]
    if raw:
        note = f"written to past any freeze: {raw[0].text}"
        return RegionState(State.LIVE, Consistency.CRASH, note)
    if live := [each for each in writable if each.device in cannot]:
        kinds = ", ".join(sorted({each.kind for each in live}))
        note = f"{kinds} cannot be frozen: synced, and read until nothing was written meanwhile"
        return RegionState(State.LIVE, Consistency.CRASH, note)
    volumes = _volumes(node, writable)
    if not writable:
        return RegionState(State.AT_REST, Consistency.FROZEN)
    return RegionState(State.FROZEN, Consistency.FROZEN, "", volumes)


def _directly_on(
    node: Node, filesystems: Sequence[MountedFilesystem]
) -> Iterator[MountedFilesystem]:
    """Give the filesystems whose own devices stand on this one, by no loop file between."""
    for each in filesystems:
        for path in each.devices:
            own = sysfs.node_of(path)
            if own is not None and node.number in _beneath(own):
                yield each
                break


def _beneath(node: Node) -> set[str]:
    """Return the numbers of a device and of what it is made of: volumes, arrays, partitions."""
    found = {node.number}
    for below in node.slaves():
        found |= _beneath(below)
    return found


def _volumes(node: Node, filesystems: Sequence[MountedFilesystem]) -> dict[str, State] | None:
    """Return the state of the mounted logical volumes above a device; None where none is."""
    found: dict[str, State] = {}
    mounted: set[str] = set()
    for each in filesystems:
        for path in each.devices:
            own = sysfs.node_of(path)
            if own is not None:
                mounted |= _beneath(own)
    for volume in _all_holders(node):
        if sysfs.read_text(volume.folder / "dm/uuid").startswith("LVM-"):
            name = volume_name(sysfs.read_text(volume.folder / "dm/name"))
            found[name] = State.FROZEN if volume.number in mounted else State.AT_REST
    return found or None


def _all_holders(node: Node) -> Iterator[Node]:
    for holder in node.holders():
        yield holder
        yield from _all_holders(holder)


def volume_name(mapped: str) -> str:
    """Turn device-mapper's name of a logical volume, `my--group-root`, into `my-group/root`."""
    group, _, volume = (part.replace("--", "-") for part in _split(mapped))
    return f"{group}/{volume}"


def _split(mapped: str) -> tuple[str, str, str]:
    found = re.search(r"(?<!-)-(?!-)", mapped)
    if found is None:
        return mapped, "", ""
    return mapped[: found.start()], "-", mapped[found.end() :]


def _concerns(outsider: Outsider, disk: Node, node: Node, length: int) -> bool:
    """Whether something that writes past the filesystems may write to a region."""
    if outsider.kind == "swap":
        return False  # of swap only the header is kept, which nobody writes
    if not outsider.stretches:
        # On a volume above: wherever that is.
        return bool(node.holders())
    # Stretches count from the start of the whole disk, also where a partition was asked about.
    return any(
        each.disk == disk.number
        and each.start < node.start + length
        and node.start < each.start + each.length
        for each in outsider.stretches
    )


def swap_stretches(node: Node, outsiders: Sequence[Outsider]) -> Extents:
    """Return what of a disk is used as swap now, in its bytes, but the header's page.

    It is marked for ever, and none of it is kept.
    """
    return Extents.of(
        (each.start - node.start + SWAP_HEADER, each.start - node.start + each.length)
        for outsider in outsiders
        if outsider.kind == "swap"
        for each in outsider.stretches
        if each.disk == node.number and each.length > SWAP_HEADER
    )


#: Bytes kept of a swap area: its header, in pages of any size.
SWAP_HEADER = 65536
