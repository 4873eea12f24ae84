"""Readers for parsing one filesystem again and again while it changes.

Before the freeze, used maps are read through a `RememberingReader`: what it has read once it
does not read again, until it is told that it was written. After the thaw a `FrozenView` shows
the disk as it was in the freeze: what was written lately from the bytes read inside of it (an
overlay), all else from what is remembered. No byte is taken from the disk that lives on.

Remembered bytes are true if `forget` is told all that was written, in this order: the marks
of a granule are taken and cleared, `forget`, and only then the next read.
"""

from __future__ import annotations

import threading
from bisect import insort
from typing import Protocol

import numpy as np

from freezeframe.block.base import Reader, verify_inside
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE, MIB

#: What Python takes for a piece besides its bytes.
_PIECE_COST = 200
#: Remembered, if nobody says otherwise: the bitmaps of 8 TiB of ext4, or the extent tree of
#: a btrfs of some ten million extents.
_LIMIT = 256 * MIB


class NotRemembered(FreezeframeError):
    """Bytes as they were in the freeze that nobody has read: copy them ahead, freeze again."""

    def __init__(self, name: str, offset: int, length: int) -> None:
        super().__init__(
            f"{name}: {length} bytes at {offset} were read neither in the freeze nor before"
        )
        self.offset = offset
        self.length = length


class Overlay(Protocol):
    """Bytes that go before all others; nobody writes to them meanwhile."""

    def covers(self, start: int, stop: int) -> Extents:
        """Return what it has of the bytes [start, stop)."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; it has all of that."""


class _Memory:
    """Pieces of a disk, by granule: exact ranges, none overlap, no piece passes a granule."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Ascending (start, stop, bytes) of each granule that has any.
        self._pieces: dict[int, list[tuple[int, int, bytes]]] = {}
        #: Granules looked at since the last `trim`.
        self._wanted: set[int] = set()
        self.held = 0
        self.refused = False

    def take(self, offset: int, buffer: memoryview) -> list[tuple[int, int]]:
        """Fill in what is there; return the (start, stop) that is not, ascending."""
        missing: list[tuple[int, int]] = []
        end = offset + len(buffer)
        start = offset
        while start < end:
            granule = start // GRANULE
            stop = min((granule + 1) * GRANULE, end)
            self._wanted.add(granule)
            for first, last, data in self._pieces.get(granule, ()):
                if last <= start:
                    continue
                if first >= stop:
                    break
                if first > start:
                    _join(missing, start, first)
                    start = first
                upto = min(last, stop)
                buffer[start - offset : upto - offset] = memoryview(data)[
                    start - first : upto - first
                ]
                start = upto
            if start < stop:
                _join(missing, start, stop)
            start = stop
        return missing

    def put(self, offset: int, data: memoryview) -> None:
        """Keep bytes of which none is there yet."""
        position, end = offset, offset + len(data)
        while position < end:
            granule = position // GRANULE
            stop = min((granule + 1) * GRANULE, end)
            if self.held + stop - position + _PIECE_COST > self._limit:
                self.refused = True
                return
            piece = bytes(data[position - offset : stop - offset])
            insort(self._pieces.setdefault(granule, []), (position, stop, piece))
            self.held += stop - position + _PIECE_COST
            position = stop

    def drop(self, granule: int) -> None:
        """Forget all of a granule."""
        for start, stop, _ in self._pieces.pop(granule, ()):
            self.held -= stop - start + _PIECE_COST

    def forget(self, extents: Extents) -> None:
        """Forget all granules that hold any of these bytes."""
        first = extents.starts // GRANULE
        last = -(-extents.stops // GRANULE)
        if int((last - first).sum()) <= len(self._pieces):
            for granule in extents.units(GRANULE).tolist():
                self.drop(granule)
            return
        # More was written than is remembered: ask the other way round.
        known = np.fromiter(self._pieces, np.int64, len(self._pieces))
        index = np.searchsorted(last, known, "right")
        inside = np.append(first, np.iinfo(np.int64).max)[index] <= known
        for granule in known[inside].tolist():
            self.drop(granule)

    def trim(self) -> None:
        """Forget the granules that were not looked at since the last time."""
        for granule in self._pieces.keys() - self._wanted:
            self.drop(granule)
        self._wanted = set()

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._wanted.clear()
        self.held = 0
        self.refused = False


def _join(ranges: list[tuple[int, int]], start: int, stop: int) -> None:
    """Add a range behind the others."""
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], stop)
    else:
        ranges.append((start, stop))


class RememberingReader(Closing):
    """A reader over `base` that reads no byte twice until it is told that it was written.

    Exactly the ranges read through it are remembered, `limit` bytes of memory at most. Made
    for the structures of filesystems, not for their data. Thread-safe: one read at a time,
    and `forget` waits for it, so that what was read before a write is never remembered after
    it was forgotten. Closing it leaves `base` open.
    """

    def __init__(self, base: Reader, *, limit: int = _LIMIT) -> None:
        self._base = base
        self._memory = _Memory(limit)
        self._lock = threading.Lock()
        self.name = base.name
        self.size = base.size
        self.sector = base.sector
        #: Bytes that had to be read from `base` so far.
        self.bytes_read = 0

    @property
    def base(self) -> Reader:
        """What it reads from."""
        return self._base

    # -- reading ------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`."""
        verify_inside(self.name, self.size, offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`: from memory what is there, the rest from `base`."""
        verify_inside(self.name, self.size, offset, len(buffer))
        with self._lock:
            for start, stop in self._memory.take(offset, buffer):
                part = buffer[start - offset : stop - offset]
                self._base.read_into(start, part)
                self.bytes_read += stop - start
                self._memory.put(start, part)

    def recall(self, offset: int, buffer: memoryview) -> list[tuple[int, int]]:
        """Fill in what is remembered, reading nothing; return the (start, stop) that is not."""
        with self._lock:
            return self._memory.take(offset, buffer)

    # -- forgetting ---------------------------------------------------------------------

    def forget(self, extents: Extents) -> None:
        """Drop what is remembered of every granule that holds any of these bytes."""
        with self._lock:
            self._memory.forget(extents)

    def trim(self) -> None:
        """Drop the granules that nobody has asked for since the last `trim`.

        Called after each parse, it keeps blocks that a filesystem has given up (btrfs never
        writes one in place) from filling the memory.
        """
        with self._lock:
            self._memory.trim()

    def clear(self) -> None:
        """Drop everything, and begin anew with `over_limit`."""
        with self._lock:
            self._memory.clear()

    @property
    def over_limit(self) -> bool:
        """Whether something read since the last `clear` was not remembered for lack of room.

        Then a `FrozenView` will miss it each time: parse inside the freeze instead.
        """
        return self._memory.refused

    @property
    def held(self) -> int:
        """How many bytes of memory are taken, more or less."""
        return self._memory.held

    # -- the rest of a reader -----------------------------------------------------------

    def data_extents(self) -> Extents:
        """Return the base's."""
        return self._base.data_extents()

    def close(self) -> None:
        """Do nothing: the base belongs to somebody else."""


class FrozenView(Closing):
    """The disk as it was in the freeze, as far as is known: a reader.

    Bytes are the overlay's, or else those remembered, of which all must have been forgotten
    that was written before the freeze and is not in the overlay. A read that needs others
    notes them in `missing` and raises `NotRemembered`; parsers may catch that and give a map
    all the same, so ask `complete` before any map read through this is believed.

    With `guess`, bytes that are missing are noted and read from the disk as it is now, so
    that a parser goes on and one pass finds (nearly) all that is missing. Such a map is
    worth nothing; `missing` is.
    """

    def __init__(self, memory: RememberingReader, overlay: Overlay, *, guess: bool = False) -> None:
        self._memory = memory
        self._overlay = overlay
        self._guess = guess
        self._missing: list[tuple[int, int]] = []
        self.name = memory.name
        self.size = memory.size
        self.sector = memory.sector

    @property
    def missing(self) -> Extents:
        """What was asked for and is not known."""
        return Extents.of(self._missing)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for was known, so that what came of it may be believed."""
        return not self._missing

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`; raises `NotRemembered`."""
        verify_inside(self.name, self.size, offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; raises `NotRemembered`."""
        end = offset + len(buffer)
        verify_inside(self.name, self.size, offset, len(buffer))
        covered = self._overlay.covers(offset, end)
        for start, stop in covered:
            self._overlay.read_into(start, buffer[start - offset : stop - offset])
        missing: list[tuple[int, int]] = []
        position = offset
        for start, stop in (*covered, (end, end)):
            if position < start:
                missing += self._memory.recall(position, buffer[position - offset : start - offset])
            position = stop
        if not missing:
            return
        self._missing += missing
        if not self._guess:
            start, stop = missing[0][0], missing[-1][1]
            raise NotRemembered(self.name, start, stop - start)
        for start, stop in missing:
            self._memory.base.read_into(start, buffer[start - offset : stop - offset])

    def data_extents(self) -> Extents:
        """Return everything: holes are not looked for."""
        return Extents.single(0, self.size)

    def close(self) -> None:
        """Do nothing: what it shows belongs to somebody else."""
