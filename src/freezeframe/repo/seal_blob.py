"""One blob, sealed: hashed, compressed where it pays, encrypted, and opened again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import GRANULE
from freezeframe.repo.compress import (
    NotCompressed,
    chunk_compressor,
    close_compressor,
    decompress,
    decompressor,
    small_compressor,
)
from freezeframe.repo.crypto import Buffer, MasterKey, SealBroken, Sealer

#: Stored raw unless compression saves a 32nd: reading raw costs half the time.
_PAYS = 32
#: A blob of this or fewer bytes is never compressed: the frame's header eats the gain.
_TINY = 64
#: Unless asked for more, every so many blobs of a thread are decompressed again.
DECOMPRESS_EVERY = 16


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """A blob as it goes into a pack."""

    #: Nonce, ciphertext, tag: to be written one after the other.
    parts: tuple[bytes, bytes, bytes]
    #: Of all parts, in bytes.
    length: int
    #: Of the plain bytes; 0 where they are stored raw.
    uncompressed: int


class BlobSealer:
    """Seals blobs. Not to be shared between threads: its contexts are reused.

    Every sealed blob is opened again (tag, decryption) before it is counted on, and must hold
    just the bytes that were sealed; every `decompress_every`-th is decompressed besides and
    compared with the plain bytes. A fault of the processor, of the memory or of a library
    must not become an image nobody can restore. Decompressing all of them takes a quarter
    more processor time; one in sixteen still shows a lasting fault after some MiB.
    Comparing, not hashing again: it answers the same unless the caller's bytes change
    meanwhile, and costs a twentieth.
    """

    def __init__(
        self,
        key: MasterKey,
        *,
        level: int | None = None,
        decompress_every: int = DECOMPRESS_EVERY,
    ) -> None:
        self._sealer = Sealer(key)
        self._compressor = chunk_compressor(level)
        self._small_compressor = small_compressor(level)
        self._close_compressor = close_compressor(level)
        self._decompressor = decompressor()
        self._every = decompress_every
        # The first blob of every thread is looked at.
        self._count = -1

    def seal(self, plain: Buffer, *, closely: bool = False) -> SealedBlob:
        """Return the blob sealed. Raises `FreezeframeError` where it does not open again.

        `closely`: a small one that is stored again and again, worth a closer look.
        """
        body: Buffer = plain
        uncompressed = 0
        size = len(plain)
        if size > _TINY:
            compressor = self._compressor
            if size <= GRANULE:
                compressor = self._close_compressor if closely else self._small_compressor
            frame = compressor.compress(plain)
            if len(frame) <= size - size // _PAYS:
                body, uncompressed = frame, size
        parts = self._sealer.seal(body)
        if not self._opens(parts, uncompressed, body, plain):
            raise FreezeframeError(
                "a block that was just encrypted does not open as it was",
                hint="the processor or the memory of this machine is faulty: test it before"
                " anything else",
            )
        return SealedBlob(parts, sum(map(len, parts)), uncompressed)

    def _opens(
        self,
        parts: tuple[bytes, bytes, bytes],
        uncompressed: int,
        body: Buffer,
        plain: Buffer,
    ) -> bool:
        self._count += 1
        try:
            opened = self._sealer.open_parts(*parts)
            if not same_bytes(opened, body):
                return False
            if not uncompressed or self._count % self._every:
                return True
            return same_bytes(decompress(self._decompressor, opened, uncompressed), plain)
        except (SealBroken, NotCompressed):
            return False


def same_bytes(one: Buffer, other: Buffer) -> bool:
    """Whether two buffers hold the same, at 25 GB/s: `==` on a memoryview goes byte by byte."""
    if len(one) != len(other):
        return False
    whole = len(one) // 8 * 8
    first = np.frombuffer(memoryview(one)[:whole], np.uint64)
    second = np.frombuffer(memoryview(other)[:whole], np.uint64)
    return np.array_equal(first, second) and bytes(one[whole:]) == bytes(other[whole:])
