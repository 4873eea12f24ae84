"""Hot images on the real kernel: of mounted disks under writers, equal to the frozen devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from freezeframe.app.online import backup_online
from freezeframe.backup.hot.freezing import Freezing
from freezeframe.backup.hot.settings import HotSettings, IfBusy, NotConverging
from freezeframe.core.errors import FreezeBusy, UsageError
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.image.manifest import Consistency
from freezeframe.repo.repository import Repository
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.frozen import MountedDisk, is_frozen, mounted_at, mounted_disk
from freezeframe.testing.hot import (
    SETTINGS,
    Made,
    check_filesystem,
    image_hot,
    last_record,
    pair,
    storm,
    untrack,
)
from freezeframe.testing.repositories import local_repository, restic

pytestmark = pytest.mark.root

KINDS = ["ext4", "xfs", "btrfs"]


@contextlib.contextmanager
def tracked_disk(
    folder: Path, kind: str, name: str = "disk", options: str = ""
) -> Iterator[MountedDisk]:
    """Give a mounted disk that is no longer tracked in the end."""
    with mounted_disk(folder, kind, name) as disk:
        try:
            if options:
                run(("mount", "-o", f"remount,{options}", str(disk.point)))
            yield disk
        finally:
            untrack(disk.device)


@contextlib.contextmanager
def seen(path: Path, kind: str) -> Iterator[Path]:
    """Mount what was restored and give its root; then the checker must be content."""
    folder = path.with_suffix(".mounted")
    with attached(path) as device:
        # XFS replays its log here; without that its checker complains of it.
        with mounted_at(device, folder):
            yield folder
        check_filesystem(kind, device)
    if kind == "btrfs":
        run(("btrfs", "device", "scan", "--forget"), ok=(0, 1))


def files_in(folder: Path) -> int:
    """Read every file; return how many there are."""
    count = 0
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
            count += 1
    return count


def assert_frozen_regions(made: Made) -> None:
    for disk in made.image.manifest.disks:
        for region in disk.regions:
            if region.content:
                assert region.understood, region
                assert region.consistency is Consistency.FROZEN


# -- what an image holds ----------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "discard"], ids=["plain", "discard"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_busy_filesystem(tmp_path: Path, repository: Repository, kind: str, options: str) -> None:
    """An image and an increment, each the device as it was frozen, and a clean filesystem."""
    made: list[Made] = []
    with tracked_disk(tmp_path, kind, options=options) as disk, storm(disk.point / "storm"):
        for number in range(2):
            made.append(image_hot(repository, [disk.device], tmp_path, name=str(number)))
            assert_frozen_regions(made[-1])
        assert not is_frozen(disk.point)
        path = disk.device
    assert made[0].hot.disks[0].base == ""
    assert "no image" in made[0].hot.disks[0].distrust[0]
    for before, after in pairwise(made):
        assert after.hot.disks[0].base == before.image.snapshot.id
    for each in made:
        with seen(each.restored[path], kind) as root:
            assert files_in(root) > 10
    restic(tmp_path / "repository", "check", "--read-data")


def test_two_disks_are_of_one_moment(tmp_path: Path, repository: Repository) -> None:
    with (
        tracked_disk(tmp_path, "ext4", "first") as first,
        tracked_disk(tmp_path, "xfs", "second") as second,
    ):
        devices = [first.device, second.device]
        with pair(first.point / "records", second.point / "records"), storm(second.point / "s"):
            made = [
                image_hot(repository, devices, tmp_path, name=str(number)) for number in range(3)
            ]
    last = -1
    for each in made:
        assert len(each.hot.freezes) == 2
        with seen(each.restored[devices[0]], "ext4") as root:
            one = last_record(root / "records")
        with seen(each.restored[devices[1]], "xfs") as root:
            two = last_record(root / "records")
        assert one - two in (0, 1)
        assert one > last
        last = one


def test_a_disk_with_partitions(tmp_path: Path, repository: Repository) -> None:
    """Two filesystems and nothing on a GPT disk; a partition alone in between."""
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 448 * MIB)
    table = b"label: gpt\nstart=2048, size=160MiB\nsize=160MiB\nsize=64MiB\n"
    run(("sfdisk", "-q", str(image)), stdin=table)
    with attached(image, partitions=True) as device:
        run(("mkfs.ext4", "-q", f"{device}p1"))
        run(("mkfs.btrfs", "-q", f"{device}p2"))
        try:
            with (
                mounted_at(f"{device}p1", tmp_path / "one") as one,
                mounted_at(f"{device}p2", tmp_path / "two") as two,
                pair(one / "records", two / "records"),
                storm(one / "storm"),
            ):
                made = [
                    image_hot(repository, [source], tmp_path, name=str(number))
                    for number, source in enumerate([device, device, f"{device}p1", device])
                ]
        finally:
            untrack(device)
    for number in (0, 1, 3):
        with attached(made[number].restored[device], partitions=True) as back:
            with mounted_at(f"{back}p1", tmp_path / "one") as one:
                first = last_record(one / "records")
            with mounted_at(f"{back}p2", tmp_path / "two") as two:
                second = last_record(two / "records")
            check_filesystem("ext4", f"{back}p1")
            check_filesystem("btrfs", f"{back}p2")
            run(("sfdisk", "--verify", back))
        run(("btrfs", "device", "scan", "--forget"), ok=(0, 1))
        assert first - second in (0, 1)
    bases = [each.hot.disks[0].base for each in made]
    # The partition's image is the newest the tracker knows, and no base for the disk.
    assert bases == ["", made[0].image.snapshot.id, "", ""]
    assert "is of other devices" in made[3].hot.disks[0].distrust[0]
    with seen(made[2].restored[f"{device}p1"], "ext4") as root:
        assert last_record(root / "records") > 0


def test_a_filesystem_over_two_devices(tmp_path: Path, repository: Repository) -> None:
    images = [tmp_path / "a.raw", tmp_path / "b.raw"]
    for image in images:
        image.touch()
        os.truncate(image, 256 * MIB)
    with attached(images[0]) as one, attached(images[1]) as two:
        run(("mkfs.btrfs", "-q", "-d", "raid0", "-m", "raid1", one, two))
        try:
            with mounted_at(one, tmp_path / "m") as point, storm(point / "storm"):
                made = [
                    image_hot(repository, [one, two], tmp_path, name=str(number))
                    for number in range(2)
                ]
                assert_frozen_regions(made[1])
        finally:
            untrack(one, two)
    run(("btrfs", "device", "scan", "--forget"), ok=(0, 1))
    last = made[1].restored
    with attached(last[one]) as back, attached(last[two]) as other:
        # Named, not only scanned: whoever tells the kernel to forget devices means all of them.
        with mounted_at(back, tmp_path / "m", "-o", f"device={other}") as point:
            assert files_in(point) > 10
        check_filesystem("btrfs", back)
    run(("btrfs", "device", "scan", "--forget"), ok=(0, 1))


def test_a_filesystem_on_a_file_of_another(tmp_path: Path, repository: Repository) -> None:
    """Both are frozen, the inner one first: it is at rest in the image of the outer one."""
    with tracked_disk(tmp_path, "ext4") as outer:
        with (
            mounted_disk(outer.point, "ext4", "inner", size=48 * MIB) as inner,
            pair(outer.point / "records", inner.point / "records"),
        ):
            made = image_hot(repository, [outer.device], tmp_path)
            assert [each.point for each in made.hot.freezes] == [
                str(inner.point), str(outer.point)
            ]  # fmt: skip
        device = outer.device
    with seen(made.restored[device], "ext4") as root:
        copy = tmp_path / "inner-copy.raw"
        copy.write_bytes((root / "inner.raw").read_bytes())
        first = last_record(root / "records")
    check_filesystem("ext4", copy)
    with seen(copy, "ext4") as root:
        assert first - last_record(root / "records") in (0, 1)


def test_a_disk_nobody_mounted(tmp_path: Path, repository: Repository) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 64 * MIB)
    run(("mkfs.ext4", "-q", str(image)))
    with attached(image) as device:
        try:
            made = image_hot(repository, [device], tmp_path)
        finally:
            untrack(device)
    assert made.hot.freezes == ()
    check_filesystem("ext4", made.restored[device])


# -- machines that write faster than they can be copied ---------------------------------------


def test_too_busy_and_told_to_fail(tmp_path: Path, repository: Repository) -> None:
    with tracked_disk(tmp_path, "ext4") as disk, storm(disk.point / "storm"):
        # A freeze writes to the disk; to read that takes longer than this.
        settings = HotSettings(max_pause=1e-6, if_busy=IfBusy.FAIL)
        with pytest.raises(NotConverging, match="left to be read"):
            backup_online(repository, [disk.device], Silent(), settings)
        assert not is_frozen(disk.point)
        assert repository.snapshots() == []
        # It has cost nothing but time.
        image_hot(repository, [disk.device], tmp_path)
    restic(tmp_path / "repository", "check", "--read-data")


@pytest.mark.parametrize("choice", [IfBusy.SLOW_WRITERS, IfBusy.LONGER_PAUSE])
@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_too_busy_and_told_what_to_do(
    tmp_path: Path, repository: Repository, kind: str, choice: IfBusy
) -> None:
    """The first two freezes are over before anything was read."""
    with tracked_disk(tmp_path, kind) as disk, storm(disk.point / "storm"):
        settings = HotSettings(max_pause=0.5, if_busy=choice, freeze_limit=60)
        made = image_hot(repository, [disk.device], tmp_path, settings=settings, too_short=2)
        path = disk.device
    assert made.hot.windows >= 3
    assert made.hot.slowed_writers == (choice is IfBusy.SLOW_WRITERS)
    with seen(made.restored[path], kind) as root:
        assert files_in(root) > 10


# -- what is refused --------------------------------------------------------------------------


def test_a_repository_on_the_disk_itself(tmp_path: Path) -> None:
    with tracked_disk(tmp_path, "ext4") as disk:
        repository = local_repository(disk.point / "repository")
        with pytest.raises(UsageError, match="lies on"):
            backup_online(repository, [disk.device], Silent(), SETTINGS)
        with mounted_disk(disk.point, "ext4", "inner", size=48 * MIB) as inner:
            hidden = local_repository(inner.point / "repository")
            with pytest.raises(UsageError, match="lies on"):
                backup_online(hidden, [disk.device], Silent(), SETTINGS)


def test_a_filesystem_somebody_else_froze(tmp_path: Path, repository: Repository) -> None:
    with tracked_disk(tmp_path, "ext4") as disk:
        (disk.point / "file").write_bytes(bytes(MIB))
        run(("fsfreeze", "--freeze", str(disk.point)))
        try:
            with pytest.raises(FreezeBusy, match="frozen by another program"):
                backup_online(repository, [disk.device], Silent(), SETTINGS)
            assert is_frozen(disk.point)
        finally:
            run(("fsfreeze", "--unfreeze", str(disk.point)))
        assert repository.snapshots() == []
        image_hot(repository, [disk.device], tmp_path)


def test_a_filesystem_mounted_meanwhile(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.raw"
    image.touch()
    os.truncate(image, 96 * MIB)
    run(("sfdisk", "-q", str(image)), stdin=b"label: gpt\nstart=2048, size=40MiB\nsize=40MiB\n")
    with attached(image, partitions=True) as device, contextlib.ExitStack() as stack:
        stack.callback(untrack, device)
        for number in (1, 2):
            run(("mkfs.ext4", "-q", f"{device}p{number}"))
        one = stack.enter_context(mounted_at(f"{device}p1", tmp_path / "one"))
        real = Freezing.settle
        done = []

        def settle(freezing: Freezing) -> object:
            if not done:
                stack.enter_context(mounted_at(f"{device}p2", tmp_path / "two"))
                done.append(1)
            return real(freezing)

        with monkeypatch.context() as patch:
            patch.setattr(Freezing, "settle", settle)
            made = image_hot(repository, [device], tmp_path)
        assert any("mounted or unmounted" in note for note in made.hot.notes)
        assert len(made.hot.freezes) == 2
        assert not is_frozen(one)
        made = image_hot(repository, [device], tmp_path)
        assert len(made.hot.freezes) == 2
