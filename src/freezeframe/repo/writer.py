"""Write blobs: deduplicated, sealed, in packs, with their index.

Each worker thread has a handle with contexts of its own and does the work on its own bytes:
hash, compress, encrypt, verify. What is sealed goes into the one pack being filled of its
kind (so that chunks that are neighbours on the disk are neighbours in the pack, whichever
thread had them), and full packs go through a bounded queue to uploader threads. A blob is in
the index, and so counts as known to anybody else, only when its pack is durable.

Memory: at most `2 + uploaders + _QUEUE` packs, 16 MiB each, and what the workers hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import MIB
from freezeframe.repo.crypto import Buffer, Sealer
from freezeframe.repo.index import Index
from freezeframe.repo.index_files import StoredPack
from freezeframe.repo.pack import BlobKind, Entry, seal_header
from freezeframe.repo.repository import Repository
from freezeframe.repo.seal_blob import DECOMPRESS_EVERY, BlobSealer, SealedBlob
from freezeframe.store.base import Kind
from freezeframe.system.allocator import keep_freed_memory

__all__ = ["BlobHandle", "BlobKind", "BlobWriter", "WriterStats"]

#: A pack is full when it holds this many bytes: restic's default. Larger ones would save
#: a few synchronisations and cost memory, and more rewriting when something is pruned.
PACK_SIZE = 16 * MIB
#: A pack of small blobs is full earlier: a pack stands whole in one index file.
_PACK_BLOBS = 8192
#: Full packs that wait for an uploader.
_QUEUE = 2
#: An index file holds no more blobs than this, as restic's.
_INDEX_BLOBS = 50_000
#: What an interrupted put left is removed when it is a day old.
_LEFT_OVER = 24 * 3600.0


@dataclass(slots=True)
class WriterStats:
    """What a writer did so far. Bytes are plain ones unless said otherwise."""

    #: Blobs that were not known before, and their bytes.
    blobs_new: int = 0
    plain_bytes: int = 0
    #: Blobs that the repository or this run had already, and their bytes.
    blobs_known: int = 0
    known_bytes: int = 0
    #: Bytes of packs that are durable.
    stored_bytes: int = 0
    packs: int = 0


@dataclass(slots=True)
class _Pack:
    """A pack being filled."""

    kind: BlobKind
    parts: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    size: int = 0

    def append(self, blob_id: bytes, blob: SealedBlob) -> None:
        self.entries.append(Entry(self.kind, blob_id, self.size, blob.length, blob.uncompressed))
        self.parts += blob.parts
        self.size += blob.length


class BlobWriter:
    """Puts blobs into a repository. Thread-safe; as a context manager it closes or aborts.

    The first failure, in whatever thread, stops everything: it is raised by the call that
    met it and by every later call of anybody.
    """

    def __init__(
        self,
        repository: Repository,
        index: Index,
        *,
        level: int | None = None,
        pack_size: int = PACK_SIZE,
        decompress_every: int = DECOMPRESS_EVERY,
        uploaders: int = 2,
        index_interval: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the uploaders.

        `level` is a zstandard level, None for the parameters chosen in `compress`.
        `decompress_every`: 1 decompresses every blob again before it counts (see `BlobSealer`).
        `index_interval` in seconds: how much of its work an interrupted run may lose.
        """
        keep_freed_memory()
        self._repository = repository
        self._index = index
        self._level = level
        self._pack_size = pack_size
        self._decompress_every = decompress_every
        self._interval = index_interval
        self._monotonic = monotonic
        self.stats = WriterStats()
        # One condition for all: it is held for moments only, never while bytes are worked on.
        self._state = threading.Condition()
        self._filling: dict[BlobKind, _Pack] = {kind: _Pack(kind) for kind in BlobKind}
        self._queue: deque[_Pack] = deque()
        self._uploading = 0
        #: Blobs that are on their way; they are in no index yet.
        self._pending: set[tuple[BlobKind, bytes]] = set()
        self._unindexed: list[StoredPack] = []
        self._last_index = monotonic()
        self._failure: BaseException | None = None
        self._ended = False
        repository.store.tidy(_LEFT_OVER)
        self._threads = [
            threading.Thread(target=self._upload, name=f"upload-{number}", daemon=True)
            for number in range(uploaders)
        ]
        for thread in self._threads:
            thread.start()

    # -- for the caller -------------------------------------------------------------

    def handle(self) -> BlobHandle:
        """Return a way in for one thread."""
        sealer = BlobSealer(
            self._repository.key, level=self._level, decompress_every=self._decompress_every
        )
        return BlobHandle(self, sealer)

    def flush(self) -> None:
        """Return once everything put so far is durable and in the index.

        No other thread may put meanwhile. Raises the first failure.
        """
        with self._state:
            self._check()
            for kind, pack in self._filling.items():
                if pack.entries:
                    self._filling[kind] = _Pack(kind)
                    self._queue.append(pack)
            self._state.notify_all()
            self._state.wait_for(
                lambda: self._failure is not None or not (self._queue or self._uploading)
            )
            self._check()
        try:
            self._write_index()
        except BaseException as error:
            self._fail(error)
            raise

    def close(self) -> None:
        """Flush and end. Raises the first failure; the threads have ended in any case."""
        try:
            if not self._ended:
                self.flush()
        finally:
            self._end()

    def abort(self) -> None:
        """End without finishing: packs being filled are dropped, durable ones get an index.

        Never raises `FreezeframeError`: what cannot be indexed is stored again by the next run.
        """
        self._end()
        with contextlib.suppress(FreezeframeError):
            self._write_index()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    # -- for the handles ------------------------------------------------------------

    def claim(self, kind: BlobKind, blob_id: bytes, length: int) -> bool:
        """Whether the caller must store this blob; nobody else will then."""
        key = (kind, blob_id)
        with self._state:
            self._check()
            if key in self._pending or self._index.has(kind, blob_id):
                self.stats.blobs_known += 1
                self.stats.known_bytes += length
                return False
            self._pending.add(key)
            self.stats.blobs_new += 1
            self.stats.plain_bytes += length
            return True

    def knows(self, kind: BlobKind, blob_id: bytes) -> bool:
        """Whether a blob is stored, or on its way."""
        # In this order: a blob leaves the set only after the index has it.
        return (kind, blob_id) in self._pending or self._index.has(kind, blob_id)

    def count_known(self, length: int) -> None:
        """Count one blob's bytes that the repository has, as `claim` does."""
        with self._state:
            self._check()
            self.stats.blobs_known += 1
            self.stats.known_bytes += length

    def append(self, kind: BlobKind, blob_id: bytes, blob: SealedBlob) -> None:
        """Put a claimed blob into the pack; wait while too many packs wait to be stored."""
        with self._state:
            self._check()
            pack = self._filling[kind]
            pack.append(blob_id, blob)
            if pack.size < self._pack_size and len(pack.entries) < _PACK_BLOBS:
                return
            self._filling[kind] = _Pack(kind)
            self._state.wait_for(
                lambda: len(self._queue) < _QUEUE or self._failure is not None or self._ended
            )
            self._check()
            self._queue.append(pack)
            self._state.notify_all()

    def fail(self, error: BaseException) -> None:
        """Stop everything: a claimed blob could not be sealed."""
        self._fail(error)

    # -- storing packs --------------------------------------------------------------

    def _upload(self) -> None:
        sealer = Sealer(self._repository.key)
        while True:
            with self._state:
                self._state.wait_for(lambda: self._queue or self._ended or self._failure)
                if self._failure is not None or not self._queue:
                    return
                pack = self._queue.popleft()
                self._uploading += 1
                self._state.notify_all()
            try:
                self._store(pack, sealer)
            except BaseException as error:
                self._fail(error)
            finally:
                with self._state:
                    self._uploading -= 1
                    self._state.notify_all()
            del pack

    def _store(self, pack: _Pack, sealer: Sealer) -> None:
        self._repository.check_locks()
        parts = [*pack.parts, *seal_header(sealer, pack.entries)]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        self._repository.store.put(Kind.DATA, digest.hexdigest(), parts)
        with self._state:
            self._index.add(digest.digest(), pack.entries)
            self._pending.difference_update((kind, blob_id) for kind, blob_id, *_ in pack.entries)
            self._unindexed.append(StoredPack(digest.digest(), pack.entries))
            self.stats.stored_bytes += sum(map(len, parts))
            self.stats.packs += 1
            due = self._index_is_due()
            if due:
                self._last_index = self._monotonic()
        if due:
            self._write_index()

    def _index_is_due(self) -> bool:
        waiting = sum(len(pack.entries) for pack in self._unindexed)
        return (
            waiting > _INDEX_BLOBS - _PACK_BLOBS
            or self._monotonic() - self._last_index >= self._interval
        )

    def _write_index(self) -> None:
        """Store index files of all durable packs that are in none yet."""
        while True:
            with self._state:
                batch = _index_batch(self._unindexed)
                del self._unindexed[: len(batch)]
            if not batch:
                return
            try:
                self._repository.save_index(batch)
            except BaseException:
                with self._state:
                    self._unindexed[:0] = batch
                raise

    # -- ending ---------------------------------------------------------------------

    def _check(self) -> None:
        """Raise the first failure. The caller holds the state."""
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise FreezeframeError("the repository's writer was closed already")

    def _fail(self, error: BaseException) -> None:
        with self._state:
            if self._failure is None:
                self._failure = error
            self._queue.clear()
            self._state.notify_all()

    def _end(self) -> None:
        with self._state:
            self._ended = True
            self._queue.clear()
            self._state.notify_all()
        for thread in self._threads:
            thread.join()


class BlobHandle:
    """One thread's way into a `BlobWriter`; not to be shared between threads."""

    def __init__(self, writer: BlobWriter, sealer: BlobSealer) -> None:
        self._writer = writer
        self._sealer = sealer

    @staticmethod
    def name(plain: Buffer) -> bytes:
        """Return the id of a blob, 32 bytes: its SHA-256."""
        return hashlib.sha256(plain).digest()

    def put(
        self,
        kind: BlobKind,
        plain: Buffer,
        blob_id: bytes | None = None,
        *,
        closely: bool = False,
    ) -> bytes:
        """Store a blob unless it is known; return its id, 32 bytes.

        `plain` must not change during the call and is free again on return; `blob_id` is its
        name, where the caller has it already; `closely`, see `BlobSealer.seal`. On return the
        blob is on its way, not durable: that is what `flush` is for. Waits while the storage
        is slower than the caller. Raises the writer's first failure.
        """
        if blob_id is None:
            blob_id = self.name(plain)
        if self._writer.claim(kind, blob_id, len(plain)):
            try:
                blob = self._sealer.seal(plain, closely=closely)
            except BaseException as error:
                self._writer.fail(error)
                raise
            self._writer.append(kind, blob_id, blob)
        return blob_id

    def knows(self, kind: BlobKind, blob_id: bytes) -> bool:
        """Whether a blob is stored, or on its way."""
        return self._writer.knows(kind, blob_id)

    def count_known(self, length: int) -> None:
        """Count bytes that were found to be in the repository without naming them."""
        self._writer.count_known(length)


def _index_batch(packs: list[StoredPack]) -> list[StoredPack]:
    """Return as many of the first packs as fit into an index file."""
    batch: list[StoredPack] = []
    blobs = 0
    for pack in packs:
        blobs += len(pack.entries)
        if batch and blobs > _INDEX_BLOBS:
            break
        batch.append(pack)
    return batch
