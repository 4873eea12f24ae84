"""A Debian system disk boots after it has been through a repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freezeframe.core.errors import ToolFailed
from freezeframe.testing import machine
from freezeframe.testing.machine import Boot, Firmware, boot_to_login, system_disk
from freezeframe.testing.proof import check_filesystems, collect, differences

pytestmark = [pytest.mark.vm, pytest.mark.root]

GIB = 1 << 30
LARGER = 2 * GIB
GROWN = 3 * GIB
PROGRAM = Path(sys.executable).with_name("freezeframe")


def freezeframe(repo: Path, *arguments: str | Path) -> None:
    env = dict(os.environ, FREEZEFRAME_REPOSITORY=str(repo), FREEZEFRAME_PASSWORD="correct horse")
    done = subprocess.run(
        [PROGRAM, *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_came_up(boot: Boot, firmware: Firmware) -> None:
    """The machine itself says: that firmware, both filesystems mounted, no unit failed."""
    report = boot.report
    assert report["firmware"] == firmware, boot.log
    assert report["esp"] == "msdos", boot.log
    assert report["failed"] == "0", boot.log


def root_bytes(boot: Boot) -> int:
    return int(boot.report["root-blocks"]) * int(boot.report["block-size"])


@pytest.fixture(scope="module")
def disk() -> Path:
    return system_disk()


@pytest.fixture(scope="module")
def repo(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one image of the system disk."""
    repo = tmp_path_factory.mktemp("boot") / "repo"
    freezeframe(repo, "init")
    freezeframe(repo, "backup", "--offline", disk)
    return repo


@pytest.fixture(scope="module")
def restored(repo: Path) -> Path:
    """A blank larger disk that the image was restored to."""
    target = repo.parent / "restored.raw"
    target.touch()
    os.truncate(target, LARGER)
    freezeframe(repo, "restore", "latest", "--to", target, "--yes")
    return target


def test_what_cannot_boot_is_told_from_what_can(tmp_path: Path) -> None:
    blank = tmp_path / "blank.raw"
    blank.touch()
    os.truncate(blank, GIB)
    with pytest.raises(ToolFailed, match="no login"):
        boot_to_login(blank, "bios", timeout=6)


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_restored_to_a_larger_disk_it_boots(restored: Path, firmware: Firmware) -> None:
    boot = boot_to_login(restored, firmware)
    assert_came_up(boot, firmware)
    assert root_bytes(boot) <= machine.ROOT_SIZE


def test_every_file_is_the_same(disk: Path, restored: Path) -> None:
    assert [check for check in check_filesystems(restored) if not check.clean] == []
    before, after = collect(disk), collect(restored)
    assert [line for line in differences(before, after) if not line.startswith("table:")] == []


def test_grown_it_boots_with_a_larger_root(repo: Path, tmp_path: Path) -> None:
    target = tmp_path / "grown.raw"
    freezeframe(repo, "restore", "latest", "--to", target, "--size", str(GROWN), "--grow", "--yes")
    assert [check for check in check_filesystems(target) if not check.clean] == []
    boot = boot_to_login(target, "uefi")
    assert_came_up(boot, "uefi")
    # What ext4 reports is less its own structures: some 3 %.
    wanted = GROWN - machine.ROOT_START
    assert wanted * 0.95 < root_bytes(boot) < wanted


def test_as_qcow2_it_boots(repo: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.qcow2"
    freezeframe(repo, "restore", "latest", "--to", target, "--size", str(LARGER), "--yes")
    assert_came_up(boot_to_login(target, "bios", image_format="qcow2"), "bios")
