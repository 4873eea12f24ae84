"""Export a disk, partition or volume of an image to a file of another kind.

qemu-img reads it from an NBD server of ours, on a socket nobody else reaches: there is no
second copy on the way, and neither root nor FUSE is needed.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from freezeframe.access.nbd import NbdServer
from freezeframe.access.parts import Part
from freezeframe.app.attach import PartOptions, chosen_part
from freezeframe.app.restore import give_name, refuse_repository
from freezeframe.core.errors import TargetUnsuitable, UsageError
from freezeframe.core.progress import Progress
from freezeframe.repo.repository import Repository
from freezeframe.system.run import run_watched

#: Our words for them: what qemu-img calls them, and the options it is given.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "raw": ("raw", ()),
    "qcow2": ("qcow2", ()),
    "vmdk": ("vmdk", ()),
    "vhdx": ("vhdx", ("subformat=dynamic",)),
}
#: Requests qemu-img has under way at once.
_COROUTINES = 8
_DONE = re.compile(rb"\((\d+\.\d+)/100%\)")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    part: str
    #: Bytes of the disk, and those the file takes.
    size: int
    stored: int


def export_part(
    opening: Callable[[], Repository],
    options: PartOptions,
    target: Path,
    form: str,
    progress: Progress,
    *,
    compress: bool = False,
) -> Exported:
    """Write a part of an image to a new file, which appears under its name when it is whole.

    Raises `UsageError` for a part or format that is not there, `TargetUnsuitable`,
    `ToolMissing` without qemu-img, `RepositoryDamaged` where some of it cannot be read.
    """
    form = form or target.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise UsageError(
            f"the name {target.name} tells no format", hint=f"--format {'|'.join(FORMATS)}"
        )
    if compress and form != "qcow2":
        raise UsageError("only qcow2 files can be compressed")
    if os.path.lexists(target):
        raise TargetUnsuitable(f"{target} exists already", hint="name a file that does not")
    if not target.parent.is_dir():
        raise TargetUnsuitable(f"there is no folder {target.parent}", hint="make it first")
    repository = opening()
    refuse_repository(repository.store.location, target)
    with chosen_part(repository, options, progress) as (_, part):
        _convert(part, target, form, progress, compress=compress)
    stored = target.stat().st_blocks * 512
    return Exported(part.name, part.reader.size, stored)


def _convert(
    part: Part,
    target: Path,
    form: str,
    progress: Progress,
    *,
    compress: bool,
) -> None:
    unfinished = target.with_name(f"{target.name}.unfinished-{os.getpid()}")
    name, settings = FORMATS[form]
    command = ["qemu-img", "convert", "-p", "-W", "-m", str(_COROUTINES), "-f", "raw", "-O", name]
    if compress:
        command += ["-c"]
        settings = (*settings, "compression_type=zstd")
    if settings:
        command += ["-o", ",".join(settings)]
    progress.start(f"export to {form}", part.reader.size)
    done = 0

    def watch(text: bytes) -> None:
        nonlocal done
        if found := _DONE.findall(text):
            now = int(float(found[-1]) / 100 * part.reader.size)
            progress.advance(now - done)
            done = now

    try:
        with tempfile.TemporaryDirectory(prefix="freezeframe-export-") as folder:
            socket = os.path.join(folder, "nbd")  # noqa: PTH118
            with NbdServer({"disk": part.reader}, socket):
                source = f"nbd+unix:///disk?socket={quote(socket)}"
                run_watched(
                    [*command, source, os.fspath(unfinished)], watch, purpose="to write images"
                )
        give_name(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
