"""Hot images on a Debian kernel: a running root filesystem, and disks in stacks of every kind.

The scripts run in machines of their own, as root; an assertion that fails in them fails the
test. What they imaged is restored here, and boots or is put together again in a machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.units import GIB, MIB
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.testing.hot import last_record
from freezeframe.testing.lab import LabDisk, run_in_lab
from freezeframe.testing.machine import boot_to_login, system_disk
from freezeframe.testing.program import PASSWORD, Client
from freezeframe.testing.proof import check_filesystems, checksum_tree
from freezeframe.testing.volumes import mounted, mounted_device, survey

pytestmark = [pytest.mark.vm, pytest.mark.root]

#: What the program imports; of Debian's own there would be other versions of it.
_NEEDED = (
    "numpy", "msgspec", "click", "cryptography", "_cffi_backend", "rich", "zstandard",
)  # fmt: skip

_COMMON = """
import json, os, subprocess, sys, time
from pathlib import Path
from freezeframe.testing.frozen import running_writer
from freezeframe.testing.hot import PAIR, last_record

os.environ |= {"FREEZEFRAME_REPOSITORY": "/repo/r", "FREEZEFRAME_PASSWORD": "<password>"}

def sh(command):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

def freezeframe(*arguments):
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "freezeframe", *arguments], text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    print(*arguments, f"ended with {done.returncode} after {time.monotonic() - begun:.0f} s")
    print(done.stdout + done.stderr)
    assert done.returncode == 0, (arguments, done.stdout[-1500:], done.stderr[-1500:])

def image(name, writer, *arguments):
    '''Image while a writer writes; say which records it must, and may, hold.'''
    writer.wait_for_more()
    before = writer.written()
    freezeframe("backup", "--online", *arguments)
    print(f"{name}: {before} {writer.written()}")
    writer.wait_for_more()

def disk(name):
    return os.path.realpath(f"/dev/disk/by-id/virtio-{name}")

sh("mkfs.ext4 -q /dev/disk/by-id/virtio-disk0; mkdir /repo;"
   " mount /dev/disk/by-id/virtio-disk0 /repo")
freezeframe("init")
""".replace("<password>", PASSWORD)

_ROOT = (
    _COMMON
    + r"""
os.makedirs("/opt/data")
for number in range(8):
    Path(f"/opt/data/{number}").write_bytes(os.urandom(1 << 20))
with running_writer(PAIR, "/var/one", "/opt/two") as writer:
    image("first", writer, disk("root"))
    Path("/opt/data/late").write_bytes(os.urandom(1 << 20))
    image("second", writer, disk("root"))
sh("umount /repo")
"""
)

_STACKS = (
    _COMMON
    + r"""
a, b, c, d, e, f = [disk(f"disk{number}") for number in range(1, 7)]
sh(f'''
modprobe -a dm-mod dm-crypt raid1 vfat xfs btrfs
vgcreate -q -y vg {a} {b}
lvcreate -q -y -Wn -L 80M -n secret vg {b}
lvcreate -q -y -Wn -l 100%FREE -n wide vg
mkfs.ext4 -q /dev/vg/wide
echo secret > /run/key
cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vg/secret /run/key
cryptsetup open --key-file /run/key /dev/vg/secret inside
# Below 300 MB it wants to be told that this is a test.
mkfs.xfs -q -f --unsupported /dev/mapper/inside
printf 'label: gpt\nsize=40MiB\nsize=40MiB, type=uefi\n' | sfdisk -q {c}
printf 'label: gpt\nsize=40MiB\n' | sfdisk -q {d}
udevadm settle
mdadm --create /dev/md7 --run --quiet --assume-clean --metadata=1.2 \
  --level=1 --raid-devices=2 {c}1 {d}1
mkfs.ext4 -q /dev/md7
mkfs.vfat {c}2
mkfs.btrfs -q -f -d single -m raid1 {e} {f}
udevadm settle
cd /; mkdir -p wide inside md efi btrfs
mount /dev/vg/wide /wide; mount /dev/mapper/inside /inside; mount /dev/md7 /md
mount {c}2 /efi; mount {f} /btrfs
for x in wide inside btrfs; do cp -r /usr/lib/udev /$x; done
cp /usr/bin/a* /md; mkdir -p /efi/EFI/BOOT; cp /boot/vmlinuz* /efi/EFI/BOOT/BOOTX64.EFI
''')
points = ("/wide", "/inside", "/md", "/btrfs")
with running_writer(PAIR, *(f"{point}/records" for point in points)) as writer:
    image("first", writer, "--max-pause", "1000", a, b, c, d, e, f)
    image("volume", writer, "--max-pause", "1000", "/dev/vg/wide")
for point in points:
    last_record(Path(point, "records"))
sh("umount /repo")
"""
)

_TOGETHER = r"""
import subprocess
from pathlib import Path
from freezeframe.testing.hot import last_record

def sh(command):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

disks = [f"/dev/disk/by-id/virtio-disk{number}" for number in range(6)]
c, e = disks[2], disks[4]
print(sh(f"c={c} e={e}" + '''
modprobe -a dm-mod dm-crypt raid1 vfat xfs btrfs
udevadm settle
vgchange -q -ay vg; vgck vg
echo secret > /run/key
cryptsetup open --key-file /run/key /dev/vg/secret inside
# udev may have put the array together already.
[ -e /dev/md/7 ] || [ -e /dev/md127 ] || mdadm --assemble --scan
md=$(ls -d /dev/md7 /dev/md127 /dev/md/* 2>/dev/null | head -n 1)
btrfs device scan
cd /; mkdir -p wide inside md efi btrfs
e2fsck -fn /dev/vg/wide; e2fsck -fn $md; fsck.vfat -n $c-part2 || [ $? = 1 ]
btrfs check --check-data-csum $e
# A frozen xfs leaves its log to be replayed: a mount does that.
mount /dev/mapper/inside /inside; umount /inside; xfs_repair -n /dev/mapper/inside
mount /dev/vg/wide /wide; mount /dev/mapper/inside /inside; mount $md /md
mount $c-part2 /efi; mount $e /btrfs
for x in wide inside btrfs; do diff -r /usr/lib/udev /$x/udev; done
cmp /boot/vmlinuz* /efi/EFI/BOOT/BOOTX64.EFI
mdadm --detail $md | grep -E "State :|Active Devices"
'''))
points = ("/wide", "/inside", "/md", "/btrfs")
found = [last_record(Path(point, "records")) for point in points]
print("records:", *found)
"""


@contextlib.contextmanager
def repository_on(disk: Path, folder: Path) -> Iterator[Client]:
    """Give the repository that a machine left on its disk, whole by restic's word."""
    folder.mkdir()
    with attached(disk) as device, mounted_device(device, "ext4", folder, read_only=False):
        client = Client(folder / "r")
        client.restic("check", "--read-data")
        yield client


def may_hold(said: str, name: str) -> tuple[int, int]:
    """Return the numbers of the last records that an image must, and may, hold."""
    found = re.search(rf"^{name}: (\d+) (\d+)$", said, re.MULTILINE)
    assert found is not None, said
    return int(found[1]) - 1, int(found[2])


def assert_one_moment(last: list[int], said: str, name: str) -> None:
    """Records in turn: none on a later filesystem that an earlier one lacks."""
    assert last == sorted(last, reverse=True), last
    assert last[0] - last[-1] <= 1, last
    least, most = may_hold(said, name)
    assert least <= last[-1] <= most, (last, said)


def test_a_running_root_filesystem(tmp_path: Path) -> None:
    """Imaged by the program on it; restored, each image is whole and the machine boots."""
    running = tmp_path / "running.raw"
    run(("cp", "--sparse=always", str(system_disk()), str(running)))
    kept = LabDisk(GIB, file=tmp_path / "repository.raw")
    said = run_in_lab(_ROOT, disks=[kept], packages=_NEEDED, system=running, timeout=900)
    print(said)
    assert kept.file is not None
    with repository_on(kept.file, tmp_path / "repository") as client:
        first, second = client.images()
        hot = client.manifest(second)["hot"]
        assert isinstance(hot, dict)
        (disk,) = hot["disks"]
        assert disk["base"] == first
        assert [each["kind"] for each in hot["freezes"]] == ["ext4"]
        for name, image in (("first", first), ("second", second)):
            restored = tmp_path / f"{name}.raw"
            client.run("restore", image, "--to", str(restored), "--yes")
            # FAT cannot be frozen: it is as mounted, with the mark that says so.
            frozen = [check for check in check_filesystems(restored) if "vfat" not in check.name]
            assert [check for check in frozen if not check.clean] == []
            with on_root(restored) as root, on_root(running, read_only=False) as now:
                last = [last_record(root / "var/one"), last_record(root / "opt/two")]
                assert_one_moment(last, said, name)
                assert checksum_tree(root / "usr") == checksum_tree(now / "usr")
                late = {"late"} if name == "second" else set()
                wanted = {str(number) for number in range(8)} | late
                assert {path.name for path in (root / "opt/data").iterdir()} == wanted
        report = boot_to_login(restored, "bios").report
        assert (report["esp"], report["failed"]) == ("msdos", "0"), report


@contextlib.contextmanager
def on_root(disk: Path, *, read_only: bool = True) -> Iterator[Path]:
    """Give the root folder of a system disk; of one that was switched off only `read_only=False`.

    Then its journal is replayed. One that was frozen needs no such thing.
    """
    found = survey(disk)
    root = next(volume for volume in found.volumes if volume.kind == "ext4")
    with mounted(disk, found.sector, root, read_only=read_only) as folder:
        yield folder


def test_disks_in_stacks_at_one_moment(tmp_path: Path) -> None:
    """LVM over two disks, LUKS in it, md, btrfs over two disks and FAT, in one image."""
    sizes = (96, 144, 84, 44, 128, 128)
    kept = LabDisk(GIB, file=tmp_path / "repository.raw")
    disks = [kept, *(size * MIB for size in sizes)]
    said = run_in_lab(_STACKS, disks=disks, packages=_NEEDED, timeout=900)
    print(said)
    assert kept.file is not None
    with repository_on(kept.file, tmp_path / "repository") as client:
        first, second = client.images()
        restored = []
        for number in range(6):
            target = tmp_path / f"disk{number}.raw"
            disk = named(client.manifest(first), number)
            client.run("restore", first, "--disk", disk, "--to", str(target), "--yes")
            restored.append(LabDisk(0, file=target))
        volume = tmp_path / "volume.raw"
        client.run("restore", second, "--to", str(volume), "--yes")
        run(("e2fsck", "-fn", str(volume)))
        (tmp_path / "volume").mkdir()
        with (
            attached(volume) as device,
            mounted_device(device, "ext4", tmp_path / "volume", read_only=True),
        ):
            least, most = may_hold(said, "volume")
            assert least <= last_record(tmp_path / "volume/records") <= most
    told = run_in_lab(_TOGETHER, disks=restored, packages=_NEEDED, timeout=600)
    print(told)
    found = re.search(r"^records: (.*)$", told, re.MULTILINE)
    assert found is not None
    assert_one_moment([int(number) for number in found[1].split()], said, "first")


def named(manifest: dict[str, object], number: int) -> str:
    """Return the name of a disk of an image, in the order they were named."""
    disks = manifest["disks"]
    assert isinstance(disks, list)
    name = disks[number]["name"]
    assert isinstance(name, str)
    return name
