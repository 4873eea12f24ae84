"""CRC-32C against published values and the plainest algorithm there is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.fs.crc32c import crc32c, crc32c_rows


def _bit_by_bit(data: bytes, register: int) -> int:
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register


def test_published_values() -> None:
    # RFC 3720, appendix B.4, and the usual check value.
    for data, expected in (
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ):
        assert crc32c(data) ^ 0xFFFFFFFF == expected


@given(st.binary(max_size=1100), st.integers(0, 0xFFFFFFFF))
def test_any_bytes_from_any_seed(data: bytes, seed: int) -> None:
    assert crc32c(data, seed) == _bit_by_bit(data, seed)


@given(st.integers(0, 5), st.integers(0, 300), st.integers(0, 0xFFFFFFFF))
def test_rows_are_independent(count: int, length: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (count, length), dtype=np.uint8)
    found = crc32c_rows(rows, seed)
    assert found.dtype == np.uint32
    assert found.tolist() == [_bit_by_bit(row.tobytes(), seed) for row in rows]


def test_going_on_where_another_stopped() -> None:
    data = np.random.default_rng(1).bytes(5000)
    assert crc32c(data[1234:], crc32c(data[:1234])) == crc32c(data)
