"""The freeze: as short as was asked, with little left to read, and whatever happens no longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

from freezeframe.backup.hot import maps
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.settings import IfBusy, NotConverging
from freezeframe.backup.hot.world import World
from freezeframe.backup.plan import DiskPlan
from freezeframe.core.units import GRANULE, human_size
from freezeframe.fs.base import State
from freezeframe.image.manifest import PassRecord
from freezeframe.shadow.freezer import Window
from freezeframe.tracking import HarvestOverflow

#: A quick pass that leaves more than this part of what the one before left does not converge.
SHRINKS = 0.7
#: So many such passes in a row are enough to see it.
STALLS = 3
#: Quick passes at most; fewer where all that they mark is read once more in the freeze.
_QUICK_PASSES = 16
_UNDRAINED_PASSES = 3
#: So often room is made by storing what is in memory, before it is seen that it never suffices.
_MOST_ROOM = 4
#: Short freezes in a row, where writers are held down.
_SHORT_FREEZES = 200


class Freezing:
    """Freezes until all that was written has been read in one freeze."""

    def __init__(self, world: World, make_room: Callable[[], None]) -> None:
        """`make_room` stores what is in memory and whatever does not fit into it."""
        self.world = world
        self._make_room = make_room
        #: Plans that were made inside the freeze.
        self.plans: tuple[DiskPlan, ...] = ()

    def settle(self) -> Window:
        """Freeze, so briefly as was asked; return the window in which all was read."""
        world = self.world
        for disk in world.disks:
            disk.account()
            # Structures that an earlier view lacked.
            for start, stop in disk.structures:
                disk.memory.read_at(start, stop - start)
        self._quick_passes()
        window, done = self.window(world.settings.max_pause)
        return window if done else self._settle_busy()

    def _settle_busy(self) -> Window:
        """Do what the user chose for a machine that writes faster than it can be copied."""
        settings = self.world.settings
        left = human_size(sum(len(disk.owed) for disk in self.world.disks) * GRANULE)
        if settings.if_busy is IfBusy.FAIL:
            raise NotConverging(
                f"{left} were left to be read when a pause of"
                f" {settings.max_pause * 1000:.0f} ms was over; {rates(self.world.passes)}",
                hint="allow a longer pause (--max-pause), hold writers down"
                " (--if-busy slow-writers), or make the image at a calmer time",
            )
        if settings.if_busy is IfBusy.LONGER_PAUSE:
            return self._longer_pause(settings.max_pause)
        return self._slow_writers(left)

    def _slow_writers(self, left: str) -> Window:
        world = self.world
        world.slowed = True
        world.progress.note(
            f"written to faster than it can be copied ({left} were left; {rates(world.passes)}):"
            " holding writers down by short freezes"
        )
        gap, company = 0.05, world.company is None
        for _ in range(_SHORT_FREEZES):
            self._read_quickly(time.monotonic() + gap)
            window, done = self.window(world.settings.max_pause, sync=False, company=company)
            if done and company:
                return window
            # Writers are asked once it is likely that this time all can be read.
            company = done or world.company is None
            gap = max(gap / 2, 0.002)
        raise NotConverging(
            f"even {_SHORT_FREEZES} short freezes did not let copying catch up;"
            f" {rates(world.passes)}",
            hint="allow a longer pause (--max-pause), or give more memory (--residual-memory)",
        )

    def _longer_pause(self, pause: float) -> Window:
        longest = self.world.freezer.limit * 0.8
        while pause < longest:
            pause = min(pause * 2, longest)
            self.world.progress.note(f"trying a pause of {pause * 1000:.0f} ms")
            self._quick_passes()
            window, done = self.window(pause)
            if done:
                return window
        raise NotConverging(
            f"a pause of {pause:.1f} s was not enough; {rates(self.world.passes)}",
            hint="hold writers down (--if-busy slow-writers), or give more memory"
            " (--residual-memory)",
        )

    # -- before the freeze --------------------------------------------------------------

    def _quick_passes(self) -> None:
        """Read what is marked into memory, again and again, until little is left."""
        world = self.world
        passes = _QUICK_PASSES
        if any(each.bio_based for each in world.tracked):
            # What is harvested from now on is read once more in the freeze: not too much.
            passes = _UNDRAINED_PASSES
            world.flush_filesystems()
            for each in world.tracked:
                each.drained()
        before, stalls, made = float("inf"), 0, 0
        for _ in range(passes):
            world.harvest()
            owed = sum(len(disk.owed) for disk in world.disks)
            if not self._room():
                if made == _MOST_ROOM:
                    return
                made += 1
                self._make_room()
                continue
            begun = time.monotonic()
            for disk in world.disks:
                disk.read_owed(world.pool)
            cost = (time.monotonic() - begun) / max(owed, 1)
            left = sum(tracked.tracker.count() for tracked in world.tracked)
            if left * cost + world.freeze_call <= world.settings.max_pause / 2:
                return
            stalls = stalls + 1 if left > before * SHRINKS else 0
            if stalls >= STALLS:
                return
            before = left

    def _read_quickly(self, until: float) -> None:
        """Read what is marked into memory for so long."""
        world = self.world
        while True:
            world.harvest()
            if not self._room():
                self._make_room()
            done = [disk.read_owed(world.pool, until) for disk in world.disks]
            if time.monotonic() >= until or all(done):
                return

    def _room(self) -> bool:
        """Whether what is owed fits into memory; takes more of it where that is allowed."""
        return make_room(self.world.disks, self.world.settings.residual_memory)

    def _last(self) -> None:
        """Do what is done just before the freeze: what the sync has written is read now."""
        world = self.world
        for each in world.tracked:
            each.tracker.prepare()
        world.harvest()
        until = time.monotonic() + world.settings.max_pause
        self._room()
        for disk in world.disks:
            disk.read_owed(world.pool, until)

    # -- the freeze ---------------------------------------------------------------------

    def window(
        self, allowed: float, *, sync: bool = True, company: bool = True
    ) -> tuple[Window, bool]:
        """Freeze everything and read what was written; return whether that was all.

        `allowed` in seconds, from asking for the freeze of the filesystems to their thaw.
        Writers are frozen before that, and other providers hold their volumes and make their
        copies in it; without `company` they are left alone, and it is no moment of an image.
        """
        world = self.world
        others = world.company if company else None
        if others is not None:
            others.ready()
        if not world.filesystems.unchanged():
            self._renew()
        for disk in world.disks:
            disk.stirred.clear()
            disk.moving = disk.moving[:0]
        done = False
        read_before, begun = 0, 0.0

        def last() -> None:
            nonlocal read_before, begun
            self._last()
            read_before = sum(disk.bytes_read for disk in world.disks)
            if others is not None:
                others.freeze_writers()
            begun = time.monotonic()

        with (
            others.thawing() if others is not None else nullcontext(),
            world.freezer.window(sync=sync, last=last) as window,
            others.held() if others is not None else nullcontext(),
        ):
            world.moment = world.now()
            # Of what is allowed, something is kept for the thaw; and where freezing took
            # all of it, what was written must be read nevertheless.
            until = max(begun + allowed * 0.9, time.monotonic() + allowed * 0.3)
            done = self.read_frozen(until)
            if done and others is not None:
                others.commit()
        world.residual = sum(disk.bytes_read for disk in world.disks) - read_before
        world.pauses.windows += 1
        world.pauses.add(window.pause)
        if window.times:
            world.freeze_call = window.since - min(each.asked for each in window.times)
        if others is not None:
            others.note_window(window)
        world.check_trackers()
        if not world.filesystems.unchanged():
            # Something came that was not frozen, or went: not the moment that was wanted.
            self._renew()
            return window, False
        return window, done

    def _renew(self) -> None:
        """Take the filesystems that are mounted now."""
        world = self.world
        world.note("filesystems were mounted or unmounted while the image was made")
        world.filesystems.renew()
        world.flush_filesystems()
        world.harvest()
        for disk in world.disks:
            disk.account()
        maps.find_states(world)
        maps.estimate(world)

    def read_frozen(self, until: float) -> bool:
        """Read what was written before the freeze. Everything waits meanwhile."""
        world = self.world
        try:
            world.harvest(frozen=True)
            for each in world.tracked:
                each.drained()
            # All of them, even where the time is up: what is left of each must be known.
            if not all([disk.read_owed(world.pool, until) for disk in world.disks]):  # noqa: C419
                return False
            if not self._settle_unfrozen(until):
                return False
        except HarvestOverflow:
            return False
        if world.inside:
            self._parse_inside()
        return True

    def _settle_unfrozen(self, until: float) -> bool:
        """Read what is written to in spite of the freeze, until a pass sees nothing written.

        What cannot be frozen is synced each time. What is written to by others is no longer
        of one moment, and the image says so.
        """
        world = self.world
        while True:
            world.freezer.sync_unfreezable()
            world.harvest(frozen=True)
            if not any(len(disk.owed) for disk in world.disks):
                return True
            done = True
            late = time.monotonic() > until
            for disk in world.disks:
                disk.stirred.append(disk.owed)
                if late:
                    disk.moving = disk.owed
                done = disk.read_owed(world.pool) and done
            if not done:
                return False
            if late:
                return True

    def _parse_inside(self) -> None:
        """Read the used maps from the frozen disks, and what of them nobody has read."""
        world = self.world
        for disk in world.disks:
            disk.account()
        self.plans = maps.plan(world, [disk.memory for disk in world.disks], State.FROZEN)
        for disk, each in zip(world.disks, self.plans, strict=True):
            disk.require(each.used)
            disk.account()
            if not disk.read_owed(world.pool):
                raise NotConverging(
                    "what must be read inside the freeze does not fit into memory",
                    hint="give more: --residual-memory",
                )


def make_room(disks: Sequence[HotDisk], memory: int) -> bool:
    """Whether what each disk owes fits into memory: `memory` bytes at most, of all together.

    What they owe comes first: with what another one took to spare, it would fail. Not in a
    freeze.
    """

    def limit(disk: HotDisk, sharers: int) -> int:
        taken = sum(each.overlay.capacity for each in disks) * GRANULE
        return disk.overlay.capacity * GRANULE + max(memory - taken, 0) // sharers

    fits = [disk.has_room(limit(disk, 1)) for disk in disks]
    if not all(fits):
        return False
    for number, disk in enumerate(disks):
        disk.has_room(limit(disk, len(disks) - number), spare=True)
    return True


def rates(passes: Sequence[PassRecord]) -> str:
    """Say how fast is written, and how fast copied: by the last passes that tell."""
    timed = [each for each in passes if each.seconds]
    if not timed:
        return "nothing was copied ahead"
    copied = f"copied: {human_size(timed[-1].bytes / timed[-1].seconds)}/s"
    # What a pass finds marked was written while the one before it copied.
    for before, after in reversed(list(pairwise(timed))):
        if after.marks:
            return f"written: {human_size(after.marks * GRANULE / before.seconds)}/s, {copied}"
    return copied
