"""Used maps of btrfs: real filesystems, filled by the kernel, judged by btrfs-progs and scrub."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import PeerList, UsedMap
from freezeframe.fs.btrfs import KIND
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.btrfs_facts import needed_blocks
from freezeframe.testing.fs_contract import check_kind
from freezeframe.testing.fsproof import (
    PlainFile,
    loop_mounted,
    make_tree,
    scatter_used,
    tree_checksums,
)
from freezeframe.testing.volumes import unmount

pytestmark = pytest.mark.root


@contextlib.contextmanager
def mounted(images: list[Path], folder: Path, options: str) -> Iterator[list[str]]:
    """Mount a btrfs of some files, unmount and detach it, and let the kernel forget it."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(attached(image)) for image in images]
        run(("btrfs", "device", "scan", *devices))
        try:
            run(("mount", "-t", "btrfs", "-o", options, devices[0], str(folder)))
            yield devices
        finally:
            if folder.is_mount():
                unmount(folder)
            run(("btrfs", "device", "scan", "--forget", *devices), ok=(0, 1))


def make(folder: Path, options: str, *, count: int = 1, size: int = 240 * MIB) -> list[Path]:
    images = [folder / f"disk{number}" for number in range(count)]
    for image in images:
        with image.open("wb") as file:
            file.truncate(size)
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(attached(image)) for image in images]
        run(("mkfs.btrfs", "-q", "-f", *options.split(), *devices))
        run(("btrfs", "device", "scan", "--forget", *devices), ok=(0, 1))
    return images


def fill(folder: Path, *, budget: int = 6 * MIB) -> None:
    """Files, a snapshot whose files then change, a reflink, room set aside, things deleted."""
    run(("btrfs", "subvolume", "create", str(folder / "sub")))
    make_tree(folder / "sub", budget=budget)
    run(("btrfs", "subvolume", "snapshot", "-r", str(folder / "sub"), str(folder / "snapshot")))
    (folder / "sub" / "late").write_bytes(b"other" * 50_000)
    (folder / "zeros").write_bytes(bytes(400 * KIB))
    shutil.rmtree(folder / "sub" / "folder 1")
    run(("cp", "--reflink=always", str(folder / "sub/late"), str(folder / "reflink")))
    run(("fallocate", "-l", "1M", str(folder / "set aside")))
    (folder / "gone").write_bytes(b"gone" * 300_000)
    run(("sync", "-f", str(folder)))
    (folder / "gone").unlink()


def used_maps(images: list[Path]) -> list[UsedMap]:
    with contextlib.ExitStack() as stack:
        readers = tuple(stack.enter_context(PlainFile(image)) for image in images)
        return [KIND.used_map(reader, PeerList(readers)) for reader in readers]


def prove(images: list[Path], maps: list[UsedMap], files: dict[str, str], folder: Path) -> None:
    """Spoil all that is not used; check, mount, compare and scrub what is left."""
    copies = []
    for image, used in zip(images, maps, strict=True):
        copies.append(image.with_name(f"{image.name}-copy"))
        scatter_used(image, used.used, copies[-1])
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(attached(copy, read_only=True)) for copy in copies]
        run(("btrfs", "device", "scan", *devices))
        run(("btrfs", "check", "--readonly", "--force", devices[0]))
        run(("btrfs", "device", "scan", "--forget", *devices), ok=(0, 1))
    with mounted(copies, folder, "ro"):
        assert tree_checksums(folder) == files
        # Reads every copy and all parity, against the checksums.
        scrub = run(("btrfs", "scrub", "start", "-B", "-r", "-R", str(folder)), ok=(0, 3)).stdout
        counts = dict(re.findall(r"(\w+_errors): (\d+)", scrub.decode()))
        assert counts
        assert set(counts.values()) == {"0"}, counts


SINGLE = {
    "default": ("", "noatime"),
    "nodes of 4 KiB": ("-n 4096", "noatime"),
    "nodes of 64 KiB": ("-n 65536", "noatime"),
    "mixed": ("-M -n 4096", "noatime"),
    "all twice": ("-m dup -d dup", "noatime"),
    "all once, zstd": ("-m single -d single", "compress-force=zstd"),
    "sha256, lzo": ("--csum sha256", "compress-force=lzo"),
    "xxhash": ("--csum xxhash", "noatime"),
    "blake2": ("--csum blake2", "noatime"),
    "space cache of old": ("-R ^free-space-tree -O ^no-holes,^skinny-metadata", "space_cache=v1"),
    "quotas": ("-R quota", "noatime"),
}
PROFILES = {
    "raid0": ("-m raid0 -d raid0", 3),
    "raid1": ("-m raid1 -d raid1", 2),
    "raid1c3": ("-m raid1c3 -d raid1c3", 3),
    "raid1c4": ("-m raid1c4 -d raid1c4", 4),
    "raid10": ("-m raid10 -d raid10", 4),
    "raid5": ("-m raid5 -d raid5", 3),
    "raid6": ("-m raid6 -d raid6", 4),
    "raid1c3 and raid5": ("-m raid1c3 -d raid5", 4),
    "single over two": ("-m raid1 -d single", 2),
}
CASES = {name: (*case, 1) for name, case in SINGLE.items()}
CASES |= {name: (options, "noatime", count) for name, (options, count) in PROFILES.items()}


def node_size(options: str) -> int:
    found = re.search(r"-n (\d+)", options)
    return int(found[1]) if found else 16 * KIB


@pytest.mark.parametrize("case", CASES)
def test_no_used_block_is_left_out(case: str, tmp_path: Path) -> None:
    options, mount_options, count = CASES[case]
    images = make(tmp_path, options, count=count)
    folder = tmp_path / "mount"
    with mounted(images, folder, mount_options):
        fill(folder)
        files = tree_checksums(folder)
    maps = used_maps(images)
    assert all(used.understood and not used.notes for used in maps)

    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(attached(image, read_only=True)) for image in images]
        needed = needed_blocks(devices, node_size(options))
        run(("btrfs", "device", "scan", "--forget", *devices), ok=(0, 1))
    for number, used in enumerate(maps, start=1):
        expected = Extents.from_blocks(np.array(sorted(needed[number])) // 4096, 4096)
        fixed = Extents.of([(0, MIB), (64 * MIB, 64 * MIB + 4 * KIB)])
        if "raid5" in options or "raid6" in options:
            assert not expected - used.used
            parities = 1 if "raid5" in options else 2
            most = expected.aligned(64 * KIB).total * count / (count - parities)
            assert used.used.total <= most + MIB + 40 * 64 * KIB
        else:
            assert used.used == expected | fixed
    prove(images, maps, files, tmp_path / "proof")


def test_the_other_copy_is_read_where_one_is_spoilt(tmp_path: Path) -> None:
    (image,) = make(tmp_path, "")
    with mounted([image], tmp_path / "mount", "noatime"):
        fill(tmp_path / "mount")
    (truth,) = used_maps([image])
    dump = run(("btrfs", "inspect-internal", "dump-tree", "-t", "chunk", str(image))).stdout
    doubled = re.findall(
        r"length (\d+) owner 2 stripe_len 65536 type \w+\|DUP.*?stripe 0 devid 1 offset (\d+)",
        dump.decode(),
        re.S,
    )
    assert len(doubled) == 2
    for length, offset in doubled:
        with image.open("r+b") as file:
            file.seek(int(offset))
            file.write(b"\xa5" * int(length))
    assert used_maps([image]) == [truth]


def test_contract_of_several_devices(tmp_path: Path) -> None:
    images = make(tmp_path, "-m raid10 -d raid5", count=4, size=160 * MIB)
    check_kind(KIND, images[0], peers=images[1:], rounds=60)


def test_a_changed_uuid(tmp_path: Path) -> None:
    (image,) = make(tmp_path, "")
    run(("btrfstune", "-m", str(image)))
    with mounted([image], tmp_path / "mount", "noatime"):
        fill(tmp_path / "mount")
        files = tree_checksums(tmp_path / "mount")
    maps = used_maps([image])
    assert not maps[0].notes
    prove([image], maps, files, tmp_path / "proof")


def test_converted_from_ext4(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(240 * MIB)
    run(("mkfs.ext4", "-q", "-b", "4096", str(image)))
    with loop_mounted(image, tmp_path / "mount", kind="ext4") as folder:
        make_tree(folder)
    run(("btrfs-convert", str(image)))
    with mounted([image], tmp_path / "mount", "noatime"):
        files = tree_checksums(tmp_path / "mount")
    maps = used_maps([image])
    assert not maps[0].notes
    prove([image], maps, files, tmp_path / "proof")


def test_what_fsync_wrote_after_the_last_commit_is_kept(tmp_path: Path) -> None:
    (image,) = make(tmp_path, "")
    folder = tmp_path / "mount"
    crashed = tmp_path / "crashed"
    with mounted([image], folder, "noatime,commit=300"):
        fill(folder)
        run(("sync", "-f", str(folder)))
        (folder / "fresh").write_bytes(b"fresh" * 100_000)
        run(("sync", str(folder / "fresh")))
        files = tree_checksums(folder)
        run(("cp", "--sparse=always", str(image), str(crashed)))
    (used,) = used_maps([crashed])
    assert used.understood
    assert "log tree" in used.notes[0]
    copy = tmp_path / "copy"
    scatter_used(crashed, used.used, copy)
    with mounted([copy], tmp_path / "proof", "noatime"):
        assert tree_checksums(tmp_path / "proof") == files


def test_a_frozen_filesystem_needs_no_fallback(tmp_path: Path) -> None:
    (image,) = make(tmp_path, "")
    folder = tmp_path / "mount"
    still = tmp_path / "still"
    with mounted([image], folder, "noatime"):
        fill(folder)
        (folder / "fresh").write_bytes(b"fresh" * 100_000)
        run(("sync", str(folder / "fresh")))
        files = tree_checksums(folder)
        run(("fsfreeze", "-f", str(folder)))
        try:
            run(("cp", "--sparse=always", str(image), str(still)))
        finally:
            run(("fsfreeze", "-u", str(folder)))
    (used,) = used_maps([still])
    assert not used.notes
    prove([still], [used], files, tmp_path / "proof")


def test_members_that_are_missing(tmp_path: Path) -> None:
    first, _ = mirrored = make(tmp_path, "-m raid1 -d raid1", count=2)
    with mounted(mirrored, tmp_path / "mount", "noatime"):
        fill(tmp_path / "mount")
    (alone,) = used_maps([first])
    assert alone.used == used_maps(mirrored)[0].used
    assert alone.notes == ("device 2 of this btrfs is not among the disks of this image",)

    striped = make(tmp_path, "-m raid0 -d raid0", count=2)
    with mounted(striped, tmp_path / "mount", "noatime"):
        fill(tmp_path / "mount")
    for number, image in enumerate(striped):
        try:
            (alone,) = used_maps([image])
        except NotUnderstood:
            continue
        assert "all allocated chunks count as used" in alone.notes[-1]
        assert not used_maps(striped)[number].used - alone.used


def test_a_member_that_missed_changes(tmp_path: Path) -> None:
    first, second = images = make(tmp_path, "-m raid1 -d raid1", count=2)
    folder = tmp_path / "mount"
    with mounted([first], folder, "degraded,noatime"):
        fill(folder)
    with pytest.raises(NotUnderstood, match="missed the last changes"):
        used_maps([second, first])
    with PlainFile(first) as reader, PlainFile(second) as stale:
        used = KIND.used_map(reader, PeerList((reader, stale)))
    assert "missed the last changes" in used.notes[0]
    assert len(images) == 2


def test_a_seed_and_what_sprouts_from_it(tmp_path: Path) -> None:
    seed, sprout = make(tmp_path, "", count=2)
    (seed,) = make(tmp_path, "", count=1)
    run(("btrfstune", "-S", "1", str(seed)))
    with mounted([seed], tmp_path / "mount", "noatime"), attached(sprout) as device:
        run(("btrfs", "device", "add", "-f", device, str(tmp_path / "mount")))
    for image in (seed, sprout):
        with pytest.raises(NotUnderstood):
            used_maps([image])
