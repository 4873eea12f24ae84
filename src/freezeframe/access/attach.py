"""A part of an image as a read-only block device: a loop device over a FUSE file.

The process that serves it goes on in the background. What it attached is noted in a folder of
/run, so that `detach` and `doctor` find it, and what is left of a process that was killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freezeframe.access.fuse import FuseMount
from freezeframe.access.operations import TreeOperations
from freezeframe.access.parts import Part
from freezeframe.access.tree import File, Folder
from freezeframe.core.errors import FreezeframeError
from freezeframe.system import sysfs
from freezeframe.system.loop import attached
from freezeframe.system.mounting import detach_mount, is_mounted
from freezeframe.system.processes import started_at
from freezeframe.system.run import run

#: One folder for each process that attached something, and a note beside it.
RUN = Path("/run/freezeframe/attached")
#: How often a process looks whether its device was detached by somebody else; seconds.
_EVERY = 1.0


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One attached device, as it is noted."""

    device: str
    image: str
    part: str
    size: int
    pid: int
    #: When that process began, in ticks since boot: a later one may have its number.
    started: int
    #: Where its FUSE file is.
    folder: str

    def alive(self) -> bool:
        """Whether the process that serves it is there."""
        return started_at(self.pid) == self.started


@contextmanager
def raw_file(
    part: Part, folder: Path, tell: Callable[[str], None], *, name: str = "image.raw"
) -> Iterator[tuple[FuseMount, Path]]:
    """Show one part as a file in an empty folder of its own."""
    entry = File(part.reader.size, 0.0, lambda: part.reader)
    operations = TreeOperations(Folder(lambda: {name: entry}, 0.0), tell, folder=folder)
    with FuseMount(operations, folder) as fuse:
        yield fuse, folder / name


@dataclass(frozen=True, slots=True)
class Served:
    """A device that is served by this process."""

    attachment: Attachment
    _fuse: FuseMount

    def wait(self) -> None:
        """Wait until somebody detaches the device, or unmounts the file beneath."""
        while not self._fuse.wait(_EVERY):
            node = sysfs.node_of(self.attachment.device)
            if node is None or not sysfs.loop_backing_file(node):
                return


@contextmanager
def attached_part(image: str, part: Part, tell: Callable[[str], None]) -> Iterator[Served]:
    """Attach a part; detach it in the end. Raises `FreezeframeError`, `ToolFailed`."""
    folder = RUN / str(os.getpid())
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise FreezeframeError(
            f"{folder} cannot be made: {error.strerror}", hint="run it as root"
        ) from error
    note = folder.with_suffix(".json")
    try:
        with (
            raw_file(part, folder, tell) as (fuse, path),
            attached(path, sector=part.reader.sector, read_only=True, partitions=True) as device,
        ):
            attachment = Attachment(
                device=device,
                image=image,
                part=part.name,
                size=part.reader.size,
                pid=os.getpid(),
                started=started_at(os.getpid()),
                folder=str(folder),
            )
            note.write_bytes(msgspec.json.encode(attachment))
            yield Served(attachment, fuse)
    finally:
        note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def attachments() -> list[Attachment]:
    """Return what is attached, and what is left of processes that were killed."""
    found = []
    with contextlib.suppress(OSError):
        for note in sorted(RUN.glob("*.json")):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(note.read_bytes(), type=Attachment))
    return found


def clear_up(attachment: Attachment) -> None:
    """Remove what a process that was killed has left: its loop device, mount and note."""
    folder = Path(attachment.folder)
    node = sysfs.node_of(attachment.device)
    if node is not None and sysfs.loop_backing_file(node).startswith(f"{folder}/"):
        run(["losetup", "-d", attachment.device])
    if is_mounted(folder):
        detach_mount(folder)
    folder.with_suffix(".json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
