"""Used maps of F2FS: made and filled by its own tools, judged by them, partclone and GRUB."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import time
from pathlib import Path

import pytest
import zstandard

from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import FreezeframeError, NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import GIB, MIB
from freezeframe.fs.base import PeerList, UsedMap
from freezeframe.fs.f2fs import KIND
from freezeframe.fs.f2fs.structs import BLOCK, Checkpoint, checksum, parse_checkpoint
from freezeframe.system.run import run
from freezeframe.testing.fsproof import (
    PlainFile,
    fuse_mounted,
    make_tree,
    partclone_used,
    scatter_used,
    tree_checksums,
)

SEGMENT = 2 * MIB
#: Checkpoint flag: summaries of open data segments share blocks.
COMPACT = 4
VARIANTS = {
    "default": "",
    "labelled, zones of large sections": "-l größe -s 2 -z 2",
    "heap": "-a 1 -o 20",
    "large node bitmap": "-i",
    "android": "-O encrypt,extra_attr,project_quota,quota,verity",
    "checksums": "-O extra_attr,inode_checksum,sb_checksum,inode_crtime,lost_found",
    "compression": "-O extra_attr,compression",
    "casefold": "-O casefold -C utf8",
}


def make(folder: Path, options: str, *, size: int = 120 * MIB, fill: bool = True) -> Path:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(size)
    run(("mkfs.f2fs", "-q", *options.split(), str(image)))
    if fill:
        files = folder / "files"
        files.mkdir()
        make_tree(files, budget=3 * MIB)
        run(("sload.f2fs", "-f", str(files), str(image)))
    return image


def used_map(reader: PlainFile | MemoryBlocks) -> UsedMap:
    return KIND.used_map(reader, PeerList((reader,)))


def check(image: Path) -> str:
    """Have fsck judge an image; return what it counted."""
    text = run(("fsck.f2fs", "--dry-run", str(image))).stdout.decode()
    assert "[Fail]" not in text, text
    return "\n".join(line for line in text.splitlines() if line.startswith("[FSCK]"))


def wait_for(folder: Path) -> None:
    """grub-mount goes into the background a moment before it has mounted."""
    for _ in range(200):
        if folder.is_mount():
            return
        time.sleep(0.05)


def files_of(folder: Path) -> dict[str, str]:
    """Return checksums of files; GRUB shows symbolic links as files."""
    found = tree_checksums(folder)
    del found["symbolic link"]
    return found


def node_log(image: Path) -> Extents:
    """Return the open segment of warm nodes, as dump.f2fs tells it."""
    facts = {}
    for line in run(("dump.f2fs", "-d", "1", str(image))).stdout.decode().splitlines():
        name, found, value = line.partition("[0x")
        if found:
            facts[name.strip()] = int(value.split(":")[0], 16)
    start = facts["main_blkaddr"] * BLOCK + facts["cur_node_segno[1]"] * SEGMENT
    return Extents.single(start, start + SEGMENT)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_no_used_block_is_left_out(options: str, tmp_path: Path) -> None:
    image = make(tmp_path, options)
    with PlainFile(image) as reader:
        used = used_map(reader)
    assert used.understood
    assert not used.notes
    assert used.label == ("größe" if "-l" in options else "")
    if "-i" not in options:  # partclone crashes on those
        assert used.used == partclone_used("f2fs", image) | node_log(image)

    copy = tmp_path / "copy"
    scatter_used(image, used.used, copy)
    assert check(copy) == check(image)
    if not any(odd in options for odd in ("-i", "extra_attr", "casefold")):
        # GRUB knows none of those.
        with fuse_mounted(("grub-mount",), copy, tmp_path / "mount") as folder:
            wait_for(folder)
            assert files_of(folder) == files_of(tmp_path / "files")


def test_a_large_one(tmp_path: Path) -> None:
    image = make(tmp_path, "", size=40 * GIB, fill=False)
    with PlainFile(image) as reader:
        used = used_map(reader)
    assert used.used == partclone_used("f2fs", image) | node_log(image)


#: Made by a kernel: `tests/data/f2fs-aged.sh`. Digests of the checksums it read itself.
AGED = {
    "full": "d4e0a11fdc375cd506a0b1117ca0523ed2a8a4f8901c563549f04dd59ce97c5a",
    "compact": "8ade51b41597d5378cec53033d496593edf5548f692e8050a94ed8cf3c4fb9c5",
}


@pytest.mark.parametrize("variant", AGED)
def test_what_a_kernel_has_aged(variant: str, tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    packed = Path(__file__).parents[1] / "data" / f"f2fs-aged-{variant}.img.zst"
    with packed.open("rb") as source, image.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    pack = Pack(image)
    if variant == "full":
        assert any(pack.checkpoint.sit_bitmap)
        assert not pack.checkpoint.states & COMPACT
    else:
        assert struct.unpack_from("<H", pack.raw, journal_at(pack)) == (6,)
    with PlainFile(image) as reader:
        used = used_map(reader)
    assert used.used == partclone_used("f2fs", image) | node_log(image)
    scatter_used(image, used.used, copy)
    assert check(copy) == check(image)
    with fuse_mounted(("grub-mount",), copy, tmp_path / "mount") as folder:
        wait_for(folder)
        found = tree_checksums(folder)
    del found["link"]
    lines = sorted(
        f"{name} {value}\n".encode() for name, value in found.items() if value != "folder"
    )
    assert hashlib.sha256(b"".join(lines)).hexdigest() == AGED[variant]


# -- crafted ----------------------------------------------------------------------------


class Pack:
    """The current checkpoint of an image in a file, to be changed and sealed again."""

    def __init__(self, image: Path) -> None:
        self.path = image
        raw = bytearray(image.read_bytes())
        self.raw = raw
        (self.sit,) = struct.unpack_from("<I", raw, 1024 + 80)
        (self.sit_segments,) = struct.unpack_from("<I", raw, 1024 + 56)
        (first,) = struct.unpack_from("<I", raw, 1024 + 76)
        self.first = first
        packs = {}
        for start in (first, first + 512):
            with contextlib.suppress(NotUnderstood):
                packs[start] = self.parse(start)
        self.start = max(packs, key=lambda start: packs[start].version)
        self.checkpoint = packs[self.start]

    def parse(self, start: int) -> Checkpoint:
        return parse_checkpoint(bytes(self.raw[start * BLOCK : (start + 1) * BLOCK]), 0)

    def change(self, offset: int, data: bytes) -> None:
        """Change first and last block of the pack alike and seal them."""
        for block in (self.start, self.start + self.checkpoint.pack_blocks - 1):
            at = block * BLOCK
            self.raw[at + offset : at + offset + len(data)] = data
            seal = checksum(bytes(self.raw[at : at + 4092]))
            struct.pack_into("<I", self.raw, at + 4092, seal)

    @property
    def reader(self) -> MemoryBlocks:
        return MemoryBlocks(self.raw)

    def save(self) -> Path:
        self.path.write_bytes(self.raw)
        return self.path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("f2fs"), "", size=100 * MIB)


@pytest.fixture
def pack(filled: Path, tmp_path: Path) -> Pack:
    copy = tmp_path / "copy"
    copy.write_bytes(filled.read_bytes())
    return Pack(copy)


def journal_at(pack: Pack) -> int:
    if pack.checkpoint.states & COMPACT:
        return (pack.start + pack.checkpoint.summaries) * BLOCK + 507
    return (pack.start + pack.checkpoint.pack_blocks - 5) * BLOCK + 3584


def test_the_journal_overrules_the_table(pack: Pack) -> None:
    assert not pack.checkpoint.states & COMPACT
    truth = used_map(pack.reader).used
    at = journal_at(pack)
    assert struct.unpack_from("<H", pack.raw, at) == (0,)
    segments = sorted({*pack.checkpoint.node_segments, *pack.checkpoint.data_segments})[:6]
    struct.pack_into("<H", pack.raw, at, len(segments))
    for number, segment in enumerate(segments):
        entry = pack.sit * BLOCK + segment // 55 * BLOCK + segment % 55 * 74
        slot = at + 2 + number * 78
        pack.raw[slot : slot + 78] = struct.pack("<I", segment) + pack.raw[entry : entry + 74]
        pack.raw[entry : entry + 66] = bytes(66)
    check(pack.save())
    assert used_map(pack.reader).used == truth


def test_the_journal_of_compact_summaries(tmp_path: Path) -> None:
    """A fresh filesystem has all its entries there."""
    pack = Pack(make(tmp_path, "", size=100 * MIB, fill=False))
    assert pack.checkpoint.states & COMPACT
    assert struct.unpack_from("<H", pack.raw, journal_at(pack)) == (6,)
    truth = partclone_used("f2fs", pack.path) | node_log(pack.path)
    assert used_map(pack.reader).used == truth
    for number in range(6):
        (segment,) = struct.unpack_from("<I", pack.raw, journal_at(pack) + 2 + number * 78)
        entry = pack.sit * BLOCK + segment // 55 * BLOCK + segment % 55 * 74
        pack.raw[entry : entry + 66] = bytes(66)
    check(pack.save())
    assert used_map(pack.reader).used == truth


def test_the_bitmap_chooses_the_other_set(pack: Pack) -> None:
    truth = used_map(pack.reader).used
    first = pack.sit * BLOCK
    second = first + pack.sit_segments // 2 * SEGMENT
    pack.raw[second : second + BLOCK] = pack.raw[first : first + BLOCK]
    pack.raw[first : first + BLOCK] = bytes(BLOCK)
    # The first block's bit is the highest of the first byte.
    pack.change(192, bytes([pack.checkpoint.sit_bitmap[0] | 0x80]))
    check(pack.save())
    assert used_map(pack.reader).used == truth


def test_an_older_pack_takes_over(pack: Pack, filled: Path) -> None:
    """Damage to the newer pack: its own tools fall back to the other one, and so it does."""
    pack.raw[pack.start * BLOCK + 20] ^= 1
    other = pack.start + (512 if pack.start == pack.first else -512)
    # The tools made only one of the two: put the newer one's content there, under its name.
    source = bytes(filled.read_bytes())[pack.start * BLOCK : (pack.start + 512) * BLOCK]
    pack.raw[other * BLOCK : (other + 512) * BLOCK] = source
    with PlainFile(filled) as reader:
        assert used_map(pack.reader).used == used_map(reader).used


@pytest.mark.parametrize(
    "states",
    [
        0x80,  # never unmounted
        0x1 | 0x8,  # error
        0x1 | 0x10,  # needs fsck
        0x1 | 0x1000,  # checkpoints disabled
        0x1 | 0x4000,  # resize under way
        0x1 | 0x100000,  # of the future
    ],
)
def test_unclean_states(states: int, pack: Pack) -> None:
    pack.change(132, struct.pack("<I", states))
    with pytest.raises(NotUnderstood):
        used_map(pack.reader)


def test_what_is_not_followed(pack: Pack, tmp_path: Path) -> None:
    zoned = pack.raw.copy()
    struct.pack_into("<I", zoned, 1024 + 2180, 1 << 1)
    future = pack.raw.copy()
    struct.pack_into("<I", future, 1024 + 2180, 1 << 27)
    several = pack.raw.copy()
    for at in (1024, BLOCK + 1024):
        several[at + 2201 : at + 2210] = b"/dev/sdb1"
    for raw in (zoned, future, several, pack.raw[: -2 * MIB]):
        with pytest.raises(NotUnderstood):
            used_map(MemoryBlocks(raw))


def test_second_superblock_and_what_lies_behind(pack: Pack) -> None:
    truth = used_map(pack.reader)
    raw = pack.raw + bytes(MIB)
    raw[1024:1028] = bytes(4)
    disk = MemoryBlocks(raw)
    assert KIND.recognise(disk)
    used = used_map(disk)
    assert used.used == truth.used | Extents.single(len(raw) - MIB, len(raw))
    assert used.notes


def test_counts_that_disagree(pack: Pack) -> None:
    segment = pack.checkpoint.node_segments[1]
    pack.raw[pack.sit * BLOCK + segment * 74 + 2] ^= 0x10
    with pytest.raises(NotUnderstood, match="disagree"):
        used_map(pack.reader)


def test_random_damage_never_crashes_it(pack: Pack) -> None:
    rng = random.Random(4)
    disk = pack.reader
    at = pack.start * BLOCK
    spots = [1024, BLOCK + 1024, at, at + 132, journal_at(pack), pack.sit * BLOCK]
    for _ in range(600):
        offset = rng.choice(spots) + rng.randrange(rng.choice((8, 200, 3000)))
        before = disk.read_at(offset, 8)
        disk.write_at(offset, rng.choice((b"\0", b"\xff", rng.randbytes(1), rng.randbytes(8))))
        if offset >= at:
            block = disk.read_at(at, 4092)
            disk.write_at(at + 4092, struct.pack("<I", checksum(block)))
        with contextlib.suppress(FreezeframeError):
            assert used_map(disk).used.end <= disk.size
        disk.write_at(offset, before)
    assert not KIND.recognise(MemoryBlocks(MIB))
    assert not KIND.recognise(MemoryBlocks(10))
