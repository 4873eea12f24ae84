"""Bring an image back: plan first, then execute just that."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from freezeframe.block.base import Writer
from freezeframe.block.open import open_target, probe_target
from freezeframe.core.errors import TargetUnsuitable, UsageError
from freezeframe.core.progress import Progress
from freezeframe.image.manifest import DiskRecord
from freezeframe.image.reader import DiskBlobs, ImageReader
from freezeframe.restore.execute import execute_restore, finish_restore
from freezeframe.restore.plan import RestorePlan, Target, only_changed, plan_restore, to_zero
from freezeframe.restore.shrink import Smaller, made_smaller, write_moved, write_smaller
from freezeframe.restore.survey import survey
from freezeframe.system.holders import lies_on
from freezeframe.system.run import run
from freezeframe.system.workers import default_threads

#: Target files with these endings are written in that format by qemu-img.
_FORMATS = {".qcow2": "qcow2"}


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What the user asked for."""

    to: str
    disk: str = ""
    partition: int | None = None
    #: A logical volume inside, `group/volume`, in the place of a disk or partition.
    volume: str = ""
    grow: bool = False
    zero_unused: bool = False
    discard: bool = True
    #: For a new file: its size in bytes; 0 takes the disk's own.
    size: int = 0
    #: `raw`, `qcow2`, or empty to go by the file's name.
    format: str = ""
    threads: int | None = None
    #: Look what the target holds already, and write only what differs.
    changed_only: bool = False
    #: Make a filesystem smaller that does not fit, in a private copy in the folder `scratch`
    #: (empty: beside a new file, or where temporary files that may be large belong).
    shrink: bool = False
    scratch: str = ""


@dataclass(frozen=True, slots=True)
class PreparedRestore:
    """A plan and what is needed to execute it."""

    plan: RestorePlan
    image: ImageReader
    blobs: DiskBlobs
    options: RestoreOptions
    #: `raw` or another format that the finished raw file is turned into.
    format: str
    #: The target, open since it was looked at, so that nobody else can write to it meanwhile.
    held: Writer | None = None


@contextmanager
def prepared_restore(
    image: ImageReader, options: RestoreOptions, progress: Progress
) -> Iterator[PreparedRestore]:
    """Prepare a restore as `prepare_restore` does; with `changed_only` look at the target, too.

    It is then held from that look on, and released by `execute` or in the end.
    """
    prepared = prepare_restore(image, options)
    if not options.changed_only:
        yield prepared
        return
    with open_target(prepared.plan.target.path) as held:
        found = survey(
            image,
            prepared.blobs,
            prepared.plan.write,
            to_zero(prepared.plan),
            held,
            prepared.plan.start,
            progress,
            threads=options.threads,
        )
        yield replace(prepared, plan=only_changed(prepared.plan, found), held=held)


def prepare_restore(image: ImageReader, options: RestoreOptions) -> PreparedRestore:
    """Decide what will be written where, and refuse what must not be overwritten."""
    if options.shrink and (options.grow or options.changed_only):
        raise UsageError("--shrink goes neither with --grow nor with --changed-only")
    disk = choose_disk(image, options.disk)
    form = options.format or _FORMATS.get(Path(options.to).suffix.lower(), "raw")
    target = _target(image, disk, options, form)
    if options.changed_only and target.blank:
        raise UsageError(
            f"there is no {options.to} yet, so that nothing of it could be kept",
            hint="leave --changed-only out",
        )
    blobs = image.disk_blobs(disk)
    plan = plan_restore(
        image.snapshot.short_id,
        disk,
        blobs,
        target,
        partition=options.partition,
        grow=options.grow,
        zero_unused=options.zero_unused,
        discard=options.discard and not options.changed_only,
        scratch=_scratch(options, target) if options.shrink else "",
    )
    return PreparedRestore(plan, image, blobs, options, form)


def execute(prepared: PreparedRestore, progress: Progress) -> int:
    """Do what the plan says; return how many bytes of data were written.

    A new file appears under its name when it is finished, and not at all otherwise. A
    target that was there before is incomplete after a failure: a note of the exception
    says so.
    """
    if prepared.plan.target.blank:
        return _make_file(prepared, progress)
    return _overwrite(prepared, progress)


def _scratch(options: RestoreOptions, target: Target) -> str:
    """Return the folder for a private copy of a filesystem."""
    beside = str(Path(options.to).absolute().parent) if target.blank else "/var/tmp"
    folder = options.scratch or beside
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder}", hint="name another: --scratch")
    return folder


def _overwrite(prepared: PreparedRestore, progress: Progress) -> int:
    with ExitStack() as stack:
        smaller = _smaller(prepared, stack, progress)
        return _write_over(prepared, smaller, progress)


def _smaller(prepared: PreparedRestore, stack: ExitStack, progress: Progress) -> Smaller | None:
    """Make the filesystem smaller that has to be, before anything is written; None: none has."""
    plan = prepared.plan
    if plan.shrink is None:
        return None
    made = made_smaller(plan.shrink, plan.disk, prepared.image, prepared.blobs, progress)
    return stack.enter_context(made)


def _write_over(prepared: PreparedRestore, smaller: Smaller | None, progress: Progress) -> int:
    target = prepared.plan.target
    with prepared.held or open_target(target.path) as writer:
        if writer.size != target.size:
            raise TargetUnsuitable(
                f"{target.path} has {writer.size} bytes, the plan was made for {target.size}",
                hint="run it again",
            )
        with said_incomplete(target.path):
            written = _write(prepared, smaller, writer, progress)
    with said_incomplete(target.path):
        finish_restore(prepared.plan, target.path, progress)
    return written


@contextmanager
def said_incomplete(path: str) -> Iterator[None]:
    """Say of a target that it is incomplete, where what is done within fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{path} is incomplete now: restore to it again before it is used")
        raise


def _write(
    prepared: PreparedRestore, smaller: Smaller | None, writer: Writer, progress: Progress
) -> int:
    # A file's writes end in the page cache, at once: one more thread would only push.
    threads = default_threads(waiting=bool(prepared.plan.target.sector))
    execute_restore(
        prepared.plan,
        prepared.image,
        prepared.blobs,
        writer,
        progress,
        threads=prepared.options.threads or threads,
    )
    plan = prepared.plan
    if smaller is None or plan.shrink is None:
        return plan.write.total
    written = write_smaller(
        smaller,
        writer,
        plan.shrink.region.start - plan.start,
        progress,
        blank=plan.target.blank,
        zero_unused=prepared.options.zero_unused,
    )
    written += write_moved(
        plan.shrink,
        prepared.image,
        prepared.blobs,
        writer,
        progress,
        blank=plan.target.blank,
        zero_unused=prepared.options.zero_unused,
    )
    writer.flush()
    return plan.write.total + written


def _make_file(prepared: PreparedRestore, progress: Progress) -> int:
    """Write a file beside its final place; sparse and raw at first, whatever it becomes."""
    final = Path(prepared.options.to)
    raw = final.with_name(f"{final.name}.unfinished-{os.getpid()}")
    converted = raw.with_name(f"{raw.name}.{prepared.format}")
    try:
        with ExitStack() as stack:
            smaller = _smaller(prepared, stack, progress)
            writer = stack.enter_context(open_target(raw, size=prepared.plan.target.size))
            written = _write(prepared, smaller, writer, progress)
        finish_restore(prepared.plan, str(raw), progress)
        if prepared.format == "raw":
            give_name(raw, final)
            return written
        progress.start(f"write {prepared.format}", 0)
        run(["qemu-img", "convert", "-f", "raw", "-O", prepared.format, str(raw), str(converted)])
        give_name(converted, final)
        raw.unlink()
        return written
    except BaseException:
        # Nobody else's: the names are of this process.
        raw.unlink(missing_ok=True)
        converted.unlink(missing_ok=True)
        raise


def give_name(unfinished: Path, final: Path) -> None:
    """Name a finished file, once it is on stable storage; never replace another."""
    if os.path.lexists(final):
        raise TargetUnsuitable(f"{final} was made by somebody else meanwhile")
    try:
        _synchronise(unfinished)
        unfinished.rename(final)
        _synchronise(final.absolute().parent)
    except OSError as error:
        raise TargetUnsuitable(f"{final} cannot be finished: {error.strerror}") from error


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    if form != "raw" and Path(options.to).exists():
        raise TargetUnsuitable(
            f"{options.to} exists already", hint=f"name a {form} file that does not exist yet"
        )
    found = existing_target(image, options)
    if found is not None:
        return found
    size = disk.size
    if options.partition is not None and (region := disk.partition(options.partition)):
        size = region.length
    return new_file(options, size)


def existing_target(image: ImageReader, options: RestoreOptions) -> Target | None:
    """Look at a device or file that is there already; None where it is not.

    Raises what `open_target` would, and `TargetUnsuitable` for what the repository lies on.
    """
    path = Path(options.to)
    refuse_repository(image.repository.store.location, path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TargetUnsuitable(f"{path} cannot be reached: {error.strerror}") from error
    if options.size:
        raise UsageError("--size is for a file that does not exist yet")
    size, sector = probe_target(str(path))
    return Target(str(path), size, sector if stat.S_ISBLK(mode) else 0, blank=False)


def refuse_repository(location: str, path: Path) -> None:
    """Refuse what the repository lies on, and what lies in it."""
    folder = Path(location)
    if not folder.exists():
        return
    if path.exists() and lies_on(folder, path):
        raise TargetUnsuitable(
            f"{path} holds the repository itself", hint="choose another disk to restore to"
        )
    if path.resolve().is_relative_to(folder.resolve()):
        raise TargetUnsuitable(
            f"{path} lies in the repository", hint="choose a place outside of it"
        )


def new_file(options: RestoreOptions, size: int) -> Target:
    """Return the file that is going to be made, of `size` bytes if nobody said otherwise."""
    path = Path(options.to)
    if path.is_symlink():
        raise TargetUnsuitable(f"{path} is a link to nothing", hint="name what it should lead to")
    if not path.parent.is_dir():
        raise TargetUnsuitable(
            f"there is no folder {path.parent}", hint="make it, or name another file"
        )
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):
        raise TargetUnsuitable(f"there is no device {path}", hint="list them: freezeframe disks")
    return Target(str(path), options.size or size, 0, blank=True)
