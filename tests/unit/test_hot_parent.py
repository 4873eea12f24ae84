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


def parent_disk(bad: Extents) -> ParentDisk:
    return ParentDisk(
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


def test_what_was_unreadable_is_tried_again() -> None:
    bad = Extents.single(CHUNK + 4096, CHUNK + 8192)
    changed = Extents.single(0, GRANULE)
    disk = hot_disk(parent_disk(bad))
    assert disk.take_from_parent(changed).tolist() == [0, 1, 2]
    disk.estimate(Extents.single(0, SIZE))
    missing = Extents.single(3 * CHUNK, SIZE)
    assert disk.needed() == changed | bad | missing


def test_a_chunk_marked_all_over_is_rewritten() -> None:
    """One granule less, and some of it may be what the parent has."""
    per_chunk = CHUNK // GRANULE
    marked = [*range(per_chunk), *range(per_chunk, 2 * per_chunk - 1), 4 * per_chunk - 1]
    disk = hot_disk(parent_disk(Extents.empty()))
    disk.take_from_parent(Extents.from_blocks(np.array(marked, np.int64), GRANULE))
    assert disk.rewritten.tolist() == [True, False, False, False]
