"""A disk goes into a repository and comes back, by the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from freezeframe.testing.inprocess import MIB, Program, extract_ext4, make_disk, make_files


def same_files(one: Path, two: Path) -> None:
    done = subprocess.run(
        ["diff", "-r", "--exclude=lost+found", one, two], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def test_there_and_back(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    made = program("--json", "backup", "--offline", disk).record("summary")
    shown = program("images").out
    assert str(made["image"])[:8] in shown
    restored = tmp_path / "back.raw"
    program("restore", "latest", "--to", restored, "--yes")
    same_files(tmp_path / "files", extract_ext4(restored, tmp_path / "out"))
    assert restored.stat().st_size == disk.stat().st_size
    program("verify", "latest", "--against", disk)
    program("verify", "latest", "--against", restored)
    program("verify")
    program("check", "--read-data")
    program.restic("check", "--read-data")


def test_restic_alone_brings_it_back(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    out = tmp_path / "restic"
    program.restic("restore", "latest", "--target", str(out))
    back = tmp_path / "cat.raw"
    segments = sorted((out / "disks" / "disk.raw").glob("*/data"))
    assert [s.parent.name for s in segments] == ["00000"]
    back.write_bytes(b"".join(s.read_bytes() for s in segments))
    same_files(tmp_path / "files", extract_ext4(back, tmp_path / "out"))
    program("verify", "latest", "--against", back)


def test_the_second_image_stores_only_what_changed(
    program: Program, disk: Path, tmp_path: Path
) -> None:
    program("init")
    first = program("--json", "backup", "--offline", disk).record("summary")
    again = program("--json", "backup", "--offline", disk).record("summary")
    assert first["proof"]["bytes_new"] > 2_000_000  # type: ignore[index]
    # Nothing but the manifest (its time differs) and the trees above it.
    assert again["proof"]["bytes_new"] < 100_000  # type: ignore[index]
    trees = {
        line.split()[2] if len(line.split()) > 2 else line
        for line in program.restic("ls", "latest").splitlines()
    }
    assert trees
    files = make_files(tmp_path / "other", seed=2)
    make_disk(disk, files)
    program("backup", "--offline", disk)
    old, new = tmp_path / "old.raw", tmp_path / "new.raw"
    program("restore", str(first["image"])[:10], "--to", old, "--yes")
    program("restore", "latest", "--to", new, "--yes")
    same_files(tmp_path / "files", extract_ext4(old, tmp_path / "old"))
    same_files(files, extract_ext4(new, tmp_path / "new"))
    program.restic("check", "--read-data")


def test_two_disks_in_one_image(program: Program, disk: Path, tmp_path: Path) -> None:
    other = make_disk(tmp_path / "second.raw", make_files(tmp_path / "more", seed=3), seed=2)
    program("init")
    program("backup", "--offline", disk, other)
    refused = program("restore", "latest", "--to", tmp_path / "x.raw", "--yes", code=2)
    assert "--disk" in refused.err
    back = tmp_path / "back.raw"
    program("restore", "latest", "--disk", "second.raw", "--to", back, "--yes")
    same_files(tmp_path / "more", extract_ext4(back, tmp_path / "out"))


def test_one_partition(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    part = tmp_path / "part.raw"
    program("restore", "latest", "--partition", "1", "--to", part, "--yes")
    assert part.stat().st_size == 32 * MIB
    subprocess.run(["e2fsck", "-fn", part], check=True, capture_output=True)
    program("verify", "latest", "--partition", "1", "--against", part)
    missing = program("restore", "latest", "--partition", "9", "--to", "x", "--yes", code=2)
    assert "it has: 1, 2" in missing.err


def test_a_filesystem_with_no_table(program: Program, disk: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.raw"
    bare.touch()
    os.truncate(bare, 8 * MIB + 512 * 3)
    subprocess.run(["mkfs.ext4", "-q", "-F", bare], check=True)
    program("init")
    program("backup", "--offline", bare)
    back = tmp_path / "back.raw"
    program("restore", "latest", "--to", back, "--yes")
    assert back.stat().st_size == bare.stat().st_size
    subprocess.run(["e2fsck", "-fn", back], check=True, capture_output=True)
    program("verify", "latest", "--against", bare)


def test_qcow2(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    target = tmp_path / "disk.qcow2"
    program("restore", "latest", "--to", target, "--yes")
    raw = tmp_path / "again.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", target, raw], check=True)
    program("verify", "latest", "--against", raw)
    assert [p.name for p in tmp_path.glob("disk.qcow2*")] == ["disk.qcow2"]


def test_an_old_target_keeps_what_is_not_used_and_gets_zeros_when_asked(
    program: Program, disk: Path, tmp_path: Path
) -> None:
    program("init")
    program("backup", "--offline", disk)
    target = tmp_path / "target.raw"
    for option, garbage_stays in (("--no-discard", True), ("--zero-unused", False)):
        target.write_bytes(b"\xa5" * (48 * MIB))
        program("restore", "latest", "--to", target, "--yes", option)
        program("verify", "latest", "--against", target)
        assert (b"\xa5" * 65536 in target.read_bytes()) is garbage_stays
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        same_files(tmp_path / "files", extract_ext4(target, tmp_path / "out"))


def test_everything_takes_free_blocks_too(program: Program, disk: Path, tmp_path: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(30 * MIB)
        hidden = file.read(4096)
        assert hidden == bytes(4096)
        file.seek(30 * MIB)
        file.write(b"deleted, but not gone")
    program("init")
    program("backup", "--offline", "--everything", disk)
    back = tmp_path / "back.raw"
    program("restore", "latest", "--to", back, "--yes")
    assert subprocess.run(["cmp", disk, back], check=False).returncode == 0
