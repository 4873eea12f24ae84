"""FAT used maps against fsck.fat, partclone and mtools. No root, no mount."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import check_map
from freezeframe.testing.fsproof import (
    PlainFile,
    make_tree,
    partclone_used,
    scatter_used,
    tree_checksums,
)


@pytest.fixture(autouse=True)
def mtools(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its own check refuses what Linux takes: odd geometries, FAT32 with few clusters.
    monkeypatch.setenv("MTOOLS_SKIP_CHECK", "1")


def make(image: Path, size: int, *options: str) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    run(("mkfs.fat", "-n", "A LABEL", *options, str(image)))


def head(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(512)


def fill(image: Path, folder: Path, budget: int) -> dict[str, str]:
    """Fill it with files, delete some, add one into the holes; return what is in it then."""
    folder.mkdir()
    make_tree(folder, links=False, sparse=False, names=False, budget=budget)
    (folder / ("a long name " * 15 + "x")).write_bytes(b"long")
    at = ("-i", str(image))
    run(("mcopy", *at, "-s", "-Q", *map(str, sorted(folder.iterdir())), "::"))
    run(("mdeltree", *at, "::folder 1"))
    run(("mdel", *at, "::folder 2/nested 2/file 0002"))
    late = folder.parent / "later"
    late.write_bytes(bytes(range(256)) * (budget // 1024))
    run(("mcopy", *at, str(late), "::"))
    return files(image, folder.parent / "filled")


def files(image: Path, folder: Path) -> dict[str, str]:
    folder.mkdir()
    run(("mcopy", "-i", str(image), "-s", "-Q", "-n", "::*", str(folder)))
    return tree_checksums(folder)


def read_map(image: Path) -> UsedMap:
    with PlainFile(image) as reader:
        result = used_map(reader)
        check_map(result, reader.size)
    return result


def checked(image: Path, ok: tuple[int, ...] = (0,)) -> tuple[int, int]:
    """Have fsck.fat check it; return how many clusters it finds used, and how many there are."""
    text = run(("fsck.fat", "-n", "-v", str(image)), ok=ok).stdout.decode()
    assert "differ" not in text
    found = re.search(r"(\d+)/(\d+) clusters", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


VARIANTS = [
    (12, 1440 * KIB, ()),
    (12, 720 * KIB, ("-s", "1", "-f", "1")),
    (12, 8 * MIB, ("-s", "8", "-r", "512")),
    (12, 100 * MIB, ("-s", "64", "-a")),
    (16, 16 * MIB, ()),
    (16, 20 * MIB, ("-s", "2", "-f", "3", "-R", "8")),
    (
        16,
        300 * MIB,
        (
            "-s",
            "128",
        ),
    ),
    (16, 40 * MIB, ("-S", "2048", "-s", "1")),
    (16, 40 * MIB, ("-S", "4096", "-s", "1")),
    (32, 40 * MIB, ()),
    (32, 36 * MIB, ("-s", "1", "-f", "1", "-b", "8", "-R", "40")),
    (32, 560 * MIB, ("-s", "16")),
    (32, 300 * MIB, ("-S", "4096", "-s", "1")),
    (32, 80 * MIB, ("-S", "1024", "-s", "1", "-a")),
]


@pytest.mark.parametrize(("bits", "size", "options"), VARIANTS)
def test_nothing_is_left_out(
    bits: int, size: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    image = tmp_path / "fat.img"
    # An odd end: sectors that are no whole cluster.
    make(image, size + 4096, "-F", str(bits), *options)
    content = fill(image, tmp_path / "source", min(size // 4, 2 * MIB))
    assert len(content) > 8
    result = read_map(image)
    assert result.understood, result.notes
    assert (result.kind, result.label, result.notes) == (f"fat{bits}", "A LABEL", ())
    blkid = run(("blkid", "-p", "-o", "export", str(image))).stdout.decode()
    assert f"UUID={result.uuid}\n" in blkid
    assert f"VERSION=FAT{bits}\n" in blkid

    boot = head(image)
    kept = tmp_path / "kept.img"
    scatter_used(image, result.used, kept)
    if boot[16] <= 2:
        # fsck.fat takes no third table.
        count = checked(image)
        outside = image.stat().st_size - count[1] * result.block_size
        tables = boot[16] * int.from_bytes(boot[22:24] if bits < 32 else boot[36:40], "little")
        assert outside >= (int.from_bytes(boot[14:16], "little") + tables) * 512
        assert result.used.total == count[0] * result.block_size + outside
        assert checked(kept) == count
    # partclone misreads FAT12's entries, and sectors that are not of 512 bytes.
    if bits > 12 and int.from_bytes(boot[11:13], "little") == 512:
        theirs = partclone_used(f"fat{bits}", image)
        assert not theirs - result.used
        more = result.used.total - theirs.total
        assert more <= theirs.total // 100 + result.block_size + 4096
    assert files(kept, tmp_path / "kept") == content


def set_bytes(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_a_dirty_boot_sector(bits: int, tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, {12: 2, 16: 16, 32: 40}[bits] * MIB, "-F", str(bits))
    set_bytes(image, 0x41 if bits == 32 else 0x25, b"\x01")
    assert "Dirty bit is set" in run(("fsck.fat", "-n", str(image)), ok=(0, 1)).stdout.decode()
    result = read_map(image)
    assert not result.understood
    assert "dirty" in result.notes[0]


@pytest.mark.parametrize(
    ("bits", "entry", "word"),
    [
        (16, 0x7FFF, "dirty"),
        (16, 0xBFFF, "errors"),
        (32, 0x07FFFFFF, "dirty"),
        (32, 0x0BFFFFFF, "errors"),
    ],
)
@pytest.mark.parametrize("table", [0, 1])
def test_a_dirty_table(bits: int, entry: int, word: str, table: int, tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, {16: 16, 32: 40}[bits] * MIB, "-F", str(bits), "-s", "1")
    boot = head(image)
    size = int.from_bytes(boot[22:24], "little") or int.from_bytes(boot[36:40], "little")
    start = (int.from_bytes(boot[14:16], "little") + table * size) * 512
    set_bytes(image, start + bits // 8, struct.pack("<I" if bits == 32 else "<H", entry))
    result = read_map(image)
    assert not result.understood
    assert word in result.notes[0]


def test_tables_that_differ(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 16 * MIB, "-F", "16", "-s", "4")
    size = int.from_bytes(head(image)[22:24], "little") * 512
    before = read_map(image)
    data_start = before.used.stops[0]
    reserved = int.from_bytes(head(image)[14:16], "little") * 512
    # Cluster 100 by the first, cluster 200 by the second.
    set_bytes(image, reserved + 200, b"\xff\xff")
    set_bytes(image, reserved + size + 400, b"\xff\xff")
    result = read_map(image)
    assert result.understood
    assert "differ" in result.notes[0]
    cluster = result.block_size
    for number in (100, 200):
        start = int(data_start) + (number - 2) * cluster
        assert result.used.covers(start, start + cluster)
    assert result.used.total == before.used.total + 2 * cluster


@pytest.mark.parametrize(("clusters", "bits"), [(4083, 12), (4084, 12), (4085, 16), (4088, 16)])
@pytest.mark.parametrize("named", [False, True])
def test_the_boundary_between_12_and_16(
    clusters: int, bits: int, named: bool, tmp_path: Path
) -> None:
    """4084 clusters is the most FAT12 has, 4085 the least FAT16 has; not all agree."""
    image = tmp_path / "fat.img"
    boot = bytearray(512)
    boot[0:3] = b"\xeb\x3c\x90"
    sectors = 1 + 2 * 16 + 1 + clusters
    struct.pack_into("<HBHBHHBH", boot, 11, 512, 1, 1, 2, 16, sectors, 0xF8, 16)
    boot[38] = 0x29
    if named:
        boot[54:62] = b"FAT%d   " % bits
    boot[510:] = b"\x55\xaa"
    table = bytes.fromhex("f8ffff" if bits == 12 else "f8ffffff").ljust(16 * 512, b"\0")
    image.write_bytes(bytes(boot) + table * 2 + bytes(512) + bytes(clusters * 512))
    result = read_map(image)
    if not named and clusters in (4084, 4085):
        assert "may be FAT12 or FAT16" in result.notes[0]
        return
    assert result.understood, result.notes
    assert result.kind == f"fat{bits}"
    shown = run(("fsck.fat", "-n", "-v", str(image)), ok=(0, 1)).stdout.decode()
    assert f"{bits} bit entries" in shown


def test_fat32_with_few_clusters(tmp_path: Path) -> None:
    """By the number of its clusters it would be FAT16: an EFI system partition, often."""
    image = tmp_path / "fat.img"
    make(image, 48 * MIB, "-F", "32", "-s", "8")
    boot = head(image)
    reserved, size = int.from_bytes(boot[14:16], "little"), int.from_bytes(boot[36:40], "little")
    # A file of two clusters, far apart, in both tables.
    for table in (0, 1):
        start = (reserved + table * size) * 512
        set_bytes(image, start + 900 * 4, (7000).to_bytes(4, "little"))
        set_bytes(image, start + 7000 * 4, (0x0FFFFFFF).to_bytes(4, "little"))
    data_start = (reserved + 2 * size) * 512
    entry = b"FILE    BIN\x20" + bytes(14) + (900).to_bytes(2, "little")
    set_bytes(image, data_start + 32, entry + (8000).to_bytes(4, "little"))
    result = read_map(image)
    assert result.understood
    assert result.kind == "fat32"
    # It complains of just that.
    used, total = checked(image, ok=(0, 1))
    # The folder and the file.
    assert (used, total < 65525) == (3, True)
    assert result.used.total == image.stat().st_size - (total - used) * 4096
    kept = tmp_path / "kept.img"
    scatter_used(image, result.used, kept)
    assert checked(kept, ok=(0, 1)) == (used, total)
    assert not partclone_used("fat32", image) - result.used


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0x0E, b"\xff\xff", "calls itself|impossible"),
        (0x16, b"\x01\x00", "too small"),
        (0x20, b"\xff\xff\xff\x0f", "FAT32 has|impossible|larger"),
        (0x36, b"FAT12   ", "calls itself"),
    ],
)
def test_sizes_that_contradict(offset: int, data: bytes, reason: str, tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 40 * MIB, "-F", "16", "-s", "4")
    set_bytes(image, offset, data)
    result = read_map(image)
    assert not result.understood
    assert re.search(reason, result.notes[0])


def test_cut_short(tmp_path: Path) -> None:
    image = tmp_path / "fat.img"
    make(image, 16 * MIB)
    with image.open("r+b") as file:
        file.truncate(15 * MIB)
    result = read_map(image)
    assert not result.understood
    assert "larger than its partition" in result.notes[0]
    assert result.used.total == 15 * MIB


def test_a_mounted_one_is_taken_whole_however_clean_it_looks(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, 8 * MIB)
    with PlainFile(image) as reader:
        assert used_map(reader).understood
        for state in (State.FROZEN, State.LIVE):
            result = used_map(reader, state=state)
            assert not result.understood
            assert result.used.total == 8 * MIB
            assert "cannot be frozen" in result.notes[0]
