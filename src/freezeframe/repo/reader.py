"""Read blobs back: nothing leaves here whose SHA-256 is not its id.

Or, where the caller knows a keyed sum of what it wants (`fingerprint`), whose sum is not that:
it vouches for the bytes as well, in a fifth of the time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import ObjectMissing, RepositoryDamaged
from freezeframe.repo.compress import NotCompressed, decompress, decompressor
from freezeframe.repo.crypto import Buffer, MasterKey, SealBroken, Sealer
from freezeframe.repo.index import Found, Index, Location
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.repository import Repository
from freezeframe.store.base import Kind
from freezeframe.system.allocator import keep_freed_memory

#: Says whether bytes are known to be those that are wanted. No: their SHA-256 decides.
Proof = Callable[[bytes], bool]

#: Blobs of a pack with gaps of up to this many bytes between them are read in one go.
_BRIDGE = 64 * 1024


class BlobOpener:
    """Opens sealed blobs. Not to be shared between threads."""

    def __init__(self, key: MasterKey) -> None:
        self._sealer = Sealer(key)
        self._decompressor = decompressor()

    def open(
        self, blob_id: bytes, sealed: Buffer, uncompressed: int, proof: Proof | None = None
    ) -> bytes:
        """Return the plain bytes; `uncompressed` is their length, 0 where stored raw.

        Raises `ValueError` saying what is wrong.
        """
        try:
            plain = self._sealer.open(sealed)
            if uncompressed:
                plain = decompress(self._decompressor, plain, uncompressed)
        except (SealBroken, NotCompressed) as error:
            raise ValueError(str(error)) from error
        if uncompressed and len(plain) != uncompressed:
            raise ValueError(f"it became {len(plain)} bytes, not {uncompressed}")
        if proof is not None and proof(plain):
            return plain
        if hashlib.sha256(plain).digest() != blob_id:
            raise ValueError("the SHA-256 of its content is not its id")
        return plain


class _Mine(threading.local):
    """Each thread's contexts."""

    opener: BlobOpener | None = None


class BlobReader:
    """Reads blobs of a repository. Thread-safe: each thread has contexts of its own."""

    def __init__(self, repository: Repository, index: Index) -> None:
        keep_freed_memory()
        self._store = repository.store
        self._key = repository.key
        self._index = index
        self._mine = _Mine()

    def read(self, kind: BlobKind, blob_id: bytes, proof: Proof | None = None) -> bytes:
        """Return a blob by its id of 32 bytes.

        Where it was stored several times, a good copy serves for a bad one. Raises
        `RepositoryDamaged` naming blob and pack, `StoreError` where the storage fails.
        """
        problem = RepositoryDamaged(
            "blob", blob_id.hex(), f"no index of the repository tells where this {kind} blob is"
        )
        for location in self._index.find_all(kind, blob_id):
            try:
                return self.read_location(blob_id, location, proof)
            except RepositoryDamaged as error:
                problem = error
        raise problem

    def read_location(
        self, blob_id: bytes, location: Location, proof: Proof | None = None
    ) -> bytes:
        """Return a blob from one place. Errors as `read`."""
        pack = location.pack.hex()
        try:
            sealed = self._store.get(Kind.DATA, pack, location.offset, location.length)
        except (ObjectMissing, RepositoryDamaged) as error:
            raise _damaged(blob_id, pack, error.message) from error
        uncompressed = location.plain_length if location.compressed else 0
        return self._open(blob_id, sealed, uncompressed, pack, proof)

    def read_many(self, kind: BlobKind, ids: NDArray[np.uint8]) -> list[bytes]:
        """Return blobs by their ids (uint8, shape (n, 32)), in that order.

        Those that lie close together in a pack are read in one go. All are in memory at
        once. Errors as `read`.
        """
        found = self._index.find_many(kind, ids)
        result: list[bytes] = [b""] * len(ids)
        order = np.lexsort((found.offsets, found.packs))
        for rows in np.split(order, np.flatnonzero(np.diff(found.packs[order])) + 1):
            there = rows[found.present[rows]]
            for row, plain in zip(
                there.tolist(), self.read_run(kind, ids[there], found.take(there)), strict=True
            ):
                result[row] = plain
        for row in np.flatnonzero(~found.present).tolist():
            result[row] = self.read(kind, ids[row].tobytes())
        return result

    def read_run(self, kind: BlobKind, ids: NDArray[np.uint8], found: Found) -> list[bytes]:
        """Return several blobs of one pack, read in as few pieces as may be.

        `ids` (uint8, shape (n, 32)) and `found` (of `Index.find_many`, all present, one pack,
        ascending offsets) go together. The caller chooses n: all are in memory at once. A
        blob that is bad here is looked for elsewhere. Errors as `read`.
        """
        result: list[bytes] = []
        for first, last in _runs(found.offsets, found.lengths):
            start = int(found.offsets[first])
            length = int(found.offsets[last] + found.lengths[last]) - start
            pack = self._index.pack_name(int(found.packs[first]))
            try:
                piece = memoryview(self._store.get(Kind.DATA, pack, start, length))
            except (ObjectMissing, RepositoryDamaged):
                piece = memoryview(b"")  # each by itself: some may be whole
            for row in range(first, last + 1):
                blob_id = ids[row].tobytes()
                at = int(found.offsets[row]) - start
                sealed = piece[at : at + int(found.lengths[row])]
                uncompressed = int(found.plain_lengths[row]) if found.compressed[row] else 0
                try:
                    result.append(self._open(blob_id, sealed, uncompressed, pack))
                except RepositoryDamaged:
                    result.append(self.read(kind, blob_id))
        return result

    def _open(
        self,
        blob_id: bytes,
        sealed: Buffer,
        uncompressed: int,
        pack: str,
        proof: Proof | None = None,
    ) -> bytes:
        opener = self._mine.opener
        if opener is None:
            opener = self._mine.opener = BlobOpener(self._key)
        try:
            return opener.open(blob_id, sealed, uncompressed, proof)
        except ValueError as error:
            raise _damaged(blob_id, pack, str(error)) from error


def _runs(offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return (first, last) rows that lie so close together that one read fetches them."""
    if not len(offsets):
        return []
    gaps = offsets[1:] - (offsets + lengths)[:-1]
    breaks = np.flatnonzero((gaps > _BRIDGE) | (gaps < 0))
    firsts = [0, *(breaks + 1).tolist()]
    lasts = [*breaks.tolist(), len(offsets) - 1]
    return list(zip(firsts, lasts, strict=True))


def _damaged(blob_id: bytes, pack: str, reason: str) -> RepositoryDamaged:
    return RepositoryDamaged("blob", blob_id.hex(), f"in pack {pack[:16]}: {reason}")
