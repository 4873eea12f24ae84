"""NTFS used maps against partclone, ntfsinfo, ntfsresize and the driver ntfs-3g."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import UsedMap
from freezeframe.fs.detect import used_map
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
from freezeframe.testing.ntfs_craft import Image, fragment_bitmap

pytestmark = pytest.mark.root

NTFS_3G = ("ntfs-3g", "-o", "streams_interface=xattr")


def make(image: Path, sector: int, cluster: int, size: int) -> None:
    with image.open("wb") as file:
        # An odd end: sectors that are no whole cluster.
        file.truncate(size + 3 * sector)
    geometry = ("-p", "0", "-H", "0", "-S", "0")
    sizes = ("-s", str(sector), "-c", str(cluster))
    run(("mkfs.ntfs", "-F", "-q", *sizes, *geometry, "-L", "größe", str(image)))


def fill(image: Path, folder: Path) -> None:
    with fuse_mounted(NTFS_3G, image, folder):
        make_tree(folder)


def read_map(image: Path) -> UsedMap:
    with PlainFile(image) as reader:
        result = used_map(reader)
        check_map(result, reader.size)
    return result


def free_clusters(image: Path) -> int:
    text = run(("ntfsinfo", "-m", "-f", str(image))).stdout.decode()
    found = re.search(r"Free Clusters: (\d+)", text)
    assert found is not None
    return int(found[1])


def prove(image: Path, tmp_path: Path) -> UsedMap:
    """Hold a used map against the other programs, then let them use what it keeps."""
    result = read_map(image)
    assert result.understood, result.notes
    assert result.kind == "ntfs"
    size = image.stat().st_size
    cluster = result.block_size

    # Not less than partclone counts, and not much more: the boot file, the last sectors.
    theirs = partclone_used("ntfs", image)
    assert not theirs - result.used
    assert result.used.total - theirs.total <= theirs.total // 100 + 2 * cluster + 8 * KIB
    # ntfsinfo has its own way to count.
    whole = size // cluster
    counted = (whole - free_clusters(image)) * cluster
    assert counted - 2 * cluster <= result.used.total <= counted * 101 // 100 + 2 * cluster + 8192

    with fuse_mounted((*NTFS_3G, "-o", "ro"), image, tmp_path / "a") as folder:
        files = tree_checksums(folder)
    kept = tmp_path / "kept.img"
    scatter_used(image, result.used, kept)
    assert b"processed successfully" in run(("ntfsfix", "-n", str(kept))).stdout
    run(("ntfsinfo", "-m", str(kept)))
    with fuse_mounted((*NTFS_3G, "-o", "ro"), kept, tmp_path / "b") as folder:
        assert tree_checksums(folder) == files
    # The boot sector's copy, at the very end, which drivers use when the first is lost.
    with image.open("rb") as one, kept.open("rb") as other:
        sector = int.from_bytes(one.read(13)[11:], "little")
        start = result.span - sector
        one.seek(start)
        other.seek(start)
        copy = one.read(sector)
        assert copy[3:7] == b"NTFS"
        assert other.read(sector) == copy
    return result


@pytest.mark.parametrize(
    ("sector", "cluster", "size"),
    [
        (512, 512, 24 * MIB),
        (512, 1 * KIB, 24 * MIB),
        (512, 4 * KIB, 24 * MIB),
        (512, 64 * KIB, 40 * MIB),
        (512, 128 * KIB, 64 * MIB),
        (512, 2 * MIB, 400 * MIB),
        (1024, 2 * KIB, 24 * MIB),
        (2048, 8 * KIB, 24 * MIB),
        (4096, 4 * KIB, 24 * MIB),
        (4096, 2 * MIB, 400 * MIB),
    ],
)
def test_nothing_is_left_out(sector: int, cluster: int, size: int, tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, sector, cluster, size)
    fill(image, tmp_path / "m")
    result = prove(image, tmp_path)
    assert result.block_size == cluster
    assert result.label == "größe"
    blkid = run(("blkid", "-p", "-o", "export", str(image))).stdout.decode()
    assert f"UUID={result.uuid}\n" in blkid
    # The tool that shrinks volumes follows every file and compares with the bitmap.
    kept = str(tmp_path / "kept.img")
    assert b"resize at" in run(("ntfsresize", "-i", "-f", kept), ok=(0, 1)).stdout


@pytest.mark.parametrize("in_two_records", [False, True])
def test_a_bitmap_in_pieces(in_two_records: bool, tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 512, 30 * MIB)
    runs = fragment_bitmap(image, in_two_records=in_two_records)
    shown = run(("ntfsinfo", "-i", "6", "-v", str(image))).stdout.decode()
    assert f"(fragments: {runs})" in shown
    assert ("$ATTRIBUTE_LIST" in shown) == in_two_records
    fill(image, tmp_path / "m")
    prove(image, tmp_path)


def test_a_file_table_in_pieces(tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 512, 8 * MIB)
    with fuse_mounted(NTFS_3G, image, tmp_path / "m") as folder:
        count = until_full(folder, "wall", b"x" * 1500)
        # Small holes everywhere, for the table to grow into.
        for number in range(0, count, 2):
            (folder / f"wall {number}").unlink()
        until_full(folder, "new", b"")
    shown = run(("ntfsinfo", "-i", "0", "-v", str(image))).stdout.decode()
    found = re.search(r"fragments: (\d+)", shown)
    assert found is not None
    assert int(found[1]) > 100
    assert "$ATTRIBUTE_LIST" in shown
    prove(image, tmp_path)


def until_full(folder: Path, name: str, content: bytes) -> int:
    for number in range(10_000):
        try:
            (folder / f"{name} {number}").write_bytes(content)
        except OSError:
            return number
    raise AssertionError("never full")


def test_after_growing(tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 512, 16 * MIB)
    fill(image, tmp_path / "m")
    with image.open("r+b") as file:
        file.truncate(300 * MIB)
    run(("ntfsresize", "-f", "-f", str(image)), stdin=b"y\n")
    # It asks Windows for a check, which makes the volume dirty to us.
    dirty = read_map(image)
    assert not dirty.understood
    assert "dirty" in dirty.notes[0]
    run(("ntfsfix", "-d", str(image)))
    prove(image, tmp_path)


def test_smaller_than_its_partition(tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 4096, 16 * MIB)
    with image.open("r+b") as file:
        file.truncate(20 * MIB)
        file.seek(-512, 2)
        file.write(b"something")
    result = read_map(image)
    assert result.understood
    assert result.used.covers(16 * MIB + 4096, 20 * MIB)


@pytest.mark.parametrize("content", [b"hibr", b"HIBR", b"\0\0\0\0"])
@pytest.mark.parametrize("others", [0, 300])
def test_a_hibernated_windows(content: bytes, others: int, tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 4096, 16 * MIB)
    with fuse_mounted(NTFS_3G, image, tmp_path / "m") as folder:
        for number in range(others):
            (folder / f"some file {number}").touch()
        (folder / "hiberfil.sys").write_bytes(content + bytes(8188))
    result = read_map(image)
    hibernated = content != b"\0\0\0\0"
    assert result.understood != hibernated
    # ntfs-3g finds the same, and mounts it for reading only.
    opinion = run(("ntfs-3g.probe", "--readwrite", str(image)), ok=range(20)).returncode
    assert (opinion == 14) == hibernated
    if hibernated:
        assert "hibernated" in result.notes[0]
        assert result.used.total == image.stat().st_size


def set_volume_flags(image: Path, flags: int) -> None:
    craft = Image(image)
    raw = craft.record(3)
    attributes = craft.attributes(raw)
    for kind, data in attributes:
        if kind == 0x70:
            start = int.from_bytes(data[20:22], "little")
            data[start + 10 : start + 12] = flags.to_bytes(2, "little")
    craft.set_attributes(raw, attributes)
    craft.store(3, raw)
    craft.save()


@pytest.mark.parametrize(("flags", "clean"), [(0, True), (1, False), (0x4000, False), (8, True)])
def test_flags_of_the_volume(flags: int, clean: bool, tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 4096, 16 * MIB)
    set_volume_flags(image, flags)
    assert read_map(image).understood == clean


def restart_page(version: tuple[int, int], in_use: int, flags: int, lsn: int) -> bytes:
    """Make a restart page with one client, as `libntfs-3g/logfile.c` wants it."""
    page = bytearray(4096)
    struct.pack_into("<4sHHQIIHhh", page, 0, b"RSTR", 30, 9, 0, 4096, 4096, 48, *version[::-1])
    free = 0xFFFF if in_use == 0 else 0
    # Of the log's size: 67 minus its bits.
    bits = 67 - (2 * MIB).bit_length()
    struct.pack_into("<QHHHHIHHQ", page, 48, lsn, 1, free, in_use, flags, bits, 224, 64, 2 * MIB)
    struct.pack_into("<HH", page, 48 + 36, 48, 64)
    struct.pack_into("<QQHH", page, 48 + 64, 0, 0, 0xFFFF, 0xFFFF)
    page[30:32] = b"\x07\0"
    for end in range(512, 4097, 512):
        page[end - 2 : end] = b"\x07\0"
    return bytes(page)


@pytest.mark.parametrize(
    ("pages", "clean"),
    [
        # No client has it open.
        ([((1, 1), 0xFFFF, 0, 5)], True),
        # Open, but marked clean: as Windows leaves it.
        ([((1, 1), 0, 2, 5)], True),
        ([((1, 1), 0, 0, 5)], False),
        # The newer page counts, wherever it lies.
        ([((1, 1), 0, 2, 5), ((1, 1), 0, 0, 6)], False),
        ([((1, 1), 0, 0, 5), ((1, 1), 0, 2, 6)], True),
        ([((1, 1), 0, 0, 7), ((1, 1), 0, 2, 6)], False),
        # Windows 8 and later with something up its sleeve.
        ([((2, 0), 0, 2, 5)], False),
    ],
)
def test_a_journal_as_windows_leaves_it(
    pages: list[tuple[tuple[int, int], int, int, int]], clean: bool, tmp_path: Path
) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 4096, 16 * MIB)
    shown = run(("ntfsinfo", "-i", "2", "-v", str(image))).stdout.decode()
    found = re.search(r"VCN\s+LCN\s+Length\s+0x0\s+0x(\w+)", shown)
    assert found is not None
    start = int(found[1], 16) * 4096
    first, second = (restart_page(*pages[0]), restart_page(*pages[-1]))
    with image.open("r+b") as file:
        file.seek(start)
        file.write(first + second)
    result = read_map(image)
    assert result.understood == clean, result.notes
    # ntfs-3g reads the same out of it: 0 fine, 14 cached or hibernated, 15 not closed.
    opinion = run(("ntfs-3g.probe", "--readwrite", str(image)), ok=range(20)).returncode
    assert (opinion == 0) == clean, opinion


def test_a_torn_journal_page(tmp_path: Path) -> None:
    image = tmp_path / "ntfs.img"
    make(image, 512, 4096, 16 * MIB)
    shown = run(("ntfsinfo", "-i", "2", "-v", str(image))).stdout.decode()
    found = re.search(r"VCN\s+LCN\s+Length\s+0x0\s+0x(\w+)", shown)
    assert found is not None
    page = bytearray(restart_page((1, 1), 0xFFFF, 0, 5))
    page[1022:1024] = b"\x06\0"
    with image.open("r+b") as file:
        file.seek(int(found[1], 16) * 4096)
        file.write(page * 2)
    result = read_map(image)
    assert not result.understood
    assert "in part" in result.notes[0]
