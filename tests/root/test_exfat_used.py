"""exFAT used maps against partclone, dump.exfat, fsck.exfat and the driver exfat-fuse."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import check_map
from freezeframe.testing.fsproof import (
    PlainFile,
    fuse_mounted,
    make_tree,
    partclone_used,
    scatter_used,
    tree_checksums,
)

pytestmark = pytest.mark.root


@contextlib.contextmanager
def mounted(image: Path, folder: Path, sector: int = 512) -> Iterator[Path]:
    """The driver takes nothing but devices."""
    with (
        attached(image, sector=sector) as device,
        fuse_mounted(("mount.exfat-fuse",), Path(device), folder),
    ):
        yield folder


def make(image: Path, size: int, *options: str, sector: int = 512) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    with attached(image, sector=sector) as device:
        run(("mkfs.exfat", "-L", "LABEL", *options, device))


def fill(image: Path, folder: Path, sector: int) -> None:
    with mounted(image, folder, sector):
        make_tree(folder, links=False, sparse=False)
        # A file that grows, with others in between: its clusters cannot all be neighbours.
        with (folder / "grows").open("wb") as grows:
            for number in range(20):
                grows.write(bytes([number]) * 70_000)
                grows.flush()
                (folder / f"between {number}").write_bytes(bytes([number]) * 9000)


def content(image: Path, folder: Path, sector: int) -> dict[str, str]:
    with mounted(image, folder, sector):
        return tree_checksums(folder)


def read_map(image: Path) -> UsedMap:
    with PlainFile(image) as reader:
        result = used_map(reader)
        check_map(result, reader.size)
    return result


def dumped(image: Path, sector: int = 512) -> dict[str, int]:
    with attached(image, sector=sector) as device:
        text = run(("dump.exfat", device)).stdout.decode()
    return {k.strip(): int(v) for k, v in re.findall(r"^([^:\n]+):\s+(\d+)$", text, re.M)}


@pytest.mark.parametrize(
    ("sector", "size", "options"),
    [
        (512, 16 * MIB, ()),
        (512, 24 * MIB, ("-c", "512")),
        (512, 24 * MIB, ("-c", "2K")),
        (512, 40 * MIB, ("-c", "64K", "-b", "4M")),
        (512, 120 * MIB, ("-c", "1M")),
        (512, 240 * MIB, ("-c", "32M")),
        (512, 300 * MIB, ("-c", "4K", "--pack-bitmap")),
        (1024, 24 * MIB, ("-c", "8K")),
        (4096, 24 * MIB, ("-c", "4K")),
    ],
)
def test_nothing_is_left_out(
    sector: int, size: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    image = tmp_path / "exfat.img"
    # An odd end: sectors that are no whole cluster.
    make(image, size + 3 * sector, *options, sector=sector)
    if "32M" not in options:
        # Six clusters of that size would be full at once.
        fill(image, tmp_path / "m", sector)
    result = read_map(image)
    assert result.understood, result.notes
    assert (result.kind, result.label, result.notes) == ("exfat", "LABEL", ())
    blkid = run(("blkid", "-p", "-o", "export", str(image))).stdout.decode()
    assert f"UUID={result.uuid}\n" in blkid

    facts = dumped(image, sector)
    heap = facts["Cluster Heap Offset (sector offset)"] * sector
    count, free = facts["Cluster Count"], facts["Free Clusters"]
    assert result.block_size == facts["Cluster size"]
    tail = image.stat().st_size - heap - count * result.block_size
    assert result.used.total == heap + (count - free) * result.block_size + tail
    if sector == 512:
        theirs = partclone_used("exfat", image)
        assert not theirs - result.used
        more = result.used.total - theirs.total
        assert more <= theirs.total // 100 + result.block_size + 4 * KIB

    kept = tmp_path / "kept.img"
    scatter_used(image, result.used, kept)
    with attached(kept, sector=sector) as device:
        assert b"clean" in run(("fsck.exfat", "-n", device)).stdout
    assert content(kept, tmp_path / "b", sector) == content(image, tmp_path / "a", sector)
    with image.open("rb") as one, kept.open("rb") as other:
        # Both boot regions.
        assert one.read(24 * sector) == other.read(24 * sector)


def patched(image: Path, offset: int, data: bytes, *, sum_again: bool = True) -> UsedMap:
    """Change the boot sector and, as a driver would, its checksum."""
    with image.open("r+b") as file:
        boot = bytearray(file.read(12 * 512))
        boot[offset : offset + len(data)] = data
        total = 0
        for index in range(11 * 512 if sum_again else 0):
            if index not in (106, 107, 112):
                total = ((total & 1) << 31) + (total >> 1) + boot[index] & 0xFFFFFFFF
        if sum_again:
            boot[11 * 512 :] = struct.pack("<I", total) * 128
        file.seek(0)
        file.write(boot)
    return read_map(image)


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (106, b"\x02", "dirty"),
        (110, b"\x02", "TexFAT"),
        (105, b"\x02", "version"),
        (108, b"\x0d", "impossible sizes"),
        (92, b"\xff\xff\xff\x00", "overlap"),
        (88, b"\x01\x00\x00\x00", "overlap"),
        (72, b"\xff\xff\xff\xff\xff", "larger than"),
        (96, b"\xff\xff\xff\x00", "does not have"),
        (20, b"\x01", "damaged"),
    ],
)
def test_not_as_it_must_be(offset: int, data: bytes, reason: str, tmp_path: Path) -> None:
    image = tmp_path / "exfat.img"
    make(image, 16 * MIB)
    result = patched(image, offset, data)
    assert not result.understood
    assert reason in result.notes[0]


def test_sum_that_does_not_match(tmp_path: Path) -> None:
    image = tmp_path / "exfat.img"
    make(image, 16 * MIB)
    assert patched(image, 100, b"\x01\x02\x03\x04").understood
    result = patched(image, 100, b"\x04\x03\x02\x01", sum_again=False)
    assert not result.understood
    assert "checksum" in result.notes[0]


def test_while_mounted(tmp_path: Path) -> None:
    image = tmp_path / "exfat.img"
    make(image, 16 * MIB)
    with mounted(image, tmp_path / "m") as folder:
        (folder / "file").write_bytes(b"x")
        os.sync()
        result = read_map(image)
    assert not result.understood
    assert "dirty" in result.notes[0]
    assert read_map(image).understood


def test_a_chain_that_bites_its_tail(tmp_path: Path) -> None:
    image = tmp_path / "exfat.img"
    make(image, 16 * MIB, "-c", "4K")
    facts = dumped(image)
    root = facts["Root Cluster (cluster offset)"]
    table = facts["FAT Offset(sector offset)"] * 512
    heap = facts["Cluster Heap Offset (sector offset)"] * 512
    with image.open("r+b") as file:
        # A full root folder, which goes on where it began.
        file.seek(heap + (root - 2) * 4096 + 96)
        file.write((b"\x05" + bytes(31)) * 125)
        file.seek(table + root * 4)
        file.write(root.to_bytes(4, "little"))
    result = read_map(image)
    assert not result.understood
    assert "does not end" in result.notes[0]
