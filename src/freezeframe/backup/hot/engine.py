"""The engine: copy ahead, converge, freeze for a moment, and make it one point in time.

    track → flush → copy ahead → passes → quick passes into memory → FREEZE: the rest into
    memory → thaw → used maps of that moment → store what is in memory → commit (the caller)

Used maps are parsed after the thaw, on a view of the frozen moment: what was written lately
from memory, all else as it was read before and not written since. Python would take too long
for a large filesystem while everything waits. If the view lacks anything, or something is in
use that nobody has read, that is copied ahead and the freeze is done again; after a few times
the maps are parsed inside of it. Nothing read outside of a freeze is believed unless its
marks say that it was not written until the freeze.
"""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass

from freezeframe.backup.hot import maps
from freezeframe.backup.hot.copying import copy_needed, store_overlays
from freezeframe.backup.hot.freezing import SHRINKS, STALLS, Freezing
from freezeframe.backup.hot.states import RegionState, stirred_states
from freezeframe.backup.hot.world import World
from freezeframe.backup.plan import DiskPlan
from freezeframe.core.errors import FreezeError, FreezeframeError, WritesLeftOut
from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE, MIB, human_size
from freezeframe.image.manifest import FreezeRecord, HotProof, PassRecord
from freezeframe.layout.base import DiskLayout, Role
from freezeframe.shadow.freezer import Window

#: Passes over the disk, at most.
_MOST_PASSES = 24
#: Freezes that may turn out to lack something before the maps are parsed inside of one.
_VIEWS = 4
#: Times that everything is read again because writes left no mark.
_STARTS = 6
#: More than this written where nothing is in use is worth a flush, to know that for certain.
_WORTH_A_FLUSH = 64 * MIB
#: A pause that is longer than asked for by this is worth a word.
_OVERDUE = 1.5


@dataclass(slots=True)
class HotResult:
    """What a hot image is made of, besides what is stored."""

    plans: tuple[DiskPlan, ...]
    states: tuple[dict[int, RegionState], ...]
    proof: HotProof
    #: When everything was frozen.
    moment: dt.datetime


class HotEngine:
    """One hot image under way. Made for one `run`, in the main thread."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.freezing = Freezing(world, self._make_room)

    def run(self) -> HotResult:
        """Make everything the image holds stored, as of one moment; the caller commits.

        Raises `NotConverging`, `FreezeError` and its kind, and what reading and storing raise.
        """
        world = self.world
        with world.pool:
            # Threads that run already: none is to be started in the freeze.
            list(world.pool.map(time.sleep, [0.001] * 4))
            self.begin()
            self._prepare_company()
            for _ in range(_STARTS):
                try:
                    return self._finish(*self._moment())
                except WritesLeftOut as error:
                    self._start_over(error)
            return self._finish(*self._moment())

    def _moment(self) -> tuple[Window, tuple[DiskPlan, ...]]:
        """Copy and freeze until everything of one moment is stored or in memory."""
        world = self.world
        for _ in range(_VIEWS):
            self.converge()
            world.check_trackers()
            window = self.freezing.settle()
            if (plans := self._plans()) is not None:
                return window, plans
            world.note("a freeze lacked something and was done again")
            # What is in memory is good until it is marked; it makes room for the next try.
            world.flush()
            self._store()
        world.inside = True
        world.note("used maps were read inside the freeze")
        self.converge()
        window = self.freezing.settle()
        return window, self.freezing.plans

    def _start_over(self, why: WritesLeftOut) -> None:
        """Read everything again, whatever was read or taken from an earlier image."""
        world = self.world
        world.note(f"{why}: everything was read again")
        world.progress.note(f"{why}: everything is read again")
        for each in world.tracked:
            each.tracker.count_anew()
        for disk in world.disks:
            disk.start_over()
        self._flush()

    def _plans(self) -> tuple[DiskPlan, ...] | None:
        """Return the plans of the moment; None where the freeze lacked something for them."""
        if self.world.inside:
            return self.freezing.plans
        return maps.frozen_plans(self.world)

    def begin(self) -> None:
        """Flush, so that what is on the disks can be read."""
        world = self.world
        for each in world.tracked:
            if not each.bio_based and not each.tracker.is_counted:
                world.note(
                    f"the kernel keeps no count of what is written to {each.tracker.disk.name}"
                    " (queue/iostats): that every write was marked could not be checked"
                )
        self._flush()
        world.pace.watch()

    def _flush(self) -> None:
        """Have on the disks what was written so far, and know what of it is in use."""
        world = self.world
        world.flush_filesystems()
        world.harvest()
        # Nothing read before the flush is kept: writes under way when tracking began may have
        # no mark, and only the flush has waited for them.
        for disk in world.disks:
            disk.memory.clear()
        for each in world.tracked:
            each.undrained.clear()
        maps.find_states(world)

    def _prepare_company(self) -> None:
        """Have writers and other providers prepare: late, so that little is written after it.

        What a checkpoint writes is then copied ahead like everything else.
        """
        company = self.world.company
        if company is not None:
            self.converge()
            company.prepare()

    def converge(self) -> None:
        """Copy ahead until what is left fits into memory, or it is seen that it never will."""
        world = self.world
        memory = world.settings.residual_memory
        stalls, before = 0, float("inf")
        for _ in range(_MOST_PASSES):
            marks = world.harvest()
            for disk in world.disks:
                disk.account()
            self._forget_idle_marks()
            maps.estimate(world)
            need = sum(len(disk.owed) for disk in world.disks) * GRANULE
            # Once at least: what is copied ahead is stored whole and at leisure.
            if not need or (world.passes and need <= memory // 4):
                return
            stalls = stalls + 1 if need > before * SHRINKS else 0
            # What is written all the time is better read into memory than stored each time.
            if stalls >= STALLS or (stalls and need <= memory * 3 // 4):
                return
            before = need
            self._copy(marks)

    def _forget_idle_marks(self) -> None:
        """Flush where much was written to what is not in use: then maps tell, not marks.

        A trim marks all free space, and what is marked may be in use until a flush.
        """
        world = self.world
        idle = sum((disk.recent - disk.used).total for disk in world.disks)
        if not world.passes or idle < _WORTH_A_FLUSH:
            return
        world.flush_filesystems()
        for disk in world.disks:
            disk.forget_recent()

    def _copy(self, marks: int = 0) -> None:
        world = self.world
        begun = time.monotonic()
        copied = copy_needed(
            world.disks,
            world.image,
            world.progress,
            world.pace,
            content=world.content,
            threads=world.settings.threads,
        )
        seconds = round(time.monotonic() - begun, 3)
        world.passes.append(PassRecord(bytes=copied, seconds=seconds, marks=marks))

    def _store(self) -> None:
        """Put what is in memory into its chunks. All that was stored must be flushed."""
        world = self.world
        store_overlays(
            world.disks,
            world.image,
            world.progress,
            content=world.content,
            threads=world.settings.threads,
        )

    def _make_room(self) -> None:
        """Store what is in memory, and what would not fit: a pass as any other."""
        self.world.flush()
        for disk in self.world.disks:
            disk.account()
        self._store()
        self._copy()

    def _finish(self, window: Window, plans: tuple[DiskPlan, ...]) -> HotResult:
        """Put what is in memory into the image."""
        world = self.world
        for layout, plan in zip(world.layouts, plans, strict=True):
            if _places(layout) != _places(plan.layout):
                # What was said of the regions, and who was frozen, was about others.
                raise FreezeError(
                    f"the partitions of {plan.source.path} were changed meanwhile",
                    hint="no image was made: run it again",
                )
        world.flush()
        self._store()
        for disk, plan in zip(world.disks, plans, strict=True):
            if missing := plan.used - disk.covered:
                raise FreezeframeError(
                    f"{human_size(missing.total)} of {disk.path} were not copied:"
                    " no image was made",
                    hint="this is a mistake of freezeframe: please report it",
                )
        states = tuple(
            stirred_states(
                states,
                plan.layout,
                disk.stirred_extents(),
                Extents.from_blocks(disk.moving, GRANULE),
            )
            for disk, plan, states in zip(world.disks, plans, world.states, strict=True)
        )
        return HotResult(plans, states, self._proof(window), world.moment or world.now())

    def _proof(self, window: Window) -> HotProof:
        world = self.world
        asked = world.settings.max_pause
        if window.pause > asked * _OVERDUE:
            world.note(f"the pause was longer than the {asked * 1000:.0f} ms asked for")
        return HotProof(
            pause_ms=_ms(window.pause),
            longest_pause_ms=_ms(world.pauses.longest),
            all_pauses_ms=_ms(world.pauses.total),
            residual_bytes=world.residual,
            windows=world.pauses.windows,
            passes=tuple(world.passes),
            freezes=tuple(
                FreezeRecord(
                    point=each.point,
                    kind=each.kind,
                    freeze_ms=_ms(each.freeze),
                    held_ms=_ms(each.held),
                    thaw_ms=_ms(each.thaw),
                )
                for each in window.times
            ),
            unfrozen=tuple(each.point for each in window.unfreezable),
            memory_locked=window.memory_locked,
            slowed_writers=world.slowed,
            notes=tuple(world.notes),
        )


def _places(layout: DiskLayout) -> list[tuple[Role, int, int]]:
    return [(region.role, region.start, region.length) for region in layout.regions]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
