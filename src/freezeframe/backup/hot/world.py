"""What all of the engine works with: the disks, their trackers, the filesystems on them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from freezeframe.backup.hot.copying import Content
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.pace import Pace
from freezeframe.backup.hot.settings import HotSettings
from freezeframe.backup.hot.states import RegionState
from freezeframe.backup.hot.tracked import Tracked
from freezeframe.backup.plan import Source
from freezeframe.core.errors import FreezeBroken, WritesLeftOut
from freezeframe.core.progress import Progress
from freezeframe.image.manifest import PassRecord
from freezeframe.image.writer import ImageWriter
from freezeframe.layout.base import DiskLayout
from freezeframe.shadow.coordinator import Coordinator
from freezeframe.shadow.freezer import Freezer

#: Threads that read in the freeze, so that a fast disk has several reads under way.
_READERS = 4


class Filesystems(Protocol):
    """The filesystems on the disks, and their freezer."""

    @property
    def freezer(self) -> Freezer:
        """The freezer of those that were mounted when it was made, opened."""

    def unchanged(self) -> bool:
        """Whether the same ones are mounted, as writable, as then."""

    def renew(self) -> None:
        """Find those of now, and make a freezer of them."""

    def states(self, disk: HotDisk, layout: DiskLayout) -> dict[int, RegionState]:
        """Return the state of each region of a disk, by its start."""


@dataclass(slots=True)
class Pauses:
    """How long writers were held up, all freezes of an image together; seconds."""

    windows: int = 0
    longest: float = 0.0
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one freeze, from asking for it to the end of the thaw."""
        self.longest = max(self.longest, seconds)
        self.total += seconds


@dataclass(eq=False)
class World:
    """One hot image under way, as far as it goes."""

    disks: Sequence[HotDisk]
    #: The disks as plans name them, in the same order.
    sources: Sequence[Source]
    tracked: Sequence[Tracked]
    filesystems: Filesystems
    image: ImageWriter
    progress: Progress
    settings: HotSettings
    #: Gives a stored blob.
    content: Content
    #: Makes all that was stored readable by `content`.
    flush: Callable[[], None]
    now: Callable[[], dt.datetime]
    #: Writers and other providers that share the moment; None where there are none.
    company: Coordinator | None = None
    #: Of each disk, its layout when the image was begun.
    layouts: list[DiskLayout] = field(default_factory=list)
    #: Of each disk, the states of its regions, by their start.
    states: list[dict[int, RegionState]] = field(default_factory=list)
    passes: list[PassRecord] = field(default_factory=list)
    pauses: Pauses = field(default_factory=Pauses)
    notes: list[str] = field(default_factory=list)
    #: The moment of the image: when everything was frozen.
    moment: dt.datetime | None = None
    #: Seconds the last freeze call took.
    freeze_call: float = 0.0
    #: Bytes read in the last freeze.
    residual: int = 0
    slowed: bool = False
    #: Whether used maps are parsed inside the freeze.
    inside: bool = False

    def __post_init__(self) -> None:
        self.pace = Pace(
            [each.disks[0].node.whole for each in self.tracked],
            limit=self.settings.limit_read,
            back_off=self.settings.back_off,
        )
        self.pool = ThreadPoolExecutor(_READERS, thread_name_prefix="residual")

    @property
    def freezer(self) -> Freezer:
        """The freezer of now."""
        return self.filesystems.freezer

    def harvest(self, *, frozen: bool = False) -> int:
        """Take the marks of all disks; return how many there were.

        Raises `HarvestOverflow` where it is `frozen` and there is no room for them.
        """
        return sum(each.harvest(frozen=frozen) for each in self.tracked)

    def flush_filesystems(self) -> None:
        """Freeze and thaw each filesystem, so that all it holds in memory is on its disk."""
        times = self.freezer.flush()
        for each in times:
            self.pauses.add(each.blocked)
        self.freeze_call = max((each.freeze for each in times), default=0.0)

    def check_trackers(self) -> None:
        """Raise `FreezeBroken` where writes were missed; `WritesLeftOut` for the kernel's fault."""
        for each in self.tracked:
            if reasons := each.tracker.broken():
                raise FreezeBroken(
                    f"writes to {each.tracker.disk.name} may have been missed:"
                    f" {'; '.join(reasons)}",
                    hint="no image was made: run it again",
                )
        lost = [
            f"{each.tracker.disk.name}: {'; '.join(reasons)}"
            for each in self.tracked
            if (reasons := each.tracker.left_out())
        ]
        if lost:
            raise WritesLeftOut(
                f"writes left no mark ({', '.join(lost)})",
                hint="no image was made: run it again at a calmer time, or image it offline",
            )

    def note(self, text: str) -> None:
        """Keep a word for the proof, once."""
        if text not in self.notes:
            self.notes.append(text)
