"""A disk that is reached by several paths is tracked as one, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.app.track import _is_bottom
from freezeframe.core.errors import TrackingUnavailable
from freezeframe.system.sysfs import Node
from freezeframe.tracking.disk import TrackedDisk, refuse_untrackable

DISK = TrackedDisk("sda", "8:0", 1 << 30, 1, "", "", bio_based=False)


def device(folder: Path, name: str, number: str, uuid: str = "") -> Node:
    """Make what the kernel shows of a device."""
    place = folder / name
    (place / "holders").mkdir(parents=True)
    (place / "slaves").mkdir()
    (place / "dev").write_text(number)
    if uuid:
        (place / "dm").mkdir()
        (place / "dm" / "uuid").write_text(uuid)
    return Node(name, number, place, 0)


def join(upper: Node, *lower: Node) -> None:
    for each in lower:
        (each.folder / "holders" / upper.name).symlink_to(upper.folder)
        (upper.folder / "slaves" / each.name).symlink_to(each.folder)


def test_paths_are_refused_and_the_disk_above_is_taken(tmp_path: Path) -> None:
    first, second = device(tmp_path, "sda", "8:0"), device(tmp_path, "sdb", "8:16")
    above = device(tmp_path, "dm-0", "253:0", "mpath-3600a0b80000f4e4b")
    join(above, first, second)
    for path in (first, second):
        assert not _is_bottom(path)
        with pytest.raises(TrackingUnavailable, match="one of several paths") as refused:
            refuse_untrackable(path, DISK)
        assert refused.value.hint == "name /dev/dm-0"
    assert _is_bottom(above)
    refuse_untrackable(above, DISK)


def test_a_volume_is_no_second_path(tmp_path: Path) -> None:
    disk = device(tmp_path, "sda", "8:0")
    volume = device(tmp_path, "dm-1", "253:1", "LVM-abcdef")
    join(volume, disk)
    assert _is_bottom(disk)
    assert not _is_bottom(volume)
    refuse_untrackable(disk, DISK)
