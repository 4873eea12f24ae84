"""Freezing the filesystems of an image together, for a moment, and never longer."""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from freezeframe.core.errors import FreezeBroken, FreezeBusy, FreezeError
from freezeframe.shadow.filesystems import MountedFilesystem, open_filesystem
from freezeframe.shadow.quiet import locked_memory, quiet
from freezeframe.shadow.watchdog import Watchdog
from freezeframe.system.freeze import (
    Frozen,
    expedite,
    expedited,
    freeze,
    sync_filesystem,
    thaw,
)
from freezeframe.system.interrupt import deferred

#: Seconds between tries where somebody else has frozen a filesystem.
_BETWEEN = 0.05
#: A thaw the kernel refuses is tried so many times, so many seconds apart.
_THAWS = 5
#: So many filesystems are frozen at once.
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class FreezeTime:
    """How long one filesystem was held, in seconds of the monotonic clock."""

    #: Where it is mounted.
    point: str
    kind: str
    #: When the freeze was asked for (`time.monotonic()`). New writers wait from about then.
    asked: float
    #: How long the call took: it waits for writes under way, and writes out the rest.
    freeze: float
    #: From then on until the thaw was asked for: nothing was written.
    held: float
    #: How long the thaw took.
    thaw: float

    @property
    def blocked(self) -> float:
        """Seconds a writer waited at most."""
        return self.freeze + self.held + self.thaw


@dataclass(slots=True)
class Window:
    """A stretch of time in which nothing was written to the frozen filesystems.

    Everything but `unfreezable` and `memory_locked` is filled in at its end.
    """

    #: Filesystems that know no freezing: they go on changing, and were synced just before.
    unfreezable: tuple[MountedFilesystem, ...] = ()
    #: Whether the program's memory is held; slower but not wrong without.
    memory_locked: bool = False
    #: When the last filesystem was frozen, and when the first was thawed, monotonic; 0 where
    #: there is nothing to freeze.
    since: float = 0.0
    until: float = 0.0
    #: In the order of freezing.
    times: tuple[FreezeTime, ...] = ()
    #: Why it is no point in time; nothing where it is one.
    broken: str = ""

    @property
    def pause(self) -> float:
        """Seconds from asking for the first freeze to the end of the last thaw."""
        if not self.times:
            return 0.0
        ends = [time.asked + time.blocked for time in self.times]
        return max(ends) - min(time.asked for time in self.times)


@dataclass(slots=True)
class _Hold:
    """One filesystem that was frozen by us."""

    index: int
    asked: float
    frozen: float
    thawing: float = 0.0
    thawed: float = 0.0


@dataclass(slots=True)
class _Attempt:
    """What one try to freeze all of them came to."""

    armed: float
    holds: list[_Hold] = field(default_factory=list)
    #: The one somebody else has frozen.
    busy: MountedFilesystem | None = None
    broken: str = ""


class Freezer:
    """Freezes filesystems together, with a watchdog that thaws them whatever happens.

    `filesystems` are in the order of freezing, as `find_filesystems` gives them; those that
    are read-only are left alone. Neighbours that do not sit on one another are frozen at
    once. `limit` in seconds: the watchdog lets no window last longer. `patience` in seconds:
    so long is waited for somebody else's freeze to end. As a context manager it keeps the
    filesystems from being unmounted. For one thread.
    """

    def __init__(
        self,
        filesystems: Sequence[MountedFilesystem],
        *,
        limit: float = 10.0,
        patience: float = 5.0,
    ) -> None:
        self.filesystems = tuple(filesystems)
        self.limit = limit
        self._patience = patience
        self._writable = [each for each in self.filesystems if not each.read_only]
        #: By index into `_writable`, as the watchdog has them too.
        self._descriptors: list[int] = []
        self._cannot: set[int] = set()
        self._watchdog: Watchdog | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Freezer:
        """Open the filesystems and start the watchdog. `FreezeError`; some 50 ms."""
        with ExitStack() as stack:
            for filesystem in self._writable:
                descriptor = open_filesystem(filesystem)
                stack.callback(os.close, descriptor)
                self._descriptors.append(descriptor)
            self._cannot = {n for n, each in enumerate(self._writable) if not each.freezes}
            points = [each.point for each in self._writable]
            if len(self._cannot) < len(points):
                self._watchdog = stack.enter_context(
                    Watchdog(self._descriptors, points, self.limit)
                )
            if len(points) > 1:
                self._threads = stack.enter_context(_started(min(len(points), _MOST_THREADS)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._descriptors = []
        self._watchdog = None
        self._threads = None

    @property
    def unfreezable(self) -> tuple[MountedFilesystem, ...]:
        """Those that write on through a window: known beforehand, or found by `flush`."""
        return tuple(self._writable[index] for index in sorted(self._cannot))

    def sync(self) -> None:
        """Write out what the filesystems hold in memory, while writers go on (syncfs).

        `FreezeError` where one cannot: its image would not be what its files are.
        """
        for filesystem, descriptor in zip(self._writable, self._descriptors, strict=True):
            _sync(filesystem, descriptor)

    def sync_unfreezable(self) -> None:
        """Do that for those that cannot be frozen, again; in a window too: they write on.

        Not for those on a file of one that can: in a window that file is held, and who syncs
        would wait for the thaw.
        """
        held = {f.device for n, f in enumerate(self._writable) if n not in self._cannot}
        for index in sorted(self._cannot):
            if not self._writable[index].sits_on & held:
                _sync(self._writable[index], self._descriptors[index])

    def flush(self) -> tuple[FreezeTime, ...]:
        """Freeze and thaw each by itself, so that all it holds in memory is on its disk.

        Raises as `window` does. Tells which know no freezing (`unfreezable`).
        """
        self.sync()
        times: list[FreezeTime] = []
        for index in range(len(self._writable)):
            with self._held((index,), Window()) as window:
                pass
            times += window.times
        return tuple(times)

    @contextmanager
    def window(
        self, *, sync: bool = True, last: Callable[[], None] | None = None
    ) -> Iterator[Window]:
        """Hold all filesystems still within. Nothing else may be done there but reading disks.

        `last` is called when all is ready and synced, just before the first is frozen. With
        `sync` false they are not synced before: for windows that follow each other closely.

        Memory is locked, logging goes to memory, and SIGINT and SIGTERM wait for the end
        (in the main thread). What the block does must not write files or start programs.
        Before it all filesystems are synced, so that freezing takes little.

        `FreezeBusy` where somebody else keeps one frozen, `FreezeError` where one cannot be
        frozen: then none is. `FreezeBroken` at the end where the freeze did not last: what
        was read is worthless, and `broken` of the window says why.
        """
        window = Window()
        with locked_memory() as window.memory_locked:
            if sync:
                self.sync()
            if last is not None:
                last()
            with self._held(range(len(self._writable)), window):
                yield window

    # -- one window ---------------------------------------------------------------------

    @contextmanager
    def _held(self, indices: Sequence[int], window: Window) -> Iterator[Window]:
        """Freeze these, in this order; thaw them in the reverse one."""
        patience = time.monotonic() + self._patience
        while True:
            with deferred(), quiet(), self._haste():
                attempt = self._freeze_all(indices)
                if not attempt.busy:
                    try:
                        window.unfreezable = self.unfreezable
                        if attempt.holds:
                            window.since = max(hold.frozen for hold in attempt.holds)
                        yield window
                    finally:
                        self._thaw_all(attempt)
                        self._fill_in(window, attempt)
                    break
            if time.monotonic() > patience:
                raise FreezeBusy(
                    f"{attempt.busy.point} is frozen by another program",
                    hint="wait for it to end; if none is at work any more, thaw it: "
                    f"fsfreeze --unfreeze {shlex.quote(attempt.busy.ways[0].path)}",
                )
            time.sleep(_BETWEEN)
        if window.broken:
            raise FreezeBroken(
                window.broken,
                hint="what was read meanwhile is not used; make the image when the machine is "
                "less busy, or allow a longer pause",
            )

    @contextmanager
    def _haste(self) -> Iterator[None]:
        """Within, the kernel hurries where it waits for readers (RCU).

        A freeze takes three such waits, of some 10 ms each, and writers are held up for two
        of them: hurried, a writer waited for 15 ms instead of 41. It costs other processors
        an interrupt. The watchdog sets it back should this program be killed.
        """
        before = expedited() if self._watchdog is not None else ""
        if before != "0" or self._watchdog is None:
            yield
            return
        self._watchdog.hurried(before)
        try:
            with contextlib.suppress(OSError):
                expedite("1")
            yield
        finally:
            with contextlib.suppress(OSError):
                expedite(before)
            self._watchdog.calmed()

    def _freeze_all(self, indices: Sequence[int]) -> _Attempt:
        """Freeze what can be; where one fails, thaw the others and raise why."""
        attempt = _Attempt(time.monotonic())
        if self._watchdog is None:
            return attempt
        try:
            self._watchdog.ensure()
            self._watchdog.arm()
            attempt.armed = time.monotonic()
            for group in self._groups(indices):
                self._freeze_group(group, attempt)
                if attempt.busy or attempt.broken:
                    break
        except BaseException:
            self._thaw_all(attempt)
            raise
        if attempt.busy or attempt.broken:
            self._thaw_all(attempt)
        if attempt.broken:
            raise FreezeBroken(
                attempt.broken, hint="try again when the machine writes less, or allow more time"
            )
        return attempt

    def _groups(self, indices: Sequence[int]) -> list[list[int]]:
        """Return them in groups to be frozen at once: none in a group sits on another of it."""
        groups: list[list[int]] = []
        for index in indices:
            if index in self._cannot:
                continue
            last = [self._writable[n] for n in groups[-1]] if groups else []
            own = self._writable[index]
            if not last or any(
                own.device in each.sits_on or each.device in own.sits_on for each in last
            ):
                groups.append([])
            groups[-1].append(index)
        return groups

    def _freeze_group(self, group: Sequence[int], attempt: _Attempt) -> None:
        """Freeze these at once: each call mostly waits for the kernel's grace periods."""
        if self._threads is None or len(group) == 1:
            for index in group:
                self._freeze_one(index, attempt)
            return
        calls = [self._threads.submit(self._freeze_one, index, attempt) for index in group]
        # All have to have returned before any can be thawed.
        errors = [error for call in calls if (error := call.exception()) is not None]
        if errors:
            raise errors[0]

    def _freeze_one(self, index: int, attempt: _Attempt) -> None:
        """Freeze one, or note why not."""
        filesystem, watchdog = self._writable[index], self._watchdog
        assert watchdog is not None
        watchdog.about(index)
        asked = time.monotonic()
        try:
            answer = freeze(self._descriptors[index])
        except OSError as error:
            watchdog.failed(index)
            raise FreezeError(
                f"{filesystem.point} cannot be frozen: {error.strerror}",
                hint="freezing needs root; an I/O error means that its disk fails",
            ) from error
        if answer is Frozen.DONE:
            attempt.holds.append(_Hold(index, asked, time.monotonic()))
            watchdog.frozen(index)
            if self._late(attempt):
                attempt.broken = f"freezing took more than {self.limit:g} s: it was given up"
            return
        watchdog.failed(index)
        if answer is Frozen.BUSY:
            attempt.busy = filesystem
        else:
            self._cannot.add(index)

    def _late(self, attempt: _Attempt) -> bool:
        """Whether the watchdog has thawed by now, or is about to."""
        return time.monotonic() - attempt.armed >= self.limit * 0.99

    def _thaw_all(self, attempt: _Attempt) -> None:
        """Thaw what this attempt froze, last frozen first, and stop the watchdog's clock."""
        watchdog = self._watchdog
        if watchdog is None:
            return
        # What the watchdog has thawed may have been frozen by somebody else since.
        already = set(watchdog.thawed_by_it()) if self._late(attempt) else set()
        failed: list[str] = []
        # Those frozen at once came in any order.
        attempt.holds.sort(key=lambda hold: hold.index)
        for hold in reversed(attempt.holds):
            hold.thawing = time.monotonic()
            filesystem = self._writable[hold.index]
            if hold.index not in already:
                try:
                    lasted = _thaw(self._descriptors[hold.index])
                except OSError as error:
                    failed.append(f"{filesystem.point} ({error.strerror})")
                    continue
                if not lasted:
                    attempt.broken = f"{filesystem.point} was thawed by another program"
            hold.thawed = time.monotonic()
            watchdog.thawed(hold.index)
        if failed:
            # With its channel closed it goes on trying by itself.
            watchdog.close()
            points = ", ".join(failed)
            raise FreezeError(
                f"not thawed: {points}",
                hint="thaw it by hand: fsfreeze --unfreeze, and look into the kernel log",
            )
        already |= set(watchdog.disarm())
        if already:
            points = ", ".join(self._writable[index].point for index in sorted(already))
            attempt.broken = (
                f"the freeze of {points} took longer than {self.limit:g} s and was ended"
            )

    def _fill_in(self, window: Window, attempt: _Attempt) -> None:
        window.broken = attempt.broken
        if attempt.holds:
            window.until = min(hold.thawing for hold in attempt.holds)
        window.times = tuple(
            FreezeTime(
                point=self._writable[hold.index].point,
                kind=self._writable[hold.index].kind,
                asked=hold.asked,
                freeze=hold.frozen - hold.asked,
                held=hold.thawing - hold.frozen,
                thaw=hold.thawed - hold.thawing,
            )
            for hold in attempt.holds
        )


def _started(count: int) -> ThreadPoolExecutor:
    """Return a pool whose threads are there already: none has to be made under a freeze."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="freeze")
    barrier = threading.Barrier(count)
    for call in [pool.submit(barrier.wait) for _ in range(count)]:
        call.result()
    return pool


def _thaw(descriptor: int) -> bool:
    """Thaw, and try again where that fails: anything is better than staying frozen."""
    for _ in range(_THAWS - 1):
        with contextlib.suppress(OSError):
            return thaw(descriptor)
        time.sleep(_BETWEEN)
    return thaw(descriptor)


def _sync(filesystem: MountedFilesystem, descriptor: int) -> None:
    try:
        sync_filesystem(descriptor)
    except OSError as error:
        raise FreezeError(
            f"what {filesystem.point} holds in memory cannot be written out: {error.strerror}",
            hint="its disk is full or fails: look into the kernel log",
        ) from error
