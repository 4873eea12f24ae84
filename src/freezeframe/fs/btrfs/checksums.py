"""The checksums btrfs protects its superblocks and tree blocks with, many blocks at once.

All of them cover a block without its first 32 bytes, where the checksum itself lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.btrfs.structs import CHECKSUM_SIZE
from freezeframe.fs.bulk import Bytes
from freezeframe.fs.crc32c import crc32c_rows

Longs = NDArray[np.uint64]

_CRC32C, _XXHASH64, _SHA256, _BLAKE2B = range(4)


def valid_blocks(kind: int, blocks: Bytes) -> NDArray[np.bool_]:
    """Return which blocks have the checksum they state; `blocks` is uint8 (n, size).

    `kind` is the superblock's. Raises `NotUnderstood` for a kind that is not known.
    """
    if kind not in _SUMS:
        raise NotUnderstood(f"btrfs with checksums of type {kind}")
    sums = _SUMS[kind](blocks[:, CHECKSUM_SIZE:])
    agree: NDArray[np.bool_] = (blocks[:, : sums.shape[1]] == sums).all(axis=1)
    return agree


def _crc32c(rows: Bytes) -> Bytes:
    return (~crc32c_rows(rows)).astype("<u4").view(np.uint8).reshape(-1, 4)


def _sha256(rows: Bytes) -> Bytes:
    return _stacked([hashlib.sha256(row.tobytes()).digest() for row in rows])


def _blake2b(rows: Bytes) -> Bytes:
    return _stacked([hashlib.blake2b(row.tobytes(), digest_size=32).digest() for row in rows])


def _stacked(digests: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


# -- xxHash64, seed 0: the specification of xxHash, version 0.1.1 -----------------------

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
#: Where the four lanes begin: P1 + P2, P2, 0, -P1, all modulo 2**64.
_LANES = np.array(
    [(int(_P1) + int(_P2)) % 2**64, int(_P2), 0, 2**64 - int(_P1)],
    np.uint64,
)


def _rotated(values: Longs, bits: int) -> Longs:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def _round(state: Longs, words: Longs) -> Longs:
    return _rotated(state + words * _P2, 31) * _P1


def xxhash64_rows(rows: Bytes) -> Longs:
    """Return the xxHash64 of each row; `rows` is uint8 (n, length), length a multiple of 32."""
    words = np.ascontiguousarray(rows).view("<u8").astype(np.uint64)
    lanes = np.broadcast_to(_LANES, (len(rows), 4))
    for start in range(0, words.shape[1], 4):
        lanes = _round(lanes, words[:, start : start + 4])
    total = _rotated(lanes[:, 0], 1) + _rotated(lanes[:, 1], 7)
    total = total + _rotated(lanes[:, 2], 12) + _rotated(lanes[:, 3], 18)
    for lane in range(4):
        total = (total ^ _round(np.zeros_like(total), lanes[:, lane])) * _P1 + _P4
    total = total + np.uint64(rows.shape[1])
    total = (total ^ (total >> np.uint64(33))) * _P2
    total = (total ^ (total >> np.uint64(29))) * _P3
    return total ^ (total >> np.uint64(32))


def _xxhash64(rows: Bytes) -> Bytes:
    return xxhash64_rows(rows).astype("<u8").view(np.uint8).reshape(-1, 8)


_SUMS: dict[int, Callable[[Bytes], Bytes]] = {
    _CRC32C: _crc32c,
    _XXHASH64: _xxhash64,
    _SHA256: _sha256,
    _BLAKE2B: _blake2b,
}
