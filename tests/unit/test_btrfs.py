"""btrfs without root: made and filled by mkfs, checked against btrfs-progs, then spoilt."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import FreezeframeError, NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import PeerList, UsedMap
from freezeframe.fs.btrfs import KIND
from freezeframe.fs.btrfs.checksums import xxhash64_rows
from freezeframe.fs.btrfs.chunks import Chunk, ChunkMap, Stripe
from freezeframe.fs.btrfs.structs import Profile
from freezeframe.fs.crc32c import crc32c
from freezeframe.system.run import run
from freezeframe.testing.btrfs_facts import needed_blocks

SUPERBLOCK = 64 * KIB
NODE = 4 * KIB


def used_map(disk: MemoryBlocks) -> UsedMap:
    return KIND.used_map(disk, PeerList((disk,)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixed btrfs, 24 MiB: the smallest there are; metadata once, so that damage shows."""
    folder = tmp_path_factory.mktemp("btrfs")
    files = folder / "files"
    files.mkdir()
    rng = random.Random(1)
    for number in range(300):
        (files / f"file {number:03d} of many").write_bytes(rng.randbytes(rng.randrange(20_000)))
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    run(("mkfs.btrfs", "-q", "-M", "-n", "4096", "-L", "läbel", "-r", str(files), str(image)))
    return image


@pytest.fixture
def disk(small: Path) -> MemoryBlocks:
    return MemoryBlocks(small.read_bytes())


def seal(disk: MemoryBlocks, offset: int, size: int) -> None:
    """Give a block the checksum that its content has, as a crafted one would have."""
    value = crc32c(disk.read_at(offset + 32, size - 32)) ^ 0xFFFFFFFF
    disk.write_at(offset, struct.pack("<I", value))


def tree_blocks(disk: MemoryBlocks) -> list[int]:
    fsid = disk.read_at(SUPERBLOCK + 32, 16)
    return [
        offset
        for offset in range(MIB, disk.size, NODE)
        if disk.read_at(offset + 32, 16) == fsid
        # Chunks here lie where their logical addresses say.
        and struct.unpack("<Q", disk.read_at(offset + 48, 8))[0] == offset
    ]


def test_extents_are_what_btrfs_progs_say(small: Path, disk: MemoryBlocks) -> None:
    used = used_map(disk)
    needed = Extents.from_blocks(np.array(sorted(needed_blocks([small], NODE)[1])) // 4096, 4096)
    assert used.used == needed | Extents.single(0, MIB)
    assert (used.kind, used.label, used.block_size) == ("btrfs", "läbel", 4096)
    assert used.understood
    assert not used.notes
    facts = run(("btrfs", "inspect-internal", "dump-super", str(small))).stdout.decode()
    assert used.uuid in facts
    assert f"dev_item.total_bytes\t{used.span}" in facts


def test_what_lies_behind_the_filesystem_is_kept(disk: MemoryBlocks) -> None:
    longer = MemoryBlocks(disk.read_at(0, disk.size) + bytes(3 * MIB))
    assert used_map(longer).used == used_map(disk).used | Extents.single(24 * MIB, 27 * MIB)


def test_recognise(disk: MemoryBlocks) -> None:
    assert KIND.recognise(disk)
    assert not KIND.recognise(MemoryBlocks(MIB))
    assert not KIND.recognise(MemoryBlocks(100))
    disk.write_at(SUPERBLOCK + 64, b"!")
    assert KIND.recognise(disk)
    with pytest.raises(NotUnderstood, match="never finished"):
        used_map(disk)


@pytest.mark.parametrize(
    ("offset", "bits"),
    [
        (0xBC, 1 << 12),  # zoned
        (0xBC, 1 << 13),  # extent tree v2
        (0xBC, 1 << 14),  # RAID stripe tree
        (0xBC, 1 << 40),  # of the future
        (0xB4, 1 << 20),  # of the future, read-only
        (0x38, 1 << 32),  # seed device
        (0x38, 1 << 36),  # changing its UUID
    ],
)
def test_features_that_are_not_followed(disk: MemoryBlocks, offset: int, bits: int) -> None:
    (value,) = struct.unpack("<Q", disk.read_at(SUPERBLOCK + offset, 8))
    disk.write_at(SUPERBLOCK + offset, struct.pack("<Q", value | bits))
    seal(disk, SUPERBLOCK, 4096)
    with pytest.raises(NotUnderstood):
        used_map(disk)


def test_a_device_cut_short(disk: MemoryBlocks) -> None:
    with pytest.raises(NotUnderstood, match="larger"):
        used_map(MemoryBlocks(disk.read_at(0, disk.size - MIB)))


def test_an_extent_tree_that_lost_a_leaf_counts_all_chunks(disk: MemoryBlocks) -> None:
    whole = used_map(disk)
    blocks = tree_blocks(disk)
    # Owner at 88 of the header: the extent tree's blocks.
    hit = [b for b in blocks if struct.unpack("<Q", disk.read_at(b + 88, 8))[0] == 2]
    disk.write_at(hit[-1] + 2000, b"flip")
    damaged = used_map(disk)
    assert "all allocated chunks count as used" in damaged.notes[0]
    assert not whole.used - damaged.used


def test_bytes_used_that_do_not_add_up(disk: MemoryBlocks) -> None:
    (value,) = struct.unpack("<Q", disk.read_at(SUPERBLOCK + 0x78, 8))
    disk.write_at(SUPERBLOCK + 0x78, struct.pack("<Q", value + 4096))
    seal(disk, SUPERBLOCK, 4096)
    assert "add up" in used_map(disk).notes[0]


def test_crafted_blocks_never_crash_it(disk: MemoryBlocks) -> None:
    """Random changes to superblock and tree blocks, sealed again with a right checksum."""
    rng = random.Random(2)
    truth = used_map(disk).used
    blocks = [(SUPERBLOCK, 4096)] * 40 + [(b, NODE) for b in tree_blocks(disk)]
    for _ in range(500):
        offset, size = rng.choice(blocks)
        before = disk.read_at(offset, size)
        for _ in range(rng.choice((1, 1, 1, 4, 40))):
            # Most meaning is at a block's start.
            at = rng.randrange(32, rng.choice((110, 400, size)))
            disk.write_at(offset + at, bytes([rng.choice((0, 1, 255, rng.randrange(256)))]))
        seal(disk, offset, size)
        try:
            used = used_map(disk).used
            assert used.end <= disk.size
        except FreezeframeError:
            pass
        disk.write_at(offset, before)
    assert used_map(disk).used == truth


def test_unsealed_damage_never_leaves_anything_out(disk: MemoryBlocks) -> None:
    rng = random.Random(3)
    truth = used_map(disk).used
    blocks = [SUPERBLOCK, *tree_blocks(disk)]
    for _ in range(150):
        offset = rng.choice(blocks) + rng.randrange(NODE)
        before = disk.read_at(offset, 1)
        disk.write_at(offset, bytes([before[0] ^ 1 << rng.randrange(8)]))
        with contextlib.suppress(NotUnderstood):
            assert not truth - used_map(disk).used
        disk.write_at(offset, before)


def test_xxhash64_is_the_published_one() -> None:
    # XXH64 of 32 zero bytes, seed 0. Real ones are checked on disks made with --csum xxhash.
    rows = np.zeros((2, 32), np.uint8)
    assert xxhash64_rows(rows).tolist() == [0xF6E9BE5D70632CF5] * 2


# -- chunks -----------------------------------------------------------------------------

SHAPES = [
    (0, 1, 1),
    (Profile.DUP, 2, 1),
    (Profile.RAID1, 2, 1),
    (Profile.RAID1C3, 3, 1),
    (Profile.RAID0, 3, 1),
    (Profile.RAID10, 6, 2),
    (Profile.RAID5, 3, 1),
    (Profile.RAID6, 5, 1),
]


@given(
    shape=st.sampled_from(SHAPES),
    ranges=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 90)), min_size=1, max_size=9),
)
def test_what_is_read_is_what_counts(
    shape: tuple[int, int, int], ranges: list[tuple[int, int]]
) -> None:
    """Reading maps block by block, counting maps by arithmetic: they must agree."""
    profile, count, halves = shape
    stripes = tuple(Stripe(n + 1, (n + 1) * 7 * MIB, b"") for n in range(count))
    columns = Chunk(0, 1, profile, halves, stripes).columns
    chunk = Chunk(5 * MIB, columns * 2 * MIB, profile, halves, stripes)
    logical = Extents.of(
        (chunk.start + a * 4096, chunk.start + (a + n) * 4096) for a, n in ranges
    ).clip(chunk.start, chunk.stop)
    places = [
        place
        for start, stop in logical
        for copy in chunk.copies(start, stop - start)
        for place in copy
    ]
    for device in range(1, count + 1):
        read = Extents.of((p.offset, p.offset + p.length) for p in places if p.device == device)
        counted = ChunkMap([chunk]).on_device(device, logical)
        assert not read - counted
        assert not counted - ChunkMap([chunk]).allocated(device)
        if not chunk.parities:
            assert read == counted
