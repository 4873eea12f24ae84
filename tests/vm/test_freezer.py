"""Freezing what this machine's kernel may lack (LVM, LUKS, md, FAT), and a root filesystem.

The scripts run in a Debian machine of their own, as root; an assertion that fails in them
fails the test, and a machine that stays frozen is ended by its time.
"""

from __future__ import annotations

import pytest

from freezeframe.core.units import MIB
from freezeframe.testing.lab import run_in_lab

pytestmark = [pytest.mark.vm, pytest.mark.root]

_COMMON = """
import os, signal, subprocess, sys, time
from pathlib import Path
from freezeframe.shadow.filesystems import disks_beneath, find_filesystems, held_up
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.outsiders import find_outsiders
from freezeframe.core.errors import FreezeBroken
from freezeframe.system import sysfs
from freezeframe.system.freeze import Frozen, freeze, thaw
from freezeframe.system.run import run
from freezeframe.system.interrupt import deferred
from freezeframe.testing.frozen import eventually, is_frozen, record_writer

def sh(command):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

def disk(number):
    node = sysfs.node_of(f"/dev/disk/by-id/virtio-disk{number}")
    assert node is not None
    return node
"""

_STACK = (
    _COMMON
    + r"""
names = [disk(number).path for number in range(6)]
a, b, c, d, e, f = names
log = sh(f'''
modprobe -a dm-mod dm-crypt raid1 vfat xfs btrfs 2>&1
# LVM over two disks: a plain volume over both, one with LUKS in it, one for swap.
vgcreate -q -y vg {a} {b}
lvcreate -q -y -Wn -L 400M -n secret vg {b}
lvcreate -q -y -Wn -L 16M -n swap vg {b}
lvcreate -q -y -Wn -l 100%FREE -n wide vg
mkfs.ext4 -q /dev/vg/wide
echo secret > /run/key
cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vg/secret /run/key
cryptsetup open --key-file /run/key /dev/vg/secret inside
mkfs.xfs -q -f /dev/mapper/inside
mkswap /dev/vg/swap; swapon /dev/vg/swap
# md raid1 of partitions, and an EFI system partition beside one of them.
for x in {c} {d}; do printf 'label: gpt\nsize=300MiB\nsize=64MiB, type=uefi\n' | sfdisk -q $x; done
udevadm settle
mdadm --create /dev/md7 --run --quiet --level=1 --raid-devices=2 --metadata=1.2 {c}1 {d}1
mkfs.ext4 -q /dev/md7
mkfs.vfat {c}2
# btrfs over two whole disks.
mkfs.btrfs -q -f -d single -m raid1 {e} {f}
udevadm settle
mkdir -p /m/wide /m/inside /m/md /m/efi /m/btrfs /m/bound
mount /dev/vg/wide /m/wide; mount /dev/mapper/inside /m/inside; mount /dev/md7 /m/md
mount {c}2 /m/efi; mount {f} /m/btrfs
mkdir /m/wide/folder; mount --bind /m/wide/folder /m/bound
truncate -s 64M /m/inside/image; mkfs.ext4 -q /m/inside/image
mkdir /m/image; mount -o loop /m/inside/image /m/image
''')

def points(*numbers):
    return [each.point for each in find_filesystems([disk(n) for n in numbers]).filesystems]

# Exactly what lies there, whichever of the disks is asked for.
assert sorted(points(0)) == ["/m/wide"], points(0)
assert sorted(points(1)) == ["/m/image", "/m/inside", "/m/wide"], points(1)
assert sorted(points(2)) == ["/m/efi", "/m/md"], points(2)
assert points(3) == ["/m/md"], points(3)
assert points(4) == points(5) == ["/m/btrfs"], (points(4), points(5))
everything = find_filesystems([disk(n) for n in range(6)])
found = {each.point: each for each in everything.filesystems}
assert sorted(found) == ["/m/btrfs", "/m/efi", "/m/image", "/m/inside", "/m/md", "/m/wide"], found
order = list(found)
assert order.index("/m/image") < order.index("/m/inside"), order
assert found["/m/image"].sits_on == {found["/m/inside"].device}
assert not found["/m/efi"].freezes
assert [found[p].kind for p in ("/m/wide", "/m/inside", "/m/efi", "/m/btrfs")] == [
    "ext4", "xfs", "vfat", "btrfs"]
root = sysfs.node_of("/dev/disk/by-id/virtio-root")
assert points() == []
assert [each.point for each in find_filesystems([root]).filesystems] == ["/"]

# Paths.
disks = [disk(n) for n in range(6)]
assert [n.path for n in disks_beneath("/m/inside", disks)] == [b]
assert [n.path for n in disks_beneath("/m/bound", disks)] == [a, b]
assert disks_beneath("/", disks) == []
assert [x.point for x in held_up("/m/image", everything.filesystems)] == ["/m/image", "/m/inside"]
assert held_up("/dev/ttyS0", everything.filesystems) == []

# Past the filesystems: swap on a volume, and nothing else.
outsiders = find_outsiders(disks)
assert [(o.kind, os.path.realpath(o.path)) for o in outsiders] == [
    ("swap", os.path.realpath("/dev/vg/swap"))], outsiders
assert find_outsiders([disk(0), disk(2), disk(3), disk(4)]) == []
held = open("/dev/vg/wide", "r+b")
child = subprocess.Popen(["sleep", "1000"], stdin=held, start_new_session=True)
held.close()
raw = find_outsiders([disk(0)])
assert [(o.kind, o.path) for o in raw] == [("process", "/dev/mapper/vg-wide")], raw
child.kill(); child.wait()
sh("swapoff /dev/vg/swap; lvchange -q -an vg/swap")
# A physical volume is held by its volumes alone, the array's partitions by the array.
assert find_outsiders(disks) == [], find_outsiders(disks)

# All together, again and again.
writable = ("/m/wide", "/m/inside", "/m/image", "/m/md", "/m/btrfs")
import contextlib
with contextlib.ExitStack() as stack:
    writers = {p: stack.enter_context(record_writer(Path(p, "records"))) for p in writable}
    vfat = stack.enter_context(record_writer(Path("/m/efi/records")))
    freezer = stack.enter_context(Freezer(everything.filesystems, limit=60))
    assert [each.point for each in freezer.unfreezable] == ["/m/efi"]
    assert sorted(t.point for t in freezer.flush()) == sorted(writable)
    for turn in range(3):
        with freezer.window() as window:
            before = {p: w.written() for p, w in writers.items()}
            wild = vfat.written()
            time.sleep(1)
            assert {p: w.written() for p, w in writers.items()} == before
            freezer.sync_unfreezable()
            vfat.wait_for_more()
        assert [t.point for t in window.times] == [p for p in order if p != "/m/efi"]
        assert [each.point for each in window.unfreezable] == ["/m/efi"]
        for writer in writers.values():
            writer.wait_for_more()
        print("pause", round(window.pause - 1, 3), [
            (t.point, round(t.freeze, 4), round(t.thaw, 4)) for t in window.times])
# What does not know freezing says so when it is tried, too.
from dataclasses import replace
with Freezer([replace(found["/m/efi"], freezes=True), found["/m/md"]]) as freezer:
    assert freezer.unfreezable == ()
    assert [t.point for t in freezer.flush()] == ["/m/md"]
    assert [each.point for each in freezer.unfreezable] == ["/m/efi"]
print("everything is as it should be")
"""
)

_ROOT = (
    _COMMON
    + r"""
program = '''
import os, signal, sys, time, mmap
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.system import sysfs
root = sysfs.node_of("/dev/disk/by-id/virtio-root")
found = find_filesystems([root]).filesystems
assert [each.point for each in found] == ["/"], found
buffer = mmap.mmap(-1, 1 << 20)
device = os.open(root.path, os.O_RDONLY | os.O_DIRECT)
with Freezer(found, limit=float(sys.argv[1])) as freezer:
    freezer.flush()
    with freezer.window() as window:
        print("frozen", flush=True)
        if sys.argv[2] == "read":
            end = time.monotonic() + 1
            blocks = 0
            while time.monotonic() < end:
                blocks += os.preadv(device, [buffer], (blocks % 256) << 20) > 0
            assert blocks
        elif sys.argv[2] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            time.sleep(3600)
    print(f"thawed after {window.pause:.3f} s", flush=True)
'''
Path("/run/program.py").write_text(program)

def start(limit, way):
    process = subprocess.Popen(
        [sys.executable, "/run/program.py", str(limit), way],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "frozen\n"
    return process

with record_writer(Path("/var/records")) as writer:
    # For a second, by the program itself, which reads the disk meanwhile and then goes on.
    process = start(60, "read")
    held = writer.written()
    time.sleep(0.3)
    assert writer.written() == held
    said = process.stdout.read()
    assert process.wait() == 0
    print(said.strip())
    assert not is_frozen(Path("/"))
    writer.wait_for_more()
    Path("/var/new").write_text("written")

    # Killed within: thawed at once, long before the limit.
    for turn in range(3):
        process = start(3600, "kill")
        assert process.wait() == -signal.SIGKILL
        eventually(lambda: not is_frozen(Path("/")))
        writer.wait_for_more()
        Path("/var/new").write_text("written")

    # Hanging within: thawed when the time is up.
    process = start(10, "hang")
    assert is_frozen(Path("/"))
    eventually(lambda: not is_frozen(Path("/")))
    writer.wait_for_more()
    eventually(lambda: "the time was up" in sh("dmesg"))
    process.kill()
    process.wait()
print("the kernel log:", sh("dmesg | grep 'freezeframe watchdog' || true").strip())
print("the root is as it was")
"""
)


def test_every_stack_is_found_and_held() -> None:
    said = run_in_lab(
        _STACK, disks=[512 * MIB, 900 * MIB, *[400 * MIB] * 4], packages=["msgspec"], timeout=400
    )
    print(said)
    assert said.endswith("everything is as it should be\n")


def test_the_root_filesystem_under_the_program_itself() -> None:
    said = run_in_lab(_ROOT, packages=["msgspec"], timeout=600)
    print(said)
    assert "thawed after" in said
    assert "the program that froze it is gone" in said
    assert "the time was up" in said
    assert said.endswith("the root is as it was\n")
