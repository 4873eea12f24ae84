"""Online images of a disk with a partition table: read again and again, and once not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.app.online import backup_online
from freezeframe.backup.hot import maps
from freezeframe.backup.hot.engine import HotEngine
from freezeframe.core.progress import Silent
from freezeframe.image.manifest import HotProof
from freezeframe.system.loop import attached
from freezeframe.testing.inprocess import make_disk, make_files
from freezeframe.testing.repositories import local_repository
from freezeframe.testing.tracking import ensure_mounts, node_of
from freezeframe.testing.volumes import mounted_device
from freezeframe.tracking.tracker import stop_number

pytestmark = pytest.mark.root


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A disk with a GPT, its ext4 mounted."""
    ensure_mounts()
    disk = make_disk(tmp_path / "disk.raw", make_files(tmp_path / "files"))
    point = tmp_path / "mounted"
    point.mkdir()
    with attached(disk, partitions=True) as found:
        try:
            with mounted_device(f"{found}p1", "ext4", point, read_only=False):
                yield found
        finally:
            stop_number(node_of(found).number)


def image(device: str, folder: Path) -> HotProof:
    result = backup_online(local_repository(folder / "repository"), [device], Silent())
    assert result.manifest.disks[0].table == "gpt"
    assert result.manifest.hot is not None
    return result.manifest.hot


def test_many_estimates_do_not_forget_the_table(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge = HotEngine.converge

    def slowly(engine: HotEngine) -> None:
        for _ in range(3):
            maps.estimate(engine.world)
        converge(engine)

    monkeypatch.setattr(HotEngine, "converge", slowly)
    assert image(device, tmp_path).windows == 1


def test_a_view_without_the_table_costs_one_more_freeze(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converge = HotEngine.converge
    calls = []

    def forgetting(engine: HotEngine) -> None:
        converge(engine)
        if not calls:
            for disk in engine.world.disks:
                disk.memory.clear()
        calls.append(1)

    monkeypatch.setattr(HotEngine, "converge", forgetting)
    hot = image(device, tmp_path)
    assert hot.windows == 2
    assert "a freeze lacked something and was done again" in hot.notes
