"""What an online image may take over from the one before, and what it must not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freezeframe.app.online import backup_online
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.image.manifest import HotProof, TrackRecord
from freezeframe.repo.repository import Repository
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.repositories import local_repository
from freezeframe.testing.tracking import ensure_mounts, node_of
from freezeframe.tracking.tracker import stop_number

pytestmark = pytest.mark.root

_LOW, _HIGH = 2048, 2048 + 16384


def give_numbers(disk: str | Path, first: int, second: int) -> None:
    table = f"label: gpt\n1: start={first}, size=16384\n2: start={second}, size=16384\n"
    run(("sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(disk)), stdin=table.encode())


def image(repository: Repository, device: str) -> TrackRecord:
    hot = backup_online(repository, [device], Silent()).manifest.hot
    assert isinstance(hot, HotProof)
    return hot.disks[0]


def test_a_partition_that_got_the_number_of_another(tmp_path: Path) -> None:
    ensure_mounts()
    disk = tmp_path / "disk.raw"
    disk.touch()
    os.truncate(disk, 20 * MIB)
    give_numbers(disk, _LOW, _HIGH)
    with disk.open("r+b") as file:
        for sector, letter in ((_LOW, b"A"), (_HIGH, b"B")):
            file.seek(sector * 512)
            file.write(letter * (8 * MIB))
    repository = local_repository(tmp_path / "repository")
    with attached(disk, partitions=True) as device:
        part = f"{device}p1"
        try:
            first = image(repository, part)
            assert (first.base, first.bytes_read) == ("", 8 * MIB)
            # Unchanged, it is trusted: what follows is not for want of a base.
            assert image(repository, part).bytes_read == 0
            give_numbers(device, _HIGH, _LOW)
            for number in ("1", "2"):
                run(("delpart", device, number))
            run(("partx", "-a", device))
            with Path(part).open("rb") as file:
                assert file.read(4) == b"BBBB"
            swapped = image(repository, part)
            assert (swapped.base, swapped.bytes_read) == ("", 8 * MIB)
            assert "other devices" in swapped.distrust[0]
        finally:
            stop_number(node_of(device).number)
