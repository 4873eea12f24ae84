"""Used maps of LVM2 physical volumes: made and judged by LVM's own tools.

No device-mapper is needed: volumes are filled, and read again, at the places that `lvs`
says they have.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import PeerList, State, UsedMap
from freezeframe.fs.detect import used_map as detected
from freezeframe.fs.lvm import LvmKind
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import check_kind
from freezeframe.testing.fsproof import (
    PlainFile,
    loop_mounted,
    make_tree,
    scatter_used,
    tree_checksums,
)
from freezeframe.testing.volumes import LVM_OPTIONS

pytestmark = pytest.mark.root

KIND = LvmKind(identify=detected)
EXTENT = 4 * MIB
START = MIB
LISTED = "lv_name,lv_uuid,lv_size,seg_size,stripes"


class Group:
    """A volume group on files; its tools see nothing else of the machine."""

    def __init__(self, folder: Path, count: int, *, size: int = 120 * MIB) -> None:
        self.files = [folder / f"disk{number}" for number in range(count)]
        for file in self.files:
            with file.open("wb") as made:
                made.truncate(size)

    @contextlib.contextmanager
    def open(self, files: list[Path] | None = None) -> Iterator[Tools]:
        with contextlib.ExitStack() as stack:
            devices = [stack.enter_context(attached(file)) for file in files or self.files]
            yield Tools(devices)

    def maps(self, files: list[Path] | None = None) -> list[UsedMap]:
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(PlainFile(file)) for file in files or self.files]
            return [KIND.used_map(reader, PeerList(tuple(readers))) for reader in readers]


@dataclass
class Tools:
    devices: list[str]

    def __call__(self, command: str, *arguments: str) -> str:
        line = ("lvm", command, "--devices", ",".join(self.devices), *LVM_OPTIONS, *arguments)
        return run(line).stdout.decode()

    def create(self, *options: str, name: str = "vg") -> None:
        self("pvcreate", "-y", *options, *self.devices)
        self("vgcreate", name, *self.devices)

    def volume(self, name: str, *options: str, group: str = "vg", on: str = "") -> None:
        where = [on] if on else []
        self("lvcreate", "-an", "-Zn", "-Wn", "-y", "-n", name, *options, group, *where)

    def restore(self, volumes: str, folder: Path) -> None:
        """Give the group other logical volumes, by LVM's own restore."""
        saved = folder / "saved"
        self("vgcfgbackup", "-f", str(saved), "vg")
        text = re.sub(r"\n\tlogical_volumes \{.*?\n\t\}\n", "\n", saved.read_text(), flags=re.S)
        head, _, _ = text.rstrip().rpartition("}")
        saved.write_text(f"{head}\nlogical_volumes {{\n{volumes}\n}}\n}}\n")
        self("vgcfgrestore", "--force", "-f", str(saved), "vg")

    def places(self, volume: str) -> list[tuple[str, int, int]]:
        """Return where a volume lies: (device, offset, length), in order."""
        fields = "lv_name,seg_start,seg_size,stripes,stripe_size,seg_pe_ranges"
        report = self(
            "lvs", "-a", "--segments", "--reportformat", "json", "--units", "b", "--nosuffix",
            "-o", fields,
        )  # fmt: skip
        rows = [r for r in json.loads(report)["report"][0]["seg"] if r["lv_name"] == volume]
        found = []
        for row in sorted(rows, key=lambda row: int(row["seg_start"])):
            starts = []
            for part in row["seg_pe_ranges"].split():
                device, _, pes = part.rpartition(":")
                starts.append((device, START + int(pes.split("-")[0]) * EXTENT))
            size = int(row["seg_size"])
            unit = int(row["stripe_size"]) if len(starts) > 1 else size
            for number in range(size // unit):
                device, offset = starts[number % len(starts)]
                found.append((device, offset + number // len(starts) * unit, unit))
        return found

    def write(self, volume: str, content: Path) -> None:
        with content.open("rb") as source, self.opened(os.O_WRONLY) as files:
            for device, offset, length in self.places(volume):
                os.pwrite(files[device], source.read(length), offset)
            for file in files.values():
                os.fsync(file)

    def read(self, volume: str, target: Path) -> Path:
        with target.open("wb") as file, self.opened(os.O_RDONLY) as files:
            for device, offset, length in self.places(volume):
                file.write(os.pread(files[device], length, offset))
        return target

    @contextlib.contextmanager
    def opened(self, mode: int) -> Iterator[dict[str, int]]:
        files = {device: os.open(device, mode) for device in self.devices}
        try:
            yield files
        finally:
            for file in files.values():
                os.close(file)

    def allocated(self, device: str) -> Extents:
        """Return what all volumes take of one device, from what `pvs` says."""
        report = self(
            "pvs", "--segments", "--reportformat", "json", "-o", "pvseg_start,pvseg_size,lv_name",
            device,
        )  # fmt: skip
        rows = json.loads(report)["report"][0]
        segments = rows.get("pvseg") or rows["pv"]
        return Extents.of(
            (
                START + int(s["pvseg_start"]) * EXTENT,
                START + (int(s["pvseg_start"]) + int(s["pvseg_size"])) * EXTENT,
            )
            for s in segments
            if s["lv_name"]
        )


def ext4(path: Path, size: int) -> dict[str, str]:
    with path.open("wb") as file:
        file.truncate(size)
    run(("mkfs.ext4", "-q", str(path)))
    with loop_mounted(path, path.with_name("filling"), kind="ext4") as folder:
        make_tree(folder, budget=3 * MIB)
        return tree_checksums(folder)


SHAPES = {
    "linear": ("-L", "40M"),
    "two stripes": ("-L", "40M", "-i", "2", "-I", "64k"),
    "three stripes of 4 KiB": ("-L", "48M", "-i", "3", "-I", "4k"),
    "extended": ("-L", "20M"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_used_block_is_left_out(shape: str, tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    with group.open() as tools:
        tools.create()
        tools.volume("one", *SHAPES[shape])
        tools.volume("two", "-L", "24M")
        tools.volume("gone", "-L", "12M")
        if shape == "extended":
            tools("lvextend", "-y", "-L", "40M", "vg/one")
            tools("lvextend", "-y", "-L", "44M", "-i", "1", "vg/two", tools.devices[1])
        tools("lvremove", "-y", "vg/gone")
        contents = {}
        for name in ("one", "two"):
            image = tmp_path / name
            size = sum(length for _, _, length in tools.places(name))
            contents[name] = ext4(image, size)
            tools.write(name, image)
        before = tools("lvs", "--segments", "-o", LISTED)
        allocated = [tools.allocated(device) for device in tools.devices]

    maps = group.maps()
    for used, all_of_it in zip(maps, allocated, strict=True):
        assert (used.kind, used.label) == ("lvm2", "vg")
        assert used.understood
        assert not used.notes
        header = Extents.of([(0, START), (START + 29 * EXTENT, 120 * MIB)])
        assert not used.used - header - all_of_it
        if all_of_it:
            assert used.used.total < (header | all_of_it).total
        for inner in used.inside.values():
            assert (inner.kind, inner.understood) == ("ext4", True)
    assert {name for used in maps for name in used.inside} == {"one", "two"}

    copies = [file.with_name(f"{file.name}-copy") for file in group.files]
    for file, copy, used in zip(group.files, copies, maps, strict=True):
        scatter_used(file, used.used, copy)
    with group.open(copies) as tools:
        for device in tools.devices:
            tools("pvck", device)
        tools("vgck", "vg")
        assert (
            tools("lvs", "--segments", "-o", "lv_name,lv_uuid,lv_size,seg_size,stripes") == before
        )
        for name, files in contents.items():
            image = tools.read(name, tmp_path / f"{name}-back")
            run(("e2fsck", "-fn", str(image)))
            with loop_mounted(image, tmp_path / "proof", read_only=True) as folder:
                assert tree_checksums(folder) == files


def test_each_volume_in_its_own_state(tmp_path: Path) -> None:
    """A volume that is mounted and frozen is trusted; one that crashed beside it is not."""
    group = Group(tmp_path, 1, size=800 * MIB)
    image, still = tmp_path / "xfs", tmp_path / "still"
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    run(("mkfs.xfs", "-q", str(image)))
    with loop_mounted(image, tmp_path / "filling") as folder:
        make_tree(folder, budget=3 * MIB)
        run(("fsfreeze", "-f", str(folder)))
        try:
            run(("cp", "--sparse=always", str(image), str(still)))
        finally:
            run(("fsfreeze", "-u", str(folder)))
    with group.open() as tools:
        tools.create()
        for name in ("frozen", "crashed"):
            tools.volume(name, "-L", "320M")
            tools.write(name, still)

    def understood(state: State, volumes: dict[str, State] | None) -> dict[str, bool]:
        with PlainFile(group.files[0]) as reader:
            result = detected(reader, state=state, volumes=volumes)
        assert result.understood
        assert result.used.end <= group.files[0].stat().st_size
        return {name: inner.understood for name, inner in result.inside.items()}

    assert understood(State.AT_REST, None) == {"frozen": False, "crashed": False}
    assert understood(State.FROZEN, {}) == {"frozen": False, "crashed": False}
    states = {"vg/frozen": State.FROZEN}
    assert understood(State.FROZEN, states) == {"frozen": True, "crashed": False}
    # Handed down to all where nothing is said of each.
    assert understood(State.FROZEN, None) == {"frozen": True, "crashed": True}
    assert understood(State.LIVE, None) == {"frozen": True, "crashed": True}


def test_the_text_restores_the_group(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    with group.open() as tools:
        tools.create(name="odd+name.1")
        tools.volume("one", "-L", "12M", group="odd+name.1")
        tools("lvchange", "--addtag", "some", "odd+name.1/one")
        before = tools("lvs", "-o", "lv_name,lv_uuid,lv_size,lv_tags,vg_uuid")
    (piece,) = (dict(used.pieces) for used in group.maps()[:1])
    assert list(piece) == ["vgcfgbackup-odd_name.1.txt"]
    saved = tmp_path / "piece"
    saved.write_bytes(piece["vgcfgbackup-odd_name.1.txt"])
    with group.open() as tools:
        tools("lvremove", "-y", "odd+name.1/one")
        tools("vgcfgrestore", "-f", str(saved), "odd+name.1")
        assert tools("lvs", "-o", "lv_name,lv_uuid,lv_size,lv_tags,vg_uuid") == before


def test_metadata_goes_round_its_ring_and_lies_in_two_areas(tmp_path: Path) -> None:
    """Enough changes to pass the end of a small area several times."""
    group = Group(tmp_path, 2, size=40 * MIB)
    with group.open() as tools:
        first, second = tools.devices
        small = ("--metadatasize", "16k", "--dataalignment", "64k")
        tools("pvcreate", "-y", *small, "--pvmetadatacopies", "2", first)
        tools("pvcreate", "-y", "--pvmetadatacopies", "0", "--bootloaderareasize", "1m", second)
        tools("vgcreate", "vg", *tools.devices)
        tools.volume("one", "-L", "4M")
        wraps = 0
        for number in range(20):
            tools("lvchange", "--addtag", f"tag{number}" + "x" * 500, "vg/one")
            texts = [next(iter(used.pieces.values())).decode() for used in group.maps()]
            assert f'"tag{number}x' in texts[0]
            assert texts[0] == texts[1]
            command = ("lvm", "pvck", *LVM_OPTIONS, "--dump", "headers", first)
            report = run(command).stdout.decode()
            offset, length = (
                int(re.findall(rf"mda_header_1.raw_locn\[0\]\.{name} (\d+)", report)[0])
                for name in ("offset", "size")
            )
            size = int(re.findall(r"mda_header_1.size (\d+)", report)[0])
            wraps += offset + length > size
        assert wraps
    with pytest.raises(NotUnderstood, match="other disks"):
        group.maps(group.files[1:])
    # The second area alone will do.
    with group.files[0].open("r+b") as file:
        file.seek(4096)
        file.write(b"damage")
    (used, _) = group.maps()
    assert next(iter(used.pieces.values())).decode() == texts[0]
    assert "checksum" in used.notes[0]


# What LVM writes for volumes that only a kernel with device-mapper can make. --------------


def volume(name: str, segment: str, *, size: int, visible: bool = True) -> str:
    uuid = re.sub(r"[^A-Za-z0-9]", "", name).ljust(32, "x")
    dashed = re.sub(r"(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})", r"\1-\2-\3-\4-\5-\6-\7", uuid)
    seen = ', "VISIBLE"' if visible else ""
    return f"""
{name} {{
id = "{dashed}"
status = ["READ", "WRITE"{seen}]
flags = []
segment_count = 1
segment1 {{
start_extent = 0
extent_count = {size}
{segment}
}}
}}
"""


def linear(name: str, disk: int, first: int, size: int, *, visible: bool = True) -> str:
    stripes = f'type = "striped"\nstripe_count = 1\nstripes = ["pv{disk}", {first}]'
    return volume(name, stripes, size=size, visible=visible)


SNAPSHOT = (
    linear("origin", 0, 0, 5)
    + linear("cow", 1, 0, 2)
    + volume(
        "snapshot0",
        'type = "snapshot"\nchunk_size = 8\norigin = "origin"\ncow_store = "cow"',
        size=5,
        visible=False,
    )
)
RAID1 = (
    volume(
        "mirrored",
        'type = "raid1"\ndevice_count = 2\nregion_size = 4096\nraids = ["mirrored_rmeta_0", '
        '"mirrored_rimage_0", "mirrored_rmeta_1", "mirrored_rimage_1"]',
        size=5,
    )
    + linear("mirrored_rmeta_0", 0, 0, 1, visible=False)
    + linear("mirrored_rimage_0", 0, 1, 5, visible=False)
    + linear("mirrored_rmeta_1", 1, 0, 1, visible=False)
    + linear("mirrored_rimage_1", 1, 1, 5, visible=False)
)
MIRROR = volume(
    "old_mirror",
    'type = "mirror"\nmirror_count = 2\nregion_size = 1024\nmirrors = ["pv0", 2, "pv1", 3]',
    size=4,
)
THIN = (
    volume(
        "pool",
        'type = "thin-pool"\nmetadata = "pool_tmeta"\npool = "pool_tdata"\ntransaction_id = 0\n'
        'chunk_size = 128\ndiscards = "passdown"\nzero_new_blocks = 1',
        size=5,
    )
    + linear("pool_tmeta", 1, 0, 1, visible=False)
    + linear("pool_tdata", 0, 3, 5, visible=False)
    + volume("thin", 'type = "thin"\nthin_pool = "pool"\ntransaction_id = 0\ndevice_id = 1', size=9)
)


@pytest.mark.parametrize(
    "volumes", [SNAPSHOT, RAID1, MIRROR, THIN], ids=["snapshot", "raid1", "mirror", "thin"]
)
def test_what_is_not_plain_counts_as_a_whole(volumes: str, tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    with group.open() as tools:
        tools.create()
        tools.volume("plain", "-L", "8M", on=tools.devices[0])
        tools.restore(volumes, tmp_path)
        # An ext4 where the first volume's data lie, so that there is something to mistake.
        image = tmp_path / "content"
        ext4(image, 16 * MIB)
        for file, first in zip(group.files, (0, 1), strict=True):
            with file.open("r+b") as target:
                target.seek(START + first * EXTENT)
                target.write(image.read_bytes())
        allocated = [tools.allocated(device) for device in tools.devices]
    for used, all_of_it in zip(group.maps(), allocated, strict=True):
        assert all_of_it
        header = Extents.of([(0, START), (START + 29 * EXTENT, 120 * MIB)])
        assert used.used == header | all_of_it
        assert not any(inner.understood for inner in used.inside.values())


def test_contract(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, size=24 * MIB)
    with group.open() as tools:
        tools.create()
        tools.volume("one", "-L", "8M", "-i", "2", "-I", "4k")
        image = tmp_path / "content"
        ext4(image, 8 * MIB)
        tools.write("one", image)
    check_kind(KIND, group.files[0], peers=group.files[1:])


def test_a_missing_disk(tmp_path: Path) -> None:
    group = Group(tmp_path, 2)
    with group.open() as tools:
        tools.create()
        tools.volume("striped", "-L", "24M", "-i", "2", "-I", "64k")
        tools.volume("alone", "-L", "20M", on=tools.devices[0])
        for name in ("striped", "alone"):
            ext4(tmp_path / name, 20 * MIB)
            tools.write(name, tmp_path / name)
        allocated = tools.allocated(tools.devices[0])
        missing = tools("pvs", "--noheadings", "-o", "pv_uuid", tools.devices[1]).strip()
    both = group.maps()[0]
    (used,) = group.maps(group.files[:1])
    assert not both.used - used.used
    assert used.used.covers(START, START + 3 * EXTENT)
    assert used.notes == (
        f"striped: physical volume {missing} is not among the disks of this image",
    )
    assert used.inside["alone"].understood
    assert used.used.total < allocated.total


def test_groups_that_are_not_certain(tmp_path: Path) -> None:
    group = Group(tmp_path, 3, size=20 * MIB)
    with group.open() as tools:
        tools.create()
        tools.volume("one", "-L", "4M")
        tools("vgchange", "-an", "vg")
        tools("vgexport", "vg")
    with pytest.raises(NotUnderstood, match="EXPORTED"):
        group.maps()
    with group.open() as tools:
        tools("vgimport", "vg")
    stale = tmp_path / "stale"
    stale.write_bytes(group.files[2].read_bytes())
    with group.open() as tools:
        tools("vgreduce", "vg", tools.devices[2])
    assert group.maps()[2].notes == ("it belongs to no volume group",)
    assert group.maps()[2].used == Extents.single(0, START)
    # Left behind, as after a reduction while it was away.
    with pytest.raises(NotUnderstood, match="no longer has"):
        group.maps([stale, group.files[0]])


def test_groups_within_groups_are_whole(tmp_path: Path) -> None:
    group = Group(tmp_path, 1)
    inner = Group(tmp_path / "inner", 0)
    inner.files = [tmp_path / "inner-disk"]
    with inner.files[0].open("wb") as file:
        file.truncate(20 * MIB)
    with inner.open() as tools:
        tools.create(name="inner")
    with group.open() as tools:
        tools.create()
        tools.volume("one", "-L", "20M")
        tools.write("one", inner.files[0])
    (used,) = group.maps()
    assert used.used.covers(START, START + 20 * MIB)
    assert not used.inside["one"].understood


def test_btrfs_over_two_logical_volumes(tmp_path: Path) -> None:
    group = Group(tmp_path, 2, size=320 * MIB)
    with group.open() as tools:
        tools.create()
        images = [tmp_path / "left", tmp_path / "right"]
        for image, device in zip(images, tools.devices, strict=True):
            tools.volume(image.name, "-L", "240M", on=device)
            with image.open("wb") as file:
                file.truncate(240 * MIB)
        with attached(images[0]) as left, attached(images[1]) as right:
            run(("mkfs.btrfs", "-q", "-m", "raid0", "-d", "raid0", left, right))
            run(("btrfs", "device", "scan", "--forget", left, right), ok=(0, 1))
        for image in images:
            tools.write(image.name, image)
    for used in group.maps():
        (inner,) = used.inside.values()
        assert (inner.kind, inner.notes) == ("btrfs", ())
        assert used.used.total < 20 * MIB + 64 * KIB
