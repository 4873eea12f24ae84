"""One partition comes back onto a disk that is in use elsewhere."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.layouts import make_table
from freezeframe.testing.program import Client
from freezeframe.testing.volumes import lvm, mounted_device

pytestmark = pytest.mark.root

TABLE = "label: gpt\nsize=40MiB, name=used\nsize=40MiB, name=other\n"


def sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.mark.parametrize("changed_only", [True, False])
def test_beside_a_mounted_one(tmp_path: Path, changed_only: bool) -> None:
    client = Client(tmp_path / "repository")
    client.run("init")
    disk = make_table(tmp_path / "disk", 90 * MIB, TABLE)
    folder = tmp_path / "mounted"
    folder.mkdir()
    with attached(disk, partitions=True) as device:
        used, other = f"{device}p1", f"{device}p2"
        for part in (used, other):
            run(("mkfs.ext4", "-q", part))
        with mounted_device(other, "ext4", folder, read_only=False):
            for number in range(10):
                (folder / f"file {number}").write_bytes(bytes([number]) * 300_000)
            wanted = sums(folder)
        client.run("backup", "--offline", device)
        with mounted_device(other, "ext4", folder, read_only=False):
            (folder / "file 3").write_bytes(b"no longer what it was" * 10_000)
            (folder / "file 4").unlink()
        with mounted_device(used, "ext4", folder, read_only=False):
            (folder / "busy").write_bytes(b"x" * MIB)
            restore = ("restore", "latest", "--partition", "2", "--yes")
            mode = ("--changed-only",) if changed_only else ()
            # The other one alone is looked at: neither the disk nor the mounted one may be had.
            refused = client.run(*restore, "--to", used, *mode, code=1)
            assert f"mounted read-write at {folder}" in refused.stderr
            assert client.run("restore", "latest", "--to", device, "--yes", *mode, code=1)
            told = client.run(*restore, "--to", other, *mode)
            assert ("chunks differed" in told.stdout) is changed_only
            assert (folder / "busy").read_bytes() == b"x" * MIB
        # Nobody uses the disk any more: all of it, then, and what was written meanwhile goes.
        client.run("restore", "latest", "--to", device, "--yes", *mode)
        run(("e2fsck", "-f", "-n", used))
        run(("e2fsck", "-f", "-n", other))
        with mounted_device(other, "ext4", folder, read_only=True):
            assert sums(folder) == wanted


@pytest.fixture
def grouped(tmp_path: Path) -> tuple[Client, Path]:
    """A repository with the image of a disk whose one partition is a volume group."""
    disk = make_table(tmp_path / "disk", 130 * MIB, "label: gpt\nsize=120MiB, type=lvm\n")
    with attached(disk, offset=MIB, size=120 * MIB) as device:
        lvm("pvcreate", device, "--yes", device)
        lvm("vgcreate", device, "--setautoactivation", "n", "vg", device)
        options = ("--activate", "n", "--zero", "n", "--wipesignatures", "n", "--yes")
        for name, size in (("first", "24m"), ("home", "40m")):
            lvm("lvcreate", device, *options, "--name", name, "-L", size, "vg")
        # In two pieces, with another volume between them.
        lvm("lvextend", device, "-L", "40m", "vg/first")
    return Client(tmp_path / "repository"), disk


def test_a_logical_volume_out_of_the_image_of_its_disk(
    grouped: tuple[Client, Path], tmp_path: Path
) -> None:
    client, disk = grouped
    client.run("init")
    content = random.Random(5).randbytes(20 * MIB)
    with attached(disk, offset=MIB, size=120 * MIB) as device:
        report = json.loads(
            lvm(
                "lvs", device, "--reportformat", "json", "--segments", "-o", "lv_name,seg_pe_ranges"
            )
        )["report"][0]["seg"]
    pieces = [
        tuple(int(number) for number in row["seg_pe_ranges"].rsplit(":", 1)[1].split("-"))
        for row in report
        if row["lv_name"] == "first"
    ]
    assert len(pieces) == 2
    # Its start is in the first piece, its end in the second: where LVM says they lie.
    with disk.open("r+b") as file:
        file.seek(2 * MIB + pieces[0][0] * 4 * MIB)
        file.write(content)
        file.seek(2 * MIB + pieces[1][0] * 4 * MIB)
        file.write(content[: 8 * MIB])
    client.run("backup", "--offline", str(disk))
    wanted = bytearray(40 * MIB)
    wanted[: len(content)] = content
    wanted[24 * MIB : 32 * MIB] = content[: 8 * MIB]
    restore = ("restore", "latest", "--volume", "vg/first", "--yes", "--to")
    new = tmp_path / "new.raw"
    client.run(*restore, str(new))
    assert new.read_bytes() == wanted
    target = tmp_path / "target"
    target.write_bytes(wanted[: 26 * MIB] + b"x" + wanted[26 * MIB + 1 :])
    with attached(target) as device:
        told = json.loads(
            client.run(*restore, device, "--changed-only", "--json").stdout.splitlines()[-1]
        )
        assert told["chunks_differ"] == 1
        assert told["bytes"] == MIB
    assert target.read_bytes() == wanted
    with attached(target) as device:
        client.run(*restore, device)
    assert target.read_bytes() == wanted
    assert (
        "it has: vg/first, vg/home"
        in client.run(
            "restore", "latest", "--volume", "vg/none", "--to", str(new), "--yes", code=2
        ).stderr
    )
    target.write_bytes(bytes(MIB))
    assert "at least that size" in client.run(*restore, str(target), code=1).stderr
