"""Where what is about to be overwritten goes: a device, or a loop device on a file.

A file may lie in memory. Its room is reserved at once: a store that finds its disk full
loses the copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.errors import ToolFailed
from freezeframe.core.units import MIB
from freezeframe.shadow.providers.base import ProviderFailed, Volume
from freezeframe.shadow.stack import Stack
from freezeframe.system import sysfs
from freezeframe.system.loop import attach, detach
from freezeframe.system.memory import available_memory
from freezeframe.system.run import run

#: What `Wishes.store` says for memory, and the filesystem that is.
MEMORY, _IN_MEMORY = "memory", Path("/dev/shm")
#: Where large files that may go lie, on a disk.
_ON_DISK = Path("/var/tmp")
#: This part of the memory that is to be had is taken for stores, at most.
_MEMORY_PART = 0.25


@dataclass(frozen=True, slots=True)
class StoreFile:
    """One file and its loop device."""

    path: Path

    def make(self, size: int) -> str:
        """Make the file with all its room, attach it, and return the device."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ProviderFailed(
                f"{self.path} of {size // MIB} MiB cannot be made: {error.strerror}",
                hint="choose another place (--store) or a smaller size (--store-size)",
            ) from error
        return attach(self.path)

    def grow(self) -> None:
        """Make it half as large again; it stays as it is where there is no room."""
        size = self.path.stat().st_size
        with self.path.open("r+b") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, size * 3 // 2 // MIB * MIB)
        for device in self._devices():
            # The kernel asks how large a store is whenever it takes the next piece of it.
            run(("losetup", "--set-capacity", device))

    def remove(self) -> None:
        """Detach and remove it, as far as it is there."""
        for device in self._devices():
            detach(device)
        self.path.unlink(missing_ok=True)

    def _devices(self) -> list[str]:
        try:
            status = self.path.stat()
        except OSError:
            return []
        return [node.path for node in sysfs.loops_over(status.st_dev, status.st_ino)]


def store_folder(wish: str, volumes: Sequence[Volume], size: int) -> Path:
    """Return the folder for stores of `size` bytes in all: the one wished for, or a good one.

    Never one on a volume that is copied: each copied piece would have to be copied itself.
    Raises `ProviderFailed`.
    """
    if wish == MEMORY:
        return _IN_MEMORY
    if wish:
        folder = Path(wish)
        if not folder.is_dir():
            raise ProviderFailed(f"{wish} is no folder", hint="name a folder that is there")
        if _lies_on(folder, volumes):
            raise ProviderFailed(
                f"{wish} lies on a volume that is to be copied",
                hint="choose a folder on another disk, or `memory`",
            )
        return folder
    if size <= available_memory() * _MEMORY_PART and _IN_MEMORY.is_dir():
        return _IN_MEMORY
    if _ON_DISK.is_dir() and not _lies_on(_ON_DISK, volumes):
        # Half of what is free stays free.
        with contextlib.suppress(OSError):
            if shutil.disk_usage(_ON_DISK).free >= 2 * size:
                return _ON_DISK
    raise ProviderFailed(
        f"there is no place for {size // MIB} MiB of copied blocks",
        hint="name a device or folder on another disk (--store), or a smaller size (--store-size)",
    )


def own_device(path: str) -> str:
    """Return the path of a device that is to be a store: nothing may be on it.

    Raises `ProviderFailed`.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EBUSY else error.strerror
        raise ProviderFailed(
            f"{path} cannot be a store: {reason}", hint="choose a device that nothing uses"
        ) from error
    try:
        found = run(("blkid", "-p", path), ok=(0, 2))
    except ToolFailed as error:
        raise ProviderFailed(f"{path} cannot be a store: {error.message}") from error
    if found.returncode == 0:
        said = found.stdout.decode(errors="replace").strip()
        raise ProviderFailed(
            f"{path} cannot be a store: there is something on it ({said})",
            hint=f"if it is to be lost, erase it first: wipefs --all {path}",
        )
    return path


def _lies_on(folder: Path, volumes: Sequence[Volume]) -> bool:
    below = Stack().below_path(folder)
    return below.unknown or any(volume.node.number in below.nodes for volume in volumes)
