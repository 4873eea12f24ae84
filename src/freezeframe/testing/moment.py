"""One moment of mounted disks, with writers: what the coordinator does, without providers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.filesystems import find_filesystems
from freezeframe.shadow.freezer import Freezer
from freezeframe.shadow.scope import Scope
from freezeframe.shadow.writers.base import Writer, WriterResult
from freezeframe.system.loop import attached
from freezeframe.testing.frozen import MountedDisk, mounted_at
from freezeframe.testing.hot import copy_direct

_PATIENCE = 60.0
#: The copies are made inside of the freeze, on a machine that may have much else to do.
_LIMIT = 60.0


@dataclass
class Moment:
    """What came of it."""

    results: dict[str, WriterResult] = field(default_factory=dict)
    #: Copies of the disks as they were, and where each was mounted.
    copies: dict[Path, Path] = field(default_factory=dict)
    #: Seconds from the first writer's freeze to the last one's thaw.
    held: float = 0.0


def scope_of(disks: Sequence[MountedDisk], *, atomic: bool = True) -> Scope:
    """Return the scope of an image of these disks."""
    whole = Scope.of([disk.node for disk in disks])
    return whole if atomic else Scope(whole.volumes, atomic=False)


def take(writers: Sequence[Writer], disks: Sequence[MountedDisk], folder: Path | None) -> Moment:
    """Freeze writers, then filesystems; copy the disks into `folder`; let all go again."""
    deadline = Deadline.after(_PATIENCE)
    scope = scope_of(disks)
    moment = Moment()
    for writer in writers:
        writer.prepare(scope, deadline)
    filesystems = find_filesystems([disk.node for disk in disks]).filesystems
    with Freezer(filesystems, limit=_LIMIT) as freezer:
        freezer.sync()
        at = time.monotonic()
        try:
            for writer in writers:
                writer.freeze(deadline)
            with freezer.window(sync=False):
                if folder is not None:
                    copy(disks, folder, moment)
        finally:
            for writer in reversed(writers):
                writer.thaw()
        moment.held = time.monotonic() - at
    moment.results = {writer.name: writer.finish(True) for writer in writers}
    return moment


def take_apart(
    writers: Sequence[Writer], disks: Sequence[MountedDisk], folder: Path, pause: float
) -> Moment:
    """Copy each disk at a moment of its own, `pause` seconds apart, the last one first."""
    deadline = Deadline.after(_PATIENCE)
    moment = Moment()
    for writer in writers:
        writer.prepare(scope_of(disks, atomic=False), deadline)
        writer.freeze(deadline)
        writer.thaw()
    for disk in reversed(disks):
        filesystems = find_filesystems([disk.node]).filesystems
        with Freezer(filesystems, limit=_LIMIT) as freezer, freezer.window():
            copy([disk], folder, moment)
        time.sleep(pause)
    moment.results = {writer.name: writer.finish(True) for writer in writers}
    return moment


def copy(disks: Sequence[MountedDisk], folder: Path, moment: Moment) -> None:
    """Copy frozen disks."""
    for disk in disks:
        target = folder / f"copy-{disk.point.name}.raw"
        copy_direct(disk.device, target)
        moment.copies[disk.point] = target


@contextlib.contextmanager
def seen_again(moment: Moment) -> Iterator[None]:
    """Mount the copies where the disks were mounted; those must be gone."""
    with ExitStack() as stack:
        for point, copied in moment.copies.items():
            device = stack.enter_context(attached(copied))
            stack.enter_context(mounted_at(device, point))
        yield
