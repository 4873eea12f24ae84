"""Extents against plain Python sets of bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.core.extents import Extents

SPAN = 64
pairs = st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, SPAN)), max_size=8)


def bytes_of(extents: Extents) -> set[int]:
    return {byte for start, stop in extents for byte in range(start, stop)}


def plain(ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for start, stop in ranges for byte in range(start, stop)}


def assert_canonical(extents: Extents) -> None:
    assert (extents.starts < extents.stops).all()
    assert (extents.stops[:-1] < extents.starts[1:]).all()
    assert extents.starts.dtype == extents.stops.dtype == np.int64


@given(pairs)
def test_of_holds_just_those_bytes(ranges: list[tuple[int, int]]) -> None:
    extents = Extents.of(ranges)
    assert_canonical(extents)
    assert bytes_of(extents) == plain(ranges)
    assert extents.total == len(plain(ranges))
    assert extents.end == max(plain(ranges), default=-1) + 1


@given(pairs, pairs)
def test_algebra_is_that_of_sets(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    a, b = Extents.of(one), Extents.of(two)
    for got, want in (
        (a | b, plain(one) | plain(two)),
        (a & b, plain(one) & plain(two)),
        (a - b, plain(one) - plain(two)),
        (a.complement(SPAN), set(range(SPAN)) - plain(one)),
    ):
        assert_canonical(got)
        assert bytes_of(got) == want
    assert (a == b) == (plain(one) == plain(two))


@given(pairs, st.integers(0, SPAN), st.integers(0, SPAN))
def test_clip_covers_touches(ranges: list[tuple[int, int]], start: int, stop: int) -> None:
    extents, window = Extents.of(ranges), set(range(start, stop))
    assert bytes_of(extents.clip(start, stop)) == plain(ranges) & window
    assert extents.covers(start, stop) == (window <= plain(ranges))
    assert extents.touches(start, stop) == bool(window & plain(ranges))


@given(pairs, st.integers(1, 9))
def test_units_and_alignment(ranges: list[tuple[int, int]], unit: int) -> None:
    extents = Extents.of(ranges)
    numbers = sorted({byte // unit for byte in plain(ranges)})
    assert extents.units(unit).tolist() == numbers
    grown = extents.aligned(unit)
    assert_canonical(grown)
    assert bytes_of(grown) == {n * unit + i for n in numbers for i in range(unit)}
    assert Extents.from_blocks(np.array(numbers[::-1], np.int64), unit) == grown


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 9), st.integers(0, 99))
def test_from_bits(bits: list[bool], unit: int, base: int) -> None:
    extents = Extents.from_bits(np.array(bits, np.bool_), unit, base)
    assert_canonical(extents)
    want = {base + i * unit + k for i, bit in enumerate(bits) if bit for k in range(unit)}
    assert bytes_of(extents) == want
    assert bytes_of(extents.shift(5)) == {byte + 5 for byte in want}
