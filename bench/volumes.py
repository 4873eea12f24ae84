"""Measure what a shadow copy of a volume costs a database: pgbench before, during, after.

Usage: python bench/volumes.py [--rounds 3] [--seconds 10]

In a virtual machine (Debian, software emulation), for device-mapper: so ratios only. Needs root
and PostgreSQL; its programs and a cluster are brought into the machine on a disk. Each round runs
pgbench three times for so long, on a volume without a shadow copy, with one, and after it was
released, a checkpoint before each. During means all of the time that the copy is kept, when each
block written for the first time is copied first.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path

from freezeframe.core.units import MIB
from freezeframe.system.run import run
from freezeframe.testing import databases
from freezeframe.testing.databases import postgres_tool
from freezeframe.testing.lab import LabDisk, run_in_lab

_PROGRAMS = ("postgres", "pgbench", "psql", "pg_isready")
_PACKAGES = ("msgspec", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py")
_DISK = 700 * MIB
_SCALE = 2

_SCRIPT = r"""
import json, os, re, subprocess, time
from pathlib import Path
from freezeframe.shadow.providers.base import Wishes
from freezeframe.shadow.providers.dm import DmProvider
from freezeframe.shadow.providers.lvm import LvmProvider
from freezeframe.testing.provider_contract import deadline, volume_at, window

BIN, ROUNDS, SECONDS = {bin!r}, {rounds}, {seconds}

def sh(command):
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

def pg(program, *arguments):
    return ["chroot", "--userspec=postgres", "/pg", f"{{BIN}}/{{program}}", *arguments]

def disk(number):
    return os.path.realpath(f"/dev/disk/by-id/virtio-disk{{number}}")

def tps():
    ask = ("-h", "/tmp", "-p", "5499")
    subprocess.run(pg("psql", *ask, "-c", "checkpoint", "postgres"), check=True,
                   stdout=subprocess.DEVNULL)
    done = subprocess.run(pg("pgbench", *ask, "-n", "-c", "2", "-T", str(SECONDS), "postgres"),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(re.search(r"tps = ([\d.]+)", done.stdout)[1])

def measured(kind, device, provider_kind, wishes):
    point = Path("/pg", kind)
    sh(f"mkfs.ext4 -q {{device}}; mkdir -p {{point}}; mount {{device}} {{point}}; "
       f"cp -a /pg/data {{point}}/main; sync")
    server = subprocess.Popen(pg(
        "postgres", "-D", f"/{{kind}}/main", "-c", "listen_addresses=", "-c", "port=5499",
        "-c", "unix_socket_directories=/tmp", "-c", "shared_buffers=32MB",
        "-c", "max_wal_size=64MB"), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        while subprocess.run(pg("pg_isready", "-q", "-h", "/tmp", "-p", "5499")).returncode:
            assert server.poll() is None
            time.sleep(0.5)
        tps()
        for number in range(ROUNDS):
            before = tps()
            provider = provider_kind("ff-bench", [volume_at(point)], wishes)
            try:
                provider.prepare(deadline())
                with window(provider, (point,)):
                    provider.commit(deadline())
                during = tps()
                provider.check()
            finally:
                provider.release()
            print("result:", json.dumps([kind, before, during, tps()]), flush=True)
    finally:
        server.terminate()
        server.wait()
    sh(f"umount {{point}}")

sh("modprobe -a dm-mod dm-snapshot; mkdir -p /pg; mount /dev/disk/by-id/virtio-disk0 /pg; "
   "mount --bind /dev /pg/dev; mkdir -p /pg/dev/shm; mount -t tmpfs tmpfs /pg/dev/shm")
sh(f"vgcreate -q -y vg {{disk(1)}}; lvcreate -q -y -Wn -L 240M -n a vg")
Path("/run/table").write_text(f"0 491520 linear {{disk(2)}} 2048\n")
sh("dmsetup create plain /run/table; udevadm settle")
measured("lvm", "/dev/vg/a", LvmProvider, Wishes(store_size=200 << 20))
measured("dm", "/dev/mapper/plain", DmProvider, Wishes(store_size=200 << 20, store="memory"))
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Measure what shadow copies cost.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    programs = Path(postgres_tool("postgres")).parent
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="bench-volumes-") as name:
        disk = make_disk(Path(name), programs)
        script = _SCRIPT.format(bin=str(programs), rounds=options.rounds, seconds=options.seconds)
        said = run_in_lab(
            script,
            disks=[LabDisk(_DISK, file=disk), 512 * MIB, 512 * MIB],
            packages=_PACKAGES,
            memory=1536,
            timeout=1800,
        )
    found: dict[str, list[list[float]]] = {}
    for line in re.findall(r"^result: (.*)$", said, re.MULTILINE):
        kind, *numbers = json.loads(line)
        found.setdefault(kind, []).append(numbers)
    print(
        "| provider | during / before | single rounds | after / before |\n| --- | --- | --- | --- |"
    )
    for kind, rounds in found.items():
        during = [each[1] / each[0] for each in rounds]
        after = [each[2] / each[0] for each in rounds]
        print(
            f"| `{kind}` | {statistics.median(during):.2f} | {min(during):.2f} to"
            f" {max(during):.2f} | {statistics.median(after):.2f} |"
        )


def make_disk(folder: Path, programs: Path) -> Path:
    """Make an ext4 disk with PostgreSQL's programs, what they need, and a filled cluster."""
    root = folder / "root"
    for name in ("tmp", "dev", "proc", "lvm", "dm", "etc"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy("/etc/passwd", root / "etc")
    shutil.copy("/etc/group", root / "etc")
    version = programs.parent.name
    shutil.copytree(programs.parent / "lib", root / str(programs.parent / "lib")[1:])
    share = f"usr/share/postgresql/{version}"
    shutil.copytree(f"/{share}", root / share, symlinks=True)
    shutil.copytree("/usr/share/zoneinfo/Etc", root / "usr/share/zoneinfo/Etc")
    for each in _PROGRAMS:
        wanted = [str(programs / each)]
        wanted += re.findall(r"(/\S+) \(0x", run(("ldd", wanted[0])).stdout.decode())
        for path in wanted:
            target = root / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    # Where nobody but its owner may look, and in a folder that the server's user can reach.
    with databases.open_folder() as place:
        databases.make_postgres(place / "data")
        with databases.postgres(place / "data", place / "run") as server:
            databases.as_postgres(
                postgres_tool("pgbench"), "-h", str(server.socket), "-p", "5499", "-i", "-q",
                "-s", str(_SCALE), "postgres",
            )  # fmt: skip
        run(("cp", "-a", str(place / "data"), str(root / "data")))
    disk = folder / "postgresql.raw"
    with disk.open("xb") as file:
        file.truncate(_DISK)
    run(("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk)))
    return disk


if __name__ == "__main__":
    main()
