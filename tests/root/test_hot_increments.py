"""Increments of hot images: each is the frozen disk, or is read in full and says why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.app.backup import backup_offline
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.image import chunklist
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.filetree import seen_by_filefrag
from freezeframe.testing.frozen import MountedDisk, mounted_at, mounted_disk
from freezeframe.testing.hot import Made, check_filesystem, differences, image_hot, untrack
from freezeframe.testing.repositories import PASSWORD, local_repository, restic

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MountedDisk]:
    with filled_disk(tmp_path) as disk:
        yield disk


@contextlib.contextmanager
def filled_disk(folder: Path, kind: str = "ext4") -> Iterator[MountedDisk]:
    with mounted_disk(folder, kind, size=(128 if kind == "ext4" else 320) * MIB) as disk:
        try:
            for number in range(40):
                (disk.point / f"file{number}").write_bytes(os.urandom(MIB))
            run(("sync", "-f", str(disk.point)))
            yield disk
        finally:
            untrack(disk.device)


def change(disk: MountedDisk, seed: int) -> None:
    """Change a little in place, delete some, make some."""
    with (disk.point / f"file{seed}").open("r+b") as file:
        file.seek(300_000)
        file.write(os.urandom(8192))
    (disk.point / f"file{20 + seed}").unlink()
    (disk.point / f"new{seed}").write_bytes(os.urandom(300_000))
    if seed % 2:
        run(("fstrim", str(disk.point)))


def base_of(made: Made) -> str:
    return made.hot.disks[0].base


def distrust_of(made: Made) -> str:
    (record,) = made.hot.disks
    assert record.base == ""
    return "; ".join(record.distrust)


def assert_same(one: Made, two: Made) -> None:
    """On what both answer for, and nearly that is all of both."""
    (first,), (second,) = one.image.manifest.disks, two.image.manifest.disks
    used, other = one.image.disk_blobs(first).used, two.image.disk_blobs(second).used
    both = used & other
    # A freeze writes a little: superblocks, the log.
    assert ((used | other) - both).total < 8 * MIB
    # What the freezes in between wrote is compared with each one's own frozen copy.
    bad = differences(
        one.restored[first.path], two.restored[second.path], both.starts.tolist(),
        both.stops.tolist(),
    )  # fmt: skip
    assert sum(stop - start for start, stop in bad) < both.total / 4


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_chain_and_a_full_read(tmp_path: Path, repository: Repository, kind: str) -> None:
    with filled_disk(tmp_path, kind) as disk:
        full = image_hot(repository, [disk.device], tmp_path)
        before = full
        for seed in range(3):
            change(disk, seed)
            made = image_hot(repository, [disk.device], tmp_path, name="increment")
            assert base_of(made) == before.image.snapshot.id
            assert made.bytes_read < full.bytes_read / 2
            before = made
        untrack(disk.device)
        again = image_hot(
            local_repository(tmp_path / "second"), [disk.device], tmp_path, name="again"
        )
        assert "no image" in distrust_of(again)
        assert again.bytes_read > full.bytes_read / 2
        assert_same(before, again)
        # In the first repository it is a full read, too, though much is known there.
        anew = image_hot(repository, [disk.device], tmp_path, name="anew")
        assert "no image" in distrust_of(anew)
        assert anew.image.manifest.proof.bytes_new < full.image.manifest.proof.bytes_new / 2
        path = disk.device
    with attached(anew.restored[path]) as back:
        with mounted_at(back, tmp_path / "back") as root:
            assert (root / "new2").stat().st_size == 300_000
        check_filesystem(kind, back)
    run(("btrfs", "device", "scan", "--forget"), ok=(0, 1))
    restic(tmp_path / "repository", "check", "--read-data")


def test_what_is_rewritten_all_over_stays_whole(
    tmp_path: Path, repository: Repository, disk: MountedDisk
) -> None:
    """A chunk of which every byte was written is one blob again; one written in part is not."""
    path = disk.point / "rewritten"
    path.write_bytes(os.urandom(12 * MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    before = image_hot(repository, [disk.device], tmp_path)
    touched = disk.point / "file7"
    for place, length, at in ((path, 12 * MIB, 0), (touched, 4096, 300_000)):
        with place.open("r+b") as file:
            file.seek(at)
            file.write(os.urandom(length))
            os.fsync(file.fileno())
    made = image_hot(repository, [disk.device], tmp_path, name="increment")
    assert base_of(made) == before.image.snapshot.id
    (record,) = made.image.manifest.disks
    fine = set(chunklist.decode(record.fine).units(1).tolist())
    _, places = seen_by_filefrag(path)
    whole = {chunk for start, stop in places for chunk in range(-(-start // MIB), stop // MIB)}
    assert len(whole) >= 4
    assert not whole & fine
    _, ((start, _), *_) = seen_by_filefrag(touched)
    assert (start + 300_000) // MIB in fine


def test_two_repositories_in_turn(
    tmp_path: Path, repository: Repository, disk: MountedDisk
) -> None:
    """Each is built upon its own last image: what the other took counts as changed."""
    other = local_repository(tmp_path / "other")
    last: dict[int, str] = {}
    for seed in range(6):
        change(disk, seed)
        which = (0, 1, 0, 0, 1, 1)[seed]
        made = image_hot((repository, other)[which], [disk.device], tmp_path)
        assert base_of(made) == last.get(which, "")
        last[which] = made.image.snapshot.id


def test_the_base_was_forgotten(tmp_path: Path, repository: Repository, disk: MountedDisk) -> None:
    first = image_hot(repository, [disk.device], tmp_path)
    change(disk, 0)
    second = image_hot(repository, [disk.device], tmp_path)
    change(disk, 1)
    restic(tmp_path / "repository", "forget", second.image.snapshot.id)
    third = image_hot(repository, [disk.device], tmp_path)
    assert "no longer in the repository" in distrust_of(third)
    assert third.bytes_read > first.bytes_read / 2
    restic(tmp_path / "repository", "forget", "--prune", first.image.snapshot.id)
    change(disk, 2)
    fourth = image_hot(repository, [disk.device], tmp_path)
    assert base_of(fourth) == third.image.snapshot.id
    restic(tmp_path / "repository", "check", "--read-data")


def test_packs_of_the_base_are_gone(
    tmp_path: Path, repository: Repository, disk: MountedDisk
) -> None:
    """What the base has lost is read from the disk again, marked or not."""
    image_hot(repository, [disk.device], tmp_path)
    data = sorted((tmp_path / "repository" / "data").rglob("*"), key=lambda p: p.stat().st_size)
    data[-1].unlink()
    change(disk, 0)
    image_hot(repository, [disk.device], tmp_path)


def test_an_offline_image_in_between(
    tmp_path: Path, repository: Repository, disk: MountedDisk
) -> None:
    first = image_hot(repository, [disk.device], tmp_path)
    change(disk, 0)
    run(("umount", str(disk.point)))
    try:
        backup_offline(repository, [disk.device], Silent())
    finally:
        run(("mount", disk.device, str(disk.point)))
    change(disk, 1)
    made = image_hot(repository, [disk.device], tmp_path)
    assert base_of(made) == first.image.snapshot.id


def test_a_number_used_again(tmp_path: Path, repository: Repository) -> None:
    """Another disk by the same name is read in full, though a tracker seems to run."""
    images = [tmp_path / "a.raw", tmp_path / "b.raw"]
    for image in images:
        image.touch()
        os.truncate(image, 48 * MIB)
        run(("mkfs.ext4", "-q", str(image)))
    with attached(images[0]) as device, mounted_at(device, tmp_path / "m") as point:
        (point / "file").write_bytes(os.urandom(4 * MIB))
        image_hot(repository, [device], tmp_path)
    run(("losetup", device, str(images[1])))
    try:
        with mounted_at(device, tmp_path / "m") as point:
            (point / "other").write_bytes(os.urandom(4 * MIB))
            made = image_hot(repository, [device], tmp_path)
            assert "another disk" in distrust_of(made)
    finally:
        untrack(device)
        run(("losetup", "-d", device))
    with attached(made.restored[device]) as back, mounted_at(back, tmp_path / "back") as root:
        assert (root / "other").stat().st_size == 4 * MIB


#: Ends itself when the image is durable and the tracker does not know of it yet.
_KILLED = """
import os, signal, sys
from freezeframe.app import online
from freezeframe.core.progress import Silent
from freezeframe.repo.repository import open_repository
from freezeframe.store.open import open_store
online.remember_base = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
repository = open_repository(open_store(sys.argv[1]), sys.argv[2])
online.backup_online(repository, [sys.argv[3]], Silent())
"""


def test_killed_before_the_base_is_noted(
    tmp_path: Path, repository: Repository, disk: MountedDisk
) -> None:
    first = image_hot(repository, [disk.device], tmp_path)
    change(disk, 0)
    command = [sys.executable, "-c", _KILLED, tmp_path / "repository", PASSWORD, disk.device]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(repository.snapshots()) == 2
    change(disk, 1)
    made = image_hot(repository, [disk.device], tmp_path)
    assert base_of(made) == first.image.snapshot.id
    change(disk, 2)
    last = image_hot(repository, [disk.device], tmp_path)
    assert base_of(last) == made.image.snapshot.id
    restic(tmp_path / "repository", "unlock")
    restic(tmp_path / "repository", "check", "--read-data")


def test_what_was_deleted_leaves_the_images(
    tmp_path: Path, repository: Repository, disk: MountedDisk
) -> None:
    first = image_hot(repository, [disk.device], tmp_path)
    for number in range(10, 30):
        (disk.point / f"file{number}").unlink()
    made = image_hot(repository, [disk.device], tmp_path)

    def held(image: ImageReader) -> int:
        return image.disk_blobs(image.manifest.disks[0]).data_extents().total

    assert held(made.image) < held(first.image) - 10 * MIB
