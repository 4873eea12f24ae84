"""Remembered bytes and bytes of the freeze, against a disk that others write to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.overlay import GranuleOverlay
from freezeframe.block.remembering import FrozenView, NotRemembered, RememberingReader
from freezeframe.block.window import Window
from freezeframe.core.errors import SourceError, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import GRANULE, KIB, MIB
from freezeframe.fs.base import State
from freezeframe.fs.detect import used_map
from freezeframe.system.run import run
from freezeframe.testing.fs_contract import Watched
from freezeframe.testing.fsproof import PlainFile

#: Five granules and a short one.
SIZE = 5 * GRANULE + 12 * KIB


class Scattered(MemoryBlocks):
    """Memory that takes several buffers, and notes what it was asked."""

    def __init__(self, data: bytes | bytearray | int) -> None:
        super().__init__(data)
        self.calls: list[tuple[int, list[int]]] = []
        self.bad = Extents.empty()

    def read_scattered(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.calls.append((offset, [len(buffer) for buffer in buffers]))
        length = sum(map(len, buffers))
        if self.bad.touches(offset, offset + length):
            raise UnreadableRange(self.name, offset, length, "told to")
        for buffer in buffers:
            self.read_into(offset, buffer)
            offset += len(buffer)


def _noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def _numbers(*granules: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(granules, np.int64)


# -- remembering ------------------------------------------------------------------------


def test_no_byte_is_read_twice() -> None:
    disk = Watched(MemoryBlocks(_noise(SIZE)))
    memory = RememberingReader(disk)
    truth = _noise(SIZE)
    assert memory.read_at(1000, 3000) == truth[1000:4000]
    assert memory.read_at(2000, 500) == truth[2000:2500]
    assert disk.reads == [(1000, 3000)]
    # Only what is not there yet, on both sides, over the border of a granule.
    assert memory.read_at(0, 2 * GRANULE) == truth[: 2 * GRANULE]
    assert disk.reads[1:] == [(0, 1000), (4000, 2 * GRANULE - 4000)]
    assert memory.read_at(0, 2 * GRANULE) == truth[: 2 * GRANULE]
    assert memory.read_at(7, 0) == b""
    assert len(disk.reads) == 3
    assert memory.bytes_read == 2 * GRANULE


def test_what_was_written_is_read_again_and_nothing_else() -> None:
    base = MemoryBlocks(_noise(SIZE))
    disk = Watched(base)
    memory = RememberingReader(disk)
    memory.read_at(0, SIZE)
    base.write_at(GRANULE + 5, b"new")
    memory.forget(Extents.single(GRANULE + 5, GRANULE + 8))
    disk.reads.clear()
    assert memory.read_at(0, SIZE) == base.read_at(0, SIZE)
    assert disk.reads == [(GRANULE, GRANULE)]
    # The whole disk at once, more than is remembered.
    memory.forget(Extents.single(0, SIZE))
    assert memory.held == 0
    assert memory.recall(3, memoryview(bytearray(10))) == [(3, 13)]


def test_memory_is_bounded() -> None:
    memory = RememberingReader(MemoryBlocks(_noise(SIZE)), limit=2 * GRANULE + 1000)
    memory.read_at(0, 2 * GRANULE)
    assert not memory.over_limit
    assert memory.read_at(0, SIZE) == _noise(SIZE)
    assert memory.over_limit
    assert memory.held <= 2 * GRANULE + 1000
    memory.clear()
    assert not memory.over_limit
    assert memory.held == 0
    memory.read_at(3 * GRANULE, 100)
    assert not memory.over_limit


def test_what_nobody_asks_for_any_more_goes() -> None:
    disk = Watched(MemoryBlocks(_noise(SIZE)))
    memory = RememberingReader(disk)
    memory.read_at(0, 100)
    memory.read_at(2 * GRANULE, 100)
    memory.trim()
    memory.read_at(0, 100)
    memory.trim()
    disk.reads.clear()
    memory.read_at(0, 100)
    memory.read_at(2 * GRANULE, 100)
    assert disk.reads == [(2 * GRANULE, 100)]


def test_what_could_not_be_read_is_not_remembered() -> None:
    disk = Watched(MemoryBlocks(_noise(SIZE)), bad=Extents.single(5000, 5001))
    memory = RememberingReader(disk)
    memory.read_at(0, 4096)
    with pytest.raises(UnreadableRange):
        memory.read_at(0, 8192)
    assert memory.recall(0, memoryview(bytearray(8192))) == [(4096, 8192)]
    with pytest.raises(SourceError, match="end"):
        memory.read_at(SIZE - 5, 6)


# -- the overlay ------------------------------------------------------------------------


def test_neighbours_are_read_with_one_call() -> None:
    disk = Scattered(_noise(SIZE))
    overlay = GranuleOverlay(SIZE, MIB)
    assert overlay.capacity == 6
    assert not len(overlay.read_granules(disk, _numbers(0, 3, 4)))
    assert disk.calls == [(0, [GRANULE]), (3 * GRANULE, [2 * GRANULE])]
    assert bytes(overlay.view(4)) == disk.read_at(4 * GRANULE, GRANULE)
    # 2 finds a slot behind that of 4; the last granule is short.
    disk.calls.clear()
    assert not len(overlay.read_granules(disk, _numbers(2, 3, 4, 5)))
    assert disk.calls == [(2 * GRANULE, [GRANULE, 2 * GRANULE, 12 * KIB])]
    assert overlay.granules().tolist() == [0, 2, 3, 4, 5]
    for granule in overlay.granules().tolist():
        start = granule * GRANULE
        length = min(GRANULE, SIZE - start)
        assert bytes(overlay.view(granule)) == disk.read_at(start, length)
    assert overlay.extents() == Extents.of([(0, GRANULE), (2 * GRANULE, SIZE)])
    assert overlay.covers(10, SIZE) == overlay.extents().clip(10, SIZE)
    with pytest.raises(KeyError):
        overlay.view(1)


def test_what_finds_no_slot_is_named() -> None:
    disk = Scattered(_noise(SIZE))
    overlay = GranuleOverlay(SIZE, 3 * GRANULE + 5)
    assert overlay.missing_room(_numbers(0, 1, 2, 3)) == 1
    overlay.read_granules(disk, _numbers(1, 3))
    assert not overlay.full
    assert overlay.missing_room(_numbers(0, 1, 2, 3)) == 1
    disk.write_at(3 * GRANULE, b"newer")
    assert overlay.read_granules(disk, _numbers(0, 1, 2, 3)).tolist() == [2]
    assert overlay.full
    assert overlay.read_granules(disk, _numbers(2, 4)).tolist() == [2, 4]
    assert bytes(overlay.view(3)[:5]) == b"newer"
    assert overlay.granules().tolist() == [0, 1, 3]
    overlay.discard(_numbers(1, 2))
    assert overlay.granules().tolist() == [0, 3]
    assert not overlay.full
    overlay.slot(5)[:] = b"x" * 12 * KIB
    with pytest.raises(KeyError):
        overlay.slot(4)
    assert bytes(overlay.view(5)) == b"x" * 12 * KIB
    overlay.clear()
    assert (len(overlay), overlay.full) == (0, False)
    with pytest.raises(SourceError, match="outside"):
        overlay.read_granules(disk, _numbers(6))


@pytest.mark.parametrize("threads", [0, 3])
def test_after_a_failure_nothing_old_is_left(threads: int) -> None:
    disk = Scattered(_noise(SIZE))
    overlay = GranuleOverlay(SIZE, MIB)
    overlay.read_granules(disk, _numbers(0, 2, 4))
    disk.bad = Extents.single(2 * GRANULE, 2 * GRANULE + 1)
    if threads:
        with ThreadPoolExecutor(threads) as pool, pytest.raises(UnreadableRange):
            overlay.read_granules(disk, _numbers(0, 2, 5), pool)
    else:
        with pytest.raises(UnreadableRange):
            overlay.read_granules(disk, _numbers(0, 2, 5))
    assert overlay.granules().tolist() == [4]
    disk.bad = Extents.empty()
    assert not len(overlay.read_granules(disk, _numbers(0, 1, 2, 3, 4, 5)))
    for granule in range(6):
        start = granule * GRANULE
        assert bytes(overlay.view(granule)) == disk.read_at(start, min(GRANULE, SIZE - start))


def test_long_runs_and_threads() -> None:
    size = 300 * GRANULE
    disk = Scattered(_noise(size))
    overlay = GranuleOverlay(size, size)
    wanted = np.flatnonzero(np.arange(300) % 7 != 3)
    with ThreadPoolExecutor(4) as pool:
        assert not len(overlay.read_granules(disk, wanted[:200], pool))
        overlay.discard(wanted[::3])
        assert not len(overlay.read_granules(disk, wanted, pool))
    assert all(len(lengths) <= 1024 for _, lengths in disk.calls)
    assert overlay.granules().tolist() == wanted.tolist()
    for granule in wanted.tolist():
        assert bytes(overlay.view(granule)) == disk.read_at(granule * GRANULE, GRANULE)


# -- the view ---------------------------------------------------------------------------


def test_what_nobody_read_is_missing() -> None:
    disk = MemoryBlocks(_noise(SIZE))
    memory = RememberingReader(disk)
    memory.read_at(0, 1000)
    overlay = GranuleOverlay(SIZE, MIB)
    overlay.read_granules(disk, _numbers(2))
    view = FrozenView(memory, overlay)
    assert view.read_at(100, 200) == _noise(SIZE)[100:300]
    assert view.complete
    with pytest.raises(NotRemembered, match="neither"):
        view.read_at(500, 3 * GRANULE)
    assert view.missing == Extents.of([(1000, 2 * GRANULE), (3 * GRANULE, 3 * GRANULE + 500)])
    assert not view.complete
    # Guessing goes on, and notes the same.
    guess = FrozenView(memory, overlay, guess=True)
    assert guess.read_at(500, 3 * GRANULE) == disk.read_at(500, 3 * GRANULE)
    assert guess.missing == view.missing
    # Neither remembers what it guessed.
    assert memory.recall(1000, memoryview(bytearray(5))) == [(1000, 1005)]


Operation = tuple[str, int, int]
_operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "read", "harvest", "quick", "trim"]),
        st.integers(0, SIZE - 1),
        st.integers(1, 2 * GRANULE),
    ),
    max_size=30,
)


@settings(max_examples=150)
@given(_operations, _operations, st.integers(1, 6), st.sampled_from([GRANULE, 3 * GRANULE, MIB]))
def test_the_view_is_the_disk_in_the_freeze(
    before: list[Operation], after: list[Operation], slots: int, limit: int
) -> None:
    """A writer, marks, passes, a freeze, and a writer again: what is shown is the freeze.

    What is asked for and cannot be shown is named to the byte.
    """
    disk = MemoryBlocks(_noise(SIZE))
    memory = RememberingReader(disk, limit=limit)
    overlay = GranuleOverlay(SIZE, slots * GRANULE)
    marks: set[int] = set()
    pending: set[int] = set()
    rng = random.Random(0)

    def write(start: int, stop: int) -> None:
        disk.write_at(start, rng.randbytes(stop - start))
        marks.update(range(start // GRANULE, (stop - 1) // GRANULE + 1))

    def harvest(*, into_overlay: bool) -> None:
        granules = np.array(sorted(marks | pending), np.int64)
        marks.clear()
        pending.clear()
        memory.forget(Extents.from_blocks(granules, GRANULE))
        if into_overlay:
            pending.update(overlay.read_granules(disk, granules).tolist())
        else:
            pending.update(granules.tolist())

    for what, start, length in before:
        stop = min(start + length, SIZE)
        if what == "write":
            write(start, stop)
        elif what == "read":
            assert len(memory.read_at(start, stop - start)) == stop - start
        elif what == "trim":
            memory.trim()
        else:
            harvest(into_overlay=what == "quick")
    harvest(into_overlay=True)
    # The freeze. What found no slot is not known, and not in the overlay of an older time.
    truth = disk.read_at(0, SIZE)
    assert not pending & set(overlay.granules().tolist())
    view = FrozenView(memory, overlay)
    for what, start, length in after:
        stop = min(start + length, SIZE)
        if what == "write":
            write(start, stop)
            continue
        buffer = bytearray(stop - start)
        unknown = Extents.of(memory.recall(start, memoryview(buffer))) - overlay.extents()
        before_missing = view.missing
        try:
            assert view.read_at(start, stop - start) == truth[start:stop]
            assert not unknown
        except NotRemembered:
            assert unknown
        assert view.missing == before_missing | unknown


# -- with parsers -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_second_parse_reads_nothing(kind: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    start, size = MIB, 320 * MIB
    with image.open("wb") as file:
        file.truncate(start + size)
    command = {"ext4": "mke2fs -q -F -t ext4", "xfs": "mkfs.xfs -q -f", "btrfs": "mkfs.btrfs -q"}
    part = tmp_path / "part"
    with part.open("wb") as file:
        file.truncate(size)
    run((*command[kind].split(), str(part)))
    with image.open("r+b") as file:
        file.seek(start)
        file.write(part.read_bytes())
    with PlainFile(image) as disk:
        memory = RememberingReader(disk)
        # A live one reads no less than a frozen one: else that would always miss something.
        first = used_map(Window(memory, start, size, name="region"), state=State.LIVE)
        assert first.understood, first.notes
        read = memory.bytes_read
        assert used_map(Window(memory, start, size, name="region"), state=State.LIVE) == first
        assert memory.bytes_read == read
        assert memory.held < 8 * MIB
        # And the frozen view has all it takes, but for what was forgotten and not read again.
        overlay = GranuleOverlay(disk.size, MIB)
        view = FrozenView(memory, overlay)
        frozen = used_map(Window(view, start, size, name="region"), state=State.FROZEN)
        assert view.complete
        assert (frozen.used, frozen.state) == (first.used, State.FROZEN)
        superblock = start + {"ext4": 1024, "xfs": 0, "btrfs": 64 * KIB}[kind]
        memory.forget(Extents.single(superblock, superblock + 1))
        view = FrozenView(memory, overlay)
        assert not used_map(Window(view, start, size), state=State.FROZEN).understood
        granule = superblock // GRANULE * GRANULE
        assert view.missing.touches(granule, granule + GRANULE)
        overlay.read_granules(disk, view.missing.units(GRANULE))
        guess = FrozenView(memory, overlay, guess=True)
        assert used_map(Window(guess, start, size), state=State.FROZEN).used == first.used
        overlay.read_granules(disk, guess.missing.units(GRANULE))
        view = FrozenView(memory, overlay)
        assert used_map(Window(view, start, size), state=State.FROZEN).used == first.used
        assert view.complete
