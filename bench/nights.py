"""Measure what fine grain saves: nightly images of a PostgreSQL's disk, coarse and adaptive.

Usage: python bench/nights.py [--nights 10] [--size 4] [--scale 100] [--transactions 2000]
       [--work DIR]

Each night a bounded pgbench run changes the database a little everywhere; then the server is
stopped, the disk imaged online into one repository, and, unmounted, into two more: one stores each
changed chunk whole, the other as the program does. restic checks all in the end. Needs root (a
loop device, tracking) and the Debian packages postgresql and restic.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.app.backup import backup_offline
from freezeframe.app.online import backup_online
from freezeframe.core.progress import Silent
from freezeframe.core.units import GIB, MIB
from freezeframe.image import chunklist
from freezeframe.repo.repository import create_repository, open_repository
from freezeframe.store.open import open_store
from freezeframe.system.loop import attached
from freezeframe.testing.hot import untrack
from freezeframe.testing.repositories import PASSWORD, restic
from freezeframe.testing.tracking import ensure_mounts
from freezeframe.testing.volumes import mounted_device
from measure import stored

#: What the issue wants: later nights take no more than this of what whole chunks take.
_TARGET = 0.4
_USER = "postgres"


@dataclass(slots=True)
class Kept:
    """One repository and what each night cost it."""

    name: str
    folder: Path
    granular: bool
    #: With marks: chunks that were written all over are known, and stay whole.
    online: bool = False
    #: Bytes that the repository's files grew by, night by night.
    grown: list[int] = field(default_factory=list)
    #: Seconds of wall and processor time.
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    #: Chunks that are stored by granules.
    fine: list[int] = field(default_factory=list)

    def image(self, device: str) -> None:
        """Image the device, as one run of the program does, and note what it cost."""
        before, cpu, wall = stored(self.folder), time.process_time(), time.perf_counter()
        repository = open_repository(open_store(str(self.folder)), PASSWORD)
        if self.online:
            result = backup_online(repository, [device], Silent())
        else:
            result = backup_offline(repository, [device], Silent(), granular=self.granular)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self.grown.append(stored(self.folder) - before)
        self.fine.append(chunklist.decode(result.manifest.disks[0].fine).total)


def main() -> int:
    """Measure and print; 0 if the target is met and restic finds nothing, 1 if not."""
    options = _options()
    ensure_mounts()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="nights-") as name:
        work = Path(name)
        work.chmod(0o755)  # the server's user must get through
        (work / "mount").mkdir()
        kept = [Kept("coarse", work / "coarse", False), Kept("adaptive", work / "fine", True)]
        hot = Kept("online", work / "online", True, online=True)
        for one in (*kept, hot):
            create_repository(open_store(str(one.folder)), PASSWORD)
        with (work / "disk.raw").open("xb") as file:
            file.truncate(int(options.size * GIB))
        with attached(work / "disk.raw") as device:
            _run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device])
            print(f"{'night':>5} {'':10} {'grown MiB':>10} {'wall s':>8} {'cpu s':>8} {'fine':>6}")
            for night in range(1, options.nights + 1):
                with mounted_device(device, "ext4", work / "mount", read_only=False):
                    _day(work / "mount" / "data", night, options)
                    hot.image(device)
                for one in kept if night % 2 else reversed(kept):
                    one.image(device)
                for one in (*kept, hot):
                    print(
                        f"{night:>5} {one.name:10} {one.grown[-1] / MIB:>10.1f}"
                        f" {one.wall[-1]:>8.1f} {one.cpu[-1]:>8.1f} {one.fine[-1]:>6}",
                        flush=True,
                    )
            untrack(device)
        clean = [_checked(one) for one in (*kept, hot)]
    met = [_verdict(kept[0], one) for one in (kept[1], hot)]
    return 0 if all(met) and all(clean) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Nightly images of a busy database's disk.")
    parser.add_argument("--nights", type=int, default=10, help="how many images")
    parser.add_argument("--size", type=float, default=4, help="of the disk, in GiB")
    parser.add_argument("--scale", type=int, default=100, help="of pgbench: 15 MiB each")
    parser.add_argument("--transactions", type=int, default=2000, help="between two images")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="folder for all of it")
    return parser.parse_args()


def _day(data: Path, night: int, options: argparse.Namespace) -> None:
    """Let the database work for a while, and stop it cleanly."""
    if night == 1:
        data.mkdir()
        shutil.chown(data, _USER, _USER)
        _as_postgres(["initdb", "-D", str(data), "--auth=trust"], data)
    with _server(data):
        connection = ["-h", str(data), "-p", "5499", "postgres"]
        if night == 1:
            _as_postgres(["pgbench", "-i", "-q", "-s", str(options.scale), *connection], data)
        clients = 4
        each = options.transactions // clients
        _as_postgres(["pgbench", "-n", "-c", f"{clients}", "-t", f"{each}", *connection], data)


@contextmanager
def _server(data: Path) -> Iterator[None]:
    settings = f"-k {data} -p 5499 -c listen_addresses= -c shared_buffers=512MB"
    log = str(data.parent / "log")
    Path(log).touch()
    shutil.chown(log, _USER, _USER)
    _as_postgres(["pg_ctl", "-D", str(data), "-w", "-l", log, "-o", settings, "start"], data)
    try:
        yield
    finally:
        _as_postgres(["pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop"], data)


def _as_postgres(command: Sequence[str], folder: Path) -> None:
    """Run one of PostgreSQL's programs as its own user: it refuses to be root."""
    _run(["runuser", "-u", _USER, "--", str(_programs() / command[0]), *command[1:]], folder)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    if not found:
        raise SystemExit("PostgreSQL is not installed: run tools/install-packages bench")
    return found[-1].parent


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        # Not a pipe: the server would keep it open for as long as it lives.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")


def _checked(one: Kept) -> bool:
    done = restic(one.folder, "check", "--read-data", ok=(0, 1))
    clean = done.returncode == 0 and b"no errors were found" in done.stdout + done.stderr
    print(f"restic check --read-data, {one.name}: {'no errors' if clean else 'ERRORS'}")
    return clean


def _verdict(coarse: Kept, fine: Kept) -> bool:
    ratio = sum(fine.grown[1:]) / sum(coarse.grown[1:])
    first = fine.grown[0] / coarse.grown[0]
    print(f"{fine.name}: first image {first:.3f} of coarse, later ones: {ratio:.3f}", end="")
    print(f" (wanted: {_TARGET})")
    for name, numbers in (("wall", (coarse.wall, fine.wall)), ("cpu", (coarse.cpu, fine.cpu))):
        one, two = (sum(times[1:]) for times in numbers)
        print(f"{name} of the later ones: {one:.1f} s coarse, {two:.1f} s {fine.name}")
    return ratio <= _TARGET and first <= 1.01


if __name__ == "__main__":
    sys.exit(main())
