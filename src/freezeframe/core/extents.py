"""Sets of byte ranges, as two numpy arrays.

An `Extents` is a set of bytes of a disk. It is kept in the one canonical form there
is: starts and stops ascending, no empty range, no two ranges that touch. Two sets
with the same bytes are therefore equal array by array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


class Extents:
    """An immutable set of bytes: half-open ranges [start, stop), in bytes, int64."""

    __slots__ = ("starts", "stops")

    #: First byte of each range; int64, shape (n,), ascending.
    starts: Int64Array
    #: Byte after the last of each range; int64, shape (n,), ascending.
    stops: Int64Array

    def __init__(self, starts: Int64Array, stops: Int64Array) -> None:
        """Take arrays already in canonical form; everybody else uses the makers below."""
        starts.setflags(write=False)
        stops.setflags(write=False)
        self.starts = starts
        self.stops = stops

    # -- makers ---------------------------------------------------------------------

    @classmethod
    def empty(cls) -> Extents:
        """No bytes at all."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def single(cls, start: int, stop: int) -> Extents:
        """One range; none if `stop <= start`."""
        if stop <= start:
            return cls.empty()
        return cls(np.array([start], np.int64), np.array([stop], np.int64))

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Extents:
        """Any (start, stop) pairs: unordered, overlapping and empty ones are fine."""
        array = np.array(list(pairs), np.int64).reshape(-1, 2)
        return cls.from_arrays(array[:, 0], array[:, 1])

    @classmethod
    def from_arrays(cls, starts: Int64Array, stops: Int64Array) -> Extents:
        """Any arrays of starts and stops in bytes: unordered, overlapping, empty are fine."""
        keep = stops > starts
        starts, stops = starts[keep], stops[keep]
        if not len(starts):
            return cls.empty()
        order = np.argsort(starts, kind="stable")
        starts, stops = starts[order], stops[order]
        reach = np.maximum.accumulate(stops)
        head = np.empty(len(starts), np.bool_)
        head[0] = True
        np.greater(starts[1:], reach[:-1], out=head[1:])
        first = np.flatnonzero(head)
        last = np.append(first[1:] - 1, len(starts) - 1)
        return cls(starts[first].astype(np.int64), reach[last].astype(np.int64))

    @classmethod
    def joined(cls, parts: Iterable[Extents]) -> Extents:
        """All bytes of any number of sets, none included, in one go."""
        known = [cls.empty(), *parts]
        return cls.from_arrays(
            np.concatenate([part.starts for part in known]),
            np.concatenate([part.stops for part in known]),
        )

    @classmethod
    def from_bits(cls, bits: NDArray[np.bool_], unit: int, base: int = 0) -> Extents:
        """One flag a unit: the bytes of all units whose flag is set.

        `bits` has shape (n,); unit `i` covers [base + i*unit, base + (i+1)*unit).
        """
        padded = np.zeros(len(bits) + 2, np.int8)
        padded[1:-1] = bits
        edges = np.diff(padded)
        starts = np.flatnonzero(edges == 1).astype(np.int64)
        stops = np.flatnonzero(edges == -1).astype(np.int64)
        return cls(starts * unit + base, stops * unit + base)

    @classmethod
    def from_blocks(cls, blocks: Int64Array, unit: int, base: int = 0) -> Extents:
        """Block numbers in any order: the bytes of those blocks of `unit` bytes."""
        numbers = blocks.astype(np.int64)
        return cls.from_arrays(numbers * unit + base, (numbers + 1) * unit + base)

    # -- looking --------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.starts)

    def __bool__(self) -> bool:
        return len(self.starts) > 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.stops.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Extents):
            return NotImplemented
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.stops, other.stops)

    def __hash__(self) -> int:
        return hash((self.starts.tobytes(), self.stops.tobytes()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{a}-{b}" for a, b in list(self)[:4])
        more = f", … {len(self)} ranges" if len(self) > 4 else ""
        return f"Extents({shown}{more})"

    @property
    def total(self) -> int:
        """How many bytes are in the set."""
        return int((self.stops - self.starts).sum())

    @property
    def end(self) -> int:
        """The byte after the last one; 0 for the empty set."""
        return int(self.stops[-1]) if len(self.stops) else 0

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of [start, stop) is in the set."""
        if stop <= start:
            return True
        index = int(np.searchsorted(self.starts, start, "right")) - 1
        return index >= 0 and int(self.stops[index]) >= stop

    def touches(self, start: int, stop: int) -> bool:
        """Whether any byte of [start, stop) is in the set."""
        if stop <= start:
            return False
        index = int(np.searchsorted(self.stops, start, "right"))
        return index < len(self.starts) and int(self.starts[index]) < stop

    def units(self, unit: int) -> Int64Array:
        """Return the ascending numbers of the units of `unit` bytes that hold any of the set."""
        if not self:
            return np.empty(0, np.int64)
        outward = self.aligned(unit)
        first, last = outward.starts // unit, outward.stops // unit
        lengths = last - first
        offsets = np.repeat(first - np.append(0, np.cumsum(lengths)[:-1]), lengths)
        numbers: Int64Array = np.arange(int(lengths.sum()), dtype=np.int64) + offsets
        return numbers

    # -- algebra --------------------------------------------------------------------

    def __or__(self, other: Extents) -> Extents:
        if not other:
            return self
        if not self:
            return other
        return Extents.from_arrays(
            np.concatenate([self.starts, other.starts]), np.concatenate([self.stops, other.stops])
        )

    def __and__(self, other: Extents) -> Extents:
        """Bytes in both. Ranges are swept together: O(n log n) without a Python loop."""
        if not self or not other:
            return Extents.empty()
        edges = np.concatenate([self.starts, other.starts, self.stops, other.stops])
        count = len(self) + len(other)
        delta = np.ones(2 * count, np.int64)
        delta[count:] = -1
        # Stops sort before starts at the same byte, so that touching ranges do not overlap.
        order = np.lexsort((delta, edges))
        depth = np.cumsum(delta[order])
        position = edges[order]
        both = np.flatnonzero(depth[:-1] == 2)
        return Extents.from_arrays(position[both], position[both + 1])

    def __sub__(self, other: Extents) -> Extents:
        if not self or not other:
            return self
        return self & other.complement(self.end)

    def complement(self, size: int) -> Extents:
        """Every byte of [0, size) that is not in the set."""
        edges = np.concatenate([[0], self.stops]), np.concatenate([self.starts, [size]])
        return Extents.from_arrays(
            edges[0].astype(np.int64), np.minimum(edges[1], size).astype(np.int64)
        )

    def clip(self, start: int, stop: int) -> Extents:
        """Only what lies in [start, stop)."""
        if not self or (start <= int(self.starts[0]) and self.end <= stop):
            return self
        # Found by bisection: asked for every chunk of a disk with a million ranges.
        first = int(np.searchsorted(self.stops, start, "right"))
        last = int(np.searchsorted(self.starts, stop, "left"))
        if first >= last or start >= stop:
            return Extents.empty()
        starts, stops = self.starts[first:last].copy(), self.stops[first:last].copy()
        starts[0], stops[-1] = max(int(starts[0]), start), min(int(stops[-1]), stop)
        return Extents(starts, stops)

    def shift(self, offset: int) -> Extents:
        """All ranges moved by `offset` bytes."""
        return Extents(self.starts + offset, self.stops + offset)

    def aligned(self, unit: int) -> Extents:
        """Each range grown outward to multiples of `unit` bytes."""
        return Extents.from_arrays(self.starts // unit * unit, -(-self.stops // unit) * unit)
