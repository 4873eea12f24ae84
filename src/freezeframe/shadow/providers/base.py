"""What a provider is: a way to take point-in-time copies of volumes, all at one instant.

One object is one use of it, for some volumes of one set. The coordinator calls, in this
order and with everything bounded by a deadline:

    prepare → hold → commit → resume → shadows, check… → release

and after a failure anywhere: `resume`, `release`. Between `hold` and `resume` everything on
the volumes stands still; the point in time is any moment between the last `hold` and the
first `resume`. If `resume` comes without `commit`, the same object may be held again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from freezeframe.core.errors import FreezeError
from freezeframe.shadow.deadline import Deadline
from freezeframe.shadow.filesystems import MountedFilesystem
from freezeframe.system.sysfs import Node


class ProviderFailed(FreezeError):
    """A snapshot mechanism could not do what was asked: the volume itself is unharmed."""


class ShadowLost(FreezeError):
    """A shadow copy is no longer whole (its copy-on-write store is full): the image fails."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One block device of which a shadow copy is wanted."""

    node: Node
    #: In bytes.
    size: int
    #: What is mounted directly on it, in the order of freezing; mostly one or none.
    filesystems: tuple[MountedFilesystem, ...] = ()

    @property
    def path(self) -> str:
        """As messages name it."""
        return self.node.path


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a provider can take a volume, and how well."""

    suits: bool
    #: The highest that suits is chosen. 0: works; 50: good; 100: made for it.
    rank: int
    #: In a few words, shown by `freezeframe disks`: `12 GiB free in group vg`.
    reason: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user may decide about shadow copies; a provider takes what concerns it."""

    #: Bytes of the copy-on-write store of each volume; 0: the provider chooses.
    store_size: int = 0
    #: Where that store goes: a device, a folder, or `memory`; empty: the provider chooses.
    store: str = ""
    #: Whether the shadow copies stay when this program ends.
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Shadow:
    """A point-in-time copy of one volume."""

    volume: Volume
    #: A read-only block device of the volume's size, or a folder where `is_device` is false.
    path: str
    is_device: bool = True


class Provider(ABC):
    """One use of a snapshot mechanism for some volumes.

    `name` is unique among all sets (letters, digits, `-`); whatever the provider makes is
    named `<name>-…`, so that leftovers can be told.
    """

    #: The mechanism: `lvm`.
    kind: ClassVar[str]
    #: True: `hold` itself freezes what is mounted on the volumes (a device-mapper suspend
    #: does), so nobody else must. False: the coordinator freezes them before `hold`.
    holds_filesystems: ClassVar[bool] = False
    #: Whether its shadow copies are devices, which an image can be made of.
    gives_devices: ClassVar[bool] = True
    #: Whether its shadow copies can stay when the program ends.
    can_keep: ClassVar[bool] = True

    def __init__(self, name: str, volumes: Sequence[Volume], wishes: Wishes) -> None:
        self.name = name
        self.volumes = tuple(volumes)
        self.wishes = wishes
        #: Writes the journal; to be called in `prepare`, whenever `record` has changed and
        #: before that is made which it tells. Set by the coordinator.
        self.journal: Callable[[], None] = lambda: None

    @property
    def one_instant(self) -> bool:
        """Whether all its copies are of one moment; where not, each is of its own."""
        return True

    @classmethod
    @abstractmethod
    def fit(cls, volume: Volume) -> Fit:
        """Say whether it can take this volume. Looks only; some milliseconds."""

    @classmethod
    def unavailable(cls) -> str:
        """Say why it does not work on this machine at all, or nothing; for `doctor`."""
        return ""

    # -- one point in time --------------------------------------------------------------

    @abstractmethod
    def prepare(self, deadline: Deadline) -> None:
        """Allocate what is needed, with no effect on the volumes. Raises `ProviderFailed`.

        May be called again after `release`.
        """

    def hold(self, deadline: Deadline) -> None:  # noqa: B027
        """Let no more writes through to the volumes, and wait for those under way.

        From here to `resume`, touch no file, start no program, log nothing: what is on disks
        stands still. (`journal` was written before.)
        """

    @abstractmethod
    def commit(self, deadline: Deadline) -> None:
        """Make the shadow copies, as of now: everything stands still. 10 s at most."""

    def resume(self) -> None:  # noqa: B027
        """Let writes through again; nothing happens where they are. From any thread."""

    @abstractmethod
    def shadows(self) -> tuple[Shadow, ...]:
        """Return the copies, one for each volume and in their order. After `commit`."""

    def check(self) -> None:  # noqa: B027
        """Raise `ShadowLost` where a copy is no longer whole.

        Called from time to time, and once more after the last read: only then is what was
        read known to be good.
        """

    @abstractmethod
    def release(self) -> None:
        """Remove the copies and all that was made for them; nothing where there is none.

        Raises `ProviderFailed` where something stays, with a hint how to remove it.
        """

    # -- if this program dies -----------------------------------------------------------

    def undo(self) -> tuple[tuple[str, ...], ...]:
        """Return command lines that let writes through again if this program dies in between.

        As `Writer.undo`; asked before `hold`.
        """
        return ()

    @abstractmethod
    def record(self) -> Mapping[str, str]:
        """Return what `clean` has to know. Written to the journal before each step.

        Before `prepare` it names what that will make, and before `hold` what `commit` will.
        """

    @classmethod
    @abstractmethod
    def clean(cls, record: Mapping[str, str]) -> None:
        """Remove what a record tells of, by another process than made it; origins unharmed.

        Whatever of it is there, in whatever state: held, half made, gone. Nothing happens
        where nothing is left. Raises `ProviderFailed` as `release` does.
        """

    @classmethod
    def trouble(cls, record: Mapping[str, str]) -> str:
        """Say why the kept copies of a record are not whole: overflowed, gone; or nothing."""
        del record
        return ""

    @classmethod
    def strays(cls) -> Sequence[Mapping[str, str]]:
        """Return records of leftovers found on this machine by their names alone.

        For what outlives a reboot, which the journal does not; told apart by `name`.
        """
        return ()
