"""Writes that the kernel never told the tracker of: seen by count, and everything read again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freezeframe.app.online import backup_online
from freezeframe.backup.hot.freezing import Freezing
from freezeframe.core.errors import TrackingBusy, WritesLeftOut
from freezeframe.core.progress import Silent
from freezeframe.core.units import GRANULE, KIB, MIB
from freezeframe.repo.repository import Repository
from freezeframe.system.run import run
from freezeframe.testing.frozen import MountedDisk, is_frozen, mounted_disk
from freezeframe.testing.hot import SETTINGS, image_hot, untrack
from freezeframe.testing.repositories import restic
from freezeframe.testing.tracking import DirectFile, node_of, tracked_loop
from freezeframe.tracking import (
    Base,
    Distrust,
    Tracker,
    changed_since,
    counting,
    open_running,
    remember_base,
)

pytestmark = pytest.mark.root

#: Where the counters of the listeners lie in the map: `STATE_SECTORS` of tracker.h.
_SECTORS = slice(88, 112)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path, "ext4", size=96 * MIB) as disk:
        try:
            (disk.point / "file").write_bytes(os.urandom(8 * MIB))
            run(("sync", "-f", str(disk.point)))
            yield disk
        finally:
            untrack(disk.device)


def leave_out(tracker: Tracker, write: Callable[[], object]) -> None:
    """Have the tracker as it would be if the kernel had told it nothing of a write."""
    flags, sectors = tracker._flags.copy(), bytes(tracker._state[_SECTORS])
    write()
    tracker._flags[:] = flags
    tracker._state[_SECTORS] = sectors


def test_the_two_counts_grow_alike(tmp_path: Path) -> None:
    """Writes of every kind: what the listeners count is what the kernel does."""
    with (
        tracked_loop(tmp_path / "disk", 64 * MIB) as (device, tracker),
        DirectFile(device) as file,
    ):
        number = tracker.disk.number

        def ahead() -> set[int]:
            theirs = counting.written(number)
            assert theirs is not None
            return {theirs - ours for ours in tracker.state().sectors}

        (before,) = ahead()
        written = 0
        for length in (512, 4 * KIB, 64 * KIB, 5 * MIB):
            file.write(MIB, os.urandom(length))
            file.read(0, MIB)
            os.fsync(file.descriptor)
            written += length
        for options in (["-l", "8M"], ["-z", "-l", "3M"]):
            run(("blkdiscard", *options, device))
        assert ahead() == {before}
        assert tracker.state().sectors[0] * 512 == written + 11 * MIB
        assert tracker.left_out() == ()
        leave_out(tracker, lambda: file.write(0, bytes(4 * KIB)))
        assert ahead() == {before + 8}
        assert tracker.left_out() == (
            "the kernel did not tell of 8 sectors that were written to it",
        )
        remember_base(tracker, "repository", "image")
        found = changed_since(tracker, "repository")
        assert isinstance(found, Distrust)
        assert "did not tell of 8 sectors" in found.reasons[0]
        tracker.count_anew()
        assert tracker.left_out() == ()
        # That holds for who opened it, until there is an image that was read after it.
        assert any("did not tell" in doubt for doubt in tracker.doubts())
        tracker.harvest()
        remember_base(tracker, "repository", "second")
        assert tracker.doubts() == ()
        file.write(5 * GRANULE, bytes(4 * KIB))
        found = changed_since(tracker, "repository")
        assert isinstance(found, Base)
        assert (found.image_id, found.granules.tolist()) == ("second", [5])
        remember_base(tracker, "other", "third")
        # Of two repositories, one image is read anew: the other's lacks something.
        leave_out(tracker, lambda: file.write(0, bytes(4 * KIB)))
        tracker.count_anew()
        remember_base(tracker, "other", "fourth")
        assert isinstance(changed_since(tracker, "other"), Base)
        assert isinstance(changed_since(tracker, "repository"), Distrust)
        with pytest.raises(TrackingBusy):
            open_running(node_of(device))
        tracker.close()
        again = open_running(node_of(device))
        assert again is not None
        with again:
            assert isinstance(changed_since(again, "other"), Base)


def test_a_disk_whose_writes_are_not_counted(repository: Repository, disk: MountedDisk) -> None:
    """There is nothing to compare with, and the image says so."""
    setting = Path("/sys/block") / Path(disk.device).name / "queue/iostats"
    setting.write_text("0")
    try:
        made = backup_online(repository, [disk.device], Silent(), SETTINGS)
        tracker = open_running(node_of(disk.device))
        assert tracker is not None
        with tracker:
            assert not tracker.is_counted
            assert tracker.left_out() == ()
    finally:
        # It would outlive this disk.
        setting.write_text("1")
    assert made.manifest.hot is not None
    assert any("keeps no count" in note for note in made.manifest.hot.notes)


@pytest.mark.parametrize("when", ["before", "after"])
def test_everything_is_read_again(
    tmp_path: Path,
    repository: Repository,
    disk: MountedDisk,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Left out while it was copied ahead, or after the quick passes: the image is the disk."""
    image_hot(repository, [disk.device], tmp_path, name="first")
    name = {"before": "settle", "after": "window"}[when]
    real, done = getattr(Freezing, name), []

    def patched(freezing: Freezing, *arguments: object, **more: object) -> object:
        if not done:
            done.append(1)
            leave_out(freezing.world.tracked[0].tracker, lambda: change(disk))
        return real(freezing, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Freezing, name, patched)
        # It compares what is restored with what lay on the frozen disk.
        made = image_hot(repository, [disk.device], tmp_path, name="second")
    assert any("everything was read again" in note for note in made.hot.notes)
    assert made.bytes_read > 8 * MIB
    # The next one builds on what was read again.
    third = image_hot(repository, [disk.device], tmp_path, name="third")
    assert third.hot.disks[0].base == made.image.snapshot.id
    # Left out between two images, there is nothing to build on.
    tracker = open_running(node_of(disk.device))
    assert tracker is not None
    with tracker:
        leave_out(tracker, lambda: change(disk))
    fourth = image_hot(repository, [disk.device], tmp_path, name="fourth")
    (record,) = fourth.hot.disks
    assert record.base == ""
    assert "did not tell" in record.distrust[0]
    restic(tmp_path / "repository", "check", "--read-data")


def change(disk: MountedDisk) -> None:
    """Write in place, past the page cache: nothing else of the filesystem is on its way."""
    run(("sync", "-f", str(disk.point)))
    with DirectFile(disk.point / "file") as file:
        file.write(3 * MIB, os.urandom(64 * KIB))


def test_again_and_again(
    repository: Repository, disk: MountedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that always leaves out some gives no image, and says why."""
    real = Freezing.settle

    def settle(freezing: Freezing) -> object:
        leave_out(freezing.world.tracked[0].tracker, lambda: change(disk))
        return real(freezing)

    monkeypatch.setattr(Freezing, "settle", settle)
    with pytest.raises(WritesLeftOut, match=r"did not tell of \d+ sectors") as caught:
        backup_online(repository, [disk.device], Silent(), SETTINGS)
    assert "offline" in str(caught.value.hint)
    assert repository.snapshots() == []
    assert not is_frozen(disk.point)
