"""Whether all that a file stands on is in an image, on real mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.shadow.scope import Scope
from freezeframe.system import sysfs
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.system.sysfs import Node
from freezeframe.testing.frozen import mounted_at, mounted_disk

pytestmark = pytest.mark.root


def node_of(path: str) -> Node:
    node = sysfs.node_of(path)
    assert node is not None
    return node


def test_files_links_loops_and_overlays(tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "ext4", "one", size=96 * MIB) as one:
        image = one.point / "inner.raw"
        image.touch()
        os.truncate(image, 32 * MIB)
        run(("mkfs.ext4", "-q", "-F", str(image)))
        folders = [one.point / name for name in ("lower", "upper", "work", "seen")]
        for folder in folders:
            folder.mkdir()
        lower, upper, work, seen = folders
        (one.point / "out").symlink_to(tmp_path)
        (tmp_path / "in").symlink_to(one.point)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        outside = f"lowerdir={tmp_path},upperdir={upper},workdir={work}"
        with attached(image) as inner, mounted_at(inner, tmp_path / "inner") as inside:
            scope = Scope.of([one.node])
            assert scope.covers(one.point / "file that is not there yet")
            assert scope.covers(tmp_path / "in" / "lower")
            # On a filesystem in a file of it.
            assert scope.covers(inside)
            assert not scope.covers(tmp_path)
            assert not scope.covers(one.point / "out")
            assert not scope.touches(tmp_path)
            assert not scope.covers("/proc/self")
            narrow = Scope.of([node_of(inner)])
            assert narrow.covers(inside)
            assert not narrow.covers(one.point)
            assert not narrow.touches(one.point)
        for each, whole in ((options, True), (outside, False)):
            run(("mount", "-t", "overlay", "overlay", "-o", each, str(seen)))
            try:
                scope = Scope.of([one.node])
                assert scope.covers(seen / "file") is whole
                assert scope.touches(seen / "file")
            finally:
                run(("umount", str(seen)))


def test_a_filesystem_of_several_devices(tmp_path: Path) -> None:
    images = [tmp_path / f"{number}.raw" for number in range(2)]
    for image in images:
        image.touch()
        os.truncate(image, 160 * MIB)
    with attached(images[0]) as first, attached(images[1]) as second:
        run(("mkfs.btrfs", "-q", "-f", first, second))
        run(("btrfs", "device", "scan", first, second))
        with mounted_at(first, tmp_path / "seen") as seen:
            one, two = node_of(first), node_of(second)
            assert Scope.of([one, two]).covers(seen / "file")
            assert not Scope.of([two]).covers(seen / "file")
            assert Scope.of([two]).touches(seen / "file")
        run(("btrfs", "device", "scan", "--forget"), ok=(0, 1))
