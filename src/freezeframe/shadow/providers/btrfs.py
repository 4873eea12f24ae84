"""`btrfs`: read-only snapshots of all subvolumes. Files only; for the device there is `hot`.

A snapshot is written by the very filesystem, so it cannot be made while that is frozen, and
the kernel makes one at a time: each in a transaction of its own, also when they are asked
for at once (measured on Linux 6.18). The last one's is the common instant if no other subvolume
has changed since its own snapshot, which the transactions' numbers tell: then all are as they
were at that instant. Those that have changed are made again, for a second at most; where two
are written to all the time there is no common instant this way, and the commit fails.

What was written and not yet synchronised may or may not be in a snapshot, as after a power
cut. A set with two btrfs filesystems has no common instant, which `one_instant` tells.

The snapshots lie in `<name>-<volume>/<subvolume's number>/<its name>` of a subvolume
`.freezeframe` of the top-level one, which is mounted below /run/freezeframe/btrfs for as long.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
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
#: Seconds in which a common instant of several subvolumes is looked for.
_PATIENCE = 1.0


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
        """Whether all its copies are of one instant: those of one filesystem are, or fail."""
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
                if not (point / _FOLDER).exists():
                    # A subvolume, so that no other is changed by what is made in it.
                    run(("btrfs", "subvolume", "create", str(point / _FOLDER)))
                    (point / _FOLDER).chmod(0o700)
                folder = point / _FOLDER / f"{self.name}-{index}"
                folder.mkdir()
                self._subvolumes.append([])
                for number, path in found:
                    self._subvolumes[-1].append(_opened(point, folder, number, path))
            except OSError as error:
                raise _failed(volume.path, error) from error

    def commit(self, deadline: Deadline) -> None:
        """Make the snapshots. Raises `ProviderFailed` where they have no common instant."""
        for volume, subvolumes in zip(self.volumes, self._subvolumes, strict=True):
            try:
                _make_all(subvolumes, volume.path, deadline.within(_PATIENCE))
            except OSError as error:
                raise _failed(volume.path, error) from error

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
    found = sorted(listed - fixed)
    return [(_TOP, ""), *(each for each in found if each[1].split("/")[0] != _FOLDER)]


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


def _make_all(subvolumes: Sequence[_Subvolume], path: str, deadline: Deadline) -> None:
    """Make snapshots of all, so that they are of one instant: that of the one made last."""
    made: dict[int, int] = {}
    due = list(range(len(subvolumes)))
    while due:
        for index in due:
            each = subvolumes[index]
            if made.pop(index, None) is not None:
                btrfs.remove(each.folder, each.name)
            btrfs.snapshot(each.source, each.folder, each.name)
            made[index] = _transaction(each)
        *before, _ = made
        due = [n for n in before if btrfs.changed_in(subvolumes[n].source) > made[n]]
        if due and deadline.passed:
            raise ProviderFailed(
                f"several subvolumes on {path} are written to all the time: their snapshots "
                "have no common instant",
                hint="image the device with --provider hot, or stop what writes",
            )


def _transaction(made: _Subvolume) -> int:
    descriptor = os.open(made.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=made.folder)
    try:
        return btrfs.made_in(descriptor)
    finally:
        os.close(descriptor)


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
    if (point / _FOLDER).is_dir() and not any((point / _FOLDER).iterdir()):
        with contextlib.suppress(ToolFailed):
            # Another set may begin to use it just now.
            run(("btrfs", "subvolume", "delete", str(point / _FOLDER)))
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
