"""Used maps of XFS filesystems made and filled by mkfs.xfs alone, and what is refused."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import GIB, MIB
from freezeframe.fs.base import PeerList, State, UsedMap
from freezeframe.fs.xfs import KIND
from freezeframe.system.run import run, search_path
from freezeframe.testing.fsproof import PlainFile, partclone_used, scatter_used

#: Version 4 and blocks of 512 bytes: newer kernels do not mount them.
VARIANTS = {
    "v4": ("-m crc=0", 64),
    "v4-512": ("-m crc=0 -b size=512 -d agcount=3", 64),
    "v4-first-log": ("-m crc=0 -l version=1", 64),
    "v4-eager-counts": ("-m crc=0 -l lazy-count=0 -b size=1024 -d agcount=5", 100),
    "v4-64k": ("-m crc=0 -b size=65536", 300),
    "v5": ("", 64),
    "v5-1k": ("-b size=1024 -d agcount=3", 64),
    "v5-8k": ("-b size=8192 -s size=4096", 100),
    "v5-ci": ("-n version=ci -m rmapbt=1,reflink=1", 150),
}


def _make(image: Path, options: str, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    # The three names mkfs.xfs looks for before it makes a filesystem so small.
    small = dict(os.environ, PATH=search_path(), TEST_DIR="1", TEST_DEV="1", QA_CHECK_FS="1")
    command = ["mkfs.xfs", "-q", "-f", *options.split(), str(image)]
    subprocess.run(command, check=True, env=small, capture_output=True)


def _used(image: Path, *, state: State = State.AT_REST) -> UsedMap:
    with PlainFile(image) as reader:
        return KIND.used_map(reader, PeerList((reader,)), state=state)


def _refused(image: Path, reason: str, *, state: State = State.AT_REST) -> None:
    with pytest.raises(NotUnderstood, match=reason):
        _used(image, state=state)


def _xfs_db(image: Path, *commands: str) -> str:
    options = [part for command in commands for part in ("-c", command)]
    return run(("xfs_db", "-x", *options, str(image))).stdout.decode()


def _patch(image: Path, offset: int, data: bytes) -> bytes:
    """Overwrite bytes; return what was there."""
    with image.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(data))
        file.seek(offset)
        file.write(data)
    return before


def _prototype(folder: Path) -> Path:
    """What mkfs.xfs fills a new filesystem with: files of this machine's making."""
    rng = random.Random(5)
    lines = ["no-boot-file", "0 0", "d--755 0 0"]
    for number, size in enumerate([0, 1, 5000, 70_000, 300_000] * 6):
        path = folder / f"file{number}"
        path.write_bytes(rng.randbytes(size))
        lines.append(f"file{number} ---644 0 0 {path}")
    lines += ["folder d--755 0 0", "link l--777 0 0 ../file3", "$", "$"]
    prototype = folder / "prototype"
    prototype.write_text("\n".join(lines) + "\n")
    return prototype


@pytest.mark.parametrize("variant", VARIANTS)
def test_made_and_filled_by_mkfs(variant: str, tmp_path: Path) -> None:
    options, mib = VARIANTS[variant]
    image, spoiled = tmp_path / "image", tmp_path / "spoiled"
    _make(image, f"{options} -p {_prototype(tmp_path)}", mib * MIB + 512)
    result = _used(image)
    tail = image.stat().st_size - result.span
    assert tail > 0
    assert result.used.covers(result.span, image.stat().st_size)
    fields = dict(
        line.split(" = ") for line in _xfs_db(image, "sb 0", "print").splitlines() if "=" in line
    )
    assert result.block_size == int(fields["blocksize"])
    assert result.span == int(fields["dblocks"]) * result.block_size
    (free,) = (
        int(line.split()[-1])
        for line in _xfs_db(image, "freesp -s").splitlines()
        if "total free blocks" in line
    )
    reserves = sum(
        int(_xfs_db(image, f"agf {group}", "print flcount").split("=")[1])
        for group in range(int(fields["agcount"]))
    )
    free_bytes = (free - reserves) * result.block_size
    assert result.used.total - tail == result.span - free_bytes
    if variant in ("v4", "v4-512"):  # It takes two seconds each time.
        assert not partclone_used("xfs", image) - result.used
    scatter_used(image, result.used, spoiled)
    run(("xfs_repair", "-n", str(spoiled)))


def test_a_large_one_is_read_sparingly(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-d agcount=40", 4096 * GIB)
    result = _used(image)
    assert result.used.total < 3 * GIB


def test_after_repair_and_a_new_uuid(tmp_path: Path) -> None:
    """The tools write the log anew: another cycle, or another length of record."""
    image = tmp_path / "image"
    _make(image, "", 100 * MIB)
    for command in (
        ("xfs_admin", "-U", "generate"),
        ("xfs_admin", "-U", "generate"),
        ("xfs_repair", "-L"),
        ("xfs_admin", "-L", "label"),
        ("xfs_admin", "-U", "restore"),
        ("xfs_repair",),
    ):
        run((*command, str(image)))
        assert _used(image).understood


def test_parts_elsewhere_are_refused(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "other"
    with other.open("wb") as file:
        file.truncate(32 * MIB)
    _make(image, f"-l logdev={other},size=16m", 64 * MIB)
    _refused(image, "log is on another device")
    _make(image, f"-r rtdev={other}", 64 * MIB)
    _refused(image, "realtime")


def test_unknown_and_unfinished_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "", 64 * MIB)
    for offset, data, reason in (
        (126, b"\1", "never finished"),
        (100, b"\0\0", "version 0"),
        (100, b"\xb4\xa6", "version 6"),
        (208, b"\0\0\1\0", "compatible"),
        (212, b"\0\0\1\0", "read-only"),
        # Metadata directories.
        (216, b"\0\0\1\x4b", "incompatible"),
        (220, b"\0\0\0\2", "log features"),
        (216, b"\0\0\0\x1b", "xfs_repair"),
        (12, b"\1", "states"),
        (224, b"\0\0\0\0", "checksum"),
    ):
        before = _patch(image, offset, data)
        _refused(image, reason)
        _patch(image, offset, before)
    assert _used(image).understood


@pytest.mark.parametrize("options", ["", "-m crc=0"])
def test_counts_that_disagree_are_refused(options: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, options, 64 * MIB)
    # Without asking xfs_db's own checks; checksums are made anew.
    write = "write -c" if options else "write -d"
    free = int(_xfs_db(image, "sb 0", "print fdblocks").split("=")[1])
    _xfs_db(image, "sb 0", f"{write} fdblocks {free + 1}")
    _refused(image, "superblock counts")
    # While frozen, the superblock's counts are old.
    assert _used(image, state=State.FROZEN).understood
    _xfs_db(image, "sb 0", f"{write} fdblocks {free}")
    assert _used(image).understood
    for place, field, reason in (
        (("agf 1",), "freeblks", "its header says"),
        (("agf 1",), "longest", "its header says"),
        (("agf 1",), "length", "makes no sense"),
        (("agf 1",), "seqno", "makes no sense"),
        (("agf 1",), "versionnum", "no free-space header"),
        (("agf 1",), "bnolevel", "makes no sense"),
        (("agf 1",), "bnoroot", "makes no sense"),
        (("agf 1",), "cntroot", "makes no sense"),
        (("agf 1", "addr bnoroot"), "numrecs", "its header says"),
        (("agf 1", "addr bnoroot"), "level", "none of its level"),
        (("agf 1", "addr bnoroot"), "leftsib", "neighbours"),
        (("agf 1", "addr bnoroot"), "recs[1].startblock", "its own metadata"),
        (("agf 1", "addr bnoroot"), "recs[1].blockcount", "its header says"),
    ):
        text = _xfs_db(image, *place, f"print {field}").split("=")[-1].split(":")[-1].strip()
        old = 0xFFFFFFFF if text == "null" else int(text, 0)
        for new in {0, old - 1, 0xFFFF} - {old, -1}:
            if field in ("cntroot", "recs[1].startblock") and new == old - 1:
                continue  # One block off is possible, if not true.
            _xfs_db(image, *place, f"{write} {field} {new}")
            with pytest.raises(NotUnderstood, match=r"XFS group 1|XFS superblock counts") as found:
                _used(image)
            if new == old - 1:
                assert re.search(reason, str(found.value)), field
        _xfs_db(image, *place, f"{write} {field} {old}")
    assert _used(image).understood


def test_metadata_counted_as_free_is_refused(tmp_path: Path) -> None:
    """All sums are right, but the free extent has moved over the log."""
    image = tmp_path / "image"
    _make(image, "-d agcount=2", 64 * MIB)
    log = int(_xfs_db(image, "sb 0", "print logstart").split("=")[1])
    bits = int(_xfs_db(image, "sb 0", "print agblklog").split("=")[1])
    place = (f"agf {log >> bits}", "addr bnoroot")
    fields = _xfs_db(image, *place, "print recs").split("[startblock,blockcount]")[1]
    records = re.findall(r"(\d+):\[(\d+),(\d+)\]", fields)
    number, start, length = records[-1]
    within = (log & ((1 << bits) - 1)) + 5
    assert within < int(start)
    assert int(length) > 5
    _xfs_db(image, *place, f"write -d recs[{number}].startblock {within}")
    _refused(image, "its own metadata")


def test_a_log_with_anything_odd_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "", 64 * MIB)
    numbers = [
        int(_xfs_db(image, "sb 0", f"print {field}").split("=")[1])
        for field in ("logstart", "agblklog", "agblocks", "blocksize", "logblocks")
    ]
    start, bits, group_blocks, block_size, blocks = numbers
    group, block = start >> bits, start & ((1 << bits) - 1)
    log = (group * group_blocks + block) * block_size
    size = blocks * block_size
    # Where the bisection looks first.
    middle = (size // 512 - 1) // 2 * 512
    for offset, data in (
        # Another magic, version, length, place, count of operations, flags; more records.
        (0, b"\0\0\0\1"),
        (12, b"\0\0\4\0"),
        (16, b"\0\0\0\2"),
        (40, b"\0\0\0\2"),
        (304, b"\1" * 16),
        (512 + 9, b"\0"),
        (1024, b"\0\0\0\1"),
        (1024, b"\0\0\0\2"),
        (middle, b"\0\0\0\1"),
        (middle, b"\0\0\0\2"),
        (size - 512, b"\0\0\0\1"),
        (size - 512, b"\0\0\0\2"),
        (0, bytes(1024)),
    ):
        before = _patch(image, log + offset, data)
        if before == data:
            continue
        if data == bytes(1024):
            assert _used(image).understood, "never used"
        else:
            _refused(image, "XFS log|record of the XFS")
        assert _used(image, state=State.FROZEN).understood
        _patch(image, log + offset, before)
    assert _used(image).understood


def test_a_region_cut_short_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "", 64 * MIB)
    with image.open("r+b") as file:
        file.truncate(64 * MIB - 512)
    _refused(image, "more blocks than the region")


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-m crc=0", 64 * MIB)
    for offset, size, values in (
        (4, 4, (0, 1, 4095, 1 << 17, 0xFFFFFFFF)),
        (8, 8, (0, 1, 1 << 63)),
        (48, 8, (1, 2, 1 << 40, (1 << 64) - 1)),
        (84, 4, (0, 1, 63, 64, 0xFFFFFFFF)),
        (88, 4, (0, 1, 1000, 0xFFFFFFFF)),
        (96, 4, (0, 0xFFFFFFFF)),
        (102, 2, (0, 1, 0xFFFF)),
        (120, 1, (0, 13, 255)),
        (121, 1, (0, 10, 255)),
        (124, 1, (0, 31, 64, 255)),
    ):
        for value in values:
            before = _patch(image, offset, value.to_bytes(size, "big"))
            _refused(image, "XFS")
            _patch(image, offset, before)
    assert _used(image).understood
