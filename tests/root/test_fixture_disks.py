"""The fixture disks are real, and the proofs see damage: who tests with them may trust them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from freezeframe.core.units import KIB, MIB
from freezeframe.system.run import run
from freezeframe.testing import disks, proof
from freezeframe.testing.volumes import Survey, Volume, survey

pytestmark = pytest.mark.root

KINDS = ("raw", "vfat", "ext4", "xfs", "btrfs", "ntfs", "swap", "LVM2_member", "ext4", "ext4")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return disks.make_disk(tmp_path_factory.mktemp("disk") / "small.img", disks.SMALL_GPT)


@pytest.mark.parametrize("recipe", [disks.SMALL_MBR, disks.SMALL_4K], ids=["mbr", "4k"])
def test_every_filesystem_is_made_and_clean(tmp_path: Path, recipe: disks.Recipe) -> None:
    disk = disks.make_disk(tmp_path / "disk.img", recipe)
    assert tuple(v.kind for v in disk.volumes) == KINDS
    assert disk.table == recipe.table
    found = proof.check_filesystems(disk.path, recipe.sector)
    assert [c for c in found if not c.clean] == []
    # Table, each filesystem, LVM twice.
    assert len(found) == (2 if recipe.table == "gpt" else 1) + 6 + 2 + 2


def test_mbr_has_logical_partitions(tmp_path: Path) -> None:
    disk = disks.make_disk(tmp_path / "disk.img", disks.SMALL_MBR)
    dump = run(("sfdisk", "--dump", str(disk.path))).stdout.decode()
    assert "type=5" in dump
    assert disk.volumes[-1].name == "9 lvm/home"


def test_sums_repeat_and_see_changes(small: Survey, tmp_path: Path) -> None:
    copy = _copy(small, tmp_path)
    before = proof.collect(small.path)
    assert before.keys() == {"table", *(v.name for v in small.volumes)}
    # Enough files to mean something; the sparse and linked ones count too.
    assert all(len(before[v.name]) > 100 for v in small.volumes if v.mountable)
    assert proof.differences(before, proof.collect(copy)) == []
    changed = disks.change_disk(survey(copy), seed=1)
    after = proof.collect(copy)
    assert changed > 60
    touched = {line.split(":")[0] for line in proof.differences(before, after)}
    assert touched == {v.name for v in small.volumes if v.mountable or v.kind == "vfat"}
    assert [c for c in proof.check_filesystems(copy) if not c.clean] == []


def _zero(copy: Path, volume: Volume, start: int, length: int) -> None:
    with copy.open("r+b") as file:
        file.seek(volume.start + start)
        file.write(bytes(length))


#: What damages each: structures a wrong used map would leave out.
DAMAGE: dict[str, Callable[[Path, Volume], None]] = {
    # The first FAT.
    "vfat": lambda copy, volume: _zero(copy, volume, 32 * 512, 2 * KIB),
    # Bitmaps and inode tables.
    "3 ext4": lambda copy, volume: _zero(copy, volume, 64 * KIB, MIB),
    # AG headers but the superblock: free space, inodes.
    "xfs": lambda copy, volume: _zero(copy, volume, 512, 32 * KIB),
    # All copies of the superblock but the first are repaired from it; so the first.
    "btrfs": lambda copy, volume: _zero(copy, volume, 64 * KIB, 4 * KIB),
    # The boot sector, of which the backup is at the end.
    "ntfs": lambda copy, volume: _zero(copy, volume, 0, 4 * KIB),
    "swap": lambda copy, volume: _zero(copy, volume, 0, 4 * KIB),
    "LVM2_member": lambda copy, volume: _zero(copy, volume, 4 * KIB, 64 * KIB),
    "lvm/root": lambda copy, volume: _zero(copy, volume, 64 * KIB, MIB),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen(small: Survey, tmp_path: Path, name: str) -> None:
    copy = _copy(small, tmp_path)
    volume = small.volume(name)
    DAMAGE[name](copy, volume)
    try:
        found = proof.check_filesystems(copy)
    except proof.ToolFailed:
        return
    complaints = {c.name for c in found if not c.clean}
    missing = {v.name for v in small.volumes} - {v.name for v in survey(copy).volumes}
    assert volume.name in complaints | missing


def test_damaged_table_is_seen(small: Survey, tmp_path: Path) -> None:
    copy = _copy(small, tmp_path)
    with copy.open("r+b") as file:
        file.seek(small.path.stat().st_size - 512)
        file.write(bytes(512))
    assert "sgdisk --verify" in {c.checker for c in proof.check_filesystems(copy) if not c.clean}


def test_one_flipped_bit_of_a_file_is_seen(small: Survey, tmp_path: Path) -> None:
    copy = _copy(small, tmp_path)
    before = proof.collect(copy)
    # What fills only part of a block changes no checksum of any structure of ext4.
    wanted = b"see my attributes\n"
    volume = small.volume("3 ext4")
    with copy.open("r+b") as file:
        file.seek(volume.start)
        at = file.read(volume.length).index(wanted)
        file.seek(volume.start + at)
        file.write(b"S")
    lines = proof.differences(before, proof.collect(copy))
    assert len(lines) == 1
    assert "with attributes" in lines[0]


def test_nothing_is_left_attached(small: Survey, tmp_path: Path) -> None:
    copy = _copy(small, tmp_path)
    _zero(copy, small.volume("xfs"), 0, 64 * KIB)
    proof.collect(copy)
    assert str(tmp_path) not in run(("losetup", "-a")).stdout.decode()


def _copy(disk: Survey, folder: Path) -> Path:
    copy = folder / "copy.img"
    run(("cp", "--sparse=always", str(disk.path), str(copy)))
    return copy
