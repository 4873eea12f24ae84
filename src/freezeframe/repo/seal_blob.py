"""One blob, sealed: hashed, compressed where it pays, encrypted, and opened again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freezeframe.core.errors import FreezeframeError
from freezeframe.repo.compress import NotCompressed, chunk_compressor, decompress, decompressor
from freezeframe.repo.crypto import Buffer, MasterKey, SealBroken, Sealer

#: Stored raw unless compression saves a 32nd: reading raw costs half the time.
_PAYS = 32
#: A blob of this or fewer bytes is never compressed: the frame's header eats the gain.
_TINY = 64


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

    With `verify` every sealed blob is opened again (tag, decryption, decompression) and
    compared with the plain bytes before it is counted on: a fault of the processor, of the
    memory or of a library must not become an image nobody can restore. Comparing, not
    hashing again: it answers the same unless the caller's bytes change meanwhile, and costs a
    twentieth.
    """

    def __init__(self, key: MasterKey, *, level: int | None = None, verify: bool = True) -> None:
        self._sealer = Sealer(key)
        self._compressor = chunk_compressor(level)
        self._decompressor = decompressor()
        self._verify = verify

    def seal(self, plain: Buffer) -> SealedBlob:
        """Return the blob sealed. Raises `FreezeframeError` where it does not open again."""
        body: Buffer = plain
        uncompressed = 0
        size = len(plain)
        if size > _TINY:
            frame = self._compressor.compress(plain)
            if len(frame) <= size - size // _PAYS:
                body, uncompressed = frame, size
        parts = self._sealer.seal(body)
        if self._verify and not self._opens(parts, uncompressed, plain):
            raise FreezeframeError(
                "a block that was just encrypted does not open as it was",
                hint="the processor or the memory of this machine is faulty: test it before"
                " anything else",
            )
        return SealedBlob(parts, sum(map(len, parts)), uncompressed)

    def _opens(self, parts: tuple[bytes, bytes, bytes], uncompressed: int, plain: Buffer) -> bool:
        try:
            body = self._sealer.open_parts(*parts)
            if uncompressed:
                body = decompress(self._decompressor, body, uncompressed)
        except (SealBroken, NotCompressed):
            return False
        return same_bytes(body, plain)


def same_bytes(one: Buffer, other: Buffer) -> bool:
    """Whether two buffers hold the same, at 25 GB/s: `==` on a memoryview goes byte by byte."""
    if len(one) != len(other):
        return False
    whole = len(one) // 8 * 8
    first = np.frombuffer(memoryview(one)[:whole], np.uint64)
    second = np.frombuffer(memoryview(other)[:whole], np.uint64)
    return np.array_equal(first, second) and bytes(one[whole:]) == bytes(other[whole:])
