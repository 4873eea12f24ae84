"""The used map of a segment: written and read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.image.usedfile import decode, encode

LENGTH = 512 * 64 + 100
pairs = st.lists(st.tuples(st.integers(0, 3 * LENGTH), st.integers(0, 3 * LENGTH)), max_size=8)


@given(pairs)
def test_nothing_used_is_lost_and_little_is_added(ranges: list[tuple[int, int]]) -> None:
    used = Extents.of(ranges)
    read = decode(encode(used, LENGTH, LENGTH), LENGTH, LENGTH)
    inside = used.clip(LENGTH, 2 * LENGTH)
    assert not inside - read
    assert read.clip(LENGTH, 2 * LENGTH) == read
    assert not read - inside.shift(-LENGTH).aligned(512).shift(LENGTH)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = decode(data, 0, LENGTH)
    except NotUnderstood:
        return
    assert found.clip(0, LENGTH) == found


def test_pairs_out_of_order_are_refused() -> None:
    good = encode(Extents.of([(0, 512), (1024, 2048)]), 0, LENGTH)
    with pytest.raises(NotUnderstood):
        decode(good[:5], 0, LENGTH)
    with pytest.raises(NotUnderstood):
        decode(good[:8] + good[:8], 0, LENGTH)
