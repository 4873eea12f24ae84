"""Bad input: a clear error, the right exit code, what to do next, and nothing lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from freezeframe.testing.inprocess import MIB, PASSWORD, Program


def test_wrong_password(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("init")
    monkeypatch.setenv("FREEZEFRAME_PASSWORD", "wrong")
    assert "password" in program("images", code=12).err
    assert program("--json", "images", code=12).record("exit_error")["code"] == 12


def test_no_repository(program: Program, tmp_path: Path) -> None:
    assert "freezeframe init" in program("images", code=10).err
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "letter.txt").write_text("dear")
    program("-r", tmp_path / "stuff", "images", code=10)


def test_init_twice(program: Program) -> None:
    program("init")
    assert "already" in program("init", code=2).err
    program("images")


def test_format_1(program: Program) -> None:
    program.restic("init", "--repository-version", "1")
    assert "migrate" in program("images", code=10).err


def test_nothing_named(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREEZEFRAME_REPOSITORY")
    monkeypatch.delenv("RESTIC_REPOSITORY", raising=False)
    assert "-r" in program("images", code=2).err


def test_restics_variables_are_taken(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program("init")
    monkeypatch.delenv("FREEZEFRAME_REPOSITORY")
    monkeypatch.delenv("FREEZEFRAME_PASSWORD")
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    monkeypatch.setenv("RESTIC_REPOSITORY", str(program.repo))
    monkeypatch.setenv("RESTIC_PASSWORD_FILE", str(tmp_path / "secret"))
    assert "no images yet" in program("images").out
    monkeypatch.delenv("RESTIC_PASSWORD_FILE")
    program("--password-file", tmp_path / "secret", "images")
    program("images", "--password-command", f"cat {tmp_path / 'secret'}")
    assert "password" in program("--json", "images", code=2).out


def test_no_source(program: Program) -> None:
    program("init")
    assert "freezeframe disks" in program("backup", "--offline", code=2).err


def test_sources_that_are_none(program: Program, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", tmp_path / "missing", code=1)
    program("backup", "--offline", tmp_path, code=1)
    program("backup", "--offline", "/dev/null", code=1)
    (tmp_path / "empty").touch()
    program("backup", "--offline", tmp_path / "empty", code=1)
    assert "no images yet" in program("images").out


def test_what_only_disks_in_use_can_have(program: Program, disk: Path) -> None:
    program("init")
    for option in ("--writers=postgresql", f"--provider={disk}=lvm"):
        said = program("backup", "--offline", option, disk, code=2).err
        assert "in use" in said
        assert option.partition("=")[0] in said
    assert "no images yet" in program("images").out
    program("backup", "--offline", "--writers", "none", disk)


def test_no_such_image(program: Program, disk: Path) -> None:
    program("init")
    assert "no image yet" in program("show", "latest", code=1).err
    program("backup", "--offline", disk)
    assert "freezeframe images" in program("show", "ffffffff", code=1).err


def test_a_target_that_is_too_small(program: Program, disk: Path, tmp_path: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    small = tmp_path / "small.raw"
    small.touch()
    os.truncate(small, 20 * MIB)
    assert "20" in program("restore", "latest", "--to", small, "--yes", code=1).err
    assert small.read_bytes() == bytes(20 * MIB)
    program("restore", "latest", "--to", tmp_path / "n.raw", "--size", "20M", "--yes", code=1)
    assert not (tmp_path / "n.raw").exists()


def test_locked(program: Program, disk: Path) -> None:
    program("init")
    restic = subprocess.Popen(
        ["restic", "backup", "--stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=dict(
            os.environ,
            RESTIC_PASSWORD=PASSWORD,
            RESTIC_REPOSITORY=str(program.repo),
            RESTIC_CACHE_DIR=str(program.repo.parent / "cache"),
        ),
    )
    try:
        while not list((program.repo / "locks").iterdir()):
            assert restic.poll() is None
        # restic's backup holds a shared lock: so may we.
        program("backup", "--offline", disk)
        assert "removed 0 locks" in program("unlock").out
    finally:
        assert restic.stdin is not None
        restic.stdin.close()
        restic.wait()


def packs(program: Program) -> list[Path]:
    found = [p for p in (program.repo / "data").rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_pack_is_named_and_its_regions(
    program: Program, disk: Path, tmp_path: Path, how: str
) -> None:
    program("init")
    program("backup", "--offline", disk)
    pack = packs(program)[-1]
    whole = pack.read_bytes()
    pack.chmod(0o600)
    if how == "flip":
        middle = len(whole) // 2
        pack.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    elif how == "cut":
        pack.write_bytes(whole[: len(whole) // 2])
    else:
        pack.unlink()
    checked = program("check", "--read-data", code=1)
    assert pack.name[:8] in checked.out
    damage = program("verify", "--json", code=1).records
    hit = [r for r in damage if r["message_type"] == "damage"]
    assert hit
    assert all(r["disk"] == "disk.raw" for r in hit)
    assert any("ext4" in str(r["where"]) for r in hit)
    target = tmp_path / "t.raw"
    program("restore", "latest", "--to", target, "--yes", code=1)
    assert not target.exists()


@pytest.mark.parametrize("how", ["cut", "remove"])
def test_a_lost_pack_is_stored_again_by_the_next_backup(
    program: Program, disk: Path, how: str
) -> None:
    program("init")
    program("backup", "--offline", disk)
    pack = packs(program)[-1]
    if how == "cut":
        pack.chmod(0o600)
        os.truncate(pack, pack.stat().st_size - 50_000)
    else:
        pack.unlink()
    program("backup", "--offline", disk)
    program("verify", "latest")


def test_a_damaged_index_is_named(program: Program, disk: Path) -> None:
    program("init")
    program("backup", "--offline", disk)
    index = next((program.repo / "index").iterdir())
    index.chmod(0o600)
    index.write_bytes(index.read_bytes()[:-20])
    told = program("images")
    assert index.name[:8] in told.err
    assert "damaged" in told.out
    assert index.name[:8] in program("verify", code=1).out
    assert index.name[:8] in program("check", code=1).out


def test_a_newer_manifest_is_refused(program: Program, disk: Path) -> None:
    program("init")
    made = program("--json", "backup", "--offline", disk).record("summary")
    program.restic("tag", "--add", "freezeframe", "latest")
    # A snapshot that carries our tag and is none of ours.
    program.restic("backup", "--tag", "freezeframe", str(disk.parent / "files"))
    assert "freezeframe.json" in program("show", "latest", code=1).err
    assert str(made["image"])
