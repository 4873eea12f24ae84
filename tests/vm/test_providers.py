"""Providers of shadow copies on device-mapper: the contract suite, in a Debian machine.

One machine does all of it: its kernel has what this one may lack. It runs pytest on the
script itself; what that prints is shown here.
"""

from __future__ import annotations

import pytest

from freezeframe.core.units import MIB
from freezeframe.testing.lab import run_in_lab

pytestmark = [pytest.mark.vm, pytest.mark.root]

_NEEDED = ["msgspec", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py"]

_CONTRACT = r'''
import contextlib, json, os, re, subprocess, sys, time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.providers.base import ShadowLost, Volume, Wishes
from freezeframe.shadow.providers import cow, lvmtools
from freezeframe.shadow.providers.dm import DmProvider
from freezeframe.shadow.providers.lvm import LvmProvider
from freezeframe.shadow.providers.lvm_thin import LvmThinProvider
from freezeframe.testing.provider_contract import (
    Ground, ProviderContract, deadline, digest, volume_at, window,
)
from freezeframe.system.sysfs import node_of
from freezeframe.testing.frozen import eventually, running_writer

def sh(command, ok=(0,)):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode in ok, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout

def disk(number):
    return os.path.realpath(f"/dev/disk/by-id/virtio-disk{number}")

def mount(device, name):
    point = Path("/m", name)
    point.mkdir(parents=True)
    sh(f"mkfs.ext4 -q {device}; mount {device} {point}")
    return point

def set_up():
    sh("modprobe -a dm-mod dm-snapshot dm-thin-pool loop")
    sh(f"vgcreate -q -y vg {disk(0)}")
    for name in "ab":
        sh(f"lvcreate -q -y -Wn -L 40M -n {name} vg")
        mount(f"/dev/vg/{name}", f"lvm-{name}")
    # Two stretches each: tables of more than one line.
    for number, name in enumerate("ab"):
        start = 2048 + number * 131072
        Path("/run/table").write_text(
            f"0 40960 linear {disk(1)} {start}\n40960 40960 linear {disk(1)} {start + 65536}\n")
        sh(f"dmsetup create plain-{name} /run/table")
        mount(f"/dev/mapper/plain-{name}", f"dm-{name}")
    sh(f"vgcreate -q -y pool {disk(2)}; lvcreate -q -y -L 256M -T pool/thin")
    for name in "ab":
        sh(f"lvcreate -q -y -Wn -V 40M --thinpool pool/thin -n {name}")
        mount(f"/dev/pool/{name}", f"thin-{name}")
    sh("udevadm settle")

def ground(kind, **more):
    points = (Path(f"/m/{kind}-a"), Path(f"/m/{kind}-b"))
    return Ground(points, tuple(map(volume_at, points)), **more)

class TestLvm(ProviderContract):
    provider = LvmProvider
    rounds = 1
    killed_at = ("prepare", "hold", 1, 2, 4, "commit", "resume")

    @contextlib.contextmanager
    def ground(self, folder):
        yield ground("lvm", small=Wishes(store_size=8 << 20))

    def break_commit(self, provider):
        sh("dmsetup remove ff-test-0")

    def test_a_store_grows(self, place, monkeypatch):
        """One that fills up is extended while it is in use, and the copy stays whole."""
        monkeypatch.setattr(cow, "_LEAST", 8 << 20)
        provider = self.make(place)
        flood = place.points[0] / "flood"
        flood.write_bytes(os.urandom(24 << 20))
        os.sync()
        size = lambda: int(lvmtools.named("vg/ff-test-cow-0").lv_size)
        try:
            provider.prepare(deadline())
            first = size()
            assert first == 8 << 20, first
            with window(provider, place.points):
                provider.commit(deadline())
            (shadow, _) = provider.shadows()
            before = digest(shadow.path)
            with flood.open("r+b") as file:
                for _ in range(10):
                    file.write(os.urandom(2 << 20))
                    os.fsync(file.fileno())
                    provider.check()
            assert digest(shadow.path) == before
            provider.check()
            print("the store grew from", first, "to", size())
            assert size() > 20 << 20
        finally:
            provider.release()
        flood.unlink()

    def test_another_program_changes_the_volume(self, place):
        """LVM puts its own table back: the copy lies from then on, and check says so."""
        before = self.state()
        provider = self.make(place)
        try:
            provider.prepare(deadline())
            with window(provider, place.points):
                provider.commit(deadline())
            provider.check()
            print("lvs:", subprocess.run(["lvs"], capture_output=True, text=True))
            sh("lvchange --refresh vg/a")
            with pytest.raises(ShadowLost, match="another program"):
                provider.check()
        finally:
            provider.release()
        assert self.state() == before

    def test_strays_are_told_by_their_names(self, place):
        """After a reboot there is no journal; the stores are there."""
        assert self.provider.strays() == []
        provider = self.make(place)
        provider.prepare(deadline())
        # As a reboot leaves it: no tables, but the volumes.
        for number in range(2):
            sh(f"dmsetup remove ff-test-{number}; dmsetup remove ff-test-real-{number}")
        (record,) = self.provider.strays()
        assert record["name"] == "ff-test"
        self.provider.clean(record)
        assert self.provider.strays() == []
        provider.release()

class TestThin(ProviderContract):
    provider = LvmThinProvider
    test_two_sets_of_the_same_volumes = None
    rounds = 1
    # What is prepared and how volumes are held is as with TestLvm.
    killed_at = (3, "commit")

    @contextlib.contextmanager
    def ground(self, folder):
        yield ground("thin")

    def break_commit(self, provider):
        number = provider.record()["number.0"]
        sh(f"dmsetup message pool-thin-tpool 0 'delete {number}'")

class TestDm(ProviderContract):
    """What differs from `lvm` is where the stores lie; the rest is left to TestLvm."""

    provider = DmProvider
    test_killed_at_each_step = None
    test_two_sets_of_the_same_volumes = None
    rounds = 1

    @contextlib.contextmanager
    def ground(self, folder):
        yield ground("dm", wishes=Wishes(store="memory"), small=Wishes(8 << 20, "memory"))

    def break_commit(self, provider):
        sh("dmsetup remove ff-test-0")

    def test_volumes_without_a_filesystem(self):
        """Whoever writes to the devices themselves is held from `hold` to `resume`."""
        devices = ["/dev/mapper/raw-a", "/dev/mapper/raw-b"]
        for device, start in zip(devices, (300000, 400000)):
            sh(f"dmsetup create {device[12:]} --table '0 20480 linear {disk(1)} {start}'")
        before = self.state()
        with running_writer(RAW, *devices) as writer:
            volumes = [Volume(node, node.size) for node in map(node_of, devices)]
            provider = DmProvider("ff-test", volumes, Wishes(8 << 20, "memory"))
            try:
                provider.prepare(deadline())
                provider.hold(deadline())
                held = writer.written()
                time.sleep(0.5)
                assert writer.written() - held <= 1
                provider.commit(deadline())
                time.sleep(0.5)
                assert writer.written() - held <= 1
                provider.resume()
                writer.wait_for_more()
                one, two = (int.from_bytes(Path(each.path).read_bytes()[:8], "little")
                            for each in provider.shadows())
                print("numbers on the copies:", one, two)
                assert one - 1 <= two <= one, (one, two)
                provider.check()
            finally:
                provider.release()
            writer.wait_for_more()
        eventually(lambda: self.state() == before)
        sh("dmsetup remove raw-a; dmsetup remove raw-b")

RAW = """
import mmap, os, sys
files = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in sys.argv[1:]]
buffer, number = mmap.mmap(-1, 4096), 0
while True:
    buffer[:8] = number.to_bytes(8, "little")
    for file in files:
        os.pwrite(file, buffer, 0)
    os.write(1, b".")
    number += 1
"""

OWN = """
import json, os, signal, sys, time
from pathlib import Path
from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.providers.base import ShadowLost, Wishes
from freezeframe.shadow.providers.dm import DmProvider
from freezeframe.testing.provider_contract import opened, volume_at

class Mine(DmProvider):
    def _copy(self, mapper):
        if way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1 if way == "well" else 8)
        super()._copy(mapper)

way = sys.argv[1]
volume = volume_at(Path("/"))
assert volume.node.path == "/dev/mapper/sys", volume
provider = Mine("ff-own", [volume], Wishes(64 << 20, "memory"))
provider.journal = lambda: Path("/run/own.json").write_text(json.dumps(provider.record()))
provider.prepare(Deadline.after(60))
assert provider._under_us
# Whatever is not held has to be read again.
os.sync()
Path("/proc/sys/vm/drop_caches").write_text("3")
with Freezer(volume.filesystems, limit=60) as freezer, freezer.window():
    provider.hold(Deadline.after(2))
    try:
        provider.commit(Deadline.after(2))
    finally:
        provider.resume()
Path("/new").touch()
if way == "hang":
    try:
        provider.check()
    except ShadowLost as error:
        print("told:", error.message)
else:
    provider.check()
    with opened(provider.shadows()[0]) as root:
        assert not (root / "new").exists()
        assert (root / "before").exists()
    provider.check()
Path("/new").unlink()
provider.release()
print("done")
"""

@pytest.fixture(scope="module")
def system():
    sh(f"dmsetup create sys --table '0 1000000 linear {disk(3)} 0'")
    root = mount("/dev/mapper/sys", "sys")
    sh("tar -C / -cf - --exclude=usr/lib/modules --exclude=usr/share "
       "--exclude=usr/lib/firmware --exclude=usr/lib/systemd "
       "usr bin lib lib64 sbin "
       f"| tar -C {root} -xf -")
    sh(f"mkdir {root}/opt {root}/dev {root}/proc {root}/sys {root}/run {root}/etc; "
       f"cp -r /run/lab/freezeframe /run/lab/msgspec* {root}/opt; touch {root}/before; "
       f"for x in dev proc sys run; do mount --rbind /$x {root}/$x; done")
    for package in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py.py"):
        sh(f"cp -r /run/lab/{package} {root}/opt")
    (root / "opt/own.py").write_text(OWN)
    before = sh("dmsetup table")
    yield root
    eventually(lambda: sh("dmsetup table") == before)

class TestOwnVolume:
    """The volume that is suspended holds the program, its Python and its libraries."""

    def run(self, root, way):
        return subprocess.run(
            ["chroot", str(root), "/usr/bin/env", "PYTHONPATH=/opt", "python3", "-B", "/opt/own.py",
             way], capture_output=True, text=True, timeout=120)

    def test_it_is_copied(self, system):
        done = self.run(system, "well")
        print(done.stdout, done.stderr)
        assert done.stdout.endswith("done\n")

    def test_it_is_resumed_when_the_program_is_killed(self, system):
        done = self.run(system, "kill")
        assert done.returncode == -9, (done.stdout, done.stderr)
        (system / "written").write_text("after the kill")
        os.sync()
        DmProvider.clean(json.loads(Path("/run/own.json").read_text()))

    def test_it_is_resumed_when_the_time_is_up(self, system):
        done = self.run(system, "hang")
        print(done.stdout, done.stderr)
        assert "suspended too long" in done.stdout
        assert done.stdout.endswith("done\n")

if __name__ == "__main__":
    began = time.monotonic()
    set_up()
    print(f"set up in {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(pytest.main([
        __file__, "-x", "-q", "-rA", "-p", "no:cacheprovider", "--basetemp=/run/pytest",
        "-W", "error", "--durations=40", *sys.argv[1:]]))
'''


def test_the_contract_of_lvm_thin_and_dm() -> None:
    said = run_in_lab(_CONTRACT, disks=[512 * MIB] * 4, packages=_NEEDED, timeout=1500)
    print(said)
    assert " passed" in said
