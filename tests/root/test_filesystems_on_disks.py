"""Which filesystems lie on a disk, through everything the kernel of this machine can stack."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.shadow.filesystems import disks_beneath, find_filesystems, held_up
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.outsiders import find_outsiders
from freezeframe.system import sysfs
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.system.sysfs import Node
from freezeframe.testing.frozen import MountedDisk, is_frozen, mounted_at, mounted_disk
from freezeframe.testing.volumes import unmount

pytestmark = pytest.mark.root

MIB = 1 << 20


def blank(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


@contextlib.contextmanager
def loop(path: Path, size: int) -> Iterator[Node]:
    with attached(blank(path, size)) as device:
        node = sysfs.node_of(device)
        assert node is not None
        yield node


@contextlib.contextmanager
def other_view(command: str, *arguments: str) -> Iterator[int]:
    """Run a shell command in a mount namespace of its own, which stays; give its process."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
         f"{command}\necho ready\nread end", "sh", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[MountedDisk]:
    with mounted_disk(tmp_path, "ext4", size=64 * MIB) as disk:
        yield disk


def points(*nodes: Node) -> list[str]:
    return [each.point for each in find_filesystems(nodes).filesystems]


def test_only_those_on_the_disk(ext4: MountedDisk, tmp_path: Path) -> None:
    with mounted_disk(tmp_path, "ext4", "other", size=64 * MIB) as other:
        assert points(ext4.node) == [str(ext4.point)]
        assert points(other.node) == [str(other.point)]
        assert set(points(ext4.node, other.node)) == {str(ext4.point), str(other.point)}
        # Both lie on files of the disk of this machine, and come before what holds these.
        backing = disks_beneath(ext4.point, [node for node in sysfs.disks() if not _loops(node)])
        assert len(backing) == 1
        everything = points(*backing)
        assert {str(ext4.point), str(other.point)} <= set(everything)
        root = everything.index("/") if "/" in everything else len(everything)
        assert root > max(everything.index(str(d.point)) for d in (ext4, other))


def _loops(node: Node) -> bool:
    return node.name.startswith("loop")


def test_three_deep(ext4: MountedDisk) -> None:
    with (
        mounted_disk(ext4.point, "ext4", "two", size=40 * MIB) as two,
        mounted_disk(two.point, "ext4", "three", size=16 * MIB) as three,
    ):
        (first, second, third) = find_filesystems([ext4.node]).filesystems
        assert [first.point, second.point, third.point] == [
            str(three.point),
            str(two.point),
            str(ext4.point),
        ]
        assert first.sits_on == {second.device, third.device}
        assert third.sits_on == frozenset()
        assert points(two.node) == [str(three.point), str(two.point)]
        # Whether it exists yet or not.
        assert held_up(three.point / "a" / "log", [third]) == [third]
        (three.point / "log").touch()
        held = held_up(three.point / "log", [first, second, third])
        assert held == [first, second, third]
        assert held_up(ext4.point, [first, second, third]) == [third]


def test_a_loop_file_that_was_deleted(ext4: MountedDisk, tmp_path: Path) -> None:
    image = blank(ext4.point / "image", 16 * MIB)
    run(("mkfs.ext4", "-q", str(image)))
    with attached(image) as device, mounted_at(device, tmp_path / "inner") as inner:
        image.unlink()
        assert points(ext4.node) == [str(inner), str(ext4.point)]


def test_btrfs_of_two_devices_and_its_subvolumes(tmp_path: Path) -> None:
    with loop(tmp_path / "a", 200 * MIB) as first, loop(tmp_path / "b", 200 * MIB) as second:
        devices = (first.path, second.path)
        run(("mkfs.btrfs", "-q", "-f", "-d", "raid1", "-m", "raid1", *devices))
        run(("btrfs", "device", "scan", *devices))
        try:
            with mounted_at(first.path, tmp_path / "top") as top:
                run(("btrfs", "subvolume", "create", str(top / "sub")))
                with mounted_at(first.path, tmp_path / "sub", "-o", "subvol=sub"):
                    for disk in (first, second):
                        (found,) = find_filesystems([disk]).filesystems
                        assert found.devices == devices
                        assert len(found.ways) == 2
                    # A path in a subvolume, whose device number no mount shows.
                    (top / "sub" / "file").touch()
                    assert disks_beneath(top / "sub" / "file", [second]) == [second]
                    assert held_up(tmp_path / "sub" / "file", [found]) == [found]
                    with Freezer([found]) as freezer, freezer.window():
                        assert is_frozen(tmp_path / "sub")
        finally:
            run(("btrfs", "device", "scan", "--forget", *devices), ok=(0, 1))


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_journal_on_another_device(tmp_path: Path, kind: str) -> None:
    with loop(tmp_path / "data", 320 * MIB) as data, loop(tmp_path / "log", 64 * MIB) as log:
        if kind == "ext4":
            run(("mkfs.ext4", "-q", "-b", "4096", "-O", "journal_dev", log.path))
            run(("mkfs.ext4", "-q", "-b", "4096", "-J", f"device={log.path}", data.path))
            options = []
        else:
            run(("mkfs.xfs", "-q", "-f", "-l", f"logdev={log.path}", data.path))
            options = ["-o", f"logdev={log.path}"]
        with mounted_at(data.path, tmp_path / "m", *options):
            assert points(data) == points(log) == [str(tmp_path / "m")]
            (found,) = find_filesystems([log]).filesystems
            assert set(found.devices) == {data.path, log.path}
            assert find_outsiders([data, log]) == []


def test_mounted_in_another_view_only(tmp_path: Path) -> None:
    with loop(tmp_path / "disk", 64 * MIB) as disk:
        run(("mkfs.ext4", "-q", disk.path))
        (tmp_path / "there").mkdir()
        with other_view('mount "$1" "$2"', disk.path, str(tmp_path / "there")) as process:
            (found,) = find_filesystems([disk]).filesystems
            assert found.point == f"{tmp_path}/there (in the view of process {process})"
            way = Path(f"/proc/{process}/root{tmp_path}/there")
            with Freezer([found]) as freezer, freezer.window() as window:
                assert is_frozen(way)
            assert len(window.times) == 1
            assert not is_frozen(way)
        assert points(disk) == []


def test_an_overlay_is_its_upper_filesystem(ext4: MountedDisk, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (ext4.point / name).mkdir()
    (tmp_path / "merged").mkdir()
    layers = ",".join(
        f"{option}={ext4.point}/{name}"
        for option, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))
    )
    run(("mount", "-t", "overlay", "overlay", "-o", layers, str(tmp_path / "merged")))
    try:
        (found,) = find_filesystems([ext4.node]).filesystems
        assert found.point == str(ext4.point)
        (tmp_path / "merged" / "log").touch()
        assert held_up(tmp_path / "merged" / "log", [found]) == [found]
        # A filesystem on a file of the overlay lies on the upper one.
        image = blank(tmp_path / "merged" / "image", 16 * MIB)
        run(("mkfs.ext4", "-q", str(image)))
        with attached(image) as device, mounted_at(device, tmp_path / "inner") as inner:
            assert points(ext4.node) == [str(inner), str(ext4.point)]
    finally:
        unmount(tmp_path / "merged")


def test_a_loop_device_over_the_disk(tmp_path: Path) -> None:
    with loop(tmp_path / "disk", 64 * MIB) as disk:
        run(("mkfs.ext4", "-q", disk.path))
        with attached(disk.path) as over, mounted_at(over, tmp_path / "m"):
            assert points(disk) == [str(tmp_path / "m")]
            assert find_outsiders([disk]) == []


def test_where_paths_lie(ext4: MountedDisk) -> None:
    log = ext4.point / "log"
    with log.open("w") as file:
        assert disks_beneath(f"/proc/self/fd/{file.fileno()}", [ext4.node]) == [ext4.node]
    assert disks_beneath("/proc/self/status", [ext4.node]) == []
    assert disks_beneath("/dev/null", [ext4.node]) == []
    reading, writing = os.pipe()
    assert disks_beneath(f"/proc/self/fd/{writing}", [ext4.node]) == []
    os.close(reading)
    os.close(writing)


def test_the_same_later(ext4: MountedDisk) -> None:
    before = find_filesystems([ext4.node])
    assert before.same_as(find_filesystems([ext4.node]))
    run(("mount", "-o", "remount,ro", str(ext4.point)))
    assert not before.same_as(find_filesystems([ext4.node]))
    run(("mount", "-o", "remount,rw", str(ext4.point)))
    with mounted_disk(ext4.point, "ext4", "new", size=16 * MIB):
        assert not before.same_as(find_filesystems([ext4.node]))
    assert before.same_as(find_filesystems([ext4.node]))


# -- past the filesystems -------------------------------------------------------------


def test_nobody_else(ext4: MountedDisk) -> None:
    assert find_outsiders([ext4.node]) == []


def test_swap_on_a_partition(tmp_path: Path) -> None:
    image = blank(tmp_path / "disk", 64 * MIB)
    run(("sfdisk", "-q", str(image)), stdin=b"label: gpt\nsize=20MiB\nsize=16MiB\n")
    with attached(image, partitions=True) as device:
        run(("mkswap", f"{device}p2"))
        run(("swapon", f"{device}p2"))
        try:
            node = sysfs.node_of(device)
            assert node is not None
            (found,) = find_outsiders([node])
            assert (found.kind, found.path) == ("swap", f"{device}p2")
            (stretch,) = found.stretches
            assert (stretch.disk, stretch.start, stretch.length) == (
                node.number,
                21 * MIB,
                16 * MIB,
            )
        finally:
            run(("swapoff", f"{device}p2"))
        assert find_outsiders([node]) == []


def test_a_swap_file(ext4: MountedDisk) -> None:
    path = ext4.point / "swap"
    path.write_bytes(bytes(8 * MIB))
    path.chmod(0o600)
    run(("mkswap", str(path)))
    run(("swapon", str(path)))
    try:
        (found,) = find_outsiders([ext4.node])
        assert (found.kind, found.path, found.stretches) == ("swap", str(path), ())
    finally:
        run(("swapoff", str(path)))


def test_a_process_that_writes_to_the_device(ext4: MountedDisk) -> None:
    code = "import sys; file = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, ext4.device], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        (found,) = find_outsiders([ext4.node])
        assert found.kind == "process"
        assert f"pid {process.pid}" in found.text
        assert found.remedy
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_unmounted_lazily_it_still_writes(tmp_path: Path) -> None:
    with loop(tmp_path / "disk", 64 * MIB) as disk:
        run(("mkfs.ext4", "-q", disk.path))
        where = tmp_path / "m"
        where.mkdir()
        run(("mount", disk.path, str(where)))
        with (where / "open").open("w"):
            run(("umount", "--lazy", str(where)))
            assert points(disk) == []
            (found,) = find_outsiders([disk])
            assert (found.kind, found.path) == ("unknown", disk.path)
        assert find_outsiders([disk]) == []
