"""Used maps of XFS, filled by the kernel, judged by xfsprogs and partclone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import MIB
from freezeframe.fs.base import PeerList, State, UsedMap
from freezeframe.fs.xfs import KIND
from freezeframe.system.loop import attached
from freezeframe.system.run import run, search_path
from freezeframe.testing.fsproof import (
    PlainFile,
    loop_mounted,
    make_tree,
    partclone_used,
    scatter_used,
    tree_checksums,
)

pytestmark = pytest.mark.root

#: mkfs.xfs options and size in MiB. Below 300 MiB it wants to be told that this is a test.
VARIANTS = {
    "as-it-comes": ("", 300),
    "1k": ("-b size=1024 -d agcount=5", 100),
    "2k-many-groups": ("-b size=2048 -d agcount=16", 272),
    "4k-sectors": ("-s size=4096", 100),
    "64k": ("-b size=65536", 300),
    "everything": (
        "-m rmapbt=1,reflink=1,finobt=1,inobtcount=1,bigtime=1 -i sparse=1,nrext64=1",
        150,
    ),
    "nothing": ("-m rmapbt=0,reflink=0,finobt=0,inobtcount=0,bigtime=0 -i sparse=0", 100),
    "striped-log": ("-l su=256k,size=24m -d su=64k,sw=2", 200),
    "log-at-the-end": ("-d agcount=3 -l agnum=2,size=8m", 100),
}
#: Those partclone is asked about too: it takes two seconds each time.
PARTCLONE = ("as-it-comes", "everything", "64k")


def _make(image: Path, options: str, mib: int) -> None:
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    # The three names mkfs.xfs looks for before it makes a filesystem so small.
    small = dict(os.environ, PATH=search_path(), TEST_DIR="1", TEST_DEV="1", QA_CHECK_FS="1")
    command = ["mkfs.xfs", "-q", "-f", "-L", "a label", *options.split(), str(image)]
    subprocess.run(command, check=True, env=small, capture_output=True)


def _used(image: Path, *, state: State = State.AT_REST) -> UsedMap:
    with PlainFile(image) as reader:
        return KIND.used_map(reader, PeerList((reader,)), state=state)


def _superblock(image: Path, field: str) -> int:
    output = run(("xfs_db", "-r", "-c", "sb 0", "-c", f"print {field}", str(image))).stdout
    return int(output.decode().split("=")[1])


def _counted(image: Path) -> tuple[int, int]:
    """Bytes in use as xfs_db counts them, and of those it calls free, the groups' reserves."""
    output = run(("xfs_db", "-r", "-c", "freesp -s", str(image))).stdout.decode()
    (free,) = (line.split()[-1] for line in output.splitlines() if "total free blocks" in line)
    size = _superblock(image, "blocksize")
    reserves = 0
    for group in range(_superblock(image, "agcount")):
        output = run(
            ("xfs_db", "-r", "-c", f"agf {group}", "-c", "print flcount", str(image))
        ).stdout
        reserves += int(output.decode().split("=")[1])
    return (_superblock(image, "dblocks") - int(free)) * size, reserves * size


def _state(image: Path) -> str:
    """`CLEAN` or `DIRTY`, as xfs_logprint says."""
    with attached(image, read_only=True) as device:
        output = run(("xfs_logprint", "-t", device)).stdout.decode()
    return output.split("state: <")[1].split(">")[0]


def _prove(image: Path, result: UsedMap, folder: Path) -> None:
    with loop_mounted(image, folder / "before", read_only=True) as mounted:
        before = tree_checksums(mounted)
    assert len(before) > 20
    spoiled = folder / "spoiled.img"
    scatter_used(image, result.used, spoiled)
    run(("xfs_repair", "-n", str(spoiled)))
    with loop_mounted(spoiled, folder / "after", read_only=True, options="nouuid") as mounted:
        assert tree_checksums(mounted) == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_never_a_used_block_left_out(variant: str, tmp_path: Path) -> None:
    options, mib = VARIANTS[variant]
    image = tmp_path / "image"
    _make(image, options, mib)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
    assert _state(image) == "CLEAN"
    result = _used(image)
    assert (result.kind, result.label, result.understood) == ("xfs", "a label", True)
    uuid = run(("blkid", "-o", "value", "-s", "UUID", str(image))).stdout.decode().strip()
    assert result.uuid == uuid
    counted, reserves = _counted(image)
    # Stripes may not fill the device.
    tail = image.stat().st_size - result.span
    assert result.used.total == counted + reserves + tail
    if variant in PARTCLONE:
        assert not partclone_used("xfs", image) - result.used
    _prove(image, result, tmp_path)


def test_deep_trees(tmp_path: Path) -> None:
    """Thousands of holes: the trees of free space have two levels and more."""
    image = tmp_path / "image"
    _make(image, "-b size=1024 -d agcount=2", 100)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
        holes = mounted / "holes"
        holes.write_bytes(bytes(range(256)) * 4 * 30_000)
        with holes.open("r+b") as file:
            os.fsync(file.fileno())
        run(
            (
                "xfs_io",
                *(x for n in range(0, 30_000, 2) for x in ("-c", f"fpunch {n}k 1k")),
                str(holes),
            )
        )
    levels = run(("xfs_db", "-r", "-c", "agf 0", "-c", "print bnolevel", str(image))).stdout
    assert int(levels.decode().split("=")[1]) >= 2
    result = _used(image)
    assert len(result.used) > 10_000
    counted, reserves = _counted(image)
    assert result.used.total == counted + reserves
    _prove(image, result, tmp_path)


def test_after_growing_and_a_new_uuid(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-d agcount=2", 100)
    with image.open("r+b") as file:
        file.truncate(270 * MIB + 4096 * 3)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
        run(("xfs_growfs", str(mounted)))
    assert _superblock(image, "agcount") > 2
    for command in (
        ("xfs_admin", "-U", "generate", str(image)),
        ("xfs_admin", "-L", "new", str(image)),
        ("xfs_repair", str(image)),
        ("xfs_repair", "-L", str(image)),
    ):
        run(command)
        result = _used(image)
        counted, reserves = _counted(image)
        tail = image.stat().st_size - result.span
        assert result.used.total == counted + reserves + tail
    assert result.label == "new"
    _prove(image, result, tmp_path)


@pytest.mark.parametrize(
    "options",
    ["-l size=8m -b size=1024", "-l size=8m,su=32k", "-l size=8m -s size=4096 -b size=4096"],
)
def test_clean_or_dirty_as_xfs_logprint_says(options: str, tmp_path: Path) -> None:
    """A small log that goes round several times, looked at mounted and unmounted."""
    image, copy = tmp_path / "image", tmp_path / "copy"
    _make(image, f"-d agcount=2 {options}", 64)
    states = []
    for turn in range(8):
        with loop_mounted(image, tmp_path / "mounted") as mounted:
            for number in range(100 + 300 * (turn % 3)):
                (mounted / f"{turn} {number}").write_bytes(b"x" * number)
            run(("sync", "-f", str(mounted)))
            for path in list(mounted.iterdir())[: 50 * turn]:
                path.unlink()
            run(("sync", "-f", str(mounted)))
            run(("cp", "--sparse=always", str(image), str(copy)))
        for path, expected in ((copy, "DIRTY"), (image, "CLEAN")):
            assert _state(path) == expected
            states.append(expected)
            with PlainFile(path) as reader:
                if expected == "CLEAN":
                    assert KIND.used_map(reader, PeerList((reader,))).understood
                    continue
                with pytest.raises(NotUnderstood, match="log"):
                    KIND.used_map(reader, PeerList((reader,)))
    assert len(set(states)) == 2


def test_frozen(tmp_path: Path) -> None:
    image, still = tmp_path / "image", tmp_path / "still"
    _make(image, "-m rmapbt=1", 150)
    with loop_mounted(image, tmp_path / "mounted") as mounted:
        make_tree(mounted)
        with (mounted / "open and deleted").open("wb") as orphan:
            orphan.write(b"still here" * 50_000)
            orphan.flush()
            (mounted / "open and deleted").unlink()
            before = tree_checksums(mounted)
            run(("fsfreeze", "-f", str(mounted)))
            try:
                run(("cp", "--sparse=always", str(image), str(still)))
            finally:
                run(("fsfreeze", "-u", str(mounted)))
    assert _state(still) == "DIRTY"
    with PlainFile(still) as reader, pytest.raises(NotUnderstood, match="log"):
        KIND.used_map(reader, PeerList((reader,)))
    result = _used(still, state=State.FROZEN)
    counted, reserves = _counted(still)
    assert result.used.total == counted + reserves
    spoiled = tmp_path / "spoiled"
    scatter_used(still, result.used, spoiled)
    # The mount replays the log and frees the deleted file.
    with loop_mounted(spoiled, tmp_path / "after") as mounted:
        assert tree_checksums(mounted) == before
    run(("xfs_repair", "-n", str(spoiled)))
