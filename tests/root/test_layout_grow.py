"""Restored onto a larger disk and grown: same files, same ids, clean for their own checkers."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.block.file import open_reader
from freezeframe.block.open import open_source
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.layout.capture import capture
from freezeframe.layout.growth import NotGrown, grow_filesystem
from freezeframe.layout.recreate import RecreatePlan, execute_recreate, plan_recreate
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.layouts import check_tiling, in_memory, make_table, sfdisk_partitions
from freezeframe.testing.volumes import lvm, mounted_device

pytestmark = pytest.mark.root

#: kind, least size in MiB, how it is made, how it is checked.
KINDS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "ext4": (24, ("mkfs.ext4", "-q"), ("e2fsck", "-f", "-n")),
    "ext2": (24, ("mkfs.ext2", "-q"), ("e2fsck", "-f", "-n")),
    "xfs": (300, ("mkfs.xfs", "-q"), ("xfs_repair", "-n")),
    # Grown to less than 256 MiB, the kernel refuses.
    "btrfs": (220, ("mkfs.btrfs", "-q"), ("btrfs", "check")),
    "ntfs": (24, ("mkfs.ntfs", "-Q", "-q"), ("ntfsresize", "--info", "--force", "--force")),
}
TABLES = {
    "gpt": "label: gpt\nsize=1MiB, type=21686148-6449-6E6F-744E-656564454649\n"
    "size={}MiB, name=data\n",
    "mbr": "label: dos\nsize=1MiB, type=83\nsize={}MiB, type=83\n",
    "logical": "label: dos\nsize=1MiB\nstart=4MiB, size={}MiB, type=f\nstart=5MiB, size={}MiB\n",
}


def make_script(table: str, size: int) -> str:
    return TABLES[table].format(*((size + 1, size) if table == "logical" else (size,)))


@contextlib.contextmanager
def last_partition(disk: Path, *, read_only: bool = False, sector: int = 512) -> Iterator[str]:
    with open_reader(disk) as reader:
        part = capture(reader).partitions[-1]
    with attached(
        disk, offset=part.start, size=part.length, read_only=read_only, sector=sector
    ) as device:
        yield device


def fill(folder: Path) -> None:
    rng = random.Random(3)
    for number in range(20):
        file = folder / f"folder {number % 3}" / f"file {number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(rng.randbytes(rng.randrange(200_000)))


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("file *"))
    }


def restore(source: Path, target: Path, size: int, kind: str, sector: int = 0) -> RecreatePlan:
    """Copy what an image would hold, then fit and grow."""
    with open_reader(source) as reader:
        layout = capture(reader, str(source))
        used = layout.used_outside
        used = used | Extents.of((part.start, part.stop) for part in layout.partitions)
        plan = plan_recreate(
            layout,
            used,
            target_size=size,
            target_sector=sector,
            grow=True,
            last_filesystem=kind,
        )
        with target.open("wb") as file:
            file.truncate(size)
            for start, stop in plan.write & reader.data_extents():
                file.seek(start)
                file.write(reader.read_at(start, stop - start))
    return plan


def facts(device: str) -> dict[str, str]:
    text = run(("blkid", "-p", "-o", "export", device)).stdout.decode()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def loops() -> bytes:
    return run(("losetup", "-n", "-O", "BACK-FILE")).stdout


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("ext4", "gpt"),
        ("ext4", "logical"),
        ("ext2", "mbr"),
        ("xfs", "gpt"),
        ("btrfs", "gpt"),
        ("ntfs", "gpt"),
        ("ntfs", "mbr"),
    ],
)
def test_grown_with_its_files(tmp_path: Path, kind: str, table: str) -> None:
    least, make, check = KINDS[kind]
    size, larger = (least + 10) * MIB, (least + 70) * MIB + 1000
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    make_table(source, size, make_script(table, least))
    mount_kind = "ext4" if kind == "ext2" else kind
    mount = tmp_path / "mount"
    mount.mkdir()
    with last_partition(source) as device:
        run((*make, device))
        with mounted_device(device, mount_kind, mount, read_only=False):
            fill(mount)
            before = sums(mount)
        ids = facts(device)
    plan = restore(source, target, larger, kind)
    assert plan.filesystem == kind
    assert execute_recreate(plan, str(target), Silent()) == ()
    with last_partition(target) as device:
        run((*check, device))
        after = facts(device)
        assert (after["UUID"], after["TYPE"]) == (ids["UUID"], ids["TYPE"])
        with mounted_device(device, mount_kind, mount, read_only=True):
            assert sums(mount) == before
            stat = run(("stat", "-f", "-c", "%b %S", str(mount))).stdout.split()
            room = int(stat[0]) * int(stat[1])
            assert room > least * MIB
            length = int(str(sfdisk_partitions(target)[-1]["length"]))
            assert length >= larger - plan.growth.start - 2 * MIB if plan.growth else False
            assert room > length * 0.8
    assert len(before) == 20
    assert str(tmp_path).encode() not in loops()


def test_f2fs_grows(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    folder = tmp_path / "files"
    folder.mkdir()
    fill(folder)
    make_table(source, 110 * MIB, make_script("gpt", 100))
    with last_partition(source) as device:
        run(("mkfs.f2fs", "-q", device))
        run(("sload.f2fs", "-f", str(folder), device), ok=(0, 1))
        run(("fsck.f2fs", "--dry-run", device))
        ids = facts(device)
    plan = restore(source, target, 250 * MIB, "f2fs")
    assert execute_recreate(plan, str(target), Silent()) == ()
    with last_partition(target) as device:
        said = run(("fsck.f2fs", "--dry-run", device)).stdout.decode()
        assert facts(device)["UUID"] == ids["UUID"]
    assert "[FSCK] other corrupted bugs" in said
    assert "[Fail]" not in said


def test_lvm_grows(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    make_table(source, 40 * MIB, make_script("gpt", 30))
    with last_partition(source) as device:
        lvm("pvcreate", device, "--yes", device)
        lvm("vgcreate", device, "--setautoactivation", "n", "freezeframegrow", device)
        before = lvm("pvs", device, "--noheadings", "-o", "pv_uuid,vg_uuid", device)
    plan = restore(source, target, 100 * MIB, "lvm2")
    assert execute_recreate(plan, str(target), Silent()) == ()
    with last_partition(target) as device:
        assert lvm("pvs", device, "--noheadings", "-o", "pv_uuid,vg_uuid", device) == before
        size = lvm(
            "pvs", device, "--noheadings", "--nosuffix", "--units", "m", "-o", "pv_size", device
        )
        assert float(size) > 85


def test_a_small_btrfs_keeps_its_size(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    make_table(source, 130 * MIB, make_script("gpt", 120))
    with last_partition(source) as device:
        run(("mkfs.btrfs", "-q", device))
    plan = restore(source, target, 200 * MIB, "btrfs")
    (note,) = execute_recreate(plan, str(target), Silent())
    assert "the kernel refused" in note
    with last_partition(target) as device:
        run(("btrfs", "check", device))


def test_unclean_filesystems_keep_their_size(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    make_table(source, 40 * MIB, make_script("gpt", 30))
    with last_partition(source) as device:
        run(("mkfs.ext4", "-q", device))
        # A directory whose block is rubbish: nothing e2fsck -p would dare to repair.
        run(("debugfs", "-w", "-R", "clri <2>", device))
    plan = restore(source, target, 100 * MIB, "ext4")
    (note,) = execute_recreate(plan, str(target), Silent())
    assert "keeps its size" in note
    assert str(tmp_path).encode() not in loops()
    with pytest.raises(NotGrown):
        grow_filesystem(str(target), "xfs", 2 * MIB, 30 * MIB, 512)
    assert str(tmp_path).encode() not in loops()


def test_btrfs_mounted_elsewhere_is_left_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    mount = tmp_path / "mount"
    mount.mkdir()
    make_table(source, 130 * MIB, make_script("gpt", 120))
    with last_partition(source) as device:
        run(("mkfs.btrfs", "-q", device))
    plan = restore(source, target, 200 * MIB, "btrfs")
    with (
        last_partition(source) as device,
        mounted_device(device, "btrfs", mount, read_only=True),
    ):
        (note,) = execute_recreate(plan, str(target), Silent())
    assert "mounted from another device" in note


def test_tables_on_devices_with_large_sectors(tmp_path: Path) -> None:
    """A GPT in sectors of 4096, made and judged by sfdisk and sgdisk on a device that has them."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    mount = tmp_path / "mount"
    mount.mkdir()
    with source.open("wb") as file:
        file.truncate(60 * MIB)
    script = make_script("gpt", 40) + "size=2MiB, type=U\n"
    with attached(source, sector=4096) as device:
        run(("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", device), stdin=script.encode())
        wanted = sfdisk_partitions(device)
    disk = in_memory(source)
    layout = capture(disk, str(source))
    check_tiling(layout, disk)
    assert layout.sector == 4096
    assert [(p.start, p.length, p.uuid, p.name) for p in layout.partitions] == [
        (row["start"], row["length"], row["uuid"], row["name"]) for row in wanted
    ]
    for size in (58 * MIB, 61 * MIB, 99 * MIB):
        plan = restore(source, target, size, "", sector=4096)
        execute_recreate(plan, str(target), Silent())
        with attached(target, sector=4096, read_only=True) as device:
            assert "No problems found" in run(("sgdisk", "-v", device)).stdout.decode()
            assert "No errors" in run(("sfdisk", "--verify", device)).stdout.decode()
            found = sfdisk_partitions(device)
        assert found[:-1] == wanted[:-1]
        assert found[-1]["uuid"] == wanted[-1]["uuid"]


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_device_is_a_target_too(tmp_path: Path, sector: int) -> None:
    """Logical partitions, found and grown on a loop device of either sector."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    with source.open("wb") as file:
        file.truncate(60 * MIB)
    script = make_script("logical", 20) + "start=30MiB, size=24MiB\n"
    script = script.replace("size=21MiB", "size=52MiB")
    mount = tmp_path / "mount"
    mount.mkdir()
    with attached(source, sector=sector) as device:
        run(("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", device), stdin=script.encode())
        wanted = sfdisk_partitions(device)
        with open_source(device) as layout_reader:
            layout = capture(layout_reader, device)
    assert layout.sector == sector
    assert b"\nunit: sectors\n" in layout.pieces["sfdisk.dump"]
    assert [(p.number, p.start, p.length, p.uuid) for p in layout.partitions] == [
        (row["number"], row["start"], row["length"], row["uuid"]) for row in wanted
    ]
    part = layout.partitions[-1]
    with attached(source, offset=part.start, size=part.length, sector=sector) as device:
        run(("mkfs.ext4", "-q", device))
        with mounted_device(device, "ext4", mount, read_only=False):
            fill(mount)
            before = sums(mount)
    used = layout.used_outside
    used = used | Extents.of((p.start, p.stop) for p in layout.partitions)
    plan = plan_recreate(
        layout,
        used,
        target_size=100 * MIB,
        target_sector=sector,
        grow=True,
        last_filesystem="ext4",
    )
    with target.open("wb") as file, open_reader(source) as reader:
        file.truncate(100 * MIB)
        for start, stop in plan.write & reader.data_extents():
            file.seek(start)
            file.write(reader.read_at(start, stop - start))
    with attached(target, sector=sector) as device:
        assert execute_recreate(plan, device, Silent()) == ()
        assert "No errors" in run(("sfdisk", "--verify", device)).stdout.decode()
        found = sfdisk_partitions(device)
    assert found[:-1] == wanted[:-1]
    last = found[-1]
    assert int(str(last["start"])) + int(str(last["length"])) == 100 * MIB
    with attached(
        target, offset=int(str(last["start"])), size=int(str(last["length"])), sector=sector
    ) as device:
        run(("e2fsck", "-f", "-n", device))
        with mounted_device(device, "ext4", mount, read_only=True):
            assert sums(mount) == before
