"""Images with whole and divided chunks before restic: it must not see a difference."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from freezeframe.app.backup import backup_offline
from freezeframe.core.progress import Silent
from freezeframe.core.units import CHUNK, GRANULE, MIB
from freezeframe.image import chunklist
from freezeframe.image.parent import parent_disk
from freezeframe.image.reader import ImageReader
from freezeframe.repo.check import check
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.repository import Repository, open_repository
from freezeframe.store.base import Kind
from freezeframe.store.local import LocalStore
from freezeframe.testing.repositories import (
    PASSWORD,
    local_repository,
    restic,
    restic_environment,
)

DATA = "disks/disk.raw/00000/data"
RND = random.Random(7)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of six chunks and a short one; the fourth holds zeros."""
    path = tmp_path / "disk.raw"
    content = bytearray(RND.randbytes(6 * MIB + 70_144))
    content[:512] = bytes(512)
    content[3 * MIB : 4 * MIB] = bytes(MIB)
    path.write_bytes(content)
    return path


def change(disk: Path, *places: int) -> None:
    with disk.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(RND.randbytes(700))


def image(repository: Repository, disk: Path, *, granular: bool = True) -> ImageReader:
    result = backup_offline(
        repository, [str(disk)], Silent(), everything=True, granular=granular, threads=2
    )
    return ImageReader(repository, repository.load_index(), result.snapshot)


def fine(reader: ImageReader) -> list[int]:
    return [int(n) for n in chunklist.decode(reader.manifest.disks[0].fine).units(1)]


def assert_clean(folder: Path) -> None:
    done = restic(folder, "check", "--read-data")
    assert b"no errors were found" in done.stdout + done.stderr
    repository = open_repository(LocalStore(folder), PASSWORD)
    assert check(repository, read_data=True, progress=Silent()) == []


def test_restic_dumps_every_image_as_the_disk_was(disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    repository = local_repository(folder)
    were = []
    for places, expected in (
        ((), []),
        ((MIB, 2 * MIB + 5), [1, 2]),
        ((MIB + 9 * GRANULE, 3 * MIB + 3, 6 * MIB + 69_000), [1, 2, 6]),
        ((3 * MIB + 3, 5 * MIB - 10, 5 * MIB), [1, 2, 3, 4, 5, 6]),
    ):
        change(disk, *places)
        reader = image(repository, disk)
        assert fine(reader) == expected
        were.append((reader, disk.read_bytes()))
    for reader, content in were:
        assert restic(folder, "dump", reader.snapshot.id, DATA).stdout == content
    assert_clean(folder)
    restic(folder, "forget", were[0][0].snapshot.id, were[2][0].snapshot.id, "--prune")
    change(disk, 0x2000, MIB + 3 * GRANULE)
    last = image(repository, disk)
    assert fine(last) == [0, 1, 2, 3, 4, 5, 6]
    for reader, content in (were[1], were[3], (last, disk.read_bytes())):
        assert restic(folder, "dump", reader.snapshot.id, DATA).stdout == content
    assert_clean(folder)


def test_what_restic_copied_is_built_upon(disk: Path, tmp_path: Path) -> None:
    source = local_repository(tmp_path / "source")
    image(source, disk)
    change(disk, MIB)
    image(source, disk)
    target = tmp_path / "target"
    restic(target, "init", "--repository-version", "2")
    subprocess.run(
        ["restic", "copy", "--from-repo", str(tmp_path / "source"), "latest"],
        env={**restic_environment(target), "RESTIC_FROM_PASSWORD": PASSWORD, **os.environ}
        | restic_environment(target),
        check=True,
        capture_output=True,
    )
    repository = open_repository(LocalStore(target), PASSWORD)
    before = repository.load_index()
    change(disk, MIB + 1000, 2 * MIB)
    reader = image(repository, disk)
    assert fine(reader) == [1, 2]
    assert restic(target, "dump", reader.snapshot.id, DATA).stdout == disk.read_bytes()
    # One granule of the first, all of the second, and what is small.
    found = [
        length
        for length in reader.disk_blobs(reader.manifest.disks[0]).lengths.tolist()
        if length == CHUNK
    ]
    assert len(found) == 4
    assert reader.index.total - before.total < 1 + 16 + 12
    parent = parent_disk(reader, reader.manifest.disks[0], pytest.fail)
    assert parent.usable.all()
    assert (parent.sums.any(axis=1) != parent.zero).all()
    assert_clean(target)


def test_an_image_of_whole_chunks_is_built_upon_finely_and_back(disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    repository = local_repository(folder)
    image(repository, disk)
    change(disk, MIB)
    assert fine(image(repository, disk, granular=False)) == []
    change(disk, MIB)
    assert fine(image(repository, disk)) == [1]
    change(disk, MIB)
    reader = image(repository, disk, granular=False)
    assert fine(reader) == []
    assert restic(folder, "dump", "latest", DATA).stdout == disk.read_bytes()
    assert_clean(folder)


def test_another_disk_in_the_same_place_is_stored_whole(disk: Path, tmp_path: Path) -> None:
    repository = local_repository(tmp_path / "r")
    image(repository, disk)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    first = image(repository, disk)
    assert fine(first) == []
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    assert fine(image(repository, disk)) == []
    subprocess.run(["debugfs", "-w", "-R", "mkdir new", str(disk)], check=True, capture_output=True)
    assert fine(image(repository, disk)) != []


def test_the_newest_image_that_can_be_read_is_built_upon(disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    repository = local_repository(folder)
    image(repository, disk)
    change(disk, MIB)
    image(repository, disk)
    change(disk, 2 * MIB)
    newest = image(repository, disk)
    assert fine(newest) == [1, 2]
    # The root of the newest goes, and the pack of trees that it lies in.
    root = newest.index.find(BlobKind.TREE, bytes.fromhex(newest.snapshot.tree))
    assert root is not None
    LocalStore(folder).remove(Kind.DATA, root.pack.hex())
    told = Notes()
    result = backup_offline(repository, [str(disk)], told, everything=True)
    assert sum("not built upon" in note for note in told.notes) == 1
    reader = ImageReader(repository, repository.load_index(), result.snapshot)
    # As the image before knew it; the second changed chunk is known by its granules only.
    assert fine(reader) == [1, 2]
    assert restic(folder, "dump", reader.snapshot.id, DATA).stdout == disk.read_bytes()


class Notes(Silent):
    """Keeps what the administrator is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
