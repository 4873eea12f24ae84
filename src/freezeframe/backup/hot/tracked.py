"""The trackers of a hot image: one for each whole disk, whatever of it is imaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freezeframe.backup.hot.disk import HotDisk
from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE
from freezeframe.tracking import Tracker


@dataclass(slots=True, eq=False)
class Tracked:
    """A tracker and the sources on its disk."""

    tracker: Tracker
    disks: Sequence[HotDisk]
    #: Room for the numbers of granules that a harvest in the freeze finds.
    room: NDArray[np.int64]
    #: Harvested from a disk without requests since its writes were last drained.
    undrained: list[NDArray[np.int64]] = field(default_factory=list)

    def harvest(self, *, frozen: bool = False) -> int:
        """Take the marks, and give them to every source; return how many there were.

        Raises `HarvestOverflow` where it is `frozen` and there are more than there is room for.
        """
        granules = self.tracker.harvest(self.room if frozen else None)
        self._mark(granules)
        if self.bio_based and len(granules):
            self.undrained.append(granules.copy())
        return len(granules)

    @property
    def mode(self) -> str:
        """How writes are followed: `requests`, `bios`, or `classic` where there is no BTF."""
        return self.tracker.record.mode

    @property
    def bio_based(self) -> bool:
        """Whether the disk takes bios as they come (dm, md)."""
        return self.tracker.disk.bio_based

    def drained(self) -> None:
        """Mark again what was harvested while its writes may have been under way.

        A disk with requests marks a write when it is done. One without is marked when a write
        comes in as well, because when it is done only its tail may be reported: what was read
        between the two is old. Called when a freeze has waited for all writes.
        """
        for granules in self.undrained:
            self._mark(granules)
        self.undrained.clear()

    def _mark(self, granules: NDArray[np.int64]) -> None:
        for disk in self.disks:
            disk.marked(on_source(granules, disk))


def on_source(granules: NDArray[np.int64], disk: HotDisk) -> NDArray[np.int64]:
    """Turn granules of a whole disk into those of what is imaged of it."""
    start, count = disk.node.start, -(-disk.size // GRANULE)
    if start % GRANULE:
        extents = Extents.from_blocks(granules, GRANULE)
        return extents.shift(-start).clip(0, disk.size).units(GRANULE)
    # A copy: what a harvest returns is overwritten by the next.
    shifted = granules - start // GRANULE
    return shifted[(shifted >= 0) & (shifted < count)]
