"""One tracked disk: its marks, counted and harvested; and starting, finding, stopping it."""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.closing import Closing
from freezeframe.system.sysfs import Node
from freezeframe.tracking import checks, counting, pinned, program
from freezeframe.tracking.disk import TrackedDisk, describe, refuse_untrackable
from freezeframe.tracking.harvest import HarvestOverflow, harvest
from freezeframe.tracking.pending import PendingSet, create
from freezeframe.tracking.record import (
    BaseRecord,
    Places,
    Record,
    all_places,
    bases,
    lock,
    locked,
    new_pending_name,
    places_of,
    read_record,
    write_note,
)
from freezeframe.tracking.shared import STATE_SIZE, State, parse_state

__all__ = [
    "HarvestOverflow",
    "Tracker",
    "TrackerStatus",
    "open_running",
    "running",
    "start",
    "stop",
    "stop_number",
]


class Tracker(Closing):
    """A disk that is tracked, opened by us alone. Closing it goes on tracking.

    Not thread-safe. Made by `start` and `open_running`.
    """

    def __init__(self, places: Places, record: Record, lock_descriptor: int) -> None:
        """Take over the lock's descriptor. Raises `OSError` where the pins are gone."""
        self.places = places
        self.record = record
        self.disk: TrackedDisk = record.disk
        #: How many granules of 64 KiB the disk has.
        self.granules: int = record.disk.granules
        #: Hex; drawn anew each time tracking starts.
        self.generation: str = record.generation
        self._counted = record.counted
        self._lock = lock_descriptor
        self._closed = False
        self._state = pinned.map_memory(places.state, STATE_SIZE)
        try:
            self._memory = pinned.map_memory(places.flags, self.granules)
        except BaseException:
            self._state.close()
            raise
        self._flags: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8, self.granules)
        self._copy: NDArray[np.uint8] = np.zeros(self.granules, np.uint8)
        self._pending: dict[str, PendingSet] = {}
        try:
            for base in bases(places):
                self._open_pending(base)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have it. The kernel goes on marking."""
        if self._closed:
            return
        self._closed = True
        for pending in self._pending.values():
            pending.close()
        del self._flags
        self._memory.close()
        self._state.close()
        os.close(self._lock)

    # -- marks ------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many granules are marked now. Clears nothing, allocates nothing."""
        return int(np.count_nonzero(self._flags.view(np.bool_)))

    def prepare(self) -> None:
        """Have every page in memory that a harvest needs: before filesystems are frozen."""
        self._copy.fill(0)
        np.copyto(self._copy, self._flags)
        for pending in self._pending.values():
            pending.prepare()

    def harvest(self, into: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the granules marked since the last harvest, ascending, int64, and clear them.

        Whoever reads a granule does so after this. With `into` (int64, of any length) the
        result is a view of its beginning, and nothing larger than half a MiB is allocated:
        after `prepare`, this may run while every filesystem is frozen. Raises
        `HarvestOverflow`, having cleared nothing, where `into` is too small.
        """
        return harvest(self._flags, self._copy, self._pending.values(), into)

    # -- trust ------------------------------------------------------------------------

    def state(self) -> State:
        """Return the counters as they are now."""
        return parse_state(self._state[:STATE_SIZE])

    def broken(self) -> tuple[str, ...]:
        """Return why it could not follow all writes since tracking started; empty: it could.

        Cheap, and safe while filesystems are frozen, as `left_out` is.
        """
        return self._look().broken(self.record)

    def left_out(self) -> tuple[str, ...]:
        """Return what the kernel did not tell it since tracking started, or `count_anew`.

        Empty: it told of every write. Otherwise some have no mark, and nobody knows which.
        """
        return self._look().left_out(self.record, self._counted)

    @property
    def is_counted(self) -> bool:
        """Whether the kernel keeps count of the same writes: only then `left_out` can tell."""
        return bool(self._counted.ahead) and counting.written(self.disk.number) is not None

    def count_anew(self) -> None:
        """Hold it answerable for what is written from now on, for whoever reads everything again.

        Until it is closed; from one image to the next it stays in doubt, unless what was read
        again has become an image: `trust_again`.
        """
        self._counted = counting.begin(
            self.disk.number,
            self.record.mode,
            lambda: self.state().sectors,
            self._look().misses,
        )

    def trust_again(self) -> None:
        """Believe the marks since `count_anew`, if none was left out since.

        Does nothing where that was not called.

        What other images stand on is gone: they lack what the kernel did not tell.
        """
        if self._counted is self.record.counted or self.left_out():
            return
        for base in bases(self.places):
            self.places.base(base.repository).unlink(missing_ok=True)
        for pending in self._pending.values():
            pending.close()
        self._pending.clear()
        self.record = replace(self.record, counted=self._counted)
        write_note(self.places.record, self.record)

    def doubts(self) -> tuple[str, ...]:
        """Return why the marks cannot be believed from one image to the next."""
        lasting = checks.lasting_doubts(self.record)
        return (*lasting, *checks.doubts(self.record, self._look()))

    def _look(self) -> checks.Look:
        return checks.look(self.record, self.places, self.state)

    # -- pending sets -------------------------------------------------------------------

    def pending(self, repository: str) -> PendingSet | None:
        """Return the pending set of a repository; None where it has no image of this disk."""
        return self._pending.get(repository)

    def settle(self, repository: str, image: str) -> None:
        """Make an image the base of a repository's next, with an empty pending set.

        Killed at any moment, there is the old base with the old set, or the new one with the
        empty set; the note, put in place whole, decides.
        """
        name = new_pending_name(repository)
        create(self.places.notes / name, self.granules)
        base = BaseRecord(repository, image, self.generation, name)
        write_note(self.places.base(repository), base)
        former = self._pending.pop(repository, None)
        if former is not None:
            former.close()
        self._open_pending(base)
        self._sweep()

    def _open_pending(self, base: BaseRecord) -> None:
        try:
            pending = PendingSet(self.places.notes / base.pending, self.granules)
        except (OSError, ValueError):
            # Without its set a base is worth nothing.
            self.places.base(base.repository).unlink(missing_ok=True)
            return
        self._pending[base.repository] = pending

    def _sweep(self) -> None:
        """Remove sets that no note names: left by a program that was killed."""
        named = {base.pending for base in bases(self.places)}
        for path in self.places.notes.glob("pending-*"):
            if path.name not in named:
                path.unlink(missing_ok=True)


# -- starting, finding, stopping ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """A tracker as it is found, without disturbing who works with it."""

    disk: TrackedDisk
    mode: str
    generation: str
    #: Seconds since 1970.
    started: float
    #: Granules marked now and not harvested.
    marked: int
    state: State
    #: Why its marks cannot be believed; empty where they can.
    doubts: tuple[str, ...]
    #: (repository, image) of each base.
    bases: tuple[tuple[str, str], ...]


def start(node: Node, *, force_classic: bool = False) -> Tracker:
    """Track the whole disk a node is or is on; opens the tracker that runs, if it can be believed.

    One that cannot (a loop device's number used again, a passthrough write) is replaced, and
    with it goes what increments stood on. Writes under way at that moment may have no mark:
    flush (freeze and thaw) before anything is read that shall count. `force_classic` takes
    the way of kernels without BTF, for tests. Raises `TrackingUnavailable`, `TrackingBusy`.
    """
    disk = describe(node)
    refuse_untrackable(node.whole, disk)
    places = places_of(disk.number)
    held = lock(disk.number)
    try:
        record = read_record(places)
        replaced = ""
        if record is not None:
            doubts = _doubts(places, record)
            if not doubts and (record.mode == "classic") == force_classic:
                with contextlib.suppress(OSError):
                    return Tracker(places, record, held)
            replaced = "; ".join(doubts)
        places.remove()
        record = program.load(
            node.whole, disk, places, force_classic=force_classic, replaced=replaced
        )
        return Tracker(places, record, held)
    except BaseException:
        os.close(held)
        raise


def open_running(node: Node) -> Tracker | None:
    """Open the tracker of the disk a node is or is on; None where none runs on this very disk.

    It may be broken: ask it. Raises `TrackingUnavailable`, `TrackingBusy`.
    """
    disk = describe(node)
    places = places_of(disk.number)
    if read_record(places) is None:
        return None
    held = lock(disk.number)
    try:
        # Once more, now that nobody else can change it.
        record = read_record(places)
        if record is not None and not checks.identity_doubts(record):
            with contextlib.suppress(OSError):
                return Tracker(places, record, held)
    except BaseException:
        os.close(held)
        raise
    os.close(held)
    return None


def stop(node: Node) -> bool:
    """End tracking of the disk a node is or is on; tells whether there was anything to end.

    Raises `TrackingUnavailable`, `TrackingBusy`.
    """
    return stop_number(node.whole.number)


def stop_number(number: str) -> bool:
    """End tracking of a disk by its number, `8:0`: it may be gone already."""
    places = places_of(number)
    with locked(number):
        found = places.pins.exists() or places.record.exists()
        places.remove()
    return found


def running() -> list[TrackerStatus]:
    """Return what is tracked. Raises `TrackingUnavailable`."""
    found = []
    for places in all_places():
        record = read_record(places)
        status = _status(places, record) if record is not None else None
        if status is not None:
            found.append(status)
    return found


def _status(places: Places, record: Record) -> TrackerStatus | None:
    try:
        seen = checks.look(record, places, lambda: _read_state(places))
        with _view(places, record.disk.granules) as memory:
            flags = np.frombuffer(memory, np.bool_, record.disk.granules)
            marked = int(np.count_nonzero(flags))
            del flags
    except OSError:
        # Its pins are gone: stopped a moment ago, or by hand.
        return None
    return TrackerStatus(
        disk=record.disk,
        mode=record.mode,
        generation=record.generation,
        started=record.started,
        marked=marked,
        state=seen.state,
        doubts=(*checks.lasting_doubts(record), *checks.doubts(record, seen)),
        bases=tuple((base.repository, base.image) for base in bases(places)),
    )


def _view(places: Places, granules: int) -> contextlib.closing[mmap.mmap]:
    return contextlib.closing(pinned.map_memory(places.flags, granules))


def _read_state(places: Places) -> State:
    with pinned.map_memory(places.state, STATE_SIZE) as memory:
        return parse_state(memory[:STATE_SIZE])


def _doubts(places: Places, record: Record) -> tuple[str, ...]:
    """Return why a tracker that was noted cannot go on."""
    try:
        seen = checks.look(record, places, lambda: _read_state(places))
    except OSError as error:
        return (*checks.identity_doubts(record), f"its marks are gone: {error.strerror}")
    return checks.doubts(record, seen)
