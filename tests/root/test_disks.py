"""Loop devices come and go as promised; the machine's disks are as lsblk sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from freezeframe.core.errors import ToolFailed
from freezeframe.core.units import MIB
from freezeframe.system import sysfs
from freezeframe.system.disks import describe_disk, describe_source, list_disks
from freezeframe.system.holders import backing_disks, lies_on
from freezeframe.system.loop import attached
from freezeframe.system.run import run

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.touch()
    os.truncate(path, 64 * MIB)
    table = b"label: gpt\nstart=2048, size=20MiB\nstart=81920, size=8MiB\n"
    run(["sfdisk", "-q", str(path)], stdin=table)
    return path


def attached_to(path: Path) -> str:
    return run(["losetup", "-j", str(path)]).stdout.decode()


def test_loop_devices(disk: Path) -> None:
    with attached(disk, offset=MIB, size=20 * MIB, sector=4096, read_only=True) as device:
        columns = ["-n", "-O", "OFFSET,SIZELIMIT,RO,LOG-SEC,BACK-FILE"]
        told = run(["losetup", "-l", *columns, device]).stdout.decode().split()
        assert told == [str(MIB), str(20 * MIB), "1", "4096", str(disk)]
        assert sysfs.loop_backing_file(node(device)) == str(disk)
    assert attached_to(disk) == ""
    device = ""
    with contextlib.suppress(ZeroDivisionError), attached(disk, partitions=True) as device:
        assert Path(f"{device}p2").is_block_device()
        assert [p.partition for p in node(device).partitions()] == [1, 2]
        raise ZeroDivisionError
    assert attached_to(disk) == ""
    assert not Path(f"/sys/block/{Path(device).name}/{Path(device).name}p1").exists()


def node(device: str) -> sysfs.Node:
    found = sysfs.node_of(device)
    assert found is not None
    return found


def test_no_partitions_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "blank").write_bytes(bytes(MIB))
    with attached(tmp_path / "blank", partitions=True) as device:
        assert node(device).partitions() == []
    with pytest.raises(ToolFailed), attached(tmp_path / "missing"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_detached_when_interrupted(disk: Path, number: signal.Signals) -> None:
    code = """
import sys, time
from freezeframe.system.interrupt import orderly_stop
from freezeframe.system.loop import attached
with orderly_stop():
    with attached(sys.argv[1], partitions=True):
        print(flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(disk)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert attached_to(disk)
    process.send_signal(number)
    _, said = process.communicate()
    assert b"KeyboardInterrupt" in said
    assert attached_to(disk) == ""


def test_detached_when_interrupted_at_any_moment(disk: Path) -> None:
    """Signals in the middle of attaching and detaching leave nothing behind."""
    code = """
import os, signal, sys, threading
from freezeframe.system.interrupt import orderly_stop
from freezeframe.system.loop import attached
delay = float(sys.argv[2])
threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
with orderly_stop():
    for _ in range(20):
        with attached(sys.argv[1]):
            pass
"""
    for step in range(8):
        delay = 0.004 * step
        command = [sys.executable, "-c", code, str(disk), str(delay)]
        subprocess.run(command, capture_output=True, check=False)
        assert attached_to(disk) == "", delay


# -- disks ----------------------------------------------------------------------------

COLUMNS = "NAME,PATH,TYPE,SIZE,LOG-SEC,PHY-SEC,RM,ROTA,RO,SERIAL,MODEL,WWN"


def test_disks_are_as_lsblk_sees_them(disk: Path) -> None:
    with attached(disk, partitions=True, sector=512) as device:
        ours = {one.path: one for one in list_disks()}
        told = run(["lsblk", "--bytes", "--json", "-o", COLUMNS]).stdout
        theirs = {d["path"]: d for d in json.loads(told)["blockdevices"]}
        own = run(["findmnt", "-n", "-o", "SOURCE", "/"]).stdout.decode().strip()
        for path in {device, own} & theirs.keys():
            one, other = ours[path], theirs[path]
            assert one.name == other["name"]
            assert one.size == other["size"]
            assert (one.logical_sector, one.physical_sector) == (other["log-sec"], other["phy-sec"])
            assert (one.removable, one.rotational) == (other["rm"], other["rota"])
            assert one.read_only == other["ro"]
            # Without udev, lsblk knows fewer serial numbers than the drivers do.
            assert other["serial"] in (None, one.serial)
        mine = ours[device]
        assert describe_disk(f"{device}p1") == mine
        assert [(p.path, p.number, p.start, p.size) for p in mine.partitions] == [
            (f"{device}p1", 1, MIB, 20 * MIB),
            (f"{device}p2", 2, 40 * MIB, 8 * MIB),
        ]
        assert mine.diskseq == int(Path(f"/sys/block/{mine.name}/diskseq").read_text())
        assert describe_source(f"{device}p2").model == f"file {disk}"
        assert mine.holders == ()
        run(["mkfs.ext4", "-q", f"{device}p1"])
        (disk.parent / "m").mkdir()
        run(["mount", f"{device}p1", str(disk.parent / "m")])
        try:
            found = describe_disk(device)
        finally:
            run(["umount", str(disk.parent / "m")])
        assert found is not None
        assert found.partitions[0].mounts == (str(disk.parent / "m"),)
        assert found.holders == (f"{device}p1 is mounted read-write at {disk.parent}/m",)
    assert device not in {one.path for one in list_disks() if one.model == f"file {disk}"}
    assert describe_disk(disk) is None
    assert describe_source(disk).model == ""


def test_what_lies_on_what(disk: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    below = backing_disks(tmp_path)
    with attached(disk, partitions=True) as device:
        first, second = f"{device}p1", f"{device}p2"
        run(["mkfs.ext4", "-q", first])
        run(["mount", first, str(inner)])
        try:
            (inner / "repo").mkdir()
            for bad in (device, first, str(disk), *below):
                assert lies_on(inner / "repo", bad), bad
            assert not lies_on(inner / "repo", second)
            assert not lies_on(inner / "repo", tmp_path / "nothing")
            assert not lies_on(tmp_path, device)
            assert backing_disks(inner / "repo") == below
            # Another loop device over the same partition is another name for it.
            with attached(first) as alias:
                assert lies_on(inner / "repo", alias)
            for folder in ("upper", "work", "lower", "all"):
                (inner / folder).mkdir()
            layers = f"lowerdir={inner}/lower,upperdir={inner}/upper,workdir={inner}/work"
            run(["mount", "-t", "overlay", "overlay", "-o", layers, str(inner / "all")])
            try:
                assert lies_on(inner / "all", first)
            finally:
                run(["umount", str(inner / "all")])
        finally:
            run(["umount", str(inner)])
    assert lies_on("/dev/shm", "/dev/shm") is False
    assert backing_disks("/dev/shm") == set()


def test_what_lies_on_a_btrfs_of_two_devices(tmp_path: Path) -> None:
    where = tmp_path / "m"
    where.mkdir()
    with ExitStack() as stack:
        devices = []
        for name in "ab":
            (tmp_path / name).touch()
            os.truncate(tmp_path / name, 120 * MIB)
            devices.append(stack.enter_context(attached(tmp_path / name)))
        run(["mkfs.btrfs", "-q", "-d", "single", "-m", "raid1", *devices])
        run(["mount", devices[0], str(where)])
        try:
            run(["btrfs", "subvolume", "create", str(where / "sub")])
            for path in (*devices, str(tmp_path / "a"), str(tmp_path / "b")):
                assert lies_on(where / "sub", path), path
        finally:
            run(["umount", str(where)])
