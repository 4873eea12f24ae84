"""CRC-32C of many equally long records at once, as ext4 and XFS protect theirs.

The reflected polynomial is 0x82F63B78 (Castagnoli, RFC 3720). A CRC is linear over
GF(2), so each pair of bytes is looked up on its own and neighbours are then folded
together, halving the row each time. That is a handful of numpy calls whatever the length.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78
#: Rows are handled so many bytes at a time: tables and intermediates stay in the cache.
_BATCH = 1 << 19


@functools.cache
def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ _POLYNOMIAL, table >> 1).astype(np.uint32)
    return table


@functools.cache
def _pair_table() -> Words:
    """Return what two bytes (the first one low) make of a register of zero."""
    table = _byte_table()
    pairs = np.arange(1 << 16, dtype=np.uint32)
    first = table[pairs & 0xFF]
    both: Words = table[(first ^ (pairs >> 8)) & 0xFF] ^ (first >> 8)
    return both


@functools.cache
def _skip(level: int) -> tuple[Words, Words]:
    """Tables that take the low and high half of a register past 2 << level zero bytes."""
    if level == 0:
        return _pair_table(), np.arange(1 << 16, dtype=np.uint32)
    before = _skip(level - 1)
    return _past(before, before[0]), _past(before, before[1])


def _past(tables: tuple[Words, Words], register: Words) -> Words:
    low, high = tables
    return low.take(register & 0xFFFF) ^ high.take(register >> 16)


def _seed_past(seed: int, length: int) -> int:
    """Return what `length` zero bytes make of the register `seed`."""
    register = np.array([seed], np.uint32)
    if length & 1:
        register = _byte_table()[register & 0xFF] ^ (register >> 8)
    pairs, level = length >> 1, 0
    while pairs:
        if pairs & 1:
            register = _past(_skip(level), register)
        pairs, level = pairs >> 1, level + 1
    return int(register[0])


def crc32c_rows(rows: Bytes, seed: int = 0xFFFFFFFF) -> Words:
    """Return the register after each row; `rows` is uint8 (n, length), the result uint32 (n,).

    Nothing is inverted at the end: that is the kernel's `crc32c(seed, data, length)`.
    The RFC's value is the complement of the result.
    """
    count, length = rows.shape
    result = np.empty(count, np.uint32)
    if length == 0:
        result[:] = seed
        return result
    width = max(2, 1 << (length - 1).bit_length())
    step = max(1, _BATCH // width)
    for first in range(0, count, step):
        result[first : first + step] = _fold(rows[first : first + step], width)
    return result ^ np.uint32(_seed_past(seed, length))


def _fold(rows: Bytes, width: int) -> Words:
    if rows.shape[1] != width:
        # Zeros in front leave a register of zero as it is.
        padded = np.zeros((len(rows), width), np.uint8)
        padded[:, width - rows.shape[1] :] = rows
        rows = padded
    state = _pair_table().take(np.ascontiguousarray(rows).view("<u2"))
    level = 0
    while state.shape[1] > 1:
        state = _past(_skip(level), state[:, 0::2]) ^ state[:, 1::2]
        level += 1
    folded: Words = state[:, 0]
    return folded


def crc32c(data: bytes, seed: int = 0xFFFFFFFF) -> int:
    """Return the register after `data`, starting from `seed`; nothing is inverted at the end."""
    return int(crc32c_rows(np.frombuffer(data, np.uint8).reshape(1, -1), seed)[0])
