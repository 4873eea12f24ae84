"""`btrfs`: read-only snapshots of all subvolumes. Files only; for the device there is `hot`.

A snapshot is written by the very filesystem, so it cannot be made while that is frozen.
It is a point in time by itself: all snapshots that are made in one transaction of the
filesystem are of one instant. So they are asked for at once, each in a folder of its own
(the kernel lets one at a time into a folder), and where they came to lie in more than one
transaction, they are made again. A set with two btrfs filesystems has no common instant
this way, which `one_instant` tells.

The snapshots lie in `.freezeframe/<name>-<volume>/<subvolume's number>/<its name>` of the
top-level subvolume, which is mounted below /run/freezeframe/btrfs for as long.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.errors import ToolFailed
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers.base import Fit, Provider, ProviderFailed, Shadow, Volume, Wishes
from freezeframe.system import btrfs
from freezeframe.system.mounts import own_mounts
from freezeframe.system.run import run, which

_MOUNTS = Path("/run/freezeframe/btrfs")
#: In the top-level subvolume.
_FOLDER = ".freezeframe"
#: `btrfs subvolume list`: `ID 256 gen 7 top level 5 path home`.
_LISTED = re.compile(r"^ID (\d+) gen \d+ top level \d+ path (.*)$", re.MULTILINE)
_TOP = 5
#: So many threads ask at once; more subvolumes than that are seldom of one transaction.
_MOST_THREADS = 64


@dataclass(slots=True)
class _Subvolume:
    """One subvolume, and where its snapshot goes; everything is open before the commit."""

    name: str
    source: int
    folder: int

    def close(self) -> None:
        os.close(self.source)
        os.close(self.folder)


class BtrfsProvider(Provider):
    """Snapshots of the writable subvolumes of each filesystem; read-only ones stay as they are."""

    kind = "btrfs"
    holds_filesystems = True
    gives_devices = False

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        super().__init__(name, volumes, wishes)
        self._subvolumes: list[list[_Subvolume]] = []
        self._threads: ThreadPoolExecutor | None = None

    @classmethod
    def unavailable(cls) -> str:
        """Say why it does not work on this machine, or nothing."""
        return "" if which("btrfs") else "btrfs-progs is not installed"

    @classmethod
    def fit(cls, volume: Volume) -> Fit:
        """Take a mounted, writable btrfs; as a last choice, because its copies are no devices."""
        found = [each for each in volume.filesystems if each.kind == "btrfs"]
        if not found:
            return Fit(False, 0, "no btrfs is mounted from it")
        if found[0].read_only:
            return Fit(False, 0, "mounted read-only: nothing changes")
        return Fit(True, 0, "snapshots of its subvolumes: files only, no device")

    @property
    def one_instant(self) -> bool:
        """Whether all its copies are of one instant: those of one filesystem are."""
        return len({each.filesystems[0].device for each in self.volumes}) <= 1

    def record(self) -> Mapping[str, str]:
        """Return the filesystems and the names of everything."""
        devices = {f"device.{n}": each.path for n, each in enumerate(self.volumes)}
        return {"name": self.name, "count": str(len(self.volumes)), **devices}

    # -- one point in time --------------------------------------------------------------

    def prepare(self, deadline: Deadline) -> None:
        """Mount the top-level subvolumes, and make folders for the snapshots."""
        self.journal()
        for index, volume in enumerate(self.volumes):
            deadline.check("looking for subvolumes")
            point = _mount(volume.path, f"{self.name}-{index}")
            try:
                found = _writable(point)
                folder = point / _FOLDER / f"{self.name}-{index}"
                folder.mkdir(parents=True, mode=0o700)
                self._subvolumes.append([])
                for number, path in found:
                    self._subvolumes[-1].append(_opened(point, folder, number, path))
            except OSError as error:
                raise _failed(volume.path, error) from error
        count = sum(map(len, self._subvolumes))
        self._threads = ThreadPoolExecutor(min(max(count, 1), _MOST_THREADS), "btrfs")
        _start_all(self._threads, min(count, _MOST_THREADS))

    def commit(self, deadline: Deadline) -> None:
        """Make the snapshots, again and again until all of a filesystem are of one instant."""
        for volume, subvolumes in zip(self.volumes, self._subvolumes, strict=True):
            try:
                while not self._attempt(subvolumes):
                    deadline.check(f"a common instant of all subvolumes on {volume.path}")
            except OSError as error:
                raise _failed(volume.path, error) from error

    def _attempt(self, subvolumes: Sequence[_Subvolume]) -> bool:
        assert self._threads is not None, "prepare first"
        # All are waited for, whatever becomes of one.
        asked = [
            self._threads.submit(btrfs.snapshot, each.source, each.folder, each.name)
            for each in subvolumes
        ]
        errors = [error for future in asked if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        if len({_transaction(each) for each in subvolumes}) <= 1:
            return True
        for each in subvolumes:
            btrfs.remove(each.folder, each.name)
        return False

    def shadows(self) -> tuple[Shadow, ...]:
        """Return the folders with the snapshots."""
        return tuple(
            Shadow(volume, str(_place(f"{self.name}-{n}")), is_device=False)
            for n, volume in enumerate(self.volumes)
        )

    # -- afterwards ---------------------------------------------------------------------

    def release(self) -> None:
        """Remove the snapshots. Raises `ProviderFailed`."""
        for subvolumes in self._subvolumes:
            for each in subvolumes:
                each.close()
        self._subvolumes = []
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        self.clean(self.record())

    @classmethod
    def clean(cls, record: Mapping[str, str]) -> None:
        """Remove the snapshots and folders a record tells of. Raises `ProviderFailed`."""
        for index in range(int(record.get("count", "0"))):
            name, device = f"{record['name']}-{index}", record[f"device.{index}"]
            try:
                _remove(device, name)
            except (OSError, ToolFailed) as error:
                raise ProviderFailed(
                    f"snapshots {_FOLDER}/{name} on {device} cannot be removed: {error}",
                    hint="end what has them open, and run `freezeframe shadow cleanup`",
                ) from error

    @classmethod
    def trouble(cls, record: Mapping[str, str]) -> str:
        """Say why kept snapshots are not there, or nothing."""
        for index in range(int(record.get("count", "0"))):
            if not _place(f"{record['name']}-{index}").is_dir():
                return f"the snapshots on {record[f'device.{index}']} are not mounted"
        return ""

    @classmethod
    def strays(cls) -> Sequence[Mapping[str, str]]:
        """Return records of snapshots that are there by their names: they outlive a reboot."""
        found: dict[str, dict[str, str]] = {}
        for device, point in _filesystems().items():
            for name in _left_on(point):
                stem, _, index = name.rpartition("-")
                record = found.setdefault(stem, {"name": stem, "count": "0"})
                record[f"device.{index}"] = device
                record["count"] = str(max(int(record["count"]), int(index) + 1))
        return [
            r for r in found.values() if all(f"device.{n}" in r for n in range(int(r["count"])))
        ]


def _place(name: str) -> Path:
    return _MOUNTS / name / _FOLDER / name


def _mount(device: str, name: str) -> Path:
    """Mount the top-level subvolume; return where."""
    point = _MOUNTS / name
    point.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not point.is_mount():
        run(("mount", "-t", "btrfs", "-o", f"subvolid={_TOP}", device, str(point)))
    return point


def _writable(point: Path) -> list[tuple[int, str]]:
    """Return the number and path of every subvolume that may change, the top-level one first."""
    command = ("btrfs", "subvolume", "list")
    listed, fixed = (
        {(int(number), path) for number, path in _LISTED.findall(
            run((*command, *options, str(point))).stdout.decode(errors="surrogateescape"))}
        for options in ((), ("-r",))
    )  # fmt: skip
    return [(_TOP, ""), *sorted(listed - fixed)]


def _opened(point: Path, folder: Path, number: int, path: str) -> _Subvolume:
    own = folder / str(number)
    own.mkdir()
    source = os.open(point / path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        os.close(source)
        raise
    return _Subvolume(Path(path).name or "top", source, target)


def _transaction(made: _Subvolume) -> int:
    descriptor = os.open(made.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=made.folder)
    try:
        return btrfs.made_in(descriptor)
    finally:
        os.close(descriptor)


def _start_all(threads: ThreadPoolExecutor, count: int) -> None:
    """Have all threads started: none is to be made while disks stand still."""
    gate = threading.Barrier(count + 1)
    for _ in range(count):
        threads.submit(gate.wait)
    gate.wait()


def _remove(device: str, name: str) -> None:
    """Remove what is in a set's folder of one filesystem, the folder, and the mount."""
    point = _mount(device, name)
    folder = point / _FOLDER / name
    if folder.is_dir():
        for own in folder.iterdir():
            for made in own.iterdir():
                run(("btrfs", "subvolume", "delete", str(made)))
            own.rmdir()
        folder.rmdir()
    with contextlib.suppress(OSError):
        # Others may have theirs in it.
        (point / _FOLDER).rmdir()
    run(("umount", str(point)))
    point.rmdir()


def _filesystems() -> dict[str, Path]:
    """Return the device of each mounted btrfs, and one place where it is mounted."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for mount in own_mounts():
        if mount.kind == "btrfs" and mount.device not in seen:
            seen.add(mount.device)
            found[mount.source] = Path(mount.point)
    return found


def _left_on(point: Path) -> Iterator[str]:
    try:
        done = run(("btrfs", "subvolume", "list", "-a", "-r", str(point)))
    except ToolFailed:
        return
    seen: set[str] = set()
    for _, path in _LISTED.findall(done.stdout.decode(errors="surrogateescape")):
        match = re.search(rf"(?:^|/){re.escape(_FOLDER)}/([^/]+-\d+)/", path)
        if match is not None and match[1] not in seen:
            seen.add(match[1])
            yield match[1]


def _failed(path: str, error: BaseException) -> ProviderFailed:
    return ProviderFailed(
        f"snapshots of the btrfs on {path} cannot be made: {error}",
        hint="see whether it is mounted read-only or full: btrfs filesystem usage",
    )
