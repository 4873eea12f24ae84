"""Machines are started straight from the repository, as restore drills and from smaller disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from freezeframe.access.boot.accelerator import try_guest
from freezeframe.system.run import run, which
from freezeframe.testing import machine
from freezeframe.testing.machine import boot_to_login, system_disk
from freezeframe.testing.program import Client
from freezeframe.testing.proof import check_filesystems

pytestmark = [pytest.mark.vm, pytest.mark.root]

MIB = 1 << 20
CHECK = ("--check", "--accelerator", "emulation", "--memory", "1G", "--json", "--timeout", "500")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A repository with one image of the Debian system disk.

    Its UEFI loader lies where Debian puts it, and firmware does not look by itself.
    """
    folder = tmp_path_factory.mktemp("boot")
    disk = folder / "disk.raw"
    run(("cp", "--sparse=always", str(system_disk()), str(disk)))
    esp = ("-i", f"{disk}@@{machine.ESP_START}")
    run(("mmd", *esp, "::/EFI/debian"))
    run(("mmove", *esp, "::/EFI/BOOT/BOOTX64.EFI", "::/EFI/debian/grubx64.efi"))
    made = Client(folder / "repository")
    made.run("init")
    made.run("backup", "--offline", str(disk))
    disk.unlink()
    return made


def summary(text: str) -> dict[str, object]:
    records = [json.loads(line) for line in text.splitlines()]
    found: dict[str, object] = next(r for r in records if r["message_type"] == "summary")
    return found


def test_restored_to_half_the_size_it_boots(client: Client, tmp_path: Path) -> None:
    images = client.images()
    half = tmp_path / "half.raw"
    size = machine.DISK_SIZE // 2
    client.run("restore", images[0], "--to", str(half), "--size", str(size), "--shrink", "--yes")
    assert half.stat().st_size == size
    assert [check for check in check_filesystems(half) if not check.clean] == []
    boot = boot_to_login(half, "bios")
    assert boot.report["failed"] == "0", boot.log
    assert int(boot.report["root-blocks"]) * int(boot.report["block-size"]) < size


def test_a_restore_drill_of_both_kinds_is_kept_beside_the_image(client: Client) -> None:
    tree = client.restic("snapshots", "--json").stdout
    for firmware in ("uefi", "bios"):
        more = () if firmware == "uefi" else ("--firmware", "bios")
        told = summary(client.run("boot", "latest", *CHECK, *more).stdout)
        assert told["passed"], told
        # Both consoles ask; UEFI has no screen here.
        consoles = ("the serial console", *(("the screen",) if firmware == "bios" else ()))
        assert told["sign"] in [f"a login prompt on {console}" for console in consoles]
        assert told["firmware"] == firmware
        assert told["accelerator"] == "emulation"
    shown = client.run("show", "latest").stdout
    assert shown.count("came up (a login prompt on ") == 2
    listed = [json.loads(line) for line in client.run("images", "--json").stdout.splitlines()]
    assert [len(record["drills"]) for record in listed] == [2]
    assert "came up" in client.run("images").stdout
    client.restic("check", "--read-data")
    client.run("check", "--read-data")
    # The image is what it was, and restic's policies count drills apart.
    snapshots = json.loads(client.restic("snapshots", "--json").stdout)
    before = json.loads(tree)
    assert before[0] in snapshots
    assert len(snapshots) == 3
    client.restic("forget", "--keep-last", "1", "--prune")
    left = json.loads(client.restic("snapshots", "--json").stdout)
    assert sorted("freezeframe-drill" in shot["tags"] for shot in left) == [False, True]
    console = client.restic("dump", "latest", "/console.txt", "--tag", "freezeframe-drill").stdout
    assert "GRUB on pc" in console
    # For restic, too, the latest is an image, whatever came after it.
    assert '"disks"' in client.restic("dump", "latest", "/freezeframe.json").stdout


def test_what_a_machine_writes_is_kept_where_that_is_wanted(client: Client, tmp_path: Path) -> None:
    kept = tmp_path / "kept.qcow2"
    before = json.loads(client.restic("snapshots", "--json").stdout)
    told = client.run("boot", "latest", *CHECK, "--keep", str(kept)).stdout
    assert summary(told)["passed"]
    info = json.loads(run(("qemu-img", "info", "--output=json", str(kept))).stdout)
    assert info["virtual-size"] == machine.DISK_SIZE
    assert info["actual-size"] > MIB
    assert len(json.loads(client.restic("snapshots", "--json").stdout)) == len(before) + 1
    other = tmp_path / "other.qcow2"
    run(("qemu-img", "create", "-q", "-f", "qcow2", str(other), "1G"))
    refused = client.run("boot", "latest", *CHECK, "--keep", str(other), code=1)
    assert "does not hold what a machine of this image wrote" in refused.stdout


def test_a_disk_that_starts_nothing_fails_soon_and_that_is_kept_too(
    client: Client, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.raw"
    blank.write_bytes(bytes(512) + os.urandom(MIB))
    client.run("backup", "--offline", str(blank))
    told = summary(client.run("boot", "latest", *CHECK, code=1).stdout)
    assert not told["passed"]
    assert "No bootable device" in str(told["reason"])
    assert "did not come up" in client.run("show", "latest").stdout


def test_the_trial_guest_runs_by_emulation_and_a_hanging_one_is_noticed() -> None:
    qemu = which("qemu-system-x86_64")
    assert qemu is not None
    assert try_guest(qemu, ["-accel", "tcg"], patience=60) == ""
    # Stopped before its first instruction, as one that hangs.
    assert "hung" in try_guest(qemu, ["-accel", "tcg", "-S"], patience=1)
    assert try_guest(qemu, ["-accel", "no such"], patience=10)


def running() -> bool:
    """Whether any machine of a freezeframe of ours runs."""
    return subprocess.run(["pgrep", "-f", "freezeframe-boot-"], capture_output=True).returncode == 0


def test_killed_it_leaves_no_machine(client: Client) -> None:
    process = client.start("boot", "latest", *CHECK)
    for _ in range(600):
        if running():
            break
        time.sleep(0.1)
    assert running()
    process.kill()
    process.communicate()
    for _ in range(100):
        if not running():
            break
        time.sleep(0.1)
    assert not running()
    for left in Path("/var/tmp").glob("freezeframe-boot-*"):
        shutil.rmtree(left)


def test_nothing_is_left_running(client: Client) -> None:
    found = subprocess.run(["pgrep", "-f", "freezeframe-boot-"], capture_output=True, check=False)
    assert found.stdout == b""
    assert list(Path("/var/tmp").glob("freezeframe-boot-*")) == []
