"""What a disk consists of, held against sfdisk, sgdisk and blkid."""

import random
import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import ToolFailed, UnreadableRange
from freezeframe.core.units import MIB
from freezeframe.layout import structs
from freezeframe.layout.base import Role, Table
from freezeframe.layout.capture import capture
from freezeframe.layout.types import GPT_TYPE_NAMES, MBR_TYPE_NAMES
from freezeframe.system.run import run
from freezeframe.testing.layouts import (
    check_tiling,
    edit_gpt,
    gpt_entry,
    in_memory,
    make_table,
    our_partitions,
    region_at,
    sfdisk_partitions,
)

LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
GPT_SCRIPT = """label: gpt
label-id: 11111111-2222-3333-4444-555555555555
size=2MiB, type=21686148-6449-6E6F-744E-656564454649, name="boot code"
size=4MiB, type=U, name="EFI"
size=6MiB, type=L, name="röot ✓", attrs="LegacyBIOSBootable,GUID:60"
"""
MBR_SCRIPT = "label: dos\nlabel-id: 0xdeadbeef\nsize=4MiB, type=83, bootable\n" + (
    "size=2MiB, type=82\nsize=1MiB, type=c\ntype=5\n" + "size=1MiB, type=83\n" * 12
)
SIZE = 40 * MIB


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    return make_table(tmp_path / "gpt.img", SIZE, GPT_SCRIPT)


@pytest.fixture
def mbr(tmp_path: Path) -> Path:
    return make_table(tmp_path / "mbr.img", SIZE, MBR_SCRIPT)


def sgdisk_finds(path: Path) -> str:
    return run(("sgdisk", "-v", str(path)), ok=(0, 1, 2, 3)).stdout.decode()


def partuuids(path: Path) -> str:
    return run(("partx", "-o", "NR,START,SECTORS,UUID", "-g", "-r", str(path))).stdout.decode()


# -- against other programs ---------------------------------------------------------


def test_gpt_is_what_sfdisk_says(gpt: Path) -> None:
    disk = in_memory(gpt)
    layout = capture(disk, str(gpt))
    check_tiling(layout, disk)
    assert layout.table is Table.GPT
    assert layout.notes == ()
    assert layout.disk_id == "11111111-2222-3333-4444-555555555555"
    assert our_partitions(layout) == sfdisk_partitions(gpt)
    assert layout.partitions[2].name == "röot ✓"
    assert [p.bootable for p in layout.partitions] == [False, False, True]
    assert [p.type_name for p in layout.partitions] == [
        "BIOS boot",
        "EFI System",
        "Linux filesystem",
    ]


def test_gpt_pieces_are_the_bytes_on_disk(gpt: Path) -> None:
    with gpt.open("r+b") as file:
        file.write(b"boot code")
        file.seek(64 * 1024)
        file.write(b"hidden")
    disk = in_memory(gpt)
    layout = capture(disk, str(gpt))
    data = gpt.read_bytes()
    assert layout.pieces["mbr.bin"] == data[:512]
    assert layout.pieces["gpt-primary.bin"] == data[512 : 34 * 512]
    assert layout.pieces["gpt-backup.bin"] == data[-33 * 512 :]
    assert layout.pieces["boot-gap.bin"].rstrip(b"\0").endswith(b"hidden")
    assert layout.pieces["sfdisk.dump"] == run(("sfdisk", "--dump", str(gpt))).stdout
    assert layout.used_outside.covers(64 * 1024, 64 * 1024 + 6)
    assert not layout.used_outside.touches(128 * 1024, MIB)


def test_boot_partitions_are_kept_whole(gpt: Path) -> None:
    layout = capture(in_memory(gpt))
    boot = layout.partitions[0]
    assert layout.used_outside.covers(boot.start, boot.stop)
    assert not layout.used_outside.touches(boot.stop, layout.partitions[2].stop)


def test_mbr_with_logical_partitions_is_what_sfdisk_says(mbr: Path) -> None:
    disk = in_memory(mbr)
    layout = capture(disk, str(mbr))
    check_tiling(layout, disk)
    assert layout.table is Table.MBR
    assert layout.notes == ()
    assert layout.disk_id == "deadbeef"
    assert len(layout.partitions) == 15
    assert our_partitions(layout) == sfdisk_partitions(mbr)
    listed = {line.split()[3] for line in partuuids(mbr).splitlines()}
    assert {p.uuid for p in layout.partitions} <= listed
    ebrs = [r for r in layout.regions if r.type_name == "EBR"]
    assert len(ebrs) == 12
    data = mbr.read_bytes()
    for number, ebr in enumerate(ebrs, 1):
        assert layout.pieces[f"ebr-{number}.bin"] == data[ebr.start : ebr.stop]


def test_a_deleted_logical_partition_leaves_the_rest(mbr: Path) -> None:
    for number in (8, 5, 14):
        run(("sfdisk", "--quiet", "--delete", str(mbr), str(number)))
    disk = in_memory(mbr)
    layout = capture(disk, str(mbr))
    check_tiling(layout, disk)
    assert layout.notes == ()
    assert our_partitions(layout) == sfdisk_partitions(mbr)
    assert len(layout.partitions) == 12


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 5000)), min_size=1, max_size=9),
    st.sampled_from(["gpt", "dos"]),
    st.integers(0, 3),
)
def test_any_table_is_what_sfdisk_says(
    tmp_path: Path, gaps_and_sizes: list[tuple[int, int]], label: str, primaries: int
) -> None:
    lines, at = [f"label: {label}"], 2048
    for number, (gap, size) in enumerate(gaps_and_sizes):
        at += gap
        if label == "dos" and number == primaries:
            lines.append(f"start={at}, size=81920, type=f")
        if label == "dos" and number >= primaries:
            at += 64
        lines.append(f"start={at}, size={size}")
        at += size
    path = make_table(tmp_path / "any.img", 60 * MIB, "\n".join(lines))
    disk = in_memory(path)
    layout = capture(disk, str(path))
    check_tiling(layout, disk)
    assert layout.notes == ()
    assert our_partitions(layout) == sfdisk_partitions(path)
    assert len(layout.partitions) == len(gaps_and_sizes)
    facts = run(("blkid", "-p", "-o", "export", str(path))).stdout.decode()
    assert f"PTUUID={layout.disk_id}" in facts


def test_a_large_number_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "many.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    new = [
        word
        for number in (1, 129, 296)
        for word in ("-n", f"{number}:0:+1M", "-c", f"{number}:n{number}")
    ]
    run(("sgdisk", "-S", "300", *new, str(path)))
    disk = in_memory(path)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert [(p.number, p.name) for p in layout.partitions] == [
        (1, "n1"),
        (129, "n129"),
        (296, "n296"),
    ]
    (primary,) = [r for r in layout.regions if r.type_name == "GPT primary"]
    assert "No problems found" in sgdisk_finds(path)
    assert primary.length == 512 + 300 * 128


def test_hybrid(gpt: Path) -> None:
    run(("sgdisk", "-h", "2:3", str(gpt)))
    disk = in_memory(gpt)
    layout = capture(disk, str(gpt))
    check_tiling(layout, disk)
    assert layout.table is Table.HYBRID
    assert layout.notes == ()
    assert our_partitions(layout) == sfdisk_partitions(gpt)


def test_hybrid_entry_the_gpt_does_not_know_is_kept_whole(gpt: Path) -> None:
    disk = in_memory(gpt)
    entry = structs.MBR_ENTRY.pack(0, bytes(3), 0x83, bytes(3), 30 * 2048, 2048)
    disk.write_at(446 + 16, entry)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert layout.table is Table.HYBRID
    assert layout.used_outside.covers(30 * MIB, 31 * MIB)
    assert any("hybrid" in note for note in layout.notes)


def test_type_names_are_those_sfdisk_uses() -> None:
    listed = run(("sfdisk", "--list-types", "--label", "gpt")).stdout.decode()
    known = {line.split()[0].lower() for line in listed.splitlines()[2:] if line}
    # ChromeOS joined later.
    assert set(GPT_TYPE_NAMES) - known <= {"fe3a2a5d-4f32-41a7-b725-accc3285a309"}
    listed = run(("sfdisk", "--list-types", "--label", "dos")).stdout.decode()
    codes = {int(line.split()[0], 16) for line in listed.splitlines()[2:] if line}
    assert set(MBR_TYPE_NAMES) <= codes


# -- damage -------------------------------------------------------------------------


def flip(disk: MemoryBlocks, offset: int) -> None:
    disk.write_at(offset, bytes([disk.read_at(offset, 1)[0] ^ 0x10]))


@pytest.mark.parametrize(
    ("offsets", "note"),
    [
        ([512 + 24], "primary GPT is damaged (its header's checksum"),
        ([1024 + 300], "primary GPT is damaged (its entries' checksum"),
        ([SIZE - 512 + 50], "backup GPT is damaged or missing (its header's checksum"),
        ([SIZE - 33 * 512 + 5], "backup GPT is damaged or missing (its entries' checksum"),
    ],
)
def test_one_good_copy_is_enough(gpt: Path, offsets: list[int], note: str) -> None:
    disk = in_memory(gpt)
    good = capture(disk)
    for offset in offsets:
        flip(disk, offset)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert layout.partitions == good.partitions
    assert note in " ".join(layout.notes)
    assert layout.pieces["gpt-primary.bin"] == disk.read_at(512, 33 * 512)
    assert layout.pieces["gpt-backup.bin"] == disk.read_at(SIZE - 33 * 512, 33 * 512)
    gpt.write_bytes(disk.read_at(0, SIZE))
    said = sgdisk_finds(gpt)
    assert "No problems found" not in said or "Caution" in said or "Warning" in said


def test_no_good_copy_keeps_everything(gpt: Path) -> None:
    disk = in_memory(gpt)
    flip(disk, 1024)
    flip(disk, SIZE - 512 + 16)
    layout = capture(disk)
    assert layout.table is Table.NONE
    assert layout.used_outside.covers(0, SIZE)
    assert "neither of its copies is good" in layout.notes[0]


def test_copies_that_disagree(gpt: Path) -> None:
    disk = in_memory(gpt)
    good = capture(disk)
    stranger = gpt_entry(LINUX, 30 * 2048, 32 * 2048 - 1)
    edit_gpt(disk, lba=SIZE // 512 - 1, entries={3 * 128: stranger})
    layout = capture(disk)
    check_tiling(layout, disk)
    assert "disagree" in layout.notes[0]
    assert layout.partitions == good.partitions
    assert layout.used_outside.covers(30 * MIB, 32 * MIB)
    assert layout.pieces["gpt-primary.bin"] != layout.pieces["gpt-backup.bin"]


def test_gpt_without_protective_mbr_keeps_everything(gpt: Path) -> None:
    disk = in_memory(gpt)
    disk.write_at(446, bytes(66))
    layout = capture(disk)
    assert layout.table is Table.NONE
    assert layout.used_outside.covers(0, SIZE)
    gpt.write_bytes(disk.read_at(0, SIZE))
    with pytest.raises(ToolFailed):
        run(("sfdisk", "--json", str(gpt)))


def test_an_enlarged_disk(gpt: Path) -> None:
    disk = MemoryBlocks(gpt.read_bytes() + bytes(8 * MIB))
    layout = capture(disk)
    check_tiling(layout, disk)
    assert len(layout.partitions) == 3
    assert "was enlarged" in layout.notes[0]
    assert region_at(layout, SIZE - 1).type_name == "GPT backup"


def test_a_disk_cut_short(gpt: Path, mbr: Path) -> None:
    for path in (gpt, mbr):
        disk = MemoryBlocks(path.read_bytes()[: 9 * MIB + 500_300])
        layout = capture(disk)
        check_tiling(layout, disk)
        assert any("cut short" in note for note in layout.notes)
        assert layout.partitions


def test_overlapping_partitions_are_kept_whole(gpt: Path, mbr: Path) -> None:
    disk = in_memory(gpt)
    edit_gpt(disk, entries={3 * 128: gpt_entry(LINUX, 5 * 2048, 8 * 2048 - 1)})
    layout = capture(disk)
    check_tiling(layout, disk)
    assert [p.number for p in layout.partitions] == [1]
    assert layout.used_outside.covers(3 * MIB, 13 * MIB)
    disk = in_memory(mbr)
    entry = structs.MBR_ENTRY.pack(0, bytes(3), 0x83, bytes(3), 4096, 4096)
    disk.write_at(446 + 16, entry)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert [p.number for p in layout.partitions][:1] == [3]
    assert layout.used_outside.covers(1 * MIB, 5 * MIB)
    assert any("overlap" in note for note in layout.notes)


def test_a_partition_over_the_table_is_kept_whole() -> None:
    # As on the images of installation media: the first partition begins at sector 0.
    disk = MemoryBlocks(8 * MIB)
    disk.write_at(446, structs.MBR_ENTRY.pack(0x80, bytes(3), 0x17, bytes(3), 0, 8192))
    disk.write_at(446 + 16, structs.MBR_ENTRY.pack(0, bytes(3), 0xEF, bytes(3), 100, 500))
    disk.write_at(510, structs.MBR_MAGIC)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert layout.partitions == ()
    assert layout.used_outside.covers(0, 8192 * 512)


def test_no_partition_keeps_all_that_is_not_zero(tmp_path: Path) -> None:
    path = make_table(tmp_path / "empty.img", 72 * MIB, "label: gpt\n")
    disk = in_memory(path)
    disk.write_at(70 * MIB, b"lost")
    layout = capture(disk)
    assert layout.used_outside.covers(70 * MIB, 70 * MIB + 4)


def first_ebr(disk: MemoryBlocks) -> int:
    layout = capture(disk)
    return next(r.start for r in layout.regions if r.type_name == "EBR")


@pytest.mark.parametrize(
    ("link", "note"),
    [(0, "a loop"), (1 << 31, "out of the extended partition"), (777, "holds no boot record")],
)
def test_broken_chains_end_and_keep_the_rest(mbr: Path, link: int, note: str) -> None:
    disk = in_memory(mbr)
    start = first_ebr(disk)
    whole = capture(disk)
    ebrs = [r.start for r in whole.regions if r.type_name == "EBR"]
    third = ebrs[2]
    raw = bytearray(disk.read_at(third, 512))
    struct.pack_into("<I", raw, 446 + 16 + 8, link)
    disk.write_at(third, raw)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert note in " ".join(layout.notes)
    assert [p.number for p in layout.partitions] == [1, 2, 3, 5, 6, 7]
    extended = next(p for p in run_extended(mbr) if p[0] == start)
    rest = layout.used_outside
    for part in layout.partitions:
        if part.number < 5:
            assert not rest.touches(part.start, part.stop)
    assert rest.covers(layout.partitions[-1].stop, sum(extended))


def run_extended(path: Path) -> list[tuple[int, int]]:
    lines = run(("sfdisk", "--dump", str(path))).stdout.decode().splitlines()
    found = []
    for line in lines:
        if "type=5" in line:
            words = line.replace(",", " ").replace("=", " ").split()
            start = int(words[words.index("start") + 1]) * 512
            found.append((start, int(words[words.index("size") + 1]) * 512))
    return found


def test_a_logical_partition_out_of_the_extended_one(mbr: Path) -> None:
    disk = in_memory(mbr)
    start = first_ebr(disk)
    raw = bytearray(disk.read_at(start, 512))
    struct.pack_into("<I", raw, 446 + 12, 0x7FFFFFFF)
    disk.write_at(start, raw)
    layout = capture(disk)
    check_tiling(layout, disk)
    assert [p.number for p in layout.partitions] == [1, 2, 3]
    assert layout.used_outside.covers(start, SIZE)


class Unreadable(MemoryBlocks):
    """A disk whose sector cannot be read."""

    bad = 0

    def read_at(self, offset: int, length: int) -> bytes:
        if offset <= self.bad < offset + length:
            raise UnreadableRange(self.name, offset, length, "medium error")
        return super().read_at(offset, length)


@pytest.mark.parametrize("bad", [0, 512, 1024, 20 * 512, 100_000, SIZE - 1, SIZE - 9000])
def test_unreadable_sectors_are_kept(gpt: Path, bad: int) -> None:
    disk = Unreadable(gpt.read_bytes())
    disk.bad = bad
    layout = capture(disk)
    assert layout.used_outside.covers(bad, bad + 1)
    assert bad == 0 or len(layout.partitions) == 3


@pytest.mark.parametrize("slot", range(5))
def test_unreadable_boot_records_are_kept(mbr: Path, slot: int) -> None:
    disk = Unreadable(mbr.read_bytes())
    disk.bad = -1
    ebr = [r for r in capture(disk).regions if r.type_name == "EBR"][slot]
    disk.bad = ebr.start + 100
    layout = capture(disk)
    assert layout.used_outside.covers(ebr.start, ebr.stop)
    assert len(layout.partitions) == 3 + slot


# -- no table -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("mkfs.vfat", "-F", "12"),
        ("mkfs.vfat", "-F", "16"),
        ("mkfs.vfat", "-F", "32"),
        ("mkfs.vfat", "-F", "32", "-S", "4096", "-s", "1", "-f", "1"),
        ("mkfs.ntfs", "-F", "-Q", "-q"),
        ("mkfs.exfat",),
        ("mkfs.ext4", "-q"),
        ("mkfs.btrfs", "-q"),
        ("mkswap",),
    ],
)
def test_a_filesystem_on_the_disk_itself_is_no_table(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "whole.img"
    with path.open("wb") as file:
        file.truncate(320 * MIB)
    run((*command, str(path)), ok=(0, 1))
    # The first MiB only: what lies behind does not matter here.
    with path.open("rb") as file:
        disk = MemoryBlocks(file.read(4 * MIB))
    layout = capture(disk)
    assert layout.table is Table.NONE
    assert [r.role for r in layout.regions] == [Role.WHOLE]
    assert layout.notes == ()
    assert not layout.used_outside


def test_a_boot_sector_that_is_a_table_too_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "both.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    run(("mkfs.vfat", str(path)))
    disk = in_memory(path)
    disk.write_at(446, structs.MBR_ENTRY.pack(0x80, bytes(3), 6, bytes(3), 63, 1000))
    layout = capture(disk)
    assert layout.table is Table.NONE
    assert layout.used_outside.covers(0, 8 * MIB)


@pytest.mark.parametrize("label", ["sun", "sgi"])
def test_other_tables_keep_everything(tmp_path: Path, label: str) -> None:
    path = make_table(tmp_path / "other.img", 20 * MIB, f"label: {label}\nsize=9MiB\n")
    layout = capture(in_memory(path))
    assert layout.table is Table.NONE
    assert layout.used_outside.covers(0, 20 * MIB)
    assert label in layout.notes[0].lower()


@pytest.mark.parametrize("label", ["mac", "bsd"])
def test_other_tables_by_parted(tmp_path: Path, label: str) -> None:
    path = tmp_path / "other.img"
    with path.open("wb") as file:
        file.truncate(20 * MIB)
    run(("parted", "-s", str(path), "mklabel", label))
    layout = capture(in_memory(path))
    assert layout.used_outside.covers(0, 20 * MIB)


def test_a_member_of_an_array_keeps_everything(gpt: Path) -> None:
    for offset, magic in ((SIZE - 8192, 0xA92B4EFC), (SIZE - 65536, 0xA92B4EFC)):
        disk = in_memory(gpt)
        disk.write_at(offset, magic.to_bytes(4, "little"))
        layout = capture(disk)
        check_tiling(layout, disk)
        assert len(layout.partitions) == 3
        assert layout.used_outside.covers(0, SIZE)
        assert "member of an array" in layout.notes[-1]


def test_a_last_partition_in_an_array_is_none_of_the_disk(tmp_path: Path) -> None:
    path = make_table(tmp_path / "fd.img", SIZE, "label: dos\nsize=2MiB\ntype=fd\n")
    with path.open("r+b") as file:
        file.seek(SIZE - 65536)
        file.write(bytes.fromhex("fc4e2ba9"))
    layout = capture(in_memory(path))
    assert layout.notes == ()
    assert layout.used_outside.total < MIB


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1023, 1024, 1536, 5000])
def test_tiny_disks(size: int, gpt: Path, mbr: Path) -> None:
    for start in (bytes(size), gpt.read_bytes()[:size], mbr.read_bytes()[:size], b"\xff" * size):
        disk = MemoryBlocks(start)
        check_tiling(capture(disk), disk)


# -- gaps ---------------------------------------------------------------------------


def test_deep_in_a_large_gap_nothing_is_kept_unless_asked(tmp_path: Path) -> None:
    path = make_table(
        tmp_path / "gap.img", 160 * MIB, "label: gpt\nsize=1MiB\nstart=150MiB, size=1MiB\n"
    )
    disk = in_memory(path)
    for at in (2, 60, 100, 149.5, 159):
        disk.write_at(int(at * MIB), b"something")
    layout = capture(disk)
    kept = [
        at
        for at in (2, 60, 100, 149.5, 159)
        if layout.used_outside.touches(int(at * MIB), int(at * MIB) + 9)
    ]
    assert kept == [2, 60, 149.5, 159]
    assert any("not kept" in note for note in layout.notes)
    layout = capture(disk, keep_gaps=True)
    assert layout.used_outside.covers(100 * MIB, 100 * MIB + 9)
    assert not any("not kept" in note for note in layout.notes)
    # An image holds what is not zero, no more.
    assert layout.used_outside.total < MIB


def test_a_small_mbr_on_a_large_file_may_count_in_4096(tmp_path: Path) -> None:
    path = make_table(tmp_path / "small.img", 160 * MIB, "label: dos\nsize=1MiB\n")
    disk = in_memory(path)
    disk.write_at(100 * MIB, b"something")
    layout = capture(disk, str(path))
    assert layout.used_outside.touches(100 * MIB, 101 * MIB)
    assert any("4096" in note for note in layout.notes)


# -- fuzz ---------------------------------------------------------------------------


def test_no_damage_is_too_much(gpt: Path, mbr: Path) -> None:
    run(("sgdisk", "-h", "2:3", str(gpt)))
    rng = random.Random(7)
    places = {
        gpt: [(440, 512), (512, 604), (1024, 1024 + 512), (SIZE - 512, SIZE)],
        mbr: [(440, 512)]
        + [
            (r.start + 440, r.start + 512)
            for r in capture(in_memory(mbr)).regions
            if r.type_name == "EBR"
        ],
    }
    for path, spans in places.items():
        disk = in_memory(path)
        clean = {span: disk.read_at(span[0], span[1] - span[0]) for span in spans}
        for _ in range(250):
            for start, stop in rng.choices(spans, k=rng.randint(1, 3)):
                for _ in range(rng.randint(1, 8)):
                    value = rng.choice((0, 1, 5, 0x0F, 0x80, 0x83, 0xEE, 0xFF, rng.randrange(256)))
                    disk.write_at(rng.randrange(start, stop), bytes([value]))
            layout = capture(disk)
            cursor = 0
            for region in layout.regions:
                assert region.start == cursor
                cursor = region.stop
            assert cursor == SIZE
            for (start, _), data in clean.items():
                disk.write_at(start, data)


def test_crafted_gpts_with_right_checksums(gpt: Path) -> None:
    rng = random.Random(8)
    data = gpt.read_bytes()
    odd = (0, 1, 2, 33, 34, 127, 128, 129, 4096, 1 << 20, 1 << 31, (1 << 32) - 1)
    wide = (*odd, 1 << 40, 1 << 55, (1 << 63) - 1, (1 << 64) - 1)
    disk = MemoryBlocks(data)
    for _ in range(250):
        header = {
            index: rng.choice(wide if index in (5, 6, 7, 8, 10) else odd)
            for index in rng.sample((2, 5, 6, 7, 8, 10, 11, 12), k=rng.randint(0, 2))
        }
        entries = {
            rng.randrange(4) * 128: gpt_entry(LINUX, rng.choice(wide), rng.choice(wide))
            for _ in range(rng.randint(0, 3))
        }
        for lba in rng.choice(((1,), (SIZE // 512 - 1,), (1, SIZE // 512 - 1))):
            edit_gpt(disk, lba=lba, header=header, entries=entries)
        layout = capture(disk)
        cursor = 0
        for region in layout.regions:
            assert region.start == cursor
            cursor = region.stop
        assert cursor == SIZE
        disk.write_at(0, data[:MIB])
        disk.write_at(SIZE - MIB, data[-MIB:])
