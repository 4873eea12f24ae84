"""Make a filesystem smaller, with the field's own programs, in a file that is a private copy.

Never on a target: what fails halfway has cost nothing but the copy. ext2/3/4 and NTFS are made
smaller in the file itself, btrfs by the kernel, mounted over a loop device.
"""

from __future__ import annotations

from collections.abc import Callable

from freezeframe.core.errors import FreezeframeError, TargetUnsuitable
from freezeframe.core.units import KIB, MIB, human_size
from freezeframe.layout.growth import E2FSCK_FINE, NotGrown, mounted_btrfs
from freezeframe.system.loop import attached
from freezeframe.system.run import run

#: What cannot be made smaller, and why.
_NOT_SHRUNK = {
    "xfs": "XFS cannot be made smaller by any program",
    "f2fs": "F2FS cannot be made smaller safely",
    "fat12": "no program here makes FAT smaller",
    "fat16": "no program here makes FAT smaller",
    "fat32": "no program here makes FAT smaller",
    "exfat": "no program here makes exFAT smaller",
    "lvm2": "LVM is made smaller from inside: pvmove and pvresize, then another image",
    "luks1": "what is inside of LUKS cannot be seen",
    "luks2": "what is inside of LUKS cannot be seen",
}


def can_shrink(kind: str) -> bool:
    """Whether there is a way to make a filesystem of that kind (as used maps call it) smaller."""
    return kind in _WAYS


def why_not(kind: str) -> str:
    """Say why a filesystem cannot be made smaller."""
    return _NOT_SHRUNK.get(kind, f"nobody knows how to make {kind or 'its content'} smaller")


def shrink_filesystem(path: str, kind: str, size: int, sector: int) -> None:
    """Make the filesystem that fills the file at `path` take `size` bytes, a whole MiB, at most.

    The file keeps its length. `sector` is the logical sector of the disk it is from. Raises
    `TargetUnsuitable` where that is too small for what it holds or the filesystem refuses;
    btrfs needs root.
    """
    try:
        _WAYS[kind](path, size, sector)
    except (FreezeframeError, OSError) as error:
        message = error.message if isinstance(error, FreezeframeError) else str(error)
        raise TargetUnsuitable(
            f"the {kind} cannot be made to fit into {human_size(size)}: {message}",
            hint="choose a larger target",
        ) from error


def _ext(path: str, size: int, sector: int) -> None:
    del sector
    run(("e2fsck", "-f", "-p", path), ok=E2FSCK_FINE)
    run(("resize2fs", path, f"{size // KIB}K"))
    # What was moved has been checked by nobody yet.
    run(("e2fsck", "-f", "-n", path))


def _ntfs(path: str, size: int, sector: int) -> None:
    del sector
    command = ("ntfsresize", "--no-progress-bar", "--force", "--size", str(size))
    run((*command, "--no-action", path))
    run((*command, path))


def _btrfs(path: str, size: int, sector: int) -> None:
    if size < 256 * MIB:
        raise NotGrown("btrfs takes 256 MiB at least")
    with attached(path, sector=sector) as device, mounted_btrfs(device) as folder:
        run(("btrfs", "filesystem", "resize", str(size), folder))


_WAYS: dict[str, Callable[[str, int, int], None]] = {
    "ext2": _ext,
    "ext3": _ext,
    "ext4": _ext,
    "ntfs": _ntfs,
    "btrfs": _btrfs,
}
