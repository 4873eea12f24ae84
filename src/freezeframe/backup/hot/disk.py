"""One disk of a hot image: what of it is stored, what must be, and what was written since.

All sets are extents in bytes of the source. Three of them are the whole algebra:

    want      what the image may need: in use by the last estimate, or written since
    covered   what the image holds as the disk has it: read after its last mark was cleared
    overlay   the same, but in memory

What has to be read is `want - covered - overlay`. A mark takes its granule out of `covered`
and `overlay` and puts it into `want`. On a disk in a million pieces that takes longer than a
freeze may last, so marks are first kept as they are, and what is read for them in memory.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import RememberingReader
from freezeframe.block.salvage import read_salvaging
from freezeframe.core.errors import UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, GRANULE
from freezeframe.image.parent import ParentDisk
from freezeframe.system.sysfs import Node

Granules = NDArray[np.int64]

#: Granules for which there is room beyond what is owed, before a freeze: 16 MiB.
_SPARE = 256
#: Granules read between two looks at the clock: 8 MiB.
_BATCH = 128


@dataclass(slots=True, eq=False)
class HotDisk:
    """A source that is imaged hot: a whole disk, a partition, or a volume."""

    #: Its number in the image.
    number: int
    path: str
    node: Node
    #: Past the page cache.
    reader: Reader
    #: For the structures of filesystems.
    memory: RememberingReader
    overlay: GranuleOverlay
    #: What an earlier image has of it.
    parent: ParentDisk | None = None
    #: What is never kept: areas in use as swap.
    never: Extents = field(default_factory=Extents.empty)
    want: Extents = field(default_factory=Extents.empty)
    #: In use by the last estimate.
    used: Extents = field(default_factory=Extents.empty)
    #: What may be in use though the last estimate does not say so: written since the flush,
    #: or found missing after a freeze.
    recent: Extents = field(default_factory=Extents.empty)
    covered: Extents = field(default_factory=Extents.empty)
    #: Structures of filesystems that a view of a freeze lacked: remembered before the next.
    structures: Extents = field(default_factory=Extents.empty)
    #: What could not be read, zeros in the image.
    unreadable: Extents = field(default_factory=Extents.empty)
    #: Granules to be read into memory, ascending.
    owed: Granules = field(default_factory=lambda: np.empty(0, np.int64))
    #: Granules written to in the last freeze, in spite of it; and those of them that were
    #: when it had to end.
    stirred: list[Granules] = field(default_factory=list)
    moving: Granules = field(default_factory=lambda: np.empty(0, np.int64))
    #: Marks taken so far, and bytes read into the image or the overlay.
    marks: int = 0
    bytes_read: int = 0
    #: Chunks that were stored since this image was begun.
    copied: NDArray[np.bool_] = field(init=False)
    #: Chunks of which every byte was written since the trusted base: marked all over.
    rewritten: NDArray[np.bool_] = field(init=False)
    #: Marks taken and not in the sets yet.
    _deferred: list[Granules] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.copied = np.zeros(-(-self.reader.size // CHUNK), np.bool_)
        self.rewritten = np.zeros(len(self.copied), np.bool_)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.reader.size

    # -- what was written ---------------------------------------------------------------

    def marked(self, granules: Granules) -> None:
        """Take note of marks, by granules of the source, before anything is read again.

        Quick, whatever the disk holds: the sets are brought up to date by `account`.
        """
        granules = self._without_never(granules)
        self.marks += len(granules)
        if len(granules):
            self._deferred.append(granules)
            self.owed = np.union1d(self.owed, granules)

    def account(self) -> None:
        """Bring all sets up to date with the marks taken, and `owed` with the sets."""
        self.overlay.discard(self.owed)
        if self._deferred:
            granules = np.unique(np.concatenate(self._deferred))
            self._deferred.clear()
            extents = Extents.from_blocks(granules, GRANULE).clip(0, self.size)
            self.memory.forget(extents)
            self.covered = self.covered - extents
            self.require(extents)
        self.owed = self.needed().units(GRANULE)

    def require(self, extents: Extents) -> None:
        """Want these bytes, whatever later estimates say."""
        self.recent = self.recent | (extents - self.never)
        self.want = self.want | (extents - self.never)

    def start_over(self) -> None:
        """Count on nothing that was read or taken: it may have been written to without a mark."""
        self.overlay.clear()
        self.memory.clear()
        self.covered = Extents.empty()
        self.account()

    def forget_recent(self) -> None:
        """Take the next estimate's word for what was written before a flush that has ended."""
        self.recent = Extents.empty()

    def estimate(self, used: Extents) -> None:
        """Take an estimate of what is in use, in bytes, for what is worth copying."""
        self.used = used
        self.want = (used - self.never) | self.recent
        # Marks taken meanwhile, too: what they are of may be in memory as it was before.
        self.account()

    def take_from_parent(self, changed: Extents) -> Granules:
        """Count on what the parent has and `changed` does not name; return the chunks to take.

        What could not be read for it is tried again: its zeros are no content.
        """
        parent = self.parent
        if parent is None:
            return np.empty(0, np.int64)
        numbers = np.flatnonzero(parent.usable)
        taken = Extents.from_blocks(numbers, CHUNK).clip(0, self.size)
        self.covered = (parent.used & taken) - changed - parent.unreadable
        self.rewritten[:] = True
        self.rewritten[(Extents.single(0, self.size) - changed).units(CHUNK)] = False
        return numbers

    def _without_never(self, granules: Granules) -> Granules:
        """Leave out the granules that lie wholly in what is never kept."""
        if not self.never or not len(granules):
            return granules
        starts, stops = self.never.starts, self.never.stops
        place = np.searchsorted(starts, granules * GRANULE, "right") - 1
        inside = (place >= 0) & ((granules + 1) * GRANULE <= stops[place])
        return granules[~inside]

    # -- what is to be read -------------------------------------------------------------

    def needed(self) -> Extents:
        """Return what the image may need and nobody has read since it was written."""
        return self.want - self.covered - self.overlay.extents()

    def stirred_extents(self) -> Extents:
        """Return what was written to in spite of the last freeze, in bytes."""
        if not self.stirred:
            return Extents.empty()
        return Extents.from_blocks(np.unique(np.concatenate(self.stirred)), GRANULE)

    def add_unreadable(self, bad: Extents) -> None:
        """Note bytes that are zeros in the image because the medium failed. Thread-safe."""
        with self._lock:
            self.unreadable = self.unreadable | bad

    def stored(self, extents: Extents) -> None:
        """Take note that the image holds just this of the chunks it touches."""
        rewritten = Extents.from_blocks(extents.units(CHUNK), CHUNK)
        self.covered = (self.covered - rewritten) | extents

    def has_room(self, limit: int, *, spare: bool = False) -> bool:
        """Whether what is owed fits into memory; takes more of it, `limit` bytes at most.

        `spare`: and beyond what is owed, for what will be written next. Not in a freeze.
        """
        overlay = self.overlay
        fresh = np.setdiff1d(self.owed, overlay.granules(), assume_unique=True).size
        missing = max(0, fresh - overlay.free)
        wanted = overlay.capacity + missing
        if spare and overlay.free - fresh < _SPARE:
            wanted += missing + 2 * _SPARE
        if wanted > overlay.capacity:
            overlay.grow(min(wanted * GRANULE, limit))
        return fresh <= overlay.free

    # -- into memory --------------------------------------------------------------------

    def read_owed(self, pool: Executor | None, until: float | None = None) -> bool:
        """Read what is owed into the overlay; return whether all of it is there.

        Stops at the time `until` (monotonic) or where there is no room. What the medium
        fails to give is zeros, and noted.
        """
        owed, done = self.owed, 0
        left = owed[:0]
        while done < len(owed) and not len(left):
            if until is not None and time.monotonic() >= until:
                break
            batch = owed[done : done + _BATCH]
            left = self._read(batch, pool)
            done += len(batch)
        self.owed = np.concatenate([left, owed[done:]])
        # What they held was written over.
        self.overlay.discard(self.owed)
        self.bytes_read += (len(owed) - len(self.owed)) * GRANULE
        return not len(self.owed)

    def _read(self, granules: Granules, pool: Executor | None) -> Granules:
        """Read these; return those that found no room."""
        try:
            return self.overlay.read_granules(self.reader, granules, pool)
        except UnreadableRange:
            return self._salvage(granules)

    def _salvage(self, granules: Granules) -> Granules:
        left: list[int] = []
        for granule in granules.tolist():
            if self.overlay.missing_room(np.array([granule], np.int64)):
                left.append(granule)
                continue
            bad = read_salvaging(self.reader, granule * GRANULE, self.overlay.slot(granule))
            self.add_unreadable(bad)
        return np.array(left, np.int64)

    def overlay_by_chunk(self) -> dict[int, dict[int, memoryview]]:
        """Return what is in memory: chunk → number of the granule within → its bytes."""
        found: dict[int, dict[int, memoryview]] = {}
        per_chunk = CHUNK // GRANULE
        for granule in self.overlay.granules().tolist():
            number, part = divmod(granule, per_chunk)
            found.setdefault(number, {})[part] = self.overlay.view(granule)
        return found

    def overlay_stored(self) -> None:
        """Take note that the image holds what was in memory, and free that."""
        self.covered = self.covered | self.overlay.extents()
        self.overlay.clear()
