"""Filesystems that do not fit are made smaller on the way: same files, clean for their tools."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from freezeframe.block.file import open_reader
from freezeframe.core.units import MIB
from freezeframe.layout.capture import capture
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.layouts import make_table, sfdisk_partitions
from freezeframe.testing.program import Client
from freezeframe.testing.volumes import mounted_device

pytestmark = pytest.mark.root

#: kind: size of the partition, of the target disk, how it is made, how it is checked; MiB.
KINDS: dict[str, tuple[int, int, tuple[str, ...], tuple[str, ...]]] = {
    "ext4": (120, 60, ("mkfs.ext4", "-q"), ("e2fsck", "-f", "-n")),
    "ext2": (120, 60, ("mkfs.ext2", "-q"), ("e2fsck", "-f", "-n")),
    "btrfs": (700, 360, ("mkfs.btrfs", "-q"), ("btrfs", "check")),
    "ntfs": (120, 60, ("mkfs.ntfs", "-Q", "-q"), ("ntfsresize", "--info", "--force", "--force")),
}
TABLES = {
    "gpt": "label: gpt\nsize=1MiB, type=21686148-6449-6E6F-744E-656564454649\nsize={}MiB\n",
    "mbr": "label: dos\nsize=1MiB, type=83\nsize={}MiB, type=83\n",
    "logical": "label: dos\nsize=1MiB\nstart=4MiB, size={}MiB, type=f\nstart=5MiB, size={}MiB\n",
    "none": "",
}


def fill(folder: Path) -> None:
    dice = random.Random(3)
    for number in range(40):
        file = folder / f"folder {number % 3}" / f"file {number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(dice.randbytes(dice.randrange(400_000)))


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("file *"))
    }


def place(disk: Path, table: str) -> tuple[int, int]:
    with open_reader(str(disk)) as reader:
        if table == "none":
            return 0, reader.size
        part = capture(reader).partitions[-1]
    return part.start, part.length


@pytest.mark.parametrize(
    ("kind", "table", "device"),
    [
        ("ext4", "gpt", True),
        ("ext4", "logical", False),
        ("ext2", "none", False),
        ("btrfs", "gpt", False),
        ("ntfs", "mbr", True),
        ("ntfs", "gpt", False),
    ],
)
def test_half_the_size_with_its_files(tmp_path: Path, kind: str, table: str, device: bool) -> None:
    size, target_size, make, check = KINDS[kind]
    source, target = tmp_path / "source", tmp_path / "target"
    script = TABLES[table].format(*((size + 1, size) if table == "logical" else (size,)))
    if table == "none":
        source.touch()
        with source.open("r+b") as file:
            file.truncate(size * MIB)
    else:
        make_table(source, (size + 8) * MIB, script)
    start, length = place(source, table)
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount_kind = "ext4" if kind == "ext2" else kind
    with attached(source, offset=start, size=length) as loop:
        run((*make, loop))
        with mounted_device(loop, mount_kind, folder, read_only=False):
            fill(folder)
            wanted = sums(folder)
    client = Client(tmp_path / "repository")
    client.run("init")
    client.run("backup", "--offline", str(source))
    restore = ("restore", "latest", "--shrink", "--yes", "--to")
    if device:
        # A disk full of what a restore must not leave where anybody looks.
        target.write_bytes(b"\xa5" * (target_size * MIB))
        with attached(target) as loop:
            client.run(*restore, loop, "--no-discard")
    else:
        client.run(*restore, str(target), "--size", str(target_size * MIB))
    start, length = place(target, table)
    assert start + length <= target_size * MIB
    if table == "gpt":
        assert b"No problems found" in run(("sgdisk", "-v", str(target))).stdout
    if table != "none":
        ours = sfdisk_partitions(target)[-1]
        assert (ours["start"], ours["length"]) == (start, length)
        assert ours["uuid"] == sfdisk_partitions(source)[-1]["uuid"]
    with attached(target, offset=start, size=length) as loop:
        run((*check, loop))
        with mounted_device(loop, mount_kind, folder, read_only=True):
            assert sums(folder) == wanted


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_what_lies_behind_moves_as_it_is(tmp_path: Path, label: str) -> None:
    """The layout most installers make: the root, and swap behind it."""
    rows = "size=100MiB\nsize=20MiB, type=swap\nsize=30MiB\n"
    source = make_table(tmp_path / "source", 160 * MIB, f"label: {label}\n{rows}")
    before = sfdisk_partitions(source)
    folder = tmp_path / "mounted"
    folder.mkdir()
    wanted = []
    for part in (before[0], before[2]):
        with attached(source, offset=part["start"], size=part["length"]) as loop:
            run(("mkfs.ext4", "-q", loop))
            with mounted_device(loop, "ext4", folder, read_only=False):
                fill(folder)
                # The last one is too full to become smaller itself.
                if part is before[2]:
                    (folder / "file large").write_bytes(random.Random(1).randbytes(12 * MIB))
                wanted.append(sums(folder))
    with attached(source, offset=before[1]["start"], size=before[1]["length"]) as loop:
        run(("mkswap", "-q", "-U", "11112222-3333-4444-8555-666677778888", loop))
    client = Client(tmp_path / "repository")
    client.run("init")
    client.run("backup", "--offline", str(source))
    target = tmp_path / "target"
    target.write_bytes(b"\xa5" * (120 * MIB))
    with attached(target) as loop:
        told = client.run("restore", "latest", "--shrink", "--to", loop, "--yes").stdout
    assert "move partition 2 from 101.0 MiB" in told
    after = sfdisk_partitions(target)
    assert [p["uuid"] for p in after] == [p["uuid"] for p in before]
    assert [p["length"] for p in after[1:]] == [p["length"] for p in before[1:]]
    if label == "gpt":
        assert b"No problems found" in run(("sgdisk", "-v", str(target))).stdout
    run(("sfdisk", "--verify", str(target)))
    for part, files in zip((after[0], after[2]), wanted, strict=True):
        with attached(target, offset=part["start"], size=part["length"]) as loop:
            run(("e2fsck", "-f", "-n", loop))
            with mounted_device(loop, "ext4", folder, read_only=True):
                assert sums(folder) == files
    with attached(target, offset=after[1]["start"], size=after[1]["length"]) as loop:
        told = run(("blkid", "-p", "-o", "export", loop)).stdout.decode()
    assert "TYPE=swap" in told
    assert "11112222-3333-4444-8555-666677778888" in told


def test_a_single_partition_and_a_device_that_stays_as_it_is(tmp_path: Path) -> None:
    client = Client(tmp_path / "repository")
    client.run("init")
    source = make_table(tmp_path / "source", 80 * MIB, TABLES["gpt"].format(60))
    start, length = place(source, "gpt")
    folder = tmp_path / "mounted"
    folder.mkdir()
    with attached(source, offset=start, size=length) as loop:
        run(("mkfs.ext4", "-q", loop))
        with mounted_device(loop, "ext4", folder, read_only=False):
            fill(folder)
            wanted = sums(folder)
    client.run("backup", "--offline", str(source))
    target = tmp_path / "part"
    # Just so much room that the plan is made, and resize2fs refuses: the target is untouched.
    regions = client.manifest("latest")["disks"][0]["regions"]  # type: ignore[index]
    used = next(region["used"] for region in regions if region.get("number") == 2)
    tight = (used + used // 32 + MIB) // MIB * MIB
    target.write_bytes(b"\xa5" * tight)
    before = hashlib.sha256(target.read_bytes()).hexdigest()
    restore = ("restore", "latest", "--partition", "2", "--to", str(target), "--yes", "--shrink")
    ended = client.run(*restore, code=1)
    assert "cannot be made to fit" in ended.stderr
    assert hashlib.sha256(target.read_bytes()).hexdigest() == before
    target.write_bytes(b"\xa5" * (36 * MIB))
    client.run(*restore, "--scratch", str(tmp_path))
    with attached(target) as loop:
        run(("e2fsck", "-f", "-n", loop))
        with mounted_device(loop, "ext4", folder, read_only=True):
            assert sums(folder) == wanted
