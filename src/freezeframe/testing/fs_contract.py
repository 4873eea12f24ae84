"""The one contract suite of used maps: what every `FilesystemKind` must keep.

A test of a kind makes an image with the real tools and calls `check_kind(KIND, image)`.
What only the filesystem's own tools can tell (that nothing is left out) is not here but
in `fsproof`.
"""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.window import Window
from freezeframe.core.closing import Closing
from freezeframe.core.errors import FreezeframeError, NotUnderstood, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.base import FilesystemKind, PeerList, State, UsedMap
from freezeframe.fs.detect import used_map as detected_map
from freezeframe.testing.fsproof import PlainFile

#: However a region lies, no more is read than its size so many times, and a little.
_READ_FACTOR, _READ_EXTRA = 4, 32 * MIB
#: Recognising reads no more than that.
_RECOGNISE = 4 * MIB
#: Memory in use at any time beyond the region's size, in bytes.
_MEMORY_EXTRA = 192 * MIB


class Watched(Closing):
    """A reader over another: counts, can be changed here and there, can fail here and there.

    Reading more than `budget` bytes in all is an `AssertionError`.
    """

    def __init__(
        self,
        base: Reader,
        *,
        patches: Sequence[tuple[int, bytes]] = (),
        bad: Extents | None = None,
        budget: int | None = None,
    ) -> None:
        self._base = base
        self._patches = patches
        self._bad = bad or Extents.empty()
        self._budget = _READ_FACTOR * base.size + _READ_EXTRA if budget is None else budget
        self.name = base.name
        self.size = base.size
        self.sector = base.sector
        #: Every read: offset and length in bytes, in order.
        self.reads: list[tuple[int, int]] = []
        self.bytes_read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """Read through to the base, and change or fail what is to be changed or to fail."""
        self.bytes_read += max(length, 0)
        assert self.bytes_read <= self._budget, f"read {self.bytes_read} bytes of {self.size}"
        if self._bad.touches(offset, offset + length):
            raise UnreadableRange(self.name, offset, length, "it is told to fail")
        data = self._base.read_at(offset, length)
        if len(self.reads) < 100_000:
            self.reads.append((offset, length))
        for start, patch in self._patches:
            first, last = max(start, offset), min(start + len(patch), offset + length)
            if first < last:
                middle = patch[first - start : last - start]
                data = data[: first - offset] + middle + data[last - offset :]
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""
        buffer.cast("B")[:] = self.read_at(offset, buffer.nbytes)

    def data_extents(self) -> Extents:
        """Return everything."""
        return Extents.single(0, self.size)

    def close(self) -> None:
        """Do nothing: the base belongs to somebody else."""


def check_kind(
    kind: FilesystemKind,
    image: Path,
    *,
    peers: Sequence[Path] = (),
    rounds: int = 150,
    seed: int = 1,
) -> UsedMap:
    """Check all there is to check of a sound image, and return its used map.

    `peers` are further images it spans. `rounds` bounds each kind of damage that is tried;
    the same `seed` tries the same. Raises `AssertionError`.
    """
    with PlainFile(image) as reader:
        others = [PlainFile(path) for path in peers]
        try:
            check_stranger(kind, reader.size, seed)
            result = check_sound(kind, reader, others)
            # A live one is checked less, so what is damaged is followed further.
            states = itertools.cycle((State.AT_REST, State.LIVE, State.AT_REST, State.FROZEN))
            for damaged, state in zip(
                damages(kind, reader, others, rounds, seed), states, strict=False
            ):
                check_damaged(kind, damaged, others, state=state)
        finally:
            for other in others:
                other.close()
    return result


def check_map(result: UsedMap, size: int) -> None:
    """Check what a used map says: inside its region, canonical, whole if not understood."""
    used = result.used
    assert used == Extents.of(used), "not in canonical form"
    assert not used or (int(used.starts[0]) >= 0 and used.end <= size), "outside of the region"
    assert used.starts.dtype == used.stops.dtype == np.int64
    assert result.understood or used == Extents.single(0, size)
    assert result.kind
    assert result.kind == result.kind.lower()
    for name in result.pieces:
        assert name
        assert all(c.isalnum() or c in "._-" for c in name), name


def check_sound(kind: FilesystemKind, reader: Reader, others: Sequence[Reader]) -> UsedMap:
    """Check that a sound region is recognised, understood, and answers the same each time."""
    watched = Watched(reader, budget=_RECOGNISE)
    assert kind.recognise(watched)
    watched = Watched(reader)
    first = kind.used_map(watched, PeerList((watched, *others)))
    assert first.understood, first.notes
    check_map(first, reader.size)
    second = kind.used_map(reader, PeerList((reader, *others)))
    assert first == second, "not the same answer twice"
    # And through the registry, as everybody else asks.
    found = detected_map(reader, PeerList((reader, *others)))
    assert (found.kind, found.used) == (first.kind, first.used), found.notes
    check_mounted(kind, reader, others, first)
    return first


def check_mounted(
    kind: FilesystemKind, reader: Reader, others: Sequence[Reader], rest: UsedMap
) -> None:
    """Check that one at rest, said to be frozen or live, is refused or has the same map."""
    for state in (State.FROZEN, State.LIVE):
        try:
            result = kind.used_map(reader, PeerList((reader, *others)), state=state)
        except NotUnderstood:
            result = None
        assert result is None or result.used == rest.used, f"another map when {state}"
        found = detected_map(reader, PeerList((reader, *others)), state=state)
        assert found.state is state
        assert found.understood == (result is not None), found.notes
        check_map(found, reader.size)


def check_stranger(kind: FilesystemKind, size: int, seed: int) -> None:
    """Zeros, noise, text, and regions too short for anything are not recognised."""
    rng = random.Random(seed)
    size = min(size, 2 * MIB)
    for data in (
        b"",
        b"\0",
        bytes(511),
        bytes(64 * KIB),
        bytes(size),
        b"\xff" * size,
        b"plain text\n" * (size // 11),
        *(rng.randbytes(size) for _ in range(3)),
    ):
        watched = Watched(MemoryBlocks(data), budget=_RECOGNISE)
        assert not kind.recognise(watched), f"recognised in {data[:8]!r}…"
        # Asked all the same, it refuses or answers, but knows what it does.
        check_damaged(kind, Watched(MemoryBlocks(data)), ())


def check_damaged(
    kind: FilesystemKind,
    damaged: Reader,
    others: Sequence[Reader],
    *,
    state: State = State.AT_REST,
) -> None:
    """Whatever a region holds: an answer, or an error of ours; bounded reads and memory."""
    tracemalloc.start()
    try:
        kind.recognise(damaged)
        peers = PeerList((damaged, *others))
        check_map(kind.used_map(damaged, peers, state=state), damaged.size)
    except FreezeframeError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= damaged.size + _MEMORY_EXTRA, f"{peak} bytes of memory"


def damages(
    kind: FilesystemKind, reader: Reader, others: Sequence[Reader], rounds: int, seed: int
) -> Iterator[Reader]:
    """Give the region damaged in many ways, mostly where the parser reads."""
    rng = random.Random(seed)
    watched = Watched(reader)
    kind.used_map(watched, PeerList((watched, *others)))
    reads = sorted(set(watched.reads))
    for size in _shorter(reader.size, rng):
        yield Watched(Window(reader, 0, size))
    for offset, length in rng.sample(reads, min(len(reads), rounds // 2)):
        yield Watched(reader, bad=Extents.single(offset, offset + length))
    for _ in range(rounds):
        count = rng.choice((1, 1, 1, 2, 5))
        yield Watched(reader, patches=[_patch(reader, reads, rng) for _ in range(count)])
    for offset, length in rng.sample(reads, min(len(reads), rounds // 4)):
        noise = rng.randbytes(min(length, 256 * KIB))
        # All but the magic, so that what follows is looked at.
        yield Watched(reader, patches=[(offset + rng.choice((0, 4, 64, 512)), noise)])


def _shorter(size: int, rng: random.Random) -> list[int]:
    fixed = [size - 1, size - 512, size - 4096, size // 2, 1 * MIB, 64 * KIB, 4 * KIB, 512]
    return [n for n in (*fixed, *(rng.randrange(size) for _ in range(4))) if 0 <= n < size]


def _patch(reader: Reader, reads: list[tuple[int, int]], rng: random.Random) -> tuple[int, bytes]:
    """Change a byte, a bit, a number or a stretch of what the parser reads."""
    offset, length = rng.choice(reads)
    # Half of them near the start of what is read: headers lie there.
    where = offset + rng.randrange(min(length, 128) if rng.random() < 0.5 else length)
    width = rng.choice((1, 1, 2, 4, 8, 64))
    width = min(width, reader.size - where)
    match rng.randrange(5):
        case 0:
            old = reader.read_at(where, 1)[0]
            return where, bytes([old ^ 1 << rng.randrange(8)])
        case 1:
            return where, bytes(width)
        case 2:
            return where, b"\xff" * width
        case 3:
            source, _ = rng.choice(reads)
            return where, reader.read_at(source, min(width, reader.size - source))
        case _:
            return where, rng.randbytes(width)
