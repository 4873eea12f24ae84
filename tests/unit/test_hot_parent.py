"""What an online image counts on of the one before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from freezeframe.backup.hot.disk import HotDisk
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import RememberingReader
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, GRANULE
from freezeframe.image.parent import ParentDisk
from freezeframe.system.sysfs import Node

SIZE = 4 * CHUNK


def hot_disk(parent: ParentDisk) -> HotDisk:
    reader = MemoryBlocks(bytes(SIZE))
    return HotDisk(
        number=0,
        path="/dev/sda",
        node=Node("sda", "8:0", Path("/sys/none"), 0),
        reader=reader,
        memory=RememberingReader(reader),
        overlay=GranuleOverlay(SIZE, CHUNK),
        parent=parent,
    )


def test_what_was_unreadable_is_tried_again() -> None:
    bad = Extents.single(CHUNK + 4096, CHUNK + 8192)
    changed = Extents.single(0, GRANULE)
    parent = ParentDisk(
        image="0" * 64,
        size=SIZE,
        ids=np.zeros((4, 32), np.uint8),
        fine={},
        sums=np.zeros((4, 16), np.uint8),
        usable=np.array([True, True, True, False]),
        zero=np.zeros(4, np.bool_),
        used=Extents.single(0, SIZE),
        unreadable=bad,
    )
    disk = hot_disk(parent)
    assert disk.take_from_parent(changed).tolist() == [0, 1, 2]
    disk.estimate(Extents.single(0, SIZE))
    missing = Extents.single(3 * CHUNK, SIZE)
    assert disk.needed() == changed | bad | missing
