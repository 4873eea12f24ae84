"""Used maps of ext filesystems made and filled by mke2fs alone, and what is refused."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import GIB, MIB
from freezeframe.fs.base import PeerList, State, UsedMap
from freezeframe.fs.ext import KIND
from freezeframe.system.run import run
from freezeframe.testing.fsproof import PlainFile, scatter_used, tree_checksums

#: What this machine's kernel may not mount: large blocks, rare features.
VARIANTS = {
    "64k": ("-t ext4 -b 65536", 200),
    "64k-bigalloc": ("-t ext4 -b 65536 -O bigalloc -C 1048576", 600),
    "16k": ("-t ext4 -b 16384", 100),
    "quota": ("-t ext4 -O quota,project,casefold,encrypt,verity,stable_inodes", 64),
    "large-inodes": ("-t ext4 -b 1024 -I 1024 -N 9000", 64),
    "odd-end": ("-t ext4 -b 1024 -g 1024", 33),
}


def _make(image: Path, options: str, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    run(("mke2fs", "-q", "-F", *options.split(), str(image)))


def _used(image: Path, *, state: State = State.AT_REST) -> UsedMap:
    with PlainFile(image) as reader:
        return KIND.used_map(reader, PeerList((reader,)), state=state)


def _refused(image: Path, reason: str, *, state: State = State.AT_REST) -> None:
    with pytest.raises(NotUnderstood, match=reason):
        _used(image, state=state)


def _debugfs(image: Path, *commands: str) -> str:
    for command in commands:
        output = run(("debugfs", "-w", "-R", command, str(image))).stdout.decode()
    return output


def _patch(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _tree(folder: Path) -> Path:
    rng = random.Random(3)
    for number, size in enumerate([0, 1, 5000, 70_000, 300_000] * 4):
        path = folder / "tree" / f"folder {number % 3}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(size))
    return folder / "tree"


@pytest.mark.parametrize("variant", VARIANTS)
def test_made_and_filled_by_mke2fs(variant: str, tmp_path: Path) -> None:
    options, mib = VARIANTS[variant]
    tree = _tree(tmp_path)
    image, spoiled = tmp_path / "image", tmp_path / "spoiled"
    _make(image, f"{options} -d {tree}", mib * MIB + 5120)
    for number in (3, 8, 14):
        name = f"folder {number % 3}/file{number}"
        _debugfs(image, f'rm "/{name}"')
        (tree / name).unlink()
    run(("e2fsck", "-fy", str(image)), ok=(0, 1))
    result = _used(image)
    header = run(("dumpe2fs", "-h", str(image))).stdout.decode().splitlines()
    fields = dict(line.split(":", 1) for line in header if ":" in line)
    assert result.block_size == int(fields["Block size"])
    assert result.span == int(fields["Block count"]) * result.block_size
    counted = result.span - int(fields["Free blocks"]) * result.block_size
    tail = image.stat().st_size - result.span
    assert tail > 0
    assert result.used.covers(result.span, image.stat().st_size)
    assert counted <= result.used.total - tail <= counted * 1.01
    scatter_used(image, result.used, spoiled)
    run(("e2fsck", "-fn", str(spoiled)))
    (tmp_path / "out").mkdir()
    _debugfs(spoiled, f"rdump / {tmp_path / 'out'}")
    assert tree_checksums(tmp_path / "out") == tree_checksums(tree)


def test_a_large_one_is_read_sparingly(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext4 -O mmp -E lazy_itable_init=1,discard=0 -J size=4", 2048 * GIB)
    result = _used(image)
    header = run(("dumpe2fs", "-h", str(image))).stdout.decode().splitlines()
    fields = dict(line.split(":", 1) for line in header if ":" in line)
    assert result.used.total == (int(fields["Block count"]) - int(fields["Free blocks"])) * 4096


def test_journal_on_another_device(tmp_path: Path) -> None:
    image, journal = tmp_path / "image", tmp_path / "journal"
    uuid = "3f6fb4a8-6d8a-4e0e-8f69-5b1d2f0a7f11"
    _make(journal, f"-O journal_dev -b 4096 -U {uuid} -L logs", 8 * MIB)
    _make(image, "-t ext4 -O ^has_journal", 32 * MIB)
    found = _used(journal)
    assert (found.kind, found.label, found.uuid) == ("ext-journal", "logs", uuid)
    assert found.used == Extents.single(0, 8 * MIB)
    # tune2fs takes devices only; so do by hand what it does.
    _debugfs(image, "feature has_journal", f"ssv journal_uuid {uuid}", "ssv journal_dev 0x701")
    result = _used(image)
    assert result.understood
    assert uuid in result.notes[0]


def test_unclean_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext4", 32 * MIB)
    _used(image)
    _debugfs(image, "feature needs_recovery")
    _refused(image, "needs recovery")
    _refused(image, "needs recovery", state=State.FROZEN)
    _debugfs(image, "feature -needs_recovery", "ssv state 0")
    _refused(image, "not unmounted cleanly")
    _refused(image, "not unmounted cleanly", state=State.FROZEN)
    assert _used(image, state=State.LIVE).understood
    _debugfs(image, "ssv state 3")
    _refused(image, "errors")
    _refused(image, "errors", state=State.FROZEN)


@pytest.mark.parametrize("kind", ["ext3", "ext4"])
def test_a_journal_with_something_in_it_is_refused(kind: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, f"-t {kind}", 32 * MIB)
    block = int(_debugfs(image, "bmap <8> 0").strip())
    _patch(image, block * _used(image).block_size + 28, b"\1")
    _refused(image, "not written back")
    _refused(image, "not written back", state=State.FROZEN)


def test_unknown_features_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext2", 8 * MIB)
    original = image.read_bytes()
    for field in (0x5C, 0x60, 0x64):
        value = int.from_bytes(original[1024 + field :][:4], "little") | 1 << 27
        _patch(image, 1024 + field, value.to_bytes(4, "little"))
        _refused(image, "unknown .*0x8000000")
        _patch(image, 0, original)
    assert _used(image).understood


def test_every_flipped_bit_of_what_is_checksummed_is_seen(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext4 -b 1024", 16 * MIB)
    descriptors = (2 * 1024, 2 * 64)
    bitmap = (int(_debugfs(image, "stats").split("block bitmap at ")[1].split(",")[0]) * 1024, 1024)
    rng = random.Random(4)
    for (start, length), _ in itertools.product([(1024, 1024), descriptors, bitmap], range(40)):
        offset, bit = start + rng.randrange(length), 1 << rng.randrange(8)
        with image.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
        _patch(image, offset, bytes([byte ^ bit]))
        _refused(image, "ext")
        _patch(image, offset, bytes([byte]))
    assert _used(image).understood


def test_a_bitmap_that_does_not_match_its_count_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext2 -b 1024", 16 * MIB)
    bitmap = int(_debugfs(image, "stats").split("block bitmap at ")[1].split(",")[0]) * 1024
    for data in (bytes(1024), b"\xff" * 1024, b"\xfe"):
        original = image.read_bytes()[bitmap : bitmap + 1024]
        _patch(image, bitmap, data)
        _refused(image, "free blocks")
        _patch(image, bitmap, original)


def test_a_region_cut_short_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext4 -b 1024", 16 * MIB)
    with image.open("r+b") as file:
        file.truncate(16 * MIB - 512)
    _refused(image, "more blocks than the region")


@pytest.mark.parametrize(
    ("field", "size", "value"),
    [
        (0x0, 4, 1),
        (0x4, 4, 0),
        (0x4, 4, 0xFFFFFFFF),
        (0x14, 4, 0),
        (0x14, 4, 0xFFFFFFFF),
        (0x18, 4, 7),
        (0x18, 4, 0xFFFFFFFF),
        (0x1C, 4, 3),
        (0x20, 4, 8),
        (0x20, 4, 0),
        (0x24, 4, 0),
        (0x28, 4, 0),
        (0x28, 4, 1),
        (0x4C, 4, 2),
        (0x58, 2, 0),
        (0x58, 2, 100),
        (0x58, 2, 4096),
    ],
)
def test_impossible_numbers_are_refused(field: int, size: int, value: int, tmp_path: Path) -> None:
    image = tmp_path / "image"
    _make(image, "-t ext2 -b 1024", 8 * MIB)
    _patch(image, 1024 + field, value.to_bytes(size, "little"))
    _refused(image, "ext")
