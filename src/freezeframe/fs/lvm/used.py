"""What of an LVM2 physical volume is in use: its metadata, and what its volumes use.

Of a plain logical volume that is what the filesystem inside uses; of everything else
(thin pools, snapshots and their origins, caches, RAID, mirrors) all extents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, SourceError, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import SECTOR
from freezeframe.fs.base import PeerList, Peers, State, UsedMap
from freezeframe.fs.lvm.group import Logical
from freezeframe.fs.lvm.members import Device, Membership, find_group, open_device
from freezeframe.fs.lvm.structs import LABEL_SECTORS, dashed, find_label
from freezeframe.fs.lvm.volume import LogicalVolume
from freezeframe.fs.probe import peek


class Identify(Protocol):
    """Tells what of a volume is in use, whatever it holds, and never raises for that."""

    def __call__(self, reader: Reader, peers: Peers, *, state: State) -> UsedMap:
        """Tell it, as `fs.detect.used_map` does."""


@dataclass(frozen=True, slots=True)
class LvmKind:
    """LVM2 physical volumes."""

    #: `freezeframe.fs.detect.used_map`, given from outside because it imports this.
    identify: Identify
    name: str = "lvm2"

    def recognise(self, reader: Reader) -> bool:
        """Whether one of the first four sectors is the label of an LVM2 physical volume."""
        raw = peek(reader, 0, min(LABEL_SECTORS * SECTOR, reader.size))
        return find_label(raw) >= 0

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return metadata areas, what lies before and behind the extents, and what volumes use.

        Other physical volumes of the group are found among `peers`; where one is missing,
        all extents of the volumes that need it count as used. Raises `NotUnderstood` where
        the group is not certain: damaged or older metadata, exported or partial groups.
        """
        if isinstance(reader, LogicalVolume):
            raise NotUnderstood("a physical volume inside a logical volume")
        own = open_device(reader)
        found = find_group(own, peers.regions())
        if found is None:
            return self._orphan(own)
        group, physical = found.group, found.physical
        if physical.name not in found.devices:
            raise NotUnderstood("an LVM physical volume that is larger than its device")
        used = _fixed(own, *group.place(physical, 0, physical.count))
        inside: dict[str, UsedMap] = {}
        notes = list(found.notes)
        for volume in group.logical:
            allocated = group.allocated(physical, volume)
            if not allocated:
                continue
            held, inside[volume.name] = self._volume(found, volume, allocated, peers, state)
            used |= held
            notes += [f"{volume.name}: {note}" for note in inside[volume.name].notes]
        piece = f"vgcfgbackup-{group.name.replace('+', '_')}.txt"
        return UsedMap(
            self.name,
            used,
            True,
            notes=tuple(notes),
            label=group.name,
            uuid=dashed(own.header.uuid),
            block_size=group.extent_size,
            span=group.place(physical, 0, physical.count)[1],
            pieces={piece: found.text},
            inside=inside,
        )

    def _orphan(self, own: Device) -> UsedMap:
        start = min((area.start for area in own.header.data), default=own.reader.size)
        used = _fixed(own, start, own.reader.size)
        notes = ("it belongs to no volume group",)
        return UsedMap(self.name, used, True, notes=notes, uuid=dashed(own.header.uuid))

    def _volume(
        self,
        found: Membership,
        volume: Logical,
        allocated: Extents,
        peers: Peers,
        state: State,
    ) -> tuple[Extents, UsedMap]:
        """Return what a logical volume needs of the region, and its own used map."""
        size = volume.extents * found.group.extent_size
        if not volume.plain:
            kinds = "+".join(dict.fromkeys(segment.kind for segment in volume.segments))
            return allocated, _whole(size, kinds, "all its extents count as used")
        missing = _missing(found, volume)
        if missing:
            note = f"physical volume {missing} is not among the disks of this image"
            return allocated, _whole(size, "unknown", note)
        try:
            opened = _opened(found, volume)
        except NotUnderstood as error:
            return allocated, _whole(size, "unknown", error.message)
        others = _others(found, opened, peers)
        inner = self.identify(opened, others, state=state)
        return opened.on_physical(found.physical, inner.used), inner


def open_volumes(regions: Sequence[Reader]) -> list[LogicalVolume]:
    """Return the plain logical volumes whose physical volumes are all among the regions.

    Each once, by group and name; what is damaged or not understood is left out.
    """
    found: dict[str, LogicalVolume] = {}
    for region in regions:
        with contextlib.suppress(NotUnderstood, UnreadableRange, SourceError):
            if find_label(peek(region, 0, min(LABEL_SECTORS * SECTOR, region.size))) < 0:
                continue
            member = find_group(open_device(region), regions)
            for volume in member.group.logical if member else ():
                if member and volume.plain and not _missing(member, volume):
                    opened = _opened(member, volume)
                    found.setdefault(opened.name, opened)
    return [found[name] for name in sorted(found)]


def _missing(found: Membership, volume: Logical) -> str:
    """Return the UUID of a physical volume that is needed and not there; none: empty."""
    for segment in volume.segments:
        for stripe in segment.stripes:
            if stripe.physical not in found.devices:
                return dashed(found.group.physical[stripe.physical].uuid)
    return ""


def _opened(found: Membership, volume: Logical) -> LogicalVolume:
    sector = found.devices[found.physical.name].sector
    return LogicalVolume(found.group, volume, found.devices, sector)


def _others(found: Membership, opened: LogicalVolume, peers: Peers) -> PeerList:
    """Return the peers of a volume: all regions, and all volumes of its group that open."""
    volumes: list[Reader] = [opened]
    for volume in found.group.logical:
        if volume.plain and volume.name != opened.volume.name and not _missing(found, volume):
            with contextlib.suppress(NotUnderstood):
                volumes.append(_opened(found, volume))
    return PeerList((*peers.regions(), *volumes))


def _fixed(own: Device, first: int, last: int) -> Extents:
    """Return what belongs to no volume: before the extents, behind them, metadata, boot."""
    areas = (*own.header.metadata, *own.header.boot)
    size = own.reader.size
    pairs = [(0, min(first, size)), (last, size), *((a.start, a.stop) for a in areas)]
    return Extents.of(pairs)


def _whole(size: int, kind: str, note: str) -> UsedMap:
    return UsedMap(kind, Extents.single(0, size), False, notes=(note,), span=size)
