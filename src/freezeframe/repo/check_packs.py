"""Check packs: that they are there and whole, and that every blob in them opens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import ObjectMissing, RepositoryDamaged, StoreError
from freezeframe.core.progress import Progress
from freezeframe.core.units import MIB
from freezeframe.repo.crypto import Buffer, MasterKey, Sealer
from freezeframe.repo.index import Columns, Index
from freezeframe.repo.pack import (
    COMPRESSED_ENTRY,
    FRAME,
    RAW_ENTRY,
    BlobKind,
    Entry,
    PackBroken,
    header_length,
    open_header,
)
from freezeframe.repo.reader import BlobOpener
from freezeframe.store.base import Kind, Store
from freezeframe.system.workers import run_workers

#: Packs up to this size are read in one go; larger ones, which others may write, in steps.
_WHOLE = 64 * MIB
_STEP = 8 * MIB

BlobKey = tuple[BlobKind, bytes]


@dataclass(slots=True)
class PackFindings:
    """What is wrong with packs. Filled from several threads."""

    #: (pack name, what is wrong).
    problems: list[tuple[str, str]] = field(default_factory=list)
    #: Blobs that no copy of could be read; only the copies looked at count.
    bad: set[BlobKey] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def add(self, pack: str, text: str, bad: list[BlobKey]) -> None:
        """Note one pack's problem and the blobs it hits."""
        with self._guard:
            self.problems.append((pack, text))
            self.bad.update(bad)


class PackTable:
    """Which blobs each pack holds according to the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._tables: dict[BlobKind, tuple[Columns, NDArray[np.int64], NDArray[np.int64]]] = {}
        for kind in BlobKind:
            table = index.columns(kind)
            order = np.lexsort([table.offsets, table.packs]).astype(np.int64)
            edges = np.searchsorted(table.packs[order], np.arange(index.pack_count + 1))
            self._tables[kind] = table, order, edges.astype(np.int64)

    def sizes(self) -> NDArray[np.int64]:
        """Return the size in bytes that every pack must have, by number; 0 for empty ones."""
        total = np.zeros(self._index.pack_count, np.int64)
        for table, _, _ in self._tables.values():
            entry = np.where(table.plains > 0, COMPRESSED_ENTRY, RAW_ENTRY)
            weights = table.lengths.astype(np.int64) + entry
            # Sums of whole numbers below 2^53 are exact in float64.
            sums = np.bincount(table.packs, weights.astype(np.float64), len(total))
            total += sums.astype(np.int64)
        total[total > 0] += FRAME
        return total

    def entries(self, number: int) -> list[Entry]:
        """Return the blobs of one pack in order of offset."""
        found = []
        for kind, (table, order, edges) in self._tables.items():
            rows = order[edges[number] : edges[number + 1]]
            found += [
                Entry(kind, blob_id.tobytes(), offset, length, plain)
                for blob_id, offset, length, plain in zip(
                    table.ids(rows),
                    table.offsets[rows].tolist(),
                    table.lengths[rows].tolist(),
                    table.plains[rows].tolist(),
                    strict=True,
                )
            ]
        return sorted(found, key=lambda entry: entry.offset)


def check_presence(
    index: Index, table: PackTable, present: Mapping[str, int], findings: PackFindings
) -> list[int]:
    """Compare the index with the packs there (name, size); return the numbers of those there.

    A blob that lies beyond a pack's end is bad; one before it may be whole.
    """
    there = []
    for number, expected in enumerate(table.sizes().tolist()):
        if not expected:
            continue
        name = index.pack_name(number)
        size = present.get(name)
        if size is None:
            lost = [(entry.kind, entry.id) for entry in table.entries(number)]
            findings.add(name, f"it is missing, and {len(lost)} blobs with it", lost)
            continue
        there.append(number)
        if size != expected:
            lost = [
                (entry.kind, entry.id)
                for entry in table.entries(number)
                if entry.offset + entry.length > size
            ]
            findings.add(
                name,
                f"it is {size} bytes long, not {expected}; {len(lost)} blobs are cut off",
                lost,
            )
    return there


def check_content(
    store: Store,
    key: MasterKey,
    index: Index,
    table: PackTable,
    packs: Mapping[int, int],
    findings: PackFindings,
    progress: Progress,
) -> None:
    """Read packs (number: size) and open everything in them, in threads."""
    progress.start("read packs", sum(packs.values()))

    def make_worker() -> Callable[[tuple[int, int]], None]:
        checker = _PackChecker(store, key, findings)

        def work(pack: tuple[int, int]) -> None:
            number, size = pack
            checker.check(index.pack_name(number), size, table.entries(number))
            progress.advance(size)

        return work

    run_workers(packs.items(), make_worker)


class _PackChecker:
    """One thread's contexts."""

    def __init__(self, store: Store, key: MasterKey, findings: PackFindings) -> None:
        self._store = store
        self._sealer = Sealer(key)
        self._opener = BlobOpener(key)
        self._findings = findings

    def check(self, name: str, size: int, expected: list[Entry]) -> None:
        """Check hash, header and every blob of a pack."""
        try:
            pack = _PackBytes(self._store, name, size)
            reasons = list(self._whole(pack, name, expected))
            bad = list(self._bad_blobs(pack, expected))
        except (StoreError, RepositoryDamaged) as error:
            every = [(entry.kind, entry.id) for entry in expected]
            text = "it vanished while it was checked" if _is_missing(error) else error.message
            self._findings.add(name, text, every)
            return
        if bad:
            reasons.append(f"{len(bad)} of its {len(expected)} blobs are damaged")
        if reasons:
            self._findings.add(name, "; ".join(reasons), bad)

    def _whole(self, pack: _PackBytes, name: str, expected: list[Entry]) -> Iterator[str]:
        if pack.sha256() != name:
            yield "the SHA-256 of its bytes is not its name"
        try:
            length = header_length(pack.read(max(pack.size - 4, 0), min(4, pack.size)), pack.size)
            header = open_header(self._sealer, pack.read(pack.size - 4 - length, length), pack.size)
        except PackBroken as error:
            yield str(error)
            return
        if header != expected:
            yield "its header and the index differ"

    def _bad_blobs(self, pack: _PackBytes, expected: list[Entry]) -> Iterator[BlobKey]:
        for kind, blob_id, offset, length, uncompressed in expected:
            try:
                if offset + length > pack.size:
                    raise ValueError("it is cut off")
                self._opener.open(blob_id, pack.read(offset, length), uncompressed)
            except ValueError:
                yield kind, blob_id


class _PackBytes:
    """A pack's bytes: held where it is small, read in steps where it is not."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store = store
        self._name = name
        self.size = size
        self._held = memoryview(store.get(Kind.DATA, name)) if size <= _WHOLE else None
        if self._held is not None:
            self.size = len(self._held)

    def read(self, offset: int, length: int) -> Buffer:
        if self._held is not None:
            return self._held[offset : offset + length]
        return self._store.get(Kind.DATA, self._name, offset, length)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for offset in range(0, self.size, _STEP):
            digest.update(self.read(offset, min(_STEP, self.size - offset)))
        return digest.hexdigest()


def _is_missing(error: Exception) -> bool:
    return isinstance(error, ObjectMissing)
