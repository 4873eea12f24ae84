"""Mount the filesystems of an image, read-only, each over a private layer.

A journal that was not empty when the image was taken is replayed into the layer: what is
seen then is what the machine would have seen, and the image is not written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from freezeframe.access.parts import Part
from freezeframe.core.errors import FreezeframeError
from freezeframe.system.interrupt import deferred
from freezeframe.system.loop import lent
from freezeframe.system.mounting import detach_mount, is_mounted, mount, unmount
from freezeframe.system.run import run, which

#: By what manifests say: the kernel's name, and the options besides `ro`.
_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # Where it was not unmounted cleanly, only its family is noted.
    "ext": ("ext4", ()),
    "ext2": ("ext4", ()),
    "ext3": ("ext4", ()),
    "ext4": ("ext4", ()),
    # The original may be mounted on this machine: the same id twice is refused otherwise.
    "xfs": ("xfs", ("nouuid",)),
    "btrfs": ("btrfs", ()),
    "f2fs": ("f2fs", ()),
    "ntfs": ("ntfs3", ()),
    "exfat": ("exfat", ()),
    "fat": ("vfat", ()),
    "fat12": ("vfat", ()),
    "fat16": ("vfat", ()),
    "fat32": ("vfat", ()),
}
#: What stands in for a filesystem the kernel does not know: the program, and its options.
_PROGRAMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ntfs3": ("ntfs-3g", ("norecover", "streams_interface=xattr")),
    "exfat": ("mount.exfat-fuse", ()),
}


@dataclass(frozen=True, slots=True)
class Mounted:
    """A filesystem that is shown as files."""

    name: str
    kind: str
    folder: Path


def mountable(part: Part) -> bool:
    """Whether a part holds a filesystem that any kernel mounts."""
    return part.content in _KINDS


class Filesystems:
    """The mounts beneath one image's tree; `unmount` ends them, the last first."""

    def __init__(self) -> None:
        self.mounted: list[Mounted] = []

    def mount(self, part: Part, layer: Path, folder: Path, tell: Callable[[str], None]) -> None:
        """Mount what a part holds, seen through the file `layer`; say why where it cannot be."""
        kind, options = _KINDS[part.content]
        try:
            with deferred():
                if _kernel_knows(kind):
                    # Not mount's own `loop`: with `ro` no journal could be replayed.
                    with lent(layer, sector=part.reader.sector) as device:
                        mount(kind, device, folder, ("ro", *options))
                else:
                    _by_program(kind, layer, folder)
                self.mounted.append(Mounted(part.name, part.content, folder))
        except FreezeframeError as error:
            tell(f"{part.name} ({part.content}) is not shown as files: {error.message}")

    def unmount(self) -> list[Mounted]:
        """Unmount all; return those that were in use, which were taken out of the tree."""
        busy = []
        for each in reversed(self.mounted):
            if not is_mounted(each.folder):
                continue
            try:
                unmount(each.folder)
            except FreezeframeError:
                if is_mounted(each.folder):
                    busy.append(each)
                    detach_mount(each.folder)
        self.mounted.clear()
        return busy


def _kernel_knows(kind: str) -> bool:
    if kind in Path("/proc/filesystems").read_text(encoding="ascii").split():
        return True
    # Loading it is what mount(8) would do.
    return (
        which("modprobe") is not None
        and not run(["modprobe", "--quiet", "--", kind], ok=range(256)).returncode
    )


def _by_program(kind: str, layer: Path, folder: Path) -> None:
    if kind not in _PROGRAMS:
        raise FreezeframeError(f"this kernel has no {kind}")
    program, options = _PROGRAMS[kind]
    if which(program) is None:
        raise FreezeframeError(f"this kernel has no {kind}, and {program} is not installed")
    line = [program, "-o", ",".join(("ro", *options)), os.fspath(layer), os.fspath(folder)]
    run(line, purpose=f"to mount {kind}")
