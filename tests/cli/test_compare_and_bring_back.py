"""What changed between two images, and bringing back only that, by the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from freezeframe.testing.inprocess import MIB, Program, make_disk, make_files


def overwrite(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def put_file(disk: Path, name: str, content: bytes) -> None:
    """Write a file into the ext4 of the disk, with e2fsprogs alone."""
    source = disk.with_name("new-file")
    source.write_bytes(content)
    place = f"{disk}?offset={MIB}"
    done = subprocess.run(
        ["debugfs", "-w", "-R", f"write {source} {name}", place], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def same_bytes(one: Path, two: Path) -> bool:
    return subprocess.run(["cmp", "-s", one, two], check=False).returncode == 0


def test_the_regions_that_changed_are_named(program: Program, disk: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    program("backup", "--offline", disk)
    first, second = [str(record["id"]) for record in program("--json", "images").records]
    assert program("--json", "diff", first, second).record("summary")["same"]
    assert "hold the same" in program("diff", first, second).out
    put_file(disk, "added", os.urandom(3 * MIB))
    program("backup", "--offline", disk)
    told = program("--json", "diff", second, "latest", "--exact", "--ranges")
    regions = [r for r in told.records if r["message_type"] == "region"]
    changed = {(r["role"], r["number"]) for r in regions if r["changed_bytes"]}
    assert changed == {("partition", 1)}
    region = next(r for r in regions if r["changed_bytes"])
    assert 3 * MIB <= int(str(region["gained_bytes"])) < 4 * MIB
    assert region["freed_bytes"] == 0
    ranges: list[tuple[int, int]] = region["changed"]  # type: ignore[assignment]
    assert sum(stop - start for start, stop in ranges) == region["changed_bytes"]
    summary = told.record("summary")
    assert not summary["same"]
    assert summary["unclear_bytes"] == 0
    shown = program("diff", second, "latest").out
    assert "partition 1 (ext4)" in shown
    assert "partition 2" not in shown


def test_the_files_that_changed_are_named(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    place = f"{disk}?offset={MIB}"
    put_file(disk, "added", b"new")
    for command in ("rm file3", "mkdir folder", "set_inode_field file4 mode 0100400"):
        subprocess.run(["debugfs", "-w", "-R", command, place], check=True, capture_output=True)
    subprocess.run(["debugfs", "-w", "-R", "rm file5", place], check=True, capture_output=True)
    put_file(disk, "file5", b"another content")
    put_file(disk, "folder/inside", b"new")
    program("backup", "--offline", disk)
    first = str(program("--json", "images").records[0]["id"])
    told = program("--json", "diff", first, "latest", "--files").records
    files = {str(r["path"]): r["change"] for r in told if r["message_type"] == "file"}
    assert files == {
        "/added": "+",
        "/file3": "-",
        "/file4": "U",
        "/file5": "M",
        "/folder": "+",
        "/folder/inside": "+",
    }
    shown = program("diff", first, "latest", "--files").out
    assert "U /file4 (mode)" in shown
    assert "M /file5" in shown
    back = program("--json", "diff", "latest", first, "--files").records
    assert {r["path"]: r["change"] for r in back if r["message_type"] == "file"} == {
        path: {"+": "-", "-": "+"}.get(str(mark), mark) for path, mark in files.items()
    }


def test_another_layout_is_told(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    shutil.copy(disk, tmp_path / "keep")
    make_disk(disk, tmp_path / "files", seed=2)
    subprocess.run(["sfdisk", "-q", "--delete", disk, "2"], check=True)
    program("backup", "--offline", disk)
    first = str(program("--json", "images").records[0]["id"])
    shown = program("diff", first, "latest").out
    assert "partition 2 is gone" in shown
    assert "partition 1 holds another ext4 than before" in shown
    program("diff", first, "latest", "--disk", "none", code=2)


def test_only_what_differs_is_written(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    target = tmp_path / "target.raw"
    shutil.copy(disk, target)
    restore = ("restore", "latest", "--to", target, "--changed-only", "--yes")
    none = program("--json", *restore).record("summary")
    assert none["chunks_differ"] == none["bytes"] == 0
    assert same_bytes(disk, target)
    # In the middle of a file of ours, in the swap's header and in what nobody uses.
    with disk.open("rb") as file:
        at = file.read().index(b"line 4\n" * 1000)
    overwrite(target, at, b"damaged")
    overwrite(target, 33 * MIB + 4086, b"NOSPACE")
    overwrite(target, 38 * MIB, b"nobody's")
    before = target.stat().st_mtime_ns
    plan = program(*restore[:-1], "--dry-run").out
    assert "2 of " in plan
    assert "chunks in use differ" in plan
    assert target.stat().st_mtime_ns == before
    told = program("--json", *restore).record("summary")
    assert told["chunks_differ"] == 2
    assert 0 < int(str(told["bytes"])) <= 2 * MIB
    program("verify", "latest", "--against", target)
    with target.open("rb") as file:
        file.seek(38 * MIB)
        assert file.read(8) == b"nobody's"


def test_one_partition_and_what_does_not_go_together(
    program: Program, disk: Path, tmp_path: Path
) -> None:
    program("init")
    program("backup", "--offline", disk)
    part = tmp_path / "part.raw"
    with disk.open("rb") as file:
        file.seek(MIB)
        part.write_bytes(file.read(32 * MIB))
    overwrite(part, 1024, bytes(1024))
    base = ("restore", "latest", "--to", part, "--partition", "1", "--yes")
    assert program("--json", *base, "--changed-only").record("summary")["chunks_differ"] == 1
    subprocess.run(["e2fsck", "-fn", part], check=True, capture_output=True)
    new = ("restore", "latest", "--to", tmp_path / "new.raw", "--yes")
    assert "nothing of it could be kept" in program(*new, "--changed-only", code=2).err
    program(*new, "--shrink", "--changed-only", code=2)
    program(*new, "--shrink", "--grow", code=2)


def test_an_ext4_goes_to_half_the_size_without_root(program: Program, tmp_path: Path) -> None:
    files = make_files(tmp_path / "many", count=8)
    disk = make_disk(tmp_path / "disk.raw", files)
    subprocess.run(["sfdisk", "-q", "--delete", disk, "2"], check=True)
    overwrite(disk, 33 * MIB, bytes(8 * MIB))
    program("init")
    program("backup", "--offline", disk)
    half = tmp_path / "half.raw"
    restore = ("restore", "latest", "--to", half, "--size", str(20 * MIB))
    refused = program(*restore, "--yes", code=1)
    assert "--shrink" in refused.err
    plan = program(*restore, "--shrink", "--dry-run").out
    assert "make it smaller there: from 32.0 MiB to 18.0 MiB" in plan
    assert "shrink partition 1 from 32.0 MiB to 18.0 MiB" in plan
    program(*restore, "--shrink", "--yes")
    assert half.stat().st_size == 20 * MIB
    told = subprocess.run(["sgdisk", "-v", half], check=True, capture_output=True, text=True)
    assert "No problems found" in told.stdout
    part = tmp_path / "part"
    with half.open("rb") as file:
        file.seek(MIB)
        part.write_bytes(file.read(18 * MIB))
    subprocess.run(["e2fsck", "-fn", part], check=True, capture_output=True)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {out}", part], check=True, capture_output=True)
    done = subprocess.run(["diff", "-r", "-x", "lost+found", files, out], check=False)
    assert done.returncode == 0
    # Too small for what it holds: said before anything is made.
    tiny = tmp_path / "tiny.raw"
    few = program("restore", "latest", "--to", tiny, "--size", str(4 * MIB), "--shrink",
                  "--yes", code=1)  # fmt: skip
    assert "are in use" in few.err
    assert not tiny.exists()
    assert sorted(path.name for path in tmp_path.glob("freezeframe-*")) == []


def test_what_cannot_be_made_smaller(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    new = ("restore", "latest", "--to", tmp_path / "new.raw", "--shrink", "--yes")
    assert "partition 2 does not fit" in program(*new, "--size", str(12 * MIB), code=1).err
    # Nothing to do: all that counts ends before the target's end.
    program(*new, "--size", str(44 * MIB))
