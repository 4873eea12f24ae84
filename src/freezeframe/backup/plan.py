"""What of which disks an image will hold: decided before a byte of data is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Protocol

from freezeframe.block.base import Reader
from freezeframe.block.window import Window
from freezeframe.core.errors import SourceError
from freezeframe.core.extents import Extents
from freezeframe.core.units import human_size
from freezeframe.fs.base import PeerList, Peers, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import LARGEST_DISK
from freezeframe.layout.base import DiskLayout, Region, Role
from freezeframe.layout.capture import capture

#: Characters of a disk's name: with a number behind, a file's name still.
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Source:
    """One disk to image: an open reader and what is known of it besides its bytes."""

    reader: Reader
    #: Where it was opened; goes into the manifest and the snapshot's paths.
    path: str
    model: str = ""
    serial: str = ""
    #: Where other programs can read the same bytes, if not there: what is imported is unpacked.
    shown_at: str = ""


@dataclass(frozen=True, slots=True)
class PlannedRegion:
    """A region of a disk and the used map of what is in it (none for tables and gaps)."""

    region: Region
    content: UsedMap | None
    #: What of it the image will hold, in bytes of the disk.
    used: Extents


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk as it will be imaged."""

    name: str
    source: Source
    layout: DiskLayout
    regions: tuple[PlannedRegion, ...]
    #: Everything the image will hold, in bytes of the disk.
    used: Extents
    #: The part of `used` that must be read; the rest is known to be zeros (holes of a file).
    to_read: Extents

    @property
    def reader(self) -> Reader:
        """The disk's reader."""
        return self.source.reader


class MapReader(Protocol):
    """What reads a used map: `fs.detect.used_map`, or something that knows more."""

    def __call__(self, reader: Window, peers: Peers) -> UsedMap:
        """Return the map of a region; `reader.base` is the reader of its disk."""


def plan_disks(
    sources: Sequence[Source],
    *,
    everything: bool = False,
    read_map: MapReader = used_map,
    layouts: Sequence[DiskLayout] | None = None,
) -> tuple[DiskPlan, ...]:
    """Capture every disk's layout and every region's used map.

    `everything` takes every byte, used or not, unallocated gaps as well. Filesystems that
    span several disks find their other parts among all the regions of all the sources.
    `layouts`, where given, are taken as they are.
    """
    for source in sources:
        if source.reader.size > LARGEST_DISK:
            raise SourceError(
                f"{source.path} is {human_size(source.reader.size)} long;"
                f" a disk of an image ends at {human_size(LARGEST_DISK)}"
            )
    if layouts is None:
        layouts = [
            capture(source.reader, source.shown_at or source.path, keep_gaps=everything)
            for source in sources
        ]
    windows = [
        _windows(source.reader, layout) for source, layout in zip(sources, layouts, strict=True)
    ]
    peers = PeerList(tuple(window for disk in windows for window in disk.values()))
    names = _names([source.path for source in sources])
    plans = []
    for source, layout, name, regions in zip(sources, layouts, names, windows, strict=True):
        planned = tuple(
            _plan_region(region, regions.get(region.start), layout, peers, everything, read_map)
            for region in layout.regions
        )
        used = layout.used_outside
        for part in planned:
            used = used | part.used
        holes = source.reader.data_extents()
        plans.append(DiskPlan(name, source, layout, planned, used, used & holes))
    return tuple(plans)


def _windows(reader: Reader, layout: DiskLayout) -> dict[int, Window]:
    """Return a reader for each region that may hold a filesystem, by its start."""
    return {
        region.start: Window(
            reader, region.start, region.length, name=f"{reader.name}#{region.number}"
        )
        for region in layout.regions
        if region.role in (Role.PARTITION, Role.WHOLE)
    }


def _plan_region(
    region: Region,
    window: Window | None,
    layout: DiskLayout,
    peers: Peers,
    everything: bool,
    read_map: MapReader,
) -> PlannedRegion:
    span = Extents.single(region.start, region.stop)
    if window is None:
        return PlannedRegion(region, None, layout.used_outside & span)
    content = read_map(window, peers)
    if everything:
        content = replace(content, used=Extents.single(0, region.length))
    return PlannedRegion(region, content, content.used.shift(region.start) & span)


def safe_name(name: str) -> str:
    """Return a name that may stand in any tree: of `[A-Za-z0-9._-]` only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _names(paths: Sequence[str]) -> list[str]:
    """Give each disk a folder name of `[A-Za-z0-9._-]`, no two the same."""
    taken: dict[str, int] = {}
    names = []
    for path in paths:
        plain = safe_name(PurePath(path).name).strip(".-")[:_LONGEST_NAME] or "disk"
        name, count = plain, 1
        while name in taken:
            count += 1
            name = f"{plain}-{count}"
        taken[name] = 1
        names.append(name)
    return names
