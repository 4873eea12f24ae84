"""Mounted filesystems that may be frozen in tests, with a net beneath: they never stay so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.units import MIB
from freezeframe.system import sysfs
from freezeframe.system.freeze import Frozen, freeze, thaw
from freezeframe.system.loop import attached
from freezeframe.system.run import run
from freezeframe.system.sysfs import Node
from freezeframe.testing.volumes import unmount

#: How each kind is made, quietly and whatever was there before.
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
#: XFS and btrfs are made no smaller.
SIZE = 320 * MIB
#: After so many seconds whatever is mounted is thawed, come what may.
_NET = 90
#: Seconds; nothing here takes a tenth of it.
PATIENCE = 30.0

_RECORDS = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    os.write(file, b"record %010d\\n" % number)
    os.fsync(file)
    os.write(1, b".")
    number += 1
"""


@dataclass(frozen=True, slots=True)
class MountedDisk:
    """One filesystem on a whole loop device, mounted."""

    device: str
    point: Path

    @property
    def node(self) -> Node:
        """The loop device."""
        node = sysfs.node_of(self.device)
        assert node is not None
        return node


@contextlib.contextmanager
def net(point: Path) -> Iterator[None]:
    """Within, a process waits to thaw a mounted filesystem: a test that hangs is freed."""
    command = f'sleep {_NET}; while fsfreeze --unfreeze "$1"; do :; done'
    process = subprocess.Popen(
        ["sh", "-c", command, "net", str(point)], stderr=subprocess.DEVNULL, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()
        run(("fsfreeze", "--unfreeze", str(point)), ok=(0, 1))


@contextlib.contextmanager
def mounted_at(device: str, point: Path, *options: str) -> Iterator[Path]:
    """Mount on a folder, which is made; the net is beneath. Thawed and unmounted in the end."""
    point.mkdir(parents=True, exist_ok=True)
    run(("mount", *options, device, str(point)))
    try:
        with net(point):
            yield point
    finally:
        unmount(point)


@contextlib.contextmanager
def mounted_disk(
    folder: Path, kind: str, name: str = "disk", *, size: int = SIZE
) -> Iterator[MountedDisk]:
    """Make a filesystem in a new file, attach and mount it at `<folder>/<name>`."""
    image = folder / f"{name}.raw"
    image.touch()
    os.truncate(image, size)
    run((*_MAKE[kind], str(image)))
    with attached(image) as device, mounted_at(device, folder / name) as point:
        yield MountedDisk(device, point)
    image.unlink()


class RecordWriter:
    """A process that appends records to a file, each with fsync."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._written = 0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def written(self) -> int:
        """Return how many records are durable by now."""
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._process.stdout.fileno(), 65536):
                self._written += len(more)
        return self._written

    def wait_for_more(self) -> None:
        """Wait until it has written on. `AssertionError` where it never does."""
        before = self.written()
        eventually(lambda: self.written() > before)


@contextlib.contextmanager
def record_writer(file: Path) -> Iterator[RecordWriter]:
    """Have a process append records to a file."""
    with running_writer(_RECORDS, file) as writer:
        yield writer


@contextlib.contextmanager
def running_writer(program: str, *arguments: str | Path) -> Iterator[RecordWriter]:
    """Run a Python program that prints how far it is, until the end."""
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        writer = RecordWriter(process)
        writer.wait_for_more()
        yield writer
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def is_frozen(point: Path) -> bool:
    """Whether a filesystem is frozen now; freezes and thaws it to find out where it is not."""
    descriptor = os.open(point, os.O_RDONLY)
    try:
        answer = freeze(descriptor)
        if answer is Frozen.DONE:
            thaw(descriptor)
        return answer is Frozen.BUSY
    finally:
        os.close(descriptor)


def eventually(what: Callable[[], bool]) -> None:
    """Wait until something is so. `AssertionError` where it never is."""
    patience = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < patience, "it never came"
        time.sleep(0.01)
