"""What providers for device-mapper volumes share: holding, resuming, telling errors."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.providers.base import Provider, ProviderFailed, ShadowLost, Volume, Wishes
from freezeframe.shadow.resumer import Suspension
from freezeframe.shadow.stack import Stack
from freezeframe.system.devmapper import DeviceMapper, dm_name, has_device_mapper
from freezeframe.system.memory import fill_memory


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what the kernel refuses into `ProviderFailed`."""
    try:
        yield
    except OSError as error:
        raise ProviderFailed(
            f"{what} failed: {error.strerror or error}",
            hint="the kernel log (dmesg) tells more; --provider hot needs no device-mapper",
        ) from error


class MappedProvider(Provider):
    """Volumes of device-mapper, each held still by suspending it.

    What is mounted on them was frozen by the coordinator, so that a suspend has only to wait
    for what is under way; a suspend that freezes by itself fails with EBUSY then (Linux 6.1),
    and knows neither a btrfs of several devices nor what lies on a file of another filesystem.
    Volumes without a filesystem are suspended from `hold` to `resume`; the others only for
    the moment of the commit, because nothing writes to them anyway, and because one of them
    may be the one beneath the root filesystem.

    The calls in between are ioctls of this process, whose memory is filled and held before:
    no program can be started, and no page read, while the root's volume is suspended.
    """

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        super().__init__(name, volumes, wishes)
        self._origins = [dm_name(volume.node) for volume in self.volumes]
        self._suspension: Suspension | None = None
        self._under_us = False
        self._committed = False
        self._lost = ""

    @classmethod
    def unavailable(cls) -> str:
        """Say why it does not work on this machine, or nothing."""
        return "" if has_device_mapper() else "the kernel has no device-mapper"

    # -- for the kinds ------------------------------------------------------------------

    @abstractmethod
    def _build(self, mapper: DeviceMapper, deadline: Deadline) -> None:
        """Make what is needed, without touching the volumes."""

    @abstractmethod
    def _ready(self, mapper: DeviceMapper) -> None:
        """Do what can be done just before the suspend."""

    @abstractmethod
    def _copy(self, mapper: DeviceMapper) -> None:
        """Make the copies: all volumes are suspended."""

    # -- one point in time --------------------------------------------------------------

    def prepare(self, deadline: Deadline) -> None:
        """Make the copies' devices and stores. Raises `ProviderFailed`, `ToolFailed`."""
        self._committed, self._lost = False, ""
        with told(f"preparing a copy of {', '.join(v.path for v in self.volumes)}"):
            self.journal()
            suspension = self._opened()
            self._build(suspension.mapper, deadline)
            self._under_us = stands_on(self.volumes)
            if self._under_us:
                fill_memory()

    def hold(self, deadline: Deadline) -> None:
        """Suspend what has no filesystem that is frozen. Raises `ProviderFailed`."""
        suspension = self._opened()
        with told("holding volumes"):
            if self._under_us:
                # What was mapped since `prepare`.
                fill_memory()
            suspension.arm(deadline)
            self._ready(suspension.mapper)
            for index, volume in enumerate(self.volumes):
                if self._held_throughout(volume):
                    suspension.suspend(index)

    def commit(self, deadline: Deadline) -> None:
        """Make the copies. Raises `ProviderFailed`."""
        suspension = self._opened()
        with told("making copies"):
            for index in range(len(self.volumes)):
                deadline.check("suspending volumes")
                suspension.suspend(index)
            self._copy(suspension.mapper)
            self._committed = True
            for index, volume in enumerate(self.volumes):
                if not self._held_throughout(volume):
                    suspension.resume_one(index)

    def _held_throughout(self, volume: Volume) -> bool:
        """Whether it is suspended from `hold` to `resume`, and not only in the commit.

        What is beneath this very program is not: others have to work in between.
        """
        return not volume.filesystems and not self._under_us

    def resume(self) -> None:
        """Resume what is suspended; without a commit, with the table it had."""
        if self._suspension is None:
            return
        if not self._committed:
            self._unready(self._suspension.mapper)
        self._lost = self._suspension.resume() or self._lost

    def _unready(self, mapper: DeviceMapper) -> None:
        """Drop tables that were loaded and are not to be put to work."""
        for origin in self._origins:
            with contextlib.suppress(OSError):
                mapper.clear(origin)

    def check(self) -> None:
        """Raise `ShadowLost` where it was no point in time."""
        if self._lost:
            raise ShadowLost(
                self._lost, hint="try again when the machine is less busy, or allow more time"
            )

    def release(self) -> None:
        """Remove the copies. Raises `ProviderFailed`."""
        if self._suspension is not None:
            with contextlib.suppress(FreezeError):
                self.resume()
            self._suspension.close()
            self._suspension = None
        self.clean(self.record())

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return commands that resume the volumes; this provider's own process does it first."""
        return tuple(("dmsetup", "resume", "--nolockfs", origin) for origin in self._origins)

    def record(self) -> Mapping[str, str]:
        """Return the names of everything, known from the start."""
        numbered = {f"origin.{n}": origin for n, origin in enumerate(self._origins)}
        return {"name": self.name, "count": str(len(self._origins)), **numbered}

    def _opened(self) -> Suspension:
        if self._suspension is None:
            self._suspension = Suspension(self._origins)
        return self._suspension


def stands_on(volumes: Sequence[Volume]) -> bool:
    """Whether any program or library this process has mapped lies on one of the volumes."""
    wanted = {volume.node.number for volume in volumes}
    stack, seen = Stack(), set()
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not fields[5].startswith("/") or fields[3] in seen:
            continue
        # One file of each filesystem, by the device number that its inodes have.
        seen.add(fields[3])
        below = stack.below_path(fields[5])
        if below.unknown or wanted & set(below.nodes):
            return True
    return False
