"""A tree mounted by FUSE, served by threads of this process.

libfuse is called by mfusepy (ctypes): nothing has to be compiled. Its loop runs in a thread
of its own, so that signals come to the main thread, which ends it all in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from freezeframe.access.operations import TreeOperations
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError, ToolMissing, UsageError
from freezeframe.system.mounting import detach_mount, is_mounted, unmount
from freezeframe.system.run import which

if TYPE_CHECKING:
    import mfusepy

#: Names of the library in its versions, newest first: nothing else is searched for.
_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3")
#: What the kernel calls our mounts, to find them again: `fuse.freezeframe`.
SUBTYPE = "freezeframe"
#: Names and sizes never change: the kernel may remember them. Seconds.
_REMEMBERED = 3600
#: Bytes the kernel reads ahead in a file, where we may say so. A request costs as much as
#: handling 100 KiB; the largest has 1 MiB.
_READ_AHEAD_KIB = 1024


class FuseMount(Closing):
    """A tree shown at a folder until it is closed or unmounted by somebody."""

    def __init__(self, operations: TreeOperations, folder: Path, *, shared: bool = False) -> None:
        """Mount it. Raises `ToolMissing`, `UsageError` for an unsuitable folder."""
        verify_mount_point(folder)
        self.folder = folder.absolute()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._operations = operations
        self._shared = shared
        binding = load_binding()
        self._thread = threading.Thread(
            target=self._serve, args=(binding,), name="fuse", daemon=True
        )
        self._thread.start()
        try:
            while not operations.mounted.wait(0.05):
                if self._ended.is_set():
                    raise self._not_mounted()
            _read_ahead(self.folder)
        except BaseException:
            self.close()
            raise

    def _serve(self, binding: type[mfusepy.FUSE]) -> None:
        options: dict[str, str | int | bool] = {
            "foreground": True,
            "fsname": SUBTYPE,
            "subtype": SUBTYPE,
            "default_permissions": True,
            "kernel_cache": True,
            "entry_timeout": _REMEMBERED,
            "attr_timeout": _REMEMBERED,
            "max_idle_threads": 4,
        }
        if self._shared:
            options["allow_other"] = True
        try:
            binding(self._operations, str(self.folder), False, "utf-8", **options)
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

    def _not_mounted(self) -> FreezeframeError:
        return FreezeframeError(
            f"{self.folder} could not be mounted: {self._error or 'libfuse gave up'}",
            hint="libfuse said why above; `freezeframe doctor` tells what lacks",
        )

    @property
    def mounted(self) -> bool:
        """Whether it is still served: nobody has unmounted it."""
        return not self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until somebody unmounts it; whether that has happened."""
        return self._ended.wait(seconds)

    def close(self) -> None:
        """Unmount it; where somebody still uses it, it vanishes from the tree all the same."""
        if not self._ended.is_set():
            try:
                unmount(self.folder)
            except FreezeframeError:
                if is_mounted(self.folder):
                    detach_mount(self.folder)
        if self._operations.pages is not None:
            self._operations.pages.close()
        # With files still open in it the loop goes on; the end of the process ends it.
        self._ended.wait(2)


def load_binding() -> type[mfusepy.FUSE]:
    """Return the class that mounts. Raises `ToolMissing` where FUSE is not there."""
    if not Path("/dev/fuse").exists():
        raise FreezeframeError(
            "the kernel has no FUSE, which shows images as files",
            hint="modprobe fuse; in a container, give it /dev/fuse",
        )
    if os.geteuid() and which("fusermount3") is None:
        raise ToolMissing("fusermount3", "fuse3", "to mount without being root")
    library = next(filter(None, map(_loadable, _LIBRARIES)), None)
    if library is None:
        raise ToolMissing("libfuse3", "fuse3", "to show images as files")
    # Otherwise version 2 is taken where there are both.
    os.environ["FUSE_LIBRARY_PATH"] = library
    from freezeframe.access.binding import Binding

    return Binding


def _loadable(name: str) -> str | None:
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)
        return name
    return None


def verify_mount_point(folder: Path) -> None:
    """Raise `UsageError` where a folder is missing, not empty, or something is mounted on it."""
    # Asked first: of a mount whose process died everything else fails.
    if is_mounted(folder):
        raise UsageError(
            f"something is mounted at {folder} already",
            hint=f"unmount it (umount -R {folder}), or choose another folder",
        )
    if not folder.exists():
        raise UsageError(f"there is no folder {folder}", hint=f"make it: mkdir -p {folder}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="name an empty folder")
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="name an empty folder")


def _read_ahead(folder: Path) -> None:
    """Let the kernel read further ahead; only root may say so, and without it all works."""
    device = folder.stat().st_dev
    place = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with contextlib.suppress(OSError):
        place.write_text(str(_READ_AHEAD_KIB), encoding="ascii")
