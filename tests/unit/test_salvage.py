"""Reading around bad sectors: all that can be read is read, and no more effort than bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.block.faulty import FaultyReader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.block.salvage import read_salvaging
from freezeframe.block.window import Window
from freezeframe.core.errors import SourceError
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, MIB

DATA = random.Random(1).randbytes(MIB)
RANGES = st.lists(
    st.tuples(st.integers(0, MIB - 1), st.integers(1, 9000)).map(lambda r: (r[0], r[0] + r[1])),
    max_size=4,
)


@settings(deadline=None)
@given(
    bad=RANGES,
    start=st.integers(0, MIB),
    length=st.integers(0, 300 * KIB),
    sector=st.sampled_from([512, 4096]),
)
def test_all_but_the_bad_sectors(
    bad: list[tuple[int, int]], start: int, length: int, sector: int
) -> None:
    stop = min(start + length, MIB)
    broken = Extents.of(bad).clip(0, MIB)
    reader = FaultyReader(MemoryBlocks(DATA, sector=sector), bad=broken)
    buffer = bytearray(b"\xaa" * (stop - start))
    found = read_salvaging(reader, start, memoryview(buffer))
    expected = broken.aligned(sector).clip(start, stop)
    assert found == expected
    for a, b in expected:
        assert not any(buffer[a - start : b - start])
    for a, b in expected.complement(MIB).clip(start, stop):
        assert buffer[a - start : b - start] == DATA[a:b]


def test_a_dead_mib_is_tried_once() -> None:
    reader = FaultyReader(MemoryBlocks(DATA), bad=Extents.single(0, MIB))
    buffer = bytearray(MIB)
    assert read_salvaging(reader, 0, memoryview(buffer)) == Extents.single(0, MIB)
    assert reader.reads == 1 + 16 + 2048
    assert not any(buffer)


def test_one_bad_sector_costs_little() -> None:
    reader = FaultyReader(MemoryBlocks(DATA), bad=Extents.single(700_000, 700_001))
    assert read_salvaging(reader, 0, memoryview(bytearray(MIB))).total == 512
    assert reader.reads == 1 + 16 + 128


def test_through_a_window_offsets_are_the_windows() -> None:
    disk = FaultyReader(MemoryBlocks(DATA), bad=Extents.single(4096, 4608))
    found = read_salvaging(Window(disk, 2048, 8192), 0, memoryview(bytearray(8192)))
    assert found == Extents.single(2048, 2560)


@pytest.mark.parametrize(
    "faulty",
    [
        FaultyReader(MemoryBlocks(DATA), vanish_after=0),
        FaultyReader(MemoryBlocks(DATA), shrink_to=1000),
        FaultyReader(MemoryBlocks(DATA), bad=Extents.single(0, 512), vanish_after=20),
    ],
    ids=["vanished", "shrunk", "vanished midway"],
)
def test_what_is_gone_is_no_bad_sector(faulty: FaultyReader) -> None:
    with pytest.raises(SourceError):
        read_salvaging(faulty, 0, memoryview(bytearray(MIB)))
