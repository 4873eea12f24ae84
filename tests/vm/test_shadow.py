"""One image of plain partitions, LVM, thin volumes and a full group, all of one moment.

In a Debian machine, because this one's kernel may have no device-mapper. Who appends record n
to one volume and then to another is never seen to have it on the second alone.
"""

from __future__ import annotations

import pytest

from freezeframe.core.units import MIB
from freezeframe.testing.lab import run_in_lab

pytestmark = [pytest.mark.vm, pytest.mark.root]

_NEEDED = ["numpy", "msgspec", "cryptography", "_cffi_backend", "zstandard"]

_SCRIPT = r"""
import os, subprocess, sys, time
from pathlib import Path
from freezeframe.app.company import ShadowSettings
from freezeframe.app.online import backup_online
from freezeframe.app.shadow import create_set, delete_set, kept_sets
from freezeframe.backup.hot.settings import HotSettings
from freezeframe.core.progress import Silent
from freezeframe.image.reader import ImageReader
from freezeframe.shadow import journal
from freezeframe.shadow.discover import WriterChoice
from freezeframe.shadow.timeline import Limits
from freezeframe.system.loop import attached
from freezeframe.testing.frozen import mounted_at
from freezeframe.testing.hot import last_record, pair, restore
from freezeframe.testing.repositories import local_repository
from freezeframe.testing.tracking import ensure_mounts

def sh(command):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

def disk(number):
    return os.path.realpath(f"/dev/disk/by-id/virtio-disk{number}")

ensure_mounts()
memory = Path("/dev/shm/test")
memory.mkdir()
sh(f'''
modprobe -a dm-mod dm-snapshot dm-thin-pool loop
mkfs.ext4 -q {disk(0)}
vgcreate -q -y vg {disk(1)}
lvcreate -q -y -Wn -L 48M -n thick vg
lvcreate -q -y -Wn -L 64M --thinpool pool vg
lvcreate -q -y -Wn -V 48M --thin -n thin vg/pool
vgcreate -q -y tight {disk(2)}
lvcreate -q -y -Wn -l 100%FREE -n dm tight
for x in vg/thick vg/thin tight/dm; do mkfs.ext4 -q /dev/$x; done
mkdir -p /m/plain /m/thick /m/thin /m/dm
mount {disk(0)} /m/plain
for x in thick thin; do mount /dev/vg/$x /m/$x; done
mount /dev/tight/dm /m/dm
''')
volumes = {"plain": disk(0), "thick": "/dev/vg/thick", "thin": "/dev/vg/thin",
           "dm": "/dev/tight/dm"}
kinds = {"plain": "hot", "thick": "lvm", "thin": "lvm-thin", "dm": "dm"}
repository = local_repository(memory / "repository")
# Under emulation each call takes twenty times as long.
SETTINGS = HotSettings(max_pause=4.0, freeze_limit=60, back_off=False, threads=2)
began = time.monotonic()

class Told(Silent):
    def note(self, text):
        print(f"{time.monotonic() - began:.1f} s: {text}")

def records(names):
    shot = backup_online(
        repository,
        [volumes[name] for name in names],
        Told(),
        SETTINGS,
        shadow=ShadowSettings(
            WriterChoice(auto=False),
            {volumes[name]: kinds[name] for name in names},
            Limits(writers=120, commit=60),
        ),
    )
    manifest = shot.manifest
    by = {volume: each.kind for each in manifest.shadow.providers for volume in each.volumes}
    assert sorted(by.values()) == sorted(kinds[n] for n in names if n != "plain"), by
    image = ImageReader(repository, repository.load_index(), shot.snapshot)
    restored = restore(image, memory, "restored")
    found = []
    for name in names:
        target = restored[volumes[name]]
        sh(f"e2fsck -fn {target}")
        with attached(target) as loop, mounted_at(loop, Path("/m/seen")) as seen:
            found.append(last_record(seen / "records"))
        target.unlink()
    return found, manifest

for first, second in [("plain", "thick"), ("thick", "thin"), ("dm", "plain")]:
    ways = [Path("/m", name, "records") for name in (first, second)]
    for way in ways:
        way.unlink(missing_ok=True)
    with pair(*ways):
        (one, two), manifest = records((first, second))
    assert two in (one, one - 1), (first, second, one, two)
    steps = ", ".join(f"{step.name} {step.ms:.0f}" for step in manifest.shadow.steps)
    print(f"{time.monotonic() - began:.1f} s: {first} {second}: {one} {two}; ms: {steps}")
    # Nothing is left, and the volumes are as they were.
    assert journal.running() == []
    assert "ff-" not in sh("dmsetup ls; lvs --noheadings -o lv_name")

# Copies that stay, of volumes of different kinds.
made = create_set([volumes["thick"], volumes["thin"]], Silent(), ShadowSettings(
    WriterChoice(auto=False), limits=Limits(commit=60)), label="noon")
assert len(made.entry.shadows) == 2
for shadow in made.entry.shadows:
    with mounted_at(shadow.path, Path("/m/seen"), "-o", "ro") as seen:
        assert (seen / "lost+found").is_dir()
    assert sh(f"blockdev --getro {shadow.path}").strip() == "1"
(kept,) = kept_sets()
assert not kept.trouble
assert not any(each.trouble for each in delete_set("noon"))
assert kept_sets() == []
assert "ff-" not in sh("dmsetup ls; lvs --noheadings -o lv_name")
sh("umount /m/plain /m/thick /m/thin /m/dm")
for name in ("vg/thick", "vg/thin", "tight/dm"):
    sh(f"e2fsck -fn /dev/{name}")
print("all good")
"""


def test_every_mixture_shares_one_moment() -> None:
    said = run_in_lab(_SCRIPT, disks=[64 * MIB, 320 * MIB, 96 * MIB], packages=_NEEDED, timeout=480)
    assert said.splitlines()[-1] == "all good"
    print(said)
