"""Tracking on another kernel (Debian's), and on disks that this machine's lacks.

The scripts run in a machine of their own, as root; an assertion that fails in them fails the
test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from freezeframe.core.units import MIB
from freezeframe.testing.lab import LabDisk, run_in_lab

pytestmark = [pytest.mark.vm, pytest.mark.root]

_NEEDED = ("numpy", "msgspec")

_COMMON = """
import fcntl, os, random, struct, subprocess, sys, time
from pathlib import Path
import numpy as np
from freezeframe import tracking
from freezeframe.core.units import GRANULE, MIB
from freezeframe.system import sysfs
from freezeframe.testing.tracking import (
    DirectFile, changed_granules, content, digests, drop_caches, ensure_mounts, node_of, tracked,
)
from freezeframe.tracking import Base, Distrust, changed_since, pinned, remember_base

def sh(command):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

def disk(number):
    for pattern in (f"virtio-disk{number}", f"nvme-*_disk{number}", f"scsi-0QEMU_*_disk{number}"):
        for path in sorted(Path("/dev/disk/by-id").glob(pattern)):
            return os.path.realpath(path)
    raise AssertionError((number, os.listdir("/dev/disk/by-id")))

def granules_of(offset, length):
    return set(range(offset // GRANULE, (offset + length - 1) // GRANULE + 1))

def random_writes(device, tracker, count=400, seed=1):
    '''Exactly what is written is marked.'''
    generator = random.Random(seed)
    size = node_of(device).size
    wanted = set()
    with DirectFile(device) as file:
        for _ in range(count):
            length = 4096 * generator.choice([1, 1, 2, 8, 16, 17, 80])
            offset = 4096 * generator.randrange((size - length) // 4096)
            file.write(offset, generator.randbytes(length))
            wanted |= granules_of(offset, length)
        file.read(0, MIB)
    found = set(tracker.harvest().tolist())
    assert found == wanted, (device, sorted(wanted - found)[:9], sorted(found - wanted)[:9])

ensure_mounts()
print("kernel", os.uname().release)
"""

_KINDS = (
    _COMMON
    + r"""
virtio, scsi, nvme = disk(0), disk(1), disk(2)
for device in (virtio, scsi, nvme):
    for classic in (False, True):
        with tracked(device, force_classic=classic) as tracker:
            random_writes(device, tracker)
            sh(f"blkdiscard -o 5M -l 20M {device}")
            found = set(tracker.harvest().tolist())
            assert granules_of(5 * MIB, 20 * MIB) <= found, (device, classic, len(found))
            sh(f"blkdiscard -z -o 5M -l 20M {device}")
            found = set(tracker.harvest().tolist())
            assert granules_of(5 * MIB, 20 * MIB) <= found, (device, classic, len(found))
            print(device, "classic" if classic else "btf", tracker.state(), tracker.broken())
            if not classic:
                assert tracker.broken() == ()
                continue
            # The classic tracepoint cannot tell merged discards from single ones.
            merges = sysfs.read_number(node_of(device).folder / "queue/max_discard_segments") != 1
            # Nor one command from another: udev asks a SCSI disk that was written for its name.
            expected = merges or device == scsi
            assert bool(tracker.broken()) == expected, (device, tracker.broken())
print("kinds done")

def sg(device, command, direction, content):
    import ctypes
    data = ctypes.create_string_buffer(content, len(content) or 1)
    sense = ctypes.create_string_buffer(64)
    block = ctypes.create_string_buffer(command, len(command))
    header = ctypes.create_string_buffer(struct.pack(
        "=iiBBHIQQQIIiQBBBBHHiII4x", ord("S"), direction, len(command), 64, 0, len(content),
        ctypes.addressof(data), ctypes.addressof(block), ctypes.addressof(sense), 5000, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0), 88)
    with open(device, "r+b", buffering=0) as file:
        fcntl.ioctl(file, 0x2285, header)

# -- the driver asks for the serial number by a passthrough request of its own
with tracked(virtio) as tracker:
    before = tracker.state().harmless
    assert Path(f"/sys/block/{Path(virtio).name}/serial").read_text().strip() == "disk0"
    assert tracker.state().harmless > before
    assert tracker.broken() == ()
    remember_base(tracker, "repo", "image")
    assert isinstance(changed_since(tracker, "repo"), Base)

# -- udev asks a SCSI disk for its name whenever it was written; so do others
with tracked(scsi) as tracker:
    with DirectFile(scsi) as file:
        file.write(0, bytes(4096))
    sh("udevadm settle")
    for command, length in (("12000000ff00", 255), ("25000000000000000000", 8)):
        sg(scsi, bytes.fromhex(command), -3, bytes(length))
    sg(scsi, bytes(6), -1, b"")
    # A command of 16 bytes that carries an ATA one; a SCSI disk refuses it, and it was sent.
    sg(scsi, bytes([0x85, 8, 0x2E] + 11 * [0] + [0xEC, 0]), -3, bytes(512))
    assert tracker.state().harmless >= 12, tracker.state()
    assert tracker.broken() == (), tracker.state()
    # One that carries a WRITE DMA is not let pass.
    sg(scsi, bytes([0x85] + 13 * [0] + [0xCA, 0]), -1, b"")
    assert tracker.broken() != ()
print("harmless done")

# -- a write past the block layer
def sg_write(device, lba):
    sg(device, struct.pack(">BBIBHB", 0x2A, 0, lba, 0, 1, 0), -2, b"x" * 512)

def nvme_write(device, lba):
    import ctypes
    data = ctypes.create_string_buffer(b"y" * 512, 512)
    command = ctypes.create_string_buffer(struct.pack(
        "=BBHIII" "QQII" "IIIIII" "II", 1, 0, 0, 1, 0, 0, 0, ctypes.addressof(data), 0, 512,
        lba, 0, 0, 0, 0, 0, 0, 0), 72)
    with open(device, "r+b", buffering=0) as file:
        fcntl.ioctl(file, 0xC0484E43, command)

for device, write in ((scsi, sg_write), (nvme, nvme_write)):
    with tracked(device) as tracker:
        remember_base(tracker, "repo", "image")
        time.sleep(1)
        assert tracker.broken() == (), tracker.broken()
        write(device, 4096)
        drop_caches(device)
        with DirectFile(device) as file:
            assert file.read(4096 * 512, 512)[:1] in b"xy"
        assert any("past the block layer" in reason for reason in tracker.broken()), tracker.state()
        found = changed_since(tracker, "repo")
        assert isinstance(found, Distrust), found
        generation = tracker.generation
        tracker.close()
        with tracking.start(node_of(device)) as again:
            assert again.generation != generation
            assert "past the block layer" in again.record.replaced
print("passthrough done")

# -- merged discards
sh(f"modprobe xfs; mkfs.xfs -q -f {nvme}; mkdir -p /m; mount -o discard {nvme} /m")
for number in range(400):
    Path(f"/m/{number}").write_bytes(random.Random(number).randbytes(64 * 1024))
sh("sync")
with tracked(nvme) as tracker:
    drop_caches(nvme)
    before = digests(nvme)
    for number in range(0, 400, 2):
        os.unlink(f"/m/{number}")
    sh("sync; sleep 1; umount /m")
    drop_caches(nvme)
    changed = changed_granules(before, digests(nvme))
    marked = tracker.harvest()
    print("discarded", changed.size, "marked", marked.size)
    assert changed.size > 150
    assert np.setdiff1d(changed, marked).size == 0
    assert tracker.broken() == ()
print("discards done")
"""
)


def test_real_drivers_on_a_debian_kernel() -> None:
    """virtio, SCSI and NVMe: writes, discards, what goes past the block layer."""
    disks = [LabDisk(256 * MIB), LabDisk(256 * MIB, "scsi"), LabDisk(320 * MIB, "nvme")]
    said = run_in_lab(_KINDS, disks=disks, packages=_NEEDED, timeout=900)
    print(said)
    for part in ("kinds", "harmless", "passthrough", "discards"):
        assert f"{part} done" in said, said


_STACKED = (
    _COMMON
    + r"""
a, b, c, d = (disk(number) for number in range(4))
sh("modprobe -a dm-mod raid0 raid1 dm-crypt zram")
# Two stretches of two disks: a write over the border is split by dm.
half = 64 * 1024 * 1024 // 512
sh(f'''dmsetup create spliced <<END
0 {half} linear {a} 2048
{half} {half} linear {b} 2048
END
''')
with tracked("/dev/mapper/spliced") as tracker:
    assert tracker.record.mode == "bios"
    border = half * 512
    with DirectFile("/dev/mapper/spliced") as file:
        file.write(border - 32768, bytes(65536))
    found = set(tracker.harvest().tolist())
    assert found == granules_of(border - 32768, 65536), found
    with DirectFile("/dev/mapper/spliced") as file:
        file.write(border - 8 * MIB, bytes(16 * MIB))
    found = set(tracker.harvest().tolist())
    assert found == granules_of(border - 8 * MIB, 16 * MIB), found
    random_writes("/dev/mapper/spliced", tracker)
    assert tracker.broken() == ()
    # The disks beneath see the same writes at their own places.
    with tracked(a) as below, DirectFile("/dev/mapper/spliced") as file:
        file.write(MIB, bytes(4096))
        assert set(below.harvest().tolist()) == granules_of(2 * MIB, 4096)
sh("dmsetup remove spliced")
print("spliced done")

sh(f"vgcreate -q -y vg {a} {b}; lvcreate -q -y -Wn -i 2 -l 100%FREE -n striped vg")
sh(f"echo secret > /run/key; cryptsetup luksFormat -q --pbkdf pbkdf2 "
   f"--pbkdf-force-iterations 1000 {c} /run/key; cryptsetup open --key-file /run/key {c} inside")
for device in ("/dev/vg/striped", "/dev/mapper/inside"):
    with tracked(device) as tracker:
        random_writes(device, tracker, 200)
        assert tracker.broken() == (), (device, tracker.broken())
sh("cryptsetup close inside; vgremove -q -f vg; wipefs -q -a %s %s %s" % (a, b, c))
print("lvm done")

for level in (0, 1):
    sh(f"mdadm --create /dev/md7 --run --quiet --level={level} --raid-devices=2 "
       f"--metadata=1.2 {c} {d}; udevadm settle")
    with tracked("/dev/md7") as tracker:
        random_writes("/dev/md7", tracker, 200)
        assert tracker.broken() == (), (level, tracker.broken())
    if level == 0:
        # Without statistics, raid0 hands the very bio on to a disk with requests.
        Path("/sys/block/md7/queue/iostats").write_text("0")
        with tracked("/dev/md7") as tracker:
            random_writes("/dev/md7", tracker, 200)
            assert tracker.state().unseen > 0
            assert any("does not see them" in reason for reason in tracker.broken())
    sh(f"mdadm --stop /dev/md7 && mdadm --zero-superblock {c} {d}; udevadm settle")
print("md done")

zram = "/dev/zram0"
Path("/sys/block/zram0/disksize").write_text(str(32 * MIB))
with tracked(zram) as tracker:
    random_writes(zram, tracker, 200)
    assert tracker.broken() == ()
print("zram done")
"""
)


def test_disks_made_of_others() -> None:
    said = run_in_lab(_STACKED, disks=[96 * MIB] * 4, packages=_NEEDED, timeout=900)
    print(said)
    for part in ("spliced", "lvm", "md", "zram"):
        assert f"{part} done" in said, said


_NESTED = (
    _COMMON
    + r"""
WRITER = '''
import mmap, os, random, sys, time
device, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
generator = random.Random(device)
count = 0
while time.monotonic() < end:
    for _ in range(32):
        count += 1
        buffer[:8] = count.to_bytes(8, "little")
        os.pwrite(descriptor, buffer, generator.randrange(256) * 65536)
print(count)
'''
sh("truncate -s 64M /dev/shm/backing; modprobe loop")
loop = sh("losetup --show -f /dev/shm/backing").strip()
devices = [loop, disk(0), disk(1), disk(2)]
import contextlib
with contextlib.ExitStack() as stack:
    trackers = [stack.enter_context(tracked(device)) for device in devices]
    files = [stack.enter_context(DirectFile(device)) for device in devices]
    copies = [content(device) for device in devices]
    def keep_up():
        for tracker, file, copy in zip(trackers, files, copies):
            for granule in tracker.harvest().tolist():
                copy[granule] = np.frombuffer(file.read(granule * GRANULE, GRANULE), np.uint8)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, device, "15"],
                                stdout=subprocess.PIPE) for device in devices for _ in "ab"]
    while any(writer.poll() is None for writer in writers):
        keep_up()
        time.sleep(0.02)
    keep_up()
    print("written", [int(writer.communicate()[0]) for writer in writers])
    for device, tracker, copy in zip(devices, trackers, copies):
        drop_caches(device)
        misses = [pinned.link_at(tracker.places.link(link.name)).misses
                  for link in tracker.record.links]
        print(device, "left out", misses, tracker.state())
        assert tracker.state().nested == 0 or tracker.broken()
        # What the kernel itself counted is what the listeners saw.
        assert tracker.left_out() == (), tracker.left_out()
        assert changed_granules(copy, content(device)).tolist() == [], device
print("nested done")
"""
)


def test_completions_that_interrupt_each_other() -> None:
    """Disks of four drivers at once: their completions come in tasks and in interrupts."""
    disks = [LabDisk(64 * MIB), LabDisk(64 * MIB, "scsi"), LabDisk(64 * MIB, "nvme")]
    said = run_in_lab(_NESTED, disks=disks, packages=_NEEDED, timeout=900)
    print(said)
    assert "nested done" in said, said


_BEFORE = (
    _COMMON
    + r"""
sh("mkfs.ext4 -q %s; mkdir /m; mount %s /m" % (disk(1), disk(1)))
with tracking.start(node_of(disk(0))) as tracker:
    remember_base(tracker, "repo", "image")
    assert isinstance(changed_since(tracker, "repo"), Base)
    sh(f"cp -a {tracker.places.notes.parent.parent} /m/notes; umount /m")
print("before done")
"""
)

_AFTER = (
    _COMMON
    + r"""
# As if notes outlived a reboot; the kernel's marks do not.
sh("mkdir /m; mount %s /m; cp -a /m/notes /run/freezeframe" % disk(1))
node = node_of(disk(0))
assert tracking.open_running(node) is None
with tracking.start(node) as tracker:
    assert "machine was started anew" in tracker.record.replaced, tracker.record.replaced
    found = changed_since(tracker, "repo")
    assert isinstance(found, Distrust), found
    print(found.reasons)
print("after done")
"""
)


def test_a_reboot_ends_trust(tmp_path: Path) -> None:
    disks = [
        LabDisk(64 * MIB, file=tmp_path / "disk0"),
        LabDisk(64 * MIB, file=tmp_path / "disk1"),
    ]
    assert "before done" in run_in_lab(_BEFORE, disks=disks, packages=_NEEDED)
    assert "after done" in run_in_lab(_AFTER, disks=disks, packages=_NEEDED)
