"""The trackers of a hot image: one for each whole disk, whatever of it is imaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def harvest(self, *, frozen: bool = False) -> int:
        """Take the marks, and give them to every source; return how many there were.

        Raises `HarvestOverflow` where it is `frozen` and there are more than there is room for.
        """
        granules = self.tracker.harvest(self.room if frozen else None)
        for disk in self.disks:
            disk.marked(on_source(granules, disk))
        return len(granules)


def on_source(granules: NDArray[np.int64], disk: HotDisk) -> NDArray[np.int64]:
    """Turn granules of a whole disk into those of what is imaged of it."""
    start, count = disk.node.start, -(-disk.size // GRANULE)
    if start % GRANULE:
        extents = Extents.from_blocks(granules, GRANULE)
        return extents.shift(-start).clip(0, disk.size).units(GRANULE)
    # A copy: what a harvest returns is overwritten by the next.
    shifted = granules - start // GRANULE
    return shifted[(shifted >= 0) & (shifted < count)]
