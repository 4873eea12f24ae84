"""Bring an image back: plan first, then execute just that."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from freezeframe.block.base import Writer
from freezeframe.block.open import open_target, probe_target
from freezeframe.core.errors import TargetUnsuitable, UsageError
from freezeframe.core.progress import Progress
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.restore.execute import execute_restore, finish_restore
from freezeframe.restore.plan import RestorePlan, Target, plan_restore
from freezeframe.system.holders import lies_on
from freezeframe.system.run import run

#: Target files with these endings are written in that format by qemu-img.
_FORMATS = {".qcow2": "qcow2"}


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What the user asked for."""

    to: str
    disk: str = ""
    partition: int | None = None
    grow: bool = False
    zero_unused: bool = False
    discard: bool = True
    #: For a new file: its size in bytes; 0 takes the disk's own.
    size: int = 0
    #: `raw`, `qcow2`, or empty to go by the file's name.
    format: str = ""
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedRestore:
    """A plan and what is needed to execute it."""

    plan: RestorePlan
    image: ImageReader
    blobs: DiskBlobs
    options: RestoreOptions
    #: `raw` or another format that the finished raw file is turned into.
    format: str


def prepare_restore(image: ImageReader, options: RestoreOptions) -> PreparedRestore:
    """Decide what will be written where, and refuse what must not be overwritten."""
    disk = choose_disk(image, options.disk)
    form = options.format or _FORMATS.get(Path(options.to).suffix.lower(), "raw")
    target = _target(image, disk, options, form)
    blobs = image.disk_blobs(disk)
    plan = plan_restore(
        image.snapshot.short_id,
        disk,
        blobs,
        target,
        partition=options.partition,
        grow=options.grow,
        zero_unused=options.zero_unused,
        discard=options.discard,
    )
    return PreparedRestore(plan, image, blobs, options, form)


def execute(prepared: PreparedRestore, progress: Progress) -> None:
    """Do what the plan says. A new file that could not be finished is removed again."""
    plan, target = prepared.plan, prepared.plan.target
    try:
        with _open(plan) as writer:
            execute_restore(
                plan,
                prepared.image,
                prepared.blobs,
                writer,
                progress,
                threads=prepared.options.threads,
            )
        finish_restore(plan, progress)
        if prepared.format != "raw":
            progress.start(f"write {prepared.format}", 0)
            run(
                [
                    "qemu-img",
                    "convert",
                    "-f",
                    "raw",
                    "-O",
                    prepared.format,
                    target.path,
                    prepared.options.to,
                ]
            )
    except BaseException:
        if target.blank:
            Path(target.path).unlink(missing_ok=True)
        raise
    if prepared.format != "raw":
        Path(target.path).unlink()


def choose_disk(image: ImageReader, name: str) -> DiskRecord:
    """Return the disk of that name, or the only one. Raises `UsageError`."""
    disks = image.manifest.disks
    names = ", ".join(disk.name for disk in disks)
    if name:
        found = image.manifest.disk(name)
        if found is None:
            raise UsageError(f"the image has no disk {name}", hint=f"it has: {names}")
        return found
    if len(disks) != 1:
        raise UsageError("the image holds several disks", hint=f"choose one by --disk: {names}")
    return disks[0]


def _target(image: ImageReader, disk: DiskRecord, options: RestoreOptions, form: str) -> Target:
    """Look at the target without opening it for writing."""
    path = Path(options.to)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _new_file(disk, options, form)
    except OSError as error:
        raise TargetUnsuitable(f"{path} cannot be reached: {error.strerror}") from error
    if form != "raw":
        raise TargetUnsuitable(
            f"{path} exists already", hint=f"name a {form} file that does not exist yet"
        )
    if options.size:
        raise UsageError("--size is for a file that does not exist yet")
    store = image.repository.store
    local = store.location if Path(store.location).exists() else ""
    if local and stat.S_ISBLK(mode) and lies_on(local, str(path)):
        raise TargetUnsuitable(
            f"{path} holds the repository itself", hint="choose another disk to restore to"
        )
    size, sector = probe_target(str(path))
    return Target(str(path), size, sector if stat.S_ISBLK(mode) else 0, blank=False)


def _new_file(disk: DiskRecord, options: RestoreOptions, form: str) -> Target:
    path = Path(options.to)
    if not path.parent.is_dir():
        raise TargetUnsuitable(
            f"there is no folder {path.parent}", hint="make it, or name another file"
        )
    if str(path).startswith("/dev/"):
        raise TargetUnsuitable(f"there is no device {path}", hint="list them: freezeframe disks")
    size = disk.size
    if options.partition is not None and (region := disk.partition(options.partition)):
        size = region.length
    # Other formats are made from a raw file beside it: sparse, and removed afterwards.
    raw = str(path) if form == "raw" else f"{path}.{os.getpid()}.raw"
    return Target(raw, options.size or size, 0, blank=True)


def _open(plan: RestorePlan) -> Writer:
    target = plan.target
    return open_target(target.path, size=target.size if target.blank else None)
