"""Restore drills beside images: what restic makes of them, and what we make of others' tags."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged
from freezeframe.image.drill import (
    Drill,
    DrillEntry,
    drills_by_tree,
    read_drill,
    save_drill,
)
from freezeframe.image.reader import find_image, images
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.testing.images import SparseDisk, save_image
from freezeframe.testing.repositories import local_repository, restic, save_file

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return local_repository(tmp_path / "repo")


def take(repository: Repository) -> Snapshot:
    return save_image(repository, SparseDisk(1 << 20, {0: b"x" * (1 << 20)}))[0].snapshot


def drill(image: Snapshot, later: dt.timedelta, *, passed: bool = True) -> Drill:
    return Drill(
        image=image.id,
        tree=image.tree,
        started=image.time + later,
        passed=passed,
        sign="a login prompt" if passed else "",
        reason="" if passed else "Kernel panic",
        seconds=12.5,
        firmware="uefi",
        accelerator="kvm",
        host="here",
        program="test",
    )


def keep(
    repository: Repository, image: Snapshot, result: Drill, console: str = "text\n"
) -> Snapshot:
    with repository.lock():
        return save_drill(repository, repository.load_index(), image, result, console)


def entries(repository: Repository, image: Snapshot) -> list[DrillEntry]:
    return drills_by_tree(repository.snapshots()).get(image.tree, [])


def test_they_are_found_read_and_in_order(repository: Repository) -> None:
    image, other = take(repository), take(repository)
    kept = [drill(image, number * 24 * 7 * HOUR, passed=number != 2) for number in (3, 1, 2)]
    for result in kept:
        keep(repository, image, result, "what it wrote \udcff\n")
    found = entries(repository, image)
    assert [entry.passed for entry in found] == [True, False, True]
    index = repository.load_index()
    read = [read_drill(repository, index, entry) for entry in found]
    assert read == sorted(kept, key=lambda one: one.started)
    assert entries(repository, other) == []
    # In the same order for who sorts by the snapshots' times.
    times = [entry.snapshot.time for entry in found]
    assert times == sorted(set(times))


def test_images_are_what_they_were_for_us_and_for_restic(
    repository: Repository, tmp_path: Path
) -> None:
    image = take(repository)
    for days in (0, 1, 4000):
        keep(repository, image, drill(image, days * 24 * HOUR))
    assert [shot.id for shot in images(repository)] == [image.id]
    assert find_image(images(repository), "latest").id == image.id
    folder = tmp_path / "repo"
    restic(folder, "check", "--read-data")
    told = restic(folder, "dump", "latest", "/freezeframe.json").stdout
    assert b"disks" in told
    # Three drills and one image, each kept by a count of its own.
    restic(folder, "forget", "--keep-last", "1", "--prune")
    assert [shot.id for shot in images(repository)] == [image.id]
    left = entries(repository, image)
    assert [entry.time for entry in left] == [
        (image.time + 4000 * 24 * HOUR).replace(microsecond=0)
    ]
    # Tags may be changed: the image then has another id, and its drills all the same.
    restic(folder, "tag", "--add", "mine", "--tag", "freezeframe")
    (changed,) = images(repository)
    assert changed.id != image.id
    assert len(entries(repository, changed)) == 1


def test_what_others_made_is_no_drill(repository: Repository) -> None:
    image = take(repository)
    kept = keep(repository, image, drill(image, HOUR))
    strange = save_file(repository, [b"nothing of ours"])
    for tags in (
        ["freezeframe-drill"],
        ["freezeframe-drill", f"tree-{image.tree}"],
        ["freezeframe-drill", f"tree-{image.tree}", "at-never"],
        ["passed", f"tree-{image.tree}", "at-20260101T000000+0000"],
    ):
        repository.save_snapshot(msgspec.structs.replace(strange, tags=tags))
    assert [entry.snapshot.id for entry in entries(repository, image)] == [kept.id]
    liar = msgspec.structs.replace(strange, tags=kept.tags)
    wrong = DrillEntry(liar, True, kept.time)
    with pytest.raises(RepositoryDamaged, match="holds no drill"):
        read_drill(repository, repository.load_index(), wrong)
    newer = msgspec.structs.replace(drill(image, HOUR), format=2)
    later = keep(repository, image, newer)
    entry = next(e for e in entries(repository, image) if e.snapshot.id == later.id)
    with pytest.raises(FreezeframeError, match="has format 2"):
        read_drill(repository, repository.load_index(), entry)
