"""Disks in use that are imaged hot: who writes to them, and the frozen disk to compare with."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

from freezeframe.app.online import backup_online
from freezeframe.app.restore import RestoreOptions, execute, prepare_restore
from freezeframe.backup.hot import copying
from freezeframe.backup.hot.freezing import Freezing
from freezeframe.backup.hot.settings import HotSettings
from freezeframe.core.progress import Silent
from freezeframe.core.units import MIB
from freezeframe.image.manifest import HotProof
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository
from freezeframe.system import sysfs
from freezeframe.system.run import run, search_path
from freezeframe.tracking.tracker import stop_number

#: Long enough to copy a disk inside of the freeze on a machine that has much else to do.
SETTINGS = HotSettings(freeze_limit=60, back_off=False, threads=2)

#: Writes at random with fdatasync, creates, renames and unlinks, and trims, until it is ended;
#: a dot on standard output for each round.
_STORM = r"""
import os, random, subprocess, sys, time
folder, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
os.makedirs(folder)
data = os.open(f"{folder}/data", os.O_RDWR | os.O_CREAT)
for _ in range(24):
    os.write(data, rng.randbytes(1 << 20))
names = []
turn = 0
while True:
    turn += 1
    for _ in range(4):
        name = f"{folder}/{turn}-{rng.random()}"
        with open(name, "wb") as file:
            file.write(rng.randbytes(rng.choice((10, 3000, 9000, 70_000, 200_000))))
        names.append(name)
        for _ in range(4):
            os.pwrite(data, rng.randbytes(4096), rng.randrange(6000) * 4096)
    os.fdatasync(data)
    for _ in range(3):
        index = rng.randrange(len(names))
        os.rename(names[index], names[index] + "-")
        names[index] += "-"
    while len(names) > 150:
        os.unlink(names.pop(rng.randrange(len(names))))
    # Each marks all that is free, and that is then read again: now and then only.
    if turn % 100 == 20:
        subprocess.run(["fstrim", folder])
    os.write(1, b".")
    time.sleep(0.03)
"""

#: Appends numbered records to all files it is named in turn, each with fsync.
PAIR = r"""
import os, sys, time
files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in sys.argv[1:]]
number = 0
while True:
    for file in files:
        os.write(file, b"record %010d\n" % number)
        os.fsync(file)
    os.write(1, b".")
    number += 1
    time.sleep(0.003)
"""


@contextlib.contextmanager
def _at_work(script: str, *arguments: str, dots: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        env=dict(os.environ, PATH=search_path()),
    )
    assert process.stdout is not None
    try:
        # A full pipe would hold it up: somebody has to read on.
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.PIPE)
        assert drain.stdout is not None
        assert len(drain.stdout.read(dots)) == dots
        swallow = subprocess.Popen(["cat"], stdin=drain.stdout, stdout=subprocess.DEVNULL)
        yield process
        assert process.poll() is None, "the writer gave up"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        drain.wait()
        assert drain.stdout is not None
        drain.stdout.close()
        swallow.wait()


def storm(folder: Path, seed: int = 1) -> contextlib.AbstractContextManager[object]:
    """Have a process write to a filesystem in every way; `folder` is made by it."""
    return _at_work(_STORM, str(folder), str(seed), dots=3)


def pair(one: Path, two: Path) -> contextlib.AbstractContextManager[object]:
    """Have a process append a record to one file, then to the other, each with fsync."""
    return _at_work(PAIR, str(one), str(two), dots=3)


def last_record(path: Path) -> int:
    """Return the number of the last record. `AssertionError` where one is missing."""
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines == [b"record %010d\n" % number for number in range(len(lines))]
    return len(lines) - 1


@dataclass
class FrozenCopies:
    """Copies of whole devices, made inside each freeze in which all was read."""

    folder: Path
    devices: Sequence[str]
    #: What else a test does in there.
    calls: int = 0
    #: So many windows are over before anything is read.
    too_short: int = 0
    copies: dict[str, Path] = field(default_factory=dict)

    @contextlib.contextmanager
    def made(self) -> Iterator[FrozenCopies]:
        """Within, every hot image leaves its copies."""
        real = Freezing.read_frozen

        def wrapped(freezing: Freezing, until: float) -> bool:
            self.calls += 1
            if self.calls <= self.too_short:
                freezing.world.harvest(frozen=True)
                return False
            done = real(freezing, until)
            if done:
                for device in self.devices:
                    self.copies[device] = self.folder / f"frozen-{Path(device).name}"
                    copy_direct(device, self.copies[device])
            return done

        with mock.patch.object(Freezing, "read_frozen", wrapped):
            yield self


def copy_direct(device: str, target: Path) -> None:
    """Copy a device past the page cache into a sparse file."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        with mmap.mmap(-1, 4 * MIB) as room, target.open("wb") as file, memoryview(room) as view:
            for offset in range(0, size, len(view)):
                part = view[: min(len(view), size - offset)]
                assert os.preadv(descriptor, [part], offset) == len(part)
                if np.frombuffer(part, np.uint8).any():
                    os.pwrite(file.fileno(), part, offset)
                part.release()
            file.truncate(size)
    finally:
        os.close(descriptor)


@dataclass
class Made:
    """One hot image, restored and compared."""

    image: ImageReader
    #: The restored disks by device.
    restored: dict[str, Path]

    @property
    def hot(self) -> HotProof:
        """The evidence."""
        found = self.image.manifest.hot
        assert found is not None
        return found

    @property
    def bytes_read(self) -> int:
        """Of all disks."""
        return sum(disk.bytes_read for disk in self.hot.disks)


def restore(image: ImageReader, folder: Path, name: str) -> dict[str, Path]:
    """Restore every disk of an image into files of a folder; by the paths they were imaged at."""
    found = {}
    for disk in image.manifest.disks:
        target = folder / f"{name}-{disk.name}.raw"
        target.unlink(missing_ok=True)
        execute(prepare_restore(image, RestoreOptions(str(target), disk=disk.name)), Silent())
        found[disk.path] = target
    return found


def image_hot(
    repository: Repository,
    devices: Sequence[str],
    folder: Path,
    *,
    name: str = "restored",
    settings: HotSettings = SETTINGS,
    too_short: int = 0,
) -> Made:
    """Image devices hot, restore, and compare every used byte with the frozen devices.

    `AssertionError` where any differs. Leaves `<folder>/<name>-<disk>.raw`.
    """
    # On a machine that does much else, what gives way to all of that never ends.
    nice = mock.patch.object(copying, "_NICE", 0)
    with nice, FrozenCopies(folder, devices, too_short=too_short).made() as frozen:
        result = backup_online(repository, devices, Silent(), settings)
    image = ImageReader(repository, repository.load_index(), result.snapshot)
    made = Made(image, restore(image, folder, name))
    for disk in image.manifest.disks:
        used = image.disk_blobs(disk).used
        assert used
        bad = differences(made.restored[disk.path], frozen.copies[disk.path], used.starts.tolist(),
                          used.stops.tolist())  # fmt: skip
        assert not bad, f"{disk.path}: {len(bad)} of {len(used)} extents differ, first {bad[:3]}"
        frozen.copies[disk.path].unlink()
    return made


def differences(
    one: Path, two: Path, starts: Sequence[int], stops: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the ranges in which two files differ."""
    bad = []
    with one.open("rb") as first, two.open("rb") as second:
        for start, stop in zip(starts, stops, strict=True):
            for offset in range(start, stop, MIB):
                length = min(MIB, stop - offset)
                first.seek(offset)
                second.seek(offset)
                ours, theirs = first.read(length), second.read(length)
                if ours != theirs or len(ours) != length:
                    bad.append((offset, offset + length))
    return bad


def check_filesystem(kind: str, path: Path | str) -> None:
    """Run the filesystem's own checker on a device or file; `ToolFailed` where it complains."""
    if kind == "ext4":
        run(("e2fsck", "-fn", str(path)))
    elif kind == "btrfs":
        run(("btrfs", "check", "--check-data-csum", str(path)))
    else:
        run(("xfs_repair", "-n", str(path)))


def untrack(*devices: str) -> None:
    """Stop tracking, whether the devices are there or not."""
    for device in devices:
        node = sysfs.node_of(device)
        if node is not None:
            stop_number(node.whole.number)
