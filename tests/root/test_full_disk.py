"""A repository on a filesystem that fills up, for real."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.errors import StoreError
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.repo.check import check
from freezeframe.repo.repository import Repository
from freezeframe.testing.repositories import local_repository, restic, save_file

pytestmark = pytest.mark.root


@pytest.fixture(params=["ext4", "tmpfs"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount a filesystem of 24 MiB."""
    place = tmp_path / "mnt"
    place.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(24 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    subprocess.run(command, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def unfinished(repository: Repository) -> list[Path]:
    return list(Path(repository.store.location).rglob("*unfinished*"))


def test_earlier_images_stay_good_and_the_next_run_goes_on(small_disk: Path) -> None:
    folder = small_disk / "r"
    repository = local_repository(folder)
    earlier = save_file(repository, [b"earlier" * 1000])
    filler = small_disk / "filler"
    filler.write_bytes(bytes(10 * MIB))
    noise = random.Random(1)
    chunks = [noise.randbytes(MIB) for _ in range(16)]
    with pytest.raises(StoreError, match="no room is left") as caught:
        save_file(repository, chunks, pack_size=2 * MIB)
    assert "make room" in caught.value.hint
    assert unfinished(repository) == []
    assert [shot.id for shot in repository.snapshots()] == [earlier.id]
    assert not any(
        problem.damage for problem in check(repository, read_data=True, progress=Silent())
    )
    assert restic(folder, "dump", "--no-lock", "latest", "folder/file").stdout == (
        b"earlier" * 1000
    )
    filler.unlink()
    save_file(repository, chunks, pack_size=2 * MIB)
    assert check(repository, read_data=True, progress=Silent()) == [] or all(
        not problem.damage for problem in check(repository, read_data=True, progress=Silent())
    )
    assert b"no errors were found" in restic(folder, "check", "--read-data").stdout
    assert restic(folder, "dump", "latest", "folder/file").stdout == b"".join(chunks)
