"""Tables of restored disks on other sizes, judged by sgdisk, sfdisk, partx and blkid."""

import contextlib
import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.core.errors import FreezeframeError, TargetUnsuitable
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.layout import structs
from freezeframe.layout.base import DiskLayout, Table
from freezeframe.layout.capture import capture
from freezeframe.layout.recreate import RecreatePlan, execute_recreate, plan_recreate
from freezeframe.layout.rewrite import table_patches
from freezeframe.system.run import run
from freezeframe.testing.layouts import edit_gpt, in_memory, make_table, sfdisk_partitions

GPT_SCRIPT = """label: gpt
size=2MiB, type=21686148-6449-6E6F-744E-656564454649, name="boot code"
size=4MiB, type=U, name="EFI"
size=6MiB, type=L, name="röot ✓", attrs="LegacyBIOSBootable,GUID:60"
"""
MBR_SCRIPT = "label: dos\nsize=4MiB, type=83, bootable\nsize=2MiB, type=82\ntype=5\n" + (
    "size=1MiB, type=83\n" * 11
)
PRIMARIES_SCRIPT = "label: dos\nsize=4MiB, type=83, bootable\nsize=2MiB, type=83\n"
SIZE = 40 * MIB


def make_disk(tmp_path: Path, kind: str) -> Path:
    script = {"mbr": MBR_SCRIPT, "primaries": PRIMARIES_SCRIPT}.get(kind, GPT_SCRIPT)
    path = make_table(tmp_path / f"{kind}.img", SIZE, script)
    if kind == "hybrid":
        run(("sgdisk", "-h", "2:3", str(path)))
    with path.open("r+b") as file:
        file.write(b"boot code of a loader")
        if kind in ("mbr", "primaries"):
            file.seek(512)
            file.write(b"its second stage")
    return path


def plan_for(
    path: Path, size: int, *, grow: bool = False, filesystem: str = "", content: bool = True
) -> tuple[DiskLayout, RecreatePlan]:
    layout = capture(in_memory(path), str(path))
    used = layout.used_outside
    if content:
        used = used | Extents.of((part.start, part.stop) for part in layout.partitions)
    plan = plan_recreate(
        layout, used, target_size=size, target_sector=0, grow=grow, last_filesystem=filesystem
    )
    return layout, plan


def restore(
    source: Path, plan: RecreatePlan, target: Path, filling: bytes = b""
) -> tuple[str, ...]:
    """Do what a restore does: write what is to be written, then fit the table."""
    data = source.read_bytes()
    with target.open("wb") as file:
        file.truncate(plan.target_size)
        if filling:
            for at in range(0, plan.target_size, len(filling)):
                file.seek(at)
                file.write(filling[: plan.target_size - at])
        for start, stop in plan.write:
            file.seek(start)
            file.write(data[start:stop])
    return execute_recreate(plan, str(target), Silent())


def table_of(path: Path) -> list[str]:
    """Return sfdisk's dump without what must differ: names of files, the last sector."""
    dump = run(("sfdisk", "--dump", str(path))).stdout.decode()
    lines = dump.replace(str(path), "disk").splitlines()
    return [line for line in lines if not line.startswith(("last-lba", "device:"))]


def check_table(path: Path, table: Table) -> None:
    """Assert that other programs find nothing wrong with it."""
    said = run(("sfdisk", "--verify", str(path))).stdout.decode()
    assert "No errors detected" in said
    if table in (Table.GPT, Table.HYBRID):
        said = run(("sgdisk", "-v", str(path))).stdout.decode()
        assert "No problems found" in said
        assert "corrupt" not in said
        assert "invalid" not in said


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("gpt", SIZE + 512),
        ("gpt", SIZE + 10 * 1024),
        ("gpt", SIZE + 20_300),
        ("gpt", SIZE + 30 * MIB),
        ("hybrid", SIZE + MIB),
        ("mbr", SIZE + 300),
    ],
)
def test_onto_a_larger_disk(tmp_path: Path, kind: str, size: int) -> None:
    source, target = make_disk(tmp_path, kind), tmp_path / "target.img"
    layout, plan = plan_for(source, size)
    assert restore(source, plan, target, filling=b"\xa5" * MIB) == ()
    check_table(target, layout.table)
    assert table_of(target) == table_of(source)
    assert sfdisk_partitions(target) == sfdisk_partitions(source)
    again = capture(in_memory(target))
    assert again.notes == ()
    assert again.partitions == layout.partitions
    assert again.disk_id == layout.disk_id
    assert target.read_bytes()[:446] == source.read_bytes()[:446]
    if kind == "hybrid":
        assert target.read_bytes()[:512] == source.read_bytes()[:512]
    # The old backup is gone: nobody takes it for the real one.
    signatures = target.read_bytes().count(b"EFI PART")
    assert signatures == (0 if kind == "mbr" else 2)
    assert all(isinstance(line, str) for line in plan.describe())


@pytest.mark.parametrize("kind", ["gpt", "hybrid", "mbr", "primaries"])
def test_onto_the_same_size_everything_stays(tmp_path: Path, kind: str) -> None:
    source, target = make_disk(tmp_path, kind), tmp_path / "target.img"
    _, plan = plan_for(source, SIZE)
    assert plan.describe() == []
    restore(source, plan, target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("gpt", SIZE),
        ("gpt", SIZE + 20_300),
        ("hybrid", SIZE + 30 * MIB),
        ("mbr", SIZE),
        ("mbr", SIZE + 30 * MIB),
        ("primaries", SIZE + MIB),
    ],
)
def test_grow_the_last_partition(tmp_path: Path, kind: str, size: int) -> None:
    source, target = make_disk(tmp_path, kind), tmp_path / "target.img"
    layout, plan = plan_for(source, size, grow=True)
    assert any("grow partition" in line for line in plan.describe())
    restore(source, plan, target)
    check_table(target, layout.table)
    before, after = sfdisk_partitions(source), sfdisk_partitions(target)
    assert after[:-1] == before[:-1]
    last = after[-1]
    stop = int(str(last["start"])) + int(str(last["length"]))
    assert stop % MIB == 0
    assert size - 2 * MIB < stop <= size
    last["length"] = before[-1]["length"]
    assert last == before[-1]
    listed = run(("partx", "-g", "-r", "-o", "NR,START,SECTORS,UUID", str(target)))
    ours = {p.number: p for p in capture(in_memory(target)).partitions}
    for line in listed.stdout.decode().splitlines():
        words = line.split()
        if int(words[0]) in ours:
            part = ours[int(words[0])]
            assert [part.start // 512, part.length // 512] == [int(words[1]), int(words[2])]
    if kind == "hybrid":
        entries = run(("sgdisk", "-O", str(target))).stdout.decode()
        assert f" {stop // 512 - 1} " in entries


def test_grow_an_extended_partition_with_it(tmp_path: Path) -> None:
    # The extended one ends with its last logical one here, so both must grow.
    script = (
        "label: dos\nsize=4MiB\nstart=6MiB, size=9MiB, type=f\n"
        "start=7MiB, size=2MiB\nstart=10MiB, size=4MiB\n"
    )
    source = make_table(tmp_path / "tight.img", SIZE, script)
    target = tmp_path / "target.img"
    layout, plan = plan_for(source, 2 * SIZE, grow=True)
    restore(source, plan, target)
    check_table(target, layout.table)
    dump = json.loads(run(("sfdisk", "--json", str(target))).stdout)
    rows = dump["partitiontable"]["partitions"]
    extended = next(row for row in rows if row["type"] == "f")
    assert extended["start"] + extended["size"] == 2 * SIZE // 512
    assert rows[-1]["start"] + rows[-1]["size"] == 2 * SIZE // 512


def test_logical_partitions_out_of_order_grow_as_well(tmp_path: Path) -> None:
    # 5 lies behind 6: the chain leads back, and the last on disk is not its last.
    source = make_table(
        tmp_path / "odd.img",
        SIZE,
        "label: dos\nstart=1MiB, size=30MiB, type=f\n"
        "start=20MiB, size=2MiB\nstart=3MiB, size=1MiB\n",
    )
    target = tmp_path / "target.img"
    layout, plan = plan_for(source, SIZE + 10 * MIB, grow=True)
    before = {row["number"]: row for row in sfdisk_partitions(source)}
    restore(source, plan, target)
    check_table(target, layout.table)
    after = {row["number"]: row for row in sfdisk_partitions(target)}
    last = max(before.values(), key=lambda row: int(str(row["start"])))["number"]
    assert after.keys() == before.keys()
    for number, row in after.items():
        assert (row == before[number]) == (number != last)


def test_nothing_grows_where_there_is_no_room(tmp_path: Path) -> None:
    source = make_table(tmp_path / "full.img", SIZE, "label: gpt\n- \n")
    _, plan = plan_for(source, SIZE, grow=True, filesystem="ext4")
    assert plan.growth is None
    assert plan.filesystem == ""
    assert "no room" in plan.describe()[0]


def test_boot_code_does_not_grow(tmp_path: Path) -> None:
    script = "label: gpt\nsize=2MiB, type=21686148-6449-6E6F-744E-656564454649\n"
    source = make_table(tmp_path / "boot.img", SIZE, script)
    _, plan = plan_for(source, 2 * SIZE, grow=True)
    assert plan.growth is None
    assert "keeps its size" in " ".join(plan.describe())


@pytest.mark.parametrize("kind", ["fat32", "swap", "luks2", "unknown", ""])
def test_what_cannot_grow_is_said(tmp_path: Path, kind: str) -> None:
    source = make_disk(tmp_path, "gpt")
    _, plan = plan_for(source, 2 * SIZE, grow=True, filesystem=kind)
    assert plan.growth is not None
    assert plan.filesystem == ""
    assert plan.describe()[-1].startswith("note: ")


# -- smaller ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "hybrid", "mbr", "primaries"])
def test_onto_a_smaller_disk(tmp_path: Path, kind: str) -> None:
    source, target = make_disk(tmp_path, kind), tmp_path / "target.img"
    layout, _ = plan_for(source, SIZE)
    stop = layout.partitions[-1].stop
    least = stop + 33 * 512 if kind in ("gpt", "hybrid") else stop
    for size in (least, SIZE - 777):
        layout, plan = plan_for(source, size)
        restore(source, plan, target, filling=b"\x5a" * MIB)
        check_table(target, layout.table)
        assert sfdisk_partitions(target) == sfdisk_partitions(source)
        assert capture(in_memory(target)).partitions == layout.partitions
    with pytest.raises(TargetUnsuitable, match="partition") as error:
        plan_for(source, least - 512)
    assert error.value.hint


def test_smaller_and_grown(tmp_path: Path) -> None:
    source, target = make_disk(tmp_path, "gpt"), tmp_path / "target.img"
    layout, plan = plan_for(source, 20 * MIB, grow=True)
    restore(source, plan, target)
    check_table(target, layout.table)
    assert capture(in_memory(target)).partitions[-1].stop == 19 * MIB


def test_smaller_is_refused_while_a_gap_holds_something(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "gpt")
    with source.open("r+b") as file:
        file.seek(30 * MIB)
        file.write(b"who knows")
    plan_for(source, 31 * MIB)
    with pytest.raises(TargetUnsuitable, match="used beyond"):
        plan_for(source, 25 * MIB)


def test_no_table_becomes_smaller_only_if_the_end_is_known() -> None:
    layout = DiskLayout(Table.NONE, SIZE, 512, "", (), Extents.empty())
    used = Extents.single(0, 10 * MIB)

    def plan(size: int, content_end: int = 0) -> RecreatePlan:
        return plan_recreate(
            layout,
            used,
            target_size=size,
            target_sector=4096,
            grow=False,
            last_filesystem="",
            content_end=content_end,
        )

    assert plan(SIZE).write == used
    assert plan(2 * SIZE).write == used
    with pytest.raises(TargetUnsuitable):
        plan(SIZE - 512)
    assert plan(21 * MIB, 20 * MIB).write == used
    with pytest.raises(TargetUnsuitable):
        plan(19 * MIB, 20 * MIB)
    with pytest.raises(TargetUnsuitable):
        plan(9 * MIB, 5 * MIB)


def test_another_sector_size_is_refused(tmp_path: Path) -> None:
    layout, _ = plan_for(make_disk(tmp_path, "gpt"), SIZE)
    with pytest.raises(TargetUnsuitable, match="sectors of 512"):
        plan_recreate(
            layout,
            Extents.empty(),
            target_size=SIZE,
            target_sector=4096,
            grow=False,
            last_filesystem="",
        )


# -- damage -------------------------------------------------------------------------


def test_a_damaged_primary_is_made_from_the_backup(tmp_path: Path) -> None:
    source, target = make_disk(tmp_path, "gpt"), tmp_path / "target.img"
    table = table_of(source)
    with source.open("r+b") as file:
        file.seek(512)
        file.write(bytes(8))
    with pytest.raises(TargetUnsuitable, match="only the GPT at the disk's end"):
        plan_for(source, SIZE - MIB)
    layout, plan = plan_for(source, SIZE + MIB)
    restore(source, plan, target)
    check_table(target, layout.table)
    assert table_of(target) == table


def test_a_damaged_backup_is_made_from_the_primary(tmp_path: Path) -> None:
    source, target = make_disk(tmp_path, "gpt"), tmp_path / "target.img"
    with source.open("r+b") as file:
        file.seek(SIZE - 512)
        file.write(bytes(8))
    for size in (SIZE + MIB, SIZE - MIB):
        layout, plan = plan_for(source, size)
        restore(source, plan, target)
        check_table(target, layout.table)
        assert table_of(target) == table_of(source)


def test_unclear_tables_do_not_grow(tmp_path: Path) -> None:
    source = make_disk(tmp_path, "mbr")
    with source.open("r+b") as file:
        file.seek(446 + 16)
        file.write(structs.MBR_ENTRY.pack(0, bytes(3), 0x83, bytes(3), 4096, 4096))
    with pytest.raises(TargetUnsuitable, match="not understood"):
        plan_for(source, 2 * SIZE, grow=True)


def test_a_target_without_the_table_is_refused(tmp_path: Path) -> None:
    source, target = make_disk(tmp_path, "gpt"), tmp_path / "target.img"
    _, plan = plan_for(source, 2 * SIZE)
    with target.open("wb") as file:
        file.truncate(2 * SIZE)
    with pytest.raises(TargetUnsuitable, match="no partition table"):
        execute_recreate(plan, str(target), Silent())
    with target.open("r+b") as file:
        file.truncate(SIZE)
    with pytest.raises(TargetUnsuitable, match="the plan was made for"):
        execute_recreate(plan, str(target), Silent())


def test_a_table_that_was_wrong_already_stays_as_it_is(tmp_path: Path) -> None:
    source, target = make_disk(tmp_path, "gpt"), tmp_path / "target.img"
    with source.open("r+b") as file:
        file.truncate(10 * MIB)
    _, plan = plan_for(source, 11 * MIB)
    (note,) = restore(source, plan, target)
    assert "partition 3 passes the end" in note
    assert target.read_bytes()[: 10 * MIB] == source.read_bytes()


def test_no_damaged_table_is_too_much(tmp_path: Path) -> None:
    rng = random.Random(5)
    for kind in ("hybrid", "mbr"):
        source = make_disk(tmp_path, kind)
        disk = in_memory(source)
        layout, plan = plan_for(source, SIZE, grow=True)
        ends = [r.start for r in layout.regions if r.type_name == "EBR"] or [512, 1024]
        places = [440, 446, 462, *(at + 440 for at in ends)]
        clean = disk.read_at(0, 12 * MIB)
        for _ in range(100):
            for at in rng.choices(places, k=3):
                disk.write_at(at + rng.randrange(72), bytes([rng.choice((0, 5, 15, 255, 128))]))
            if kind == "hybrid":
                wide = rng.choice((0, 33, 1 << 31, 1 << 62, (1 << 64) - 1))
                edit_gpt(disk, header={rng.choice((5, 6, 7, 8)): wide})
            for old_size in (SIZE, 2 * SIZE, 16 * MIB):
                with contextlib.suppress(FreezeframeError):
                    groups = table_patches(disk, kind == "hybrid", 512, old_size, plan.growth)
                    for patch in itertools.chain(*groups):
                        assert 0 <= patch.offset <= patch.offset + len(patch.data) <= SIZE
            disk.write_at(0, clean)


def test_foreign_fields_survive(tmp_path: Path) -> None:
    """Bytes nobody defines, in header and entries, go along."""
    source, target = make_disk(tmp_path, "gpt"), tmp_path / "target.img"
    disk = in_memory(source)
    for lba in (1, SIZE // 512 - 1):
        edit_gpt(disk, lba=lba, header={4: 0x1234, 7: 2048})
    source.write_bytes(disk.read_at(0, SIZE))
    _, plan = plan_for(source, 2 * SIZE)
    restore(source, plan, target)
    with target.open("rb") as file:
        file.seek(512)
        assert structs.GPT_HEADER.unpack(file.read(92))[4] == 0x1234


# -- old signatures -----------------------------------------------------------------


def test_an_older_table_does_not_shine_through(tmp_path: Path) -> None:
    source, target = make_disk(tmp_path, "primaries"), tmp_path / "target.img"
    for size in (SIZE, 2 * SIZE):
        make_table(target, size, GPT_SCRIPT)
        run(("mkfs.btrfs", "-q", "-f", str(target)), ok=(0, 1))
        _, plan = plan_for(source, size, content=False)
        data = source.read_bytes()
        with target.open("r+b") as file:
            for start, stop in plan.write:
                file.seek(start)
                file.write(data[start:stop])
        execute_recreate(plan, str(target), Silent())
        lines = run(("wipefs", "-i", "-O", "TYPE", str(target))).stdout.decode()
        assert lines.split() == ["dos"]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 5000)), min_size=1, max_size=6),
    st.sampled_from(["gpt", "dos"]),
    st.integers(0, 3),
    st.integers(-8_000_000, 30_000_000),
    st.booleans(),
)
def test_any_table_on_any_size(
    tmp_path: Path,
    gaps_and_sizes: list[tuple[int, int]],
    label: str,
    primaries: int,
    more: int,
    grow: bool,
) -> None:
    lines, at = [f"label: {label}"], 2048
    for number, (gap, size) in enumerate(gaps_and_sizes):
        at += gap
        if label == "dos" and number == primaries:
            lines.append(f"start={at}, type=f")
        if label == "dos" and number >= primaries:
            at += 64
        lines.append(f"start={at}, size={size}")
        at += size
    source = make_table(tmp_path / "any.img", 30 * MIB, "\n".join(lines))
    target = tmp_path / "target.img"
    try:
        layout, plan = plan_for(source, 30 * MIB + more, grow=grow)
    except TargetUnsuitable:
        assert at * 512 + 33 * 512 > 30 * MIB + more
        return
    restore(source, plan, target)
    check_table(target, layout.table)
    before, after = sfdisk_partitions(source), sfdisk_partitions(target)
    if plan.growth is not None:
        grown = after[-1]
        assert int(str(grown["length"])) > int(str(before[-1]["length"]))
        grown["length"] = before[-1]["length"]
    assert after == before
