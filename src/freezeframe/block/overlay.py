"""Granules read in the moment of a freeze, kept in memory that was there before.

While filesystems are frozen, everything waits: what is done here then is one look-up over
numbers and as few reads as there are runs of neighbours, straight into memory that was
touched beforehand. Nothing is allocated in sizes that matter, nothing is copied.
"""

from __future__ import annotations

import itertools
import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from freezeframe.block.base import Reader
from freezeframe.block.descriptor import aligned_buffer
from freezeframe.core.errors import SourceError
from freezeframe.core.extents import Extents, Int64Array
from freezeframe.core.units import GRANULE

Flags = NDArray[np.bool_]

#: A longer run of neighbours is cut, so that several threads share it: 8 MiB. No more buffers
#: than that go into one call, of which the kernel takes 1,024 (IOV_MAX).
_LONGEST_RUN = 128
#: Reads under way at once, where there are threads for it.
_LANES = 8


@runtime_checkable
class ScatteredReader(Protocol):
    """A reader that fills several buffers with one call."""

    def read_scattered(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers one after the other from `offset`, all aligned for O_DIRECT.

        Raises what `read_into` raises.
        """


class GranuleOverlay:
    """Room for `limit` bytes of granules of one disk, by number; the last read of each wins.

    `disk_size` in bytes: the last granule of a disk may be short. All memory is taken and
    touched when it is made or grown, a second or two a GiB: not in the freeze. Not
    thread-safe, but for reading what is in it.
    """

    def __init__(self, disk_size: int, limit: int) -> None:
        self._disk_size = disk_size
        #: Numbers of the granules that are there, ascending, and the slot of each.
        self._numbers = np.empty(0, np.int64)
        self._slots = np.empty(0, np.int64)
        self._capacity = self._slots_of(limit)
        self._buffer = _touched(self._capacity * GRANULE)
        #: Slots nobody uses, the next one last.
        self._free = np.arange(self._capacity - 1, -1, -1, dtype=np.int64)

    def _slots_of(self, limit: int) -> int:
        return max(1, min(limit // GRANULE, -(-self._disk_size // GRANULE)))

    def grow(self, limit: int) -> None:
        """Make room for `limit` bytes, if there is less; what is there stays.

        Not in a freeze: it takes memory, and copies what is there.
        """
        capacity = self._slots_of(limit)
        if capacity <= self._capacity:
            return
        buffer = _touched(capacity * GRANULE)
        buffer[: len(self._buffer)] = self._buffer
        more = np.arange(capacity - 1, self._capacity - 1, -1, dtype=np.int64)
        self._free = np.concatenate([more, self._free])
        self._buffer, self._capacity = buffer, capacity

    # -- what is there ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def capacity(self) -> int:
        """How many granules there is room for."""
        return self._capacity

    @property
    def free(self) -> int:
        """How many granules more there is room for."""
        return len(self._free)

    @property
    def full(self) -> bool:
        """Whether no slot is left for a granule that is not there yet."""
        return not len(self._free)

    def granules(self) -> Int64Array:
        """Return the numbers of all granules that are there, ascending; read-only."""
        numbers = self._numbers.view()
        numbers.setflags(write=False)
        return numbers

    def extents(self) -> Extents:
        """Return the bytes of the disk that are there."""
        return Extents.from_blocks(self._numbers, GRANULE).clip(0, self._disk_size)

    def missing_room(self, granules: Int64Array) -> int:
        """Return how many of these granules (ascending, none twice) would find no slot."""
        known = int(np.count_nonzero(self._known(granules)[0]))
        return max(0, len(granules) - known - len(self._free))

    def view(self, granule: int) -> memoryview:
        """Return the bytes of a granule, shorter at the disk's end; `KeyError` without it.

        Valid until the next `read_granules`, `discard` or `clear`.
        """
        index = int(np.searchsorted(self._numbers, granule))
        if index == len(self._numbers) or int(self._numbers[index]) != granule:
            raise KeyError(granule)
        return self._bytes(granule, int(self._slots[index]))

    def slot(self, granule: int) -> memoryview:
        """Return where to put the bytes of a granule, on a page boundary; it counts as there.

        `KeyError` where it is not there and no slot is left.
        """
        placed, _ = self._place(np.array([granule], np.int64))
        if not len(placed):
            raise KeyError(granule)
        return self.view(granule)

    def covers(self, start: int, stop: int) -> Extents:
        """Return what is there of the bytes [start, stop)."""
        first = int(np.searchsorted(self._numbers, start // GRANULE))
        last = int(np.searchsorted(self._numbers, -(-stop // GRANULE)))
        found = Extents.from_blocks(self._numbers[first:last], GRANULE)
        return found.clip(start, min(stop, self._disk_size))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of the disk; `KeyError` where that is not all there."""
        done = 0
        while done < len(buffer):
            granule, inside = divmod(offset + done, GRANULE)
            part = self.view(granule)[inside : inside + len(buffer) - done]
            if not len(part):
                raise KeyError(granule)
            buffer[done : done + len(part)] = part
            done += len(part)

    # -- taking in ----------------------------------------------------------------------

    def read_granules(
        self, reader: Reader, granules: Int64Array, pool: Executor | None = None
    ) -> Int64Array:
        """Read granules (ascending, none twice) of the disk; return those that found no slot.

        Neighbours are read with one call, into whatever slots they have. `pool`: threads that
        run already, to have several reads under way at once; the disk then sees as many.
        Raises `SourceError` for a granule past the disk's end and what the reader raises;
        after that none of these granules is there.
        """
        if not len(granules):
            return granules
        if int(granules[0]) < 0 or int(granules[-1]) * GRANULE >= self._disk_size:
            raise SourceError(f"{reader.name}: granule {granules[-1]} lies outside of it")
        slots, placed = self._place(granules)
        wanted = granules[placed]
        if not len(wanted):
            return granules
        try:
            self._read(reader, wanted, slots, pool)
        except BaseException:
            # What they hold now is neither old nor new.
            self.discard(wanted)
            raise
        return granules[~placed]

    def discard(self, granules: Int64Array) -> None:
        """Give up these granules (ascending, none twice), as far as they are there."""
        hit, index = self._known(granules)
        gone = np.zeros(len(self._numbers), np.bool_)
        gone[index[hit]] = True
        self._free = np.concatenate([self._free, self._slots[gone]])
        self._numbers, self._slots = self._numbers[~gone], self._slots[~gone]

    def clear(self) -> None:
        """Give up all granules."""
        self._numbers = np.empty(0, np.int64)
        self._slots = np.empty(0, np.int64)
        self._free = np.arange(self._capacity - 1, -1, -1, dtype=np.int64)

    # -- inside -------------------------------------------------------------------------

    def _known(self, granules: Int64Array) -> tuple[Flags, Int64Array]:
        """Tell which of these granules are there, and the place of each in `_numbers`."""
        index = np.searchsorted(self._numbers, granules)
        hit = np.zeros(len(granules), np.bool_)
        inside = index < len(self._numbers)
        hit[inside] = self._numbers[index[inside]] == granules[inside]
        return hit, index

    def _place(self, granules: Int64Array) -> tuple[Int64Array, Flags]:
        """Give slots to as many granules as there is room for; and tell which those are."""
        hit, index = self._known(granules)
        slots = np.empty(len(granules), np.int64)
        slots[hit] = self._slots[index[hit]]
        new = np.flatnonzero(~hit)[: len(self._free)]
        if len(new):
            # From the end, so that neighbours on the disk are neighbours in memory.
            taken = self._free[len(self._free) - len(new) :][::-1]
            self._free = self._free[: len(self._free) - len(new)]
            slots[new] = taken
            hit[new] = True
            self._numbers = np.insert(self._numbers, index[new], granules[new])
            self._slots = np.insert(self._slots, index[new], taken)
        return slots[hit], hit

    def _bytes(self, granule: int, slot: int) -> memoryview:
        length = min(GRANULE, self._disk_size - granule * GRANULE)
        return self._buffer[slot * GRANULE : slot * GRANULE + length]

    def _read(
        self, reader: Reader, granules: Int64Array, slots: Int64Array, pool: Executor | None
    ) -> None:
        left = deque(self._calls(granules, slots))
        scattered = reader.read_scattered if isinstance(reader, ScatteredReader) else None

        def work() -> None:
            try:
                while left:
                    try:
                        offset, buffers = left.popleft()
                    except IndexError:
                        return
                    if scattered is not None:
                        scattered(offset, buffers)
                        continue
                    for buffer in buffers:
                        reader.read_into(offset, buffer)
                        offset += len(buffer)
            except BaseException:
                # The others need not go on.
                left.clear()
                raise

        if pool is None or len(left) < 2:
            work()
            return
        futures = [pool.submit(work) for _ in range(min(_LANES, len(left)))]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    def _calls(
        self, granules: Int64Array, slots: Int64Array
    ) -> Iterator[tuple[int, list[memoryview]]]:
        """Give what to read with one call each: the offset, and the buffers to fill from there.

        A call takes neighbours on the disk, a buffer those that are neighbours in memory, too.
        """
        place = np.arange(len(granules))
        first = np.append(True, np.diff(granules) != 1)
        run = np.maximum.accumulate(np.where(first, place, 0))
        call = (place - run) % _LONGEST_RUN == 0
        piece = np.flatnonzero(call | np.append(True, np.diff(slots) != 1))
        begins = slots[piece] * GRANULE
        ends = begins + np.diff(piece, append=len(granules)) * GRANULE
        ends[-1] -= max(0, (int(granules[-1]) + 1) * GRANULE - self._disk_size)
        buffers = [
            self._buffer[begin:end]
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]
        heads = np.flatnonzero(call)
        offsets = (granules[heads] * GRANULE).tolist()
        edges = [*np.searchsorted(piece, heads).tolist(), len(piece)]
        for offset, (begin, end) in zip(offsets, itertools.pairwise(edges), strict=True):
            yield offset, buffers[begin:end]


def _touched(size: int) -> memoryview:
    """Return memory that is there: the first write to a page makes it; none shall in a freeze."""
    buffer = aligned_buffer(size)
    np.frombuffer(buffer, np.uint8)[:: mmap.PAGESIZE] = 0
    return buffer
