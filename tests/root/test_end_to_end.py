"""The whole job on real disks: into a repository and back, judged by other programs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freezeframe.core.units import MIB
from freezeframe.image.manifest import Manifest
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing import disks, proof
from freezeframe.testing.program import Client
from freezeframe.testing.volumes import Survey, part_attached

pytestmark = pytest.mark.root

#: What a used target is full of: whatever a restore forgets to write shows up as this.
JUNK = 0xA5


@pytest.fixture
def client(tmp_path: Path) -> Client:
    made = Client(tmp_path / "repository")
    made.run("init")
    return made


@contextlib.contextmanager
def as_source(path: Path, sector: int) -> Iterator[str]:
    """A raw file is a disk of 512-byte sectors; others need a device."""
    if sector == 512:
        yield str(path)
    else:
        with attached(path, sector=sector) as device:
            yield device


def junk_disk(path: Path, size: int) -> Path:
    block = bytes([JUNK]) * MIB
    with path.open("xb") as file:
        for start in range(0, size, MIB):
            file.write(block[: size - start])
    return path


def blank_disk(path: Path, size: int) -> Path:
    with path.open("xb") as file:
        file.truncate(size)
    return path


def assert_same(
    wanted: Mapping[str, proof.Sums], path: Path, sector: int = 512, *, table: bool = True
) -> None:
    """Every checker is content with the disk, and every file is as it was."""
    assert [c for c in proof.check_filesystems(path, sector) if not c.clean] == []
    found = proof.collect(path, sector)
    if not table:
        found["table"] = wanted["table"]
    assert proof.differences(wanted, found) == []


def written_differently(original: Path, restored: Path) -> int:
    """Count sectors of 512 bytes that are neither junk, nor zeros, nor as in the original.

    Zeros are what unused stretches between used ones may become.
    """
    one = np.memmap(original, np.uint8, "r").reshape(-1, 512)
    two = np.memmap(restored, np.uint8, "r").reshape(-1, 512)
    count = 0
    step = 64 * MIB // 512
    for at in range(0, len(one), step):
        now = two[at : at + step]
        written = (now != JUNK).any(axis=1) & now.any(axis=1)
        different = (one[at : at + step] != two[at : at + step]).any(axis=1)
        count += int((written & different).sum())
    return count


@pytest.mark.parametrize(
    "recipe", [disks.SMALL_GPT, disks.SMALL_MBR, disks.SMALL_4K], ids=["gpt", "mbr", "4k"]
)
def test_disk_comes_back_from_both_images(
    client: Client, tmp_path: Path, recipe: disks.Recipe
) -> None:
    sector = recipe.sector
    disk = disks.make_disk(tmp_path / "disk.img", recipe)
    old = proof.collect(disk.path, sector)
    with as_source(disk.path, sector) as source:
        client.run("backup", "--offline", source)
    disks.change_disk(disk, seed=9)
    new = proof.collect(disk.path, sector)
    with as_source(disk.path, sector) as source:
        client.run("backup", "--offline", source)
    first, second = client.images()

    # The same size, full of junk that is not discarded: no used block may be forgotten.
    target = junk_disk(tmp_path / "junk.img", recipe.size)
    with attached(target, sector=sector) as device:
        client.run("restore", second, "--to", device, "--yes", "--no-discard")
        client.run("verify", second, "--against", device)
    assert written_differently(disk.path, target) == 0
    assert_same(new, target, sector)
    target.unlink()

    # The older image, onto a larger disk.
    target = blank_disk(tmp_path / "larger.img", recipe.size + 96 * MIB)
    with as_source(target, sector) as place:
        client.run("restore", first, "--to", place, "--yes")
    assert_same(old, target, sector)


def test_only_what_is_used_is_taken(client: Client, tmp_path: Path) -> None:
    disk = disks.make_disk(tmp_path / "disk.img", disks.SMALL_GPT)
    client.run("backup", "--offline", str(disk.path))
    record = msgspec.convert(client.manifest("latest"), Manifest).disks[0]
    partitions = [region for region in record.regions if region.role == "partition"]
    outer = [v for v in disk.volumes if "lvm/" not in v.name]
    words = {"vfat": "fat32", "LVM2_member": "lvm2", "raw": "unknown"}
    assert [(r.start, r.length, r.content) for r in partitions] == [
        (v.start, v.length, words.get(v.kind, v.kind)) for v in outer
    ]
    assert [r.content_uuid for r in partitions] == [v.uuid for v in outer]
    # A physical volume has no label of its own; its group's name is shown for it.
    assert [r.label for r in partitions[:-1]] == [v.label for v in outer[:-1]]
    for region in partitions[1:]:
        assert region.understood, region
        assert region.used < region.length * 0.6, region
    volumes = {v.name.split("/")[1]: v for v in disk.volumes if "lvm/" in v.name}
    assert {v.name.split("/")[-1] for v in partitions[-1].volumes} == volumes.keys()


def test_restic_can_read_it(client: Client, tmp_path: Path) -> None:
    # More than 1 GiB, so that there are two segments.
    recipe = disks.Recipe(disks.SMALL_4K.parts, seed=6)
    disk = disks.make_disk(tmp_path / "disk.img", recipe)
    wanted = proof.collect(disk.path)
    client.run("backup", "--offline", str(disk.path))
    assert "no errors were found" in client.restic("check", "--read-data").stdout
    client.restic("restore", "latest", "--target", str(tmp_path / "out"))
    segments = sorted((tmp_path / "out").glob("disks/*/*/data"))
    assert len(segments) == 2
    again = tmp_path / "again.img"
    with again.open("xb") as out:
        for segment in segments:
            with segment.open("rb") as data:
                shutil.copyfileobj(data, out, MIB)
    assert again.stat().st_size == disk.path.stat().st_size
    assert_same(wanted, again)


def test_two_disks_in_one_image(client: Client, tmp_path: Path) -> None:
    recipes = (disks.TINY, disks.Recipe(disks.TINY.parts, table="dos", seed=11))
    paths = [tmp_path / "one.img", tmp_path / "two.img"]
    wanted = []
    for path, recipe in zip(paths, recipes, strict=True):
        disks.make_disk(path, recipe)
        wanted.append(proof.collect(path))
    client.run("backup", "--offline", *map(str, paths))
    assert len(client.images()) == 1
    manifest = msgspec.convert(client.manifest("latest"), Manifest)
    names = {disk.path: disk.name for disk in manifest.disks}
    assert names.keys() == set(map(str, paths))
    # Which of the two must be said.
    client.run("restore", "latest", "--to", str(tmp_path / "none.img"), "--yes", code=2)
    for path, sums in zip(paths, wanted, strict=True):
        target = tmp_path / f"{path.stem}.new"
        client.run("restore", "latest", "--disk", names[str(path)], "--to", str(target), "--yes")
        assert_same(sums, target)


def test_nothing_new_is_stored_for_an_unchanged_disk(client: Client, tmp_path: Path) -> None:
    disk = disks.make_disk(tmp_path / "disk.img", disks.TINY)
    client.run("backup", "--offline", str(disk.path))
    before = sum(path.stat().st_size for path in client.repository.rglob("*") if path.is_file())
    client.run("backup", "--offline", str(disk.path))
    after = sum(path.stat().st_size for path in client.repository.rglob("*") if path.is_file())
    # The manifest with its time, an index, a snapshot.
    assert after - before < 64 * 1024
    assert len(client.images()) == 2


#: A repository with one image, the disk it is of, and the disk's sums.
Tiny = tuple[Client, Survey, Mapping[str, proof.Sums]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny disk and a repository with an image of it, for restores of all kinds."""
    folder = tmp_path_factory.mktemp("tiny")
    disk = disks.make_disk(folder / "disk.img", disks.TINY)
    client = Client(folder / "repository")
    client.run("init")
    client.run("backup", "--offline", str(disk.path))
    return client, disk, proof.collect(disk.path)


def test_to_a_new_file(tiny: Tiny, tmp_path: Path) -> None:
    client, _, wanted = tiny
    target = tmp_path / "new.img"
    client.run("restore", "latest", "--to", str(target), "--yes")
    assert_same(wanted, target)


def test_to_qcow2(tiny: Tiny, tmp_path: Path) -> None:
    client, disk, wanted = tiny
    target = tmp_path / "new.qcow2"
    client.run("restore", "latest", "--to", str(target), "--yes")
    run(("qemu-img", "check", str(target)))
    raw = tmp_path / "raw.img"
    run(("qemu-img", "convert", "-O", "raw", str(target), str(raw)))
    assert raw.stat().st_size == disk.path.stat().st_size
    assert_same(wanted, raw)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.qcow2", "raw.img"]


def test_one_partition(tiny: Tiny, tmp_path: Path) -> None:
    client, disk, wanted = tiny
    volume = disk.volume("ext4")
    # Into a disk that is partitioned alike, and holds something else everywhere.
    other = junk_disk(tmp_path / "other.img", disk.path.stat().st_size)
    with part_attached(other, 512, volume, read_only=False) as device:
        client.run("restore", "latest", "--partition", "2", "--to", device, "--yes", "--no-discard")
    content = other.read_bytes()
    assert set(content[: volume.start]) == {JUNK}
    assert set(content[volume.start + volume.length :]) == {JUNK}
    alone = tmp_path / "alone.img"
    alone.write_bytes(content[volume.start : volume.start + volume.length])
    assert_same({"table": {}, "0 ext4": wanted["2 ext4"]}, alone, table=False)


def test_grow(tiny: Tiny, tmp_path: Path) -> None:
    client, disk, wanted = tiny
    target = blank_disk(tmp_path / "larger.img", disk.path.stat().st_size + 100 * MIB)
    client.run("restore", "latest", "--to", str(target), "--yes", "--grow")
    assert [c for c in proof.check_filesystems(target) if not c.clean] == []
    found = proof.collect(target)
    assert proof.differences({"2": wanted["2 ext4"]}, {"2": found["2 ext4"]}) == []
    with attached(target, offset=disk.volume("ext4").start, read_only=True) as device:
        lines = run(("dumpe2fs", "-h", device)).stdout.decode().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    assert int(facts["Block count"]) * int(facts["Block size"]) >= 160 * MIB


def test_zero_unused(tiny: Tiny, tmp_path: Path) -> None:
    client, disk, wanted = tiny
    target = junk_disk(tmp_path / "junk.img", disk.path.stat().st_size)
    client.run("restore", "latest", "--to", str(target), "--yes", "--zero-unused")
    assert_same(wanted, target)
    # Exactly what restic says the disk is.
    client.restic("restore", "latest", "--target", str(tmp_path / "out"))
    parts = sorted((tmp_path / "out").glob("disks/*/*/data"))
    assert b"".join(part.read_bytes() for part in parts) == target.read_bytes()
