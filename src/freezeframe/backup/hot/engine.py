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

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from freezeframe.backup.hot.copying import Content, copy_needed, store_overlays
from freezeframe.backup.hot.disk import HotDisk
from freezeframe.backup.hot.pace import Pace
from freezeframe.backup.hot.settings import HotSettings, IfBusy, NotConverging
from freezeframe.backup.hot.states import RegionState
from freezeframe.backup.hot.tracked import Tracked
from freezeframe.backup.plan import DiskPlan, Source, plan_disks
from freezeframe.block.base import Reader
from freezeframe.block.remembering import FrozenView, NotRemembered
from freezeframe.block.window import Window as RegionReader
from freezeframe.core.errors import FreezeBroken, FreezeError, FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.progress import Progress
from freezeframe.core.units import GRANULE, human_size
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.detect import used_map
from freezeframe.image.manifest import FreezeRecord, HotProof, PassRecord
from freezeframe.image.writer import ImageWriter
from freezeframe.layout.base import DiskLayout, Role
from freezeframe.layout.capture import capture
from freezeframe.shadow.freezer import Freezer, Window
from freezeframe.tracking import HarvestOverflow

#: A pass that leaves more than this part of what the one before left does not converge.
_SHRINKS = 0.7
#: So many such passes in a row are enough to see it.
_STALLS = 3
#: Passes over the disk, and quick ones into memory, at most.
_MOST_PASSES = 24
_QUICK_PASSES = 16
#: Freezes that may turn out to lack something before the maps are parsed inside of one.
_VIEWS = 4
#: Short freezes in a row, where writers are held down.
_SHORT_FREEZES = 200
#: Threads that read in the freeze, so that a fast disk has several reads under way.
_READERS = 4

#: Gives the state of each region of a disk, by its start, for the filesystems of now.
States = Callable[[HotDisk, DiskLayout], dict[int, RegionState]]


@dataclass(slots=True)
class HotResult:
    """What a hot image is made of, besides what is stored."""

    plans: tuple[DiskPlan, ...]
    states: tuple[dict[int, RegionState], ...]
    proof: HotProof


class HotEngine:
    """One hot image under way. Made for one `run`, in the main thread."""

    def __init__(
        self,
        disks: Sequence[HotDisk],
        sources: Sequence[Source],
        tracked: Sequence[Tracked],
        freezer: Freezer,
        states: States,
        image: ImageWriter,
        progress: Progress,
        settings: HotSettings,
        *,
        content: Content,
        flush: Callable[[], None],
        unchanged: Callable[[], bool],
    ) -> None:
        """Take everything opened.

        `sources` are the disks as plans name them, in the same order. `content` gives a
        stored blob, `flush` makes all that was stored readable by it, `unchanged` tells
        whether the same filesystems are mounted as when the freezer was made.
        """
        self._disks = disks
        self._sources = sources
        self._tracked = tracked
        self._freezer = freezer
        self._states = states
        self._image = image
        self._progress = progress
        self._settings = settings
        self._content = content
        self._flush = flush
        self._unchanged = unchanged
        self._pace = Pace(
            [each.disks[0].node.whole for each in tracked],
            limit=settings.limit_read,
            back_off=settings.back_off,
        )
        self._plans: tuple[DiskPlan, ...] = ()
        self._layouts: list[DiskLayout] = []
        self._state_maps: list[dict[int, RegionState]] = []
        self._passes: list[PassRecord] = []
        self._freeze_call = 0.0
        self._windows = 0
        self._slowed = False
        self._inside = False
        self._notes: list[str] = []
        self._residual = 0
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="residual")

    # -- the time line ------------------------------------------------------------------

    def run(self) -> HotResult:
        """Make everything the image holds stored, as of one moment; the caller commits.

        Raises `NotConverging`, `FreezeError` and its kind, and what reading and storing raise.
        """
        with self._pool:
            # Threads that run already: none is to be started in the freeze.
            list(self._pool.map(time.sleep, [0.001] * _READERS))
            self._begin()
            for _ in range(_VIEWS):
                self._converge()
                window = self._settle()
                plans = self._view()
                if plans is not None:
                    return self._finish(window, plans)
            self._inside = True
            self._notes.append("used maps were read inside the freeze")
            self._converge()
            window = self._settle()
            return self._finish(window, self._plans)

    def _begin(self) -> None:
        """Flush, so that what is on the disks can be read, and read it."""
        times = self._freezer.flush()
        self._freeze_call = sum(each.freeze for each in times)
        self._harvest()
        self._pace.watch()
        self._layouts = [
            capture(disk.memory, source.path)
            for disk, source in zip(self._disks, self._sources, strict=True)
        ]
        self._state_maps = [
            self._states(disk, layout)
            for disk, layout in zip(self._disks, self._layouts, strict=True)
        ]

    def _converge(self) -> None:
        """Copy ahead until what is left fits into memory, or it is seen that it never will."""
        stalls = 0
        before = float("inf")
        for _ in range(_MOST_PASSES):
            marks = self._harvest()
            for disk in self._disks:
                disk.account()
            self._estimate()
            need = sum(len(disk.owed) for disk in self._disks) * GRANULE
            memory = self._settings.residual_memory
            # Once at least: what is copied ahead is stored whole and at leisure.
            if not need or (self._passes and need <= memory // 4):
                return
            stalls = stalls + 1 if need > before * _SHRINKS else 0
            # What is written all the time is better read into memory than stored each time.
            if stalls >= _STALLS or (stalls and need <= memory * 3 // 4):
                return
            before = need
            begun = time.monotonic()
            copied = self._copy()
            self._passes.append(
                PassRecord(bytes=copied, seconds=round(time.monotonic() - begun, 3), marks=marks)
            )

    def _copy(self) -> int:
        return copy_needed(
            self._disks,
            self._image,
            self._progress,
            self._pace,
            content=self._read_back,
            threads=self._settings.threads,
        )

    def _finish(self, window: Window, plans: tuple[DiskPlan, ...]) -> HotResult:
        """Put what is in memory into the image."""
        for layout, plan in zip(self._layouts, plans, strict=True):
            if _places(layout) != _places(plan.layout):
                # What was said of the regions, and who was frozen, was about others.
                raise FreezeError(
                    f"the partitions of {plan.source.path} were changed meanwhile",
                    hint="no image was made: run it again",
                )
        self._flush()
        store_overlays(
            self._disks,
            self._image,
            self._progress,
            content=self._read_back,
            threads=self._settings.threads,
        )
        for disk, plan in zip(self._disks, plans, strict=True):
            if missing := plan.used - disk.covered:
                raise FreezeframeError(
                    f"{human_size(missing.total)} of {disk.path} were not copied:"
                    " no image was made",
                    hint="this is a mistake of freezeframe: please report it",
                )
        return HotResult(plans, tuple(self._state_maps), self._proof(window))

    def _read_back(self, blob_id: bytes) -> bytes:
        return self._content(blob_id)

    # -- marks --------------------------------------------------------------------------

    def _harvest(self, *, frozen: bool = False) -> int:
        return sum(each.harvest(frozen=frozen) for each in self._tracked)

    def _check_trackers(self) -> None:
        for each in self._tracked:
            if reasons := each.tracker.broken():
                raise FreezeBroken(
                    f"writes to {each.tracker.disk.name} may have been missed:"
                    f" {'; '.join(reasons)}",
                    hint="no image was made: run it again",
                )

    # -- used maps ----------------------------------------------------------------------

    def _estimate(self) -> None:
        """Read the used maps as they lie on the disks now: what is worth copying ahead."""
        plans = self._plan([disk.memory for disk in self._disks], State.LIVE, self._layouts)
        for disk, plan in zip(self._disks, plans, strict=True):
            # The layout as well is wanted after the freeze: asked for, it outlives the trim.
            capture(disk.memory)
            disk.memory.trim()
            disk.estimate(self._guess(disk, plan))

    def _guess(self, disk: HotDisk, plan: DiskPlan) -> Extents:
        """Return the estimate; where a moving filesystem gave none, what its parent has."""
        used = plan.used
        for part in plan.regions:
            content = part.content
            state = self._state_maps[disk.number].get(part.region.start)
            if content is None or content.understood or state is None:
                continue
            if state.state is State.FROZEN and disk.parent is not None:
                span = Extents.single(part.region.start, part.region.stop)
                used = (used - span) | (disk.parent.used & span)
        return used

    def _plan(
        self,
        readers: Sequence[Reader],
        state: State,
        layouts: Sequence[DiskLayout] | None = None,
    ) -> tuple[DiskPlan, ...]:
        """Plan all disks as `readers` show them; `state` is that of what will be frozen."""
        by_reader = {id(reader): number for number, reader in enumerate(readers)}

        def read(reader: RegionReader, peers: Peers) -> UsedMap:
            found = self._state_maps[by_reader[id(reader.base)]].get(reader.start)
            if found is None or found.state is State.FROZEN:
                return used_map(reader, peers, state=state, volumes=_volumes(found, state))
            if found.state is State.AT_REST:
                return used_map(reader, peers)
            content = used_map(reader, peers, state=State.LIVE)
            # Nobody can vouch for a map that changes while all else is frozen.
            everything = Extents.single(0, reader.size)
            return replace(content, used=everything, understood=False, notes=(found.note,))

        sources = [
            replace(source, reader=reader)
            for source, reader in zip(self._sources, readers, strict=True)
        ]
        plans = plan_disks(sources, read_map=read, layouts=layouts)
        return tuple(
            replace(plan, used=plan.used - disk.never)
            for disk, plan in zip(self._disks, plans, strict=True)
        )

    def _view(self) -> tuple[DiskPlan, ...] | None:
        """Plan the disks as they were in the freeze; None, and more to copy, if that fails."""
        for disk in self._disks:
            disk.account()
        views = [FrozenView(disk.memory, disk.overlay) for disk in self._disks]
        plans: tuple[DiskPlan, ...] = ()
        # Parsers of filesystems catch that and give a map all the same; that of layouts does not.
        with contextlib.suppress(NotRemembered):
            plans = self._plan(views, State.FROZEN)
        if not all(view.complete for view in views):
            # Once more, going on where bytes are missing, to find all of them at once.
            guesses = [FrozenView(disk.memory, disk.overlay, guess=True) for disk in self._disks]
            self._plan(guesses, State.FROZEN)
            # A map that lacked something says nothing of what is used.
            for disk, view, guess in zip(self._disks, views, guesses, strict=True):
                disk.structures = disk.structures | view.missing | guess.missing
        else:
            complete = True
            for disk, plan in zip(self._disks, plans, strict=True):
                missing = plan.used - disk.covered - disk.overlay.extents()
                disk.require(missing)
                complete = complete and not missing
            if complete:
                return plans
        self._notes.append("a freeze lacked something and was done again")
        # What is in memory is good until it is marked; it makes room for the next try.
        self._flush()
        store_overlays(
            self._disks, self._image, self._progress,
            content=self._read_back, threads=self._settings.threads,
        )  # fmt: skip
        return None

    # -- the freeze ---------------------------------------------------------------------

    def _settle(self) -> Window:
        """Freeze, so briefly as was asked; return the window in which all was read."""
        for disk in self._disks:
            disk.account()
            # Structures that an earlier view lacked.
            for start, stop in disk.structures:
                disk.memory.read_at(start, stop - start)
        self._quick_passes()
        allowed = self._settings.max_pause
        window, done = self._window(allowed)
        if done:
            return window
        return self._settle_busy(window)

    def _settle_busy(self, window: Window) -> Window:
        """Do what the user chose for a machine that writes faster than it can be copied."""
        settings = self._settings
        choice = settings.if_busy
        left = sum(len(disk.owed) for disk in self._disks) * GRANULE
        if choice is IfBusy.FAIL:
            raise NotConverging(
                f"{human_size(left)} were left to be read when a pause of"
                f" {settings.max_pause * 1000:.0f} ms was over",
                hint="allow a longer pause (--max-pause), hold writers down"
                " (--if-busy slow-writers), or make the image at a calmer time",
            )
        if choice is IfBusy.LONGER_PAUSE:
            return self._longer_pause(settings.max_pause)
        self._slowed = True
        self._progress.note(
            f"written to faster than it can be copied ({human_size(left)} were left):"
            " holding writers down by short freezes"
        )
        gap = 0.05
        for _ in range(_SHORT_FREEZES):
            self._read_quickly(time.monotonic() + gap)
            window, done = self._window(settings.max_pause, sync=False)
            if done:
                return window
            gap = max(gap / 2, 0.002)
        raise NotConverging(
            f"even {_SHORT_FREEZES} short freezes did not let copying catch up",
            hint="allow a longer pause: --max-pause",
        )

    def _longer_pause(self, pause: float) -> Window:
        longest = self._freezer.limit * 0.8
        while pause < longest:
            pause = min(pause * 2, longest)
            self._progress.note(f"trying a pause of {pause * 1000:.0f} ms")
            self._quick_passes()
            window, done = self._window(pause)
            if done:
                return window
        raise NotConverging(
            f"a pause of {pause:.1f} s was not enough",
            hint="hold writers down (--if-busy slow-writers), or give more memory"
            " (--residual-memory)",
        )

    def _quick_passes(self) -> None:
        """Read what is marked into memory, again and again, until little is left."""
        before = float("inf")
        stalls = 0
        for _ in range(_QUICK_PASSES):
            self._harvest()
            owed = sum(len(disk.owed) for disk in self._disks)
            if not self._room():
                self._make_room()
                continue
            begun = time.monotonic()
            for disk in self._disks:
                disk.read_owed(self._pool)
            each = (time.monotonic() - begun) / max(owed, 1)
            left = sum(each_.tracker.count() for each_ in self._tracked)
            if left * each + self._freeze_call <= self._settings.max_pause / 2:
                return
            stalls = stalls + 1 if left > before * _SHRINKS else 0
            if stalls >= _STALLS:
                return
            before = left

    def _read_quickly(self, until: float) -> None:
        """Read what is marked into memory for so long."""
        while True:
            self._harvest()
            if not self._room():
                self._make_room()
            done = [disk.read_owed(self._pool, until) for disk in self._disks]
            if time.monotonic() >= until or all(done):
                return

    def _room(self) -> bool:
        return all(disk.has_room() for disk in self._disks)

    def _make_room(self) -> None:
        """Store what is in memory, and what would not fit: a pass as any other."""
        self._flush()
        for disk in self._disks:
            disk.account()
        store_overlays(
            self._disks, self._image, self._progress,
            content=self._read_back, threads=self._settings.threads,
        )  # fmt: skip
        begun = time.monotonic()
        copied = self._copy()
        self._passes.append(PassRecord(bytes=copied, seconds=round(time.monotonic() - begun, 3)))

    def _last(self) -> None:
        """Do what is done just before the freeze: what the sync has written is read now."""
        for each in self._tracked:
            each.tracker.prepare()
        self._harvest()
        until = time.monotonic() + self._settings.max_pause
        for disk in self._disks:
            disk.has_room()
            disk.read_owed(self._pool, until)

    def _window(self, allowed: float, *, sync: bool = True) -> tuple[Window, bool]:
        """Freeze everything and read what was written; return whether that was all.

        `allowed` in seconds, from asking for the freeze to the thaw.
        """
        if not self._unchanged():
            raise FreezeError(
                "filesystems were mounted or unmounted meanwhile", hint="run it again"
            )
        self._windows += 1
        done = False
        before, begun = 0, 0.0

        def last() -> None:
            nonlocal before, begun
            self._last()
            before = sum(disk.bytes_read for disk in self._disks)
            begun = time.monotonic()

        try:
            with self._freezer.window(sync=sync, last=last) as window:
                # Of what is allowed, something is kept for the thaw; and where freezing took
                # all of it, what was written must be read nevertheless.
                until = max(begun + allowed * 0.9, time.monotonic() + allowed * 0.3)
                done = self._read_frozen(until, window)
        finally:
            self._residual = sum(disk.bytes_read for disk in self._disks) - before
        self._check_trackers()
        if not self._unchanged():
            raise FreezeError(
                "filesystems were mounted or unmounted during the freeze",
                hint="no image was made: run it again",
            )
        self._freeze_call = sum(each.freeze for each in window.times)
        return window, done

    def _read_frozen(self, until: float, window: Window) -> bool:
        """Read what was written before the freeze. Everything waits meanwhile."""
        try:
            self._harvest(frozen=True)
        except HarvestOverflow:
            return False
        for disk in self._disks:
            if not disk.read_owed(self._pool, until):
                return False
        if window.unfreezable:
            self._settle_unfreezable(until)
        if self._inside:
            self._parse_inside()
        return True

    def _settle_unfreezable(self, until: float) -> None:
        """Sync what cannot be frozen, and read it, until a whole pass saw nothing written."""
        while True:
            self._freezer.sync_unfreezable()
            self._harvest(frozen=True)
            if not any(len(disk.owed) for disk in self._disks):
                return
            for disk in self._disks:
                disk.read_owed(self._pool)
            if time.monotonic() > until:
                self._notes.append("what cannot be frozen was written to while it was read")
                return

    def _parse_inside(self) -> None:
        """Read the used maps from the frozen disks, and what of them nobody has read."""
        for disk in self._disks:
            disk.account()
        self._plans = self._plan([disk.memory for disk in self._disks], State.FROZEN)
        for disk, plan in zip(self._disks, self._plans, strict=True):
            disk.require(plan.used)
            disk.account()
            if not disk.read_owed(self._pool):
                raise NotConverging(
                    "what must be read inside the freeze does not fit into memory",
                    hint="give more: --residual-memory",
                )

    # -- the evidence -------------------------------------------------------------------

    def _proof(self, window: Window) -> HotProof:
        return HotProof(
            pause_ms=_ms(window.pause),
            residual_bytes=self._residual,
            windows=self._windows,
            passes=tuple(self._passes),
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
            slowed_writers=self._slowed,
            notes=tuple(dict.fromkeys(self._notes)),
        )


def _volumes(found: RegionState | None, state: State) -> dict[str, State] | None:
    """Return the states of logical volumes; those to be frozen are in `state` now."""
    if found is None or found.volumes is None:
        return None
    return {name: state if each is State.FROZEN else each for name, each in found.volumes.items()}


def _places(layout: DiskLayout) -> list[tuple[Role, int, int]]:
    return [(region.role, region.start, region.length) for region in layout.regions]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
