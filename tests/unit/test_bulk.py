"""What used maps share, against numpy and sets of numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.extents import Extents
from freezeframe.fs.bulk import Gathered, read_many, runs_of_ones


@given(st.lists(st.sampled_from([0, 0, 0xFF, 0xFF, 1, 0x80, 0x3C, 0xA5]), max_size=60))
def test_runs_of_ones(values: list[int]) -> None:
    packed = np.array(values, np.uint8)
    starts, stops = runs_of_ones(packed)
    bits = np.unpackbits(packed, bitorder="little").astype(np.bool_)
    assert Extents(starts, stops) == Extents.from_bits(bits, 1)


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 64))
def test_reading_blocks_in_any_order(numbers: list[int], size: int) -> None:
    content = np.random.default_rng(2).bytes(301 * 64)
    offsets = np.array(numbers, np.int64) * size
    rows = read_many(MemoryBlocks(content), offsets, size)
    assert rows.shape == (len(numbers), size)
    for row, offset in zip(rows, offsets.tolist(), strict=True):
        assert row.tobytes() == content[offset : offset + size]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 9000)), max_size=60))
def test_gathering_never_loses_anything(pieces: list[tuple[int, int]]) -> None:
    exact, coarse = Gathered(), Gathered(most=4)
    for start, length in pieces:
        piece = Extents.single(start, start + length)
        exact.add(piece)
        coarse.add(piece)
    assert exact.result() == Extents.of((start, start + length) for start, length in pieces)
    assert not exact.result() - coarse.result()
    assert len(coarse.result()) <= 4
