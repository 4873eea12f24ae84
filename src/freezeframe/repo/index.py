"""Where every blob lies: sorted arrays, 48 bytes a blob, and a small dict of what is new.

Ids are kept as four columns of 64-bit numbers, most significant first, so that the first
column alone can be searched (SHA-256 is uniform: ties are rare, and looked at), by numpy for
many ids and by bisection for one.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.repo.crypto import OVERHEAD
from freezeframe.repo.pack import BlobKind, Entry

#: New blobs are kept in a dict up to this many (some 20 MB), then merged into the arrays.
_MERGE_AT = 1 << 16
_ID = struct.Struct(">4Q")


@dataclass(frozen=True, slots=True)
class Location:
    """Where one blob lies. Offsets and lengths in bytes."""

    #: Name of the pack, 32 bytes.
    pack: bytes
    offset: int
    #: As stored, sealed.
    length: int
    #: When opened.
    plain_length: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Where many blobs lie, in the order they were asked for; all arrays of shape (n,)."""

    #: bool: in the index. Where it is False the other arrays hold 0.
    present: NDArray[np.bool_]
    #: uint32: numbers of packs, for `Index.pack_name`.
    packs: NDArray[np.uint32]
    #: int64: bytes from the start of the pack.
    offsets: NDArray[np.int64]
    #: int64: bytes stored, sealed.
    lengths: NDArray[np.int64]
    #: int64: bytes when opened.
    plain_lengths: NDArray[np.int64]
    #: bool.
    compressed: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> Found:
        """Return some rows, in the order given."""
        return Found(
            self.present[rows],
            self.packs[rows],
            self.offsets[rows],
            self.lengths[rows],
            self.plain_lengths[rows],
            self.compressed[rows],
        )


class Columns:
    """Blobs of one kind as arrays of shape (n,), ascending by id; immutable.

    A blob that lies in several packs has a row for each.
    """

    __slots__ = ("_ambiguous", "_first", "keys", "lengths", "offsets", "packs", "plains")

    def __init__(
        self,
        keys: Sequence[NDArray[np.uint64]],
        packs: NDArray[np.uint32],
        offsets: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        plains: NDArray[np.uint32],
    ) -> None:
        """Take arrays in that order already; everybody else uses `sorted_from`."""
        #: The id as four big-endian numbers.
        self.keys = tuple(keys)
        self.packs = packs
        self.offsets = offsets
        self.lengths = lengths
        #: Plain length; 0 where stored raw.
        self.plains = plains
        self._first = self.keys[0].data
        self._ambiguous = _has_ambiguous(self.keys)

    @classmethod
    def empty(cls) -> Columns:
        """No blobs."""
        none = np.empty(0, np.uint32)
        return cls([np.empty(0, np.uint64)] * 4, none, none, none, none)

    @classmethod
    def sorted_from(
        cls,
        keys: list[NDArray[np.uint64]],
        packs: NDArray[np.uint32],
        offsets: NDArray[np.uint32],
        lengths: NDArray[np.uint32],
        plains: NDArray[np.uint32],
    ) -> Columns:
        """Sort any rows and drop repeated ones. The list `keys` is emptied to save memory."""
        order = np.argsort(keys[0], kind="stable")
        first = keys[0][order]
        if (first[1:] == first[:-1]).any():
            by = [offsets.astype(np.uint64), packs.astype(np.uint64), *reversed(keys)]
            order = np.lexsort(by)
            by.clear()
            order = order[_distinct(keys, packs, offsets, order)]
            first = keys[0][order]
        rest = [column[order] for column in keys[1:]]
        keys.clear()
        return cls([first, *rest], packs[order], offsets[order], lengths[order], plains[order])

    def __len__(self) -> int:
        return len(self.packs)

    def rows(self, blob_id: bytes) -> range:
        """Return the rows of one id: none, one, or one for each of several packs."""
        first, *rest = _ID.unpack(blob_id)
        view = self._first
        row = bisect_left(view, first)
        while row < len(view) and view[row] == first and not self._same(row, rest):
            row += 1
        stop = row
        while stop < len(view) and view[stop] == first and self._same(stop, rest):
            stop += 1
        return range(row, stop)

    def _same(self, row: int, rest: Sequence[int]) -> bool:
        return all(
            int(column[row]) == part for column, part in zip(self.keys[1:], rest, strict=True)
        )

    def search(self, ids: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return a row of each id (uint8, shape (n, 32)), or -1 where there is none."""
        wanted = split_ids(ids)
        rows = np.searchsorted(self.keys[0], wanted[0]).astype(np.int64)
        rows[rows == len(self)] = -1
        for column, part in zip(self.keys, wanted, strict=True):
            hit = rows >= 0
            rows[hit] = np.where(column[rows[hit]] == part[hit], rows[hit], -1)
        # Ids that share their first 8 bytes with another one: never seen but made on purpose.
        for number in np.flatnonzero(rows < 0).tolist() if self._ambiguous else ():
            same = self.rows(ids[number].tobytes())
            rows[number] = same.start if same else -1
        return rows

    def found(self, rows: NDArray[np.int64]) -> Found:
        """Return where the blobs of some rows lie, in the order given."""
        plains, lengths = self.plains[rows].astype(np.int64), self.lengths[rows].astype(np.int64)
        return Found(
            np.ones(len(rows), np.bool_),
            self.packs[rows],
            self.offsets[rows].astype(np.int64),
            lengths,
            np.where(plains > 0, plains, np.maximum(lengths - OVERHEAD, 0)),
            plains > 0,
        )

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the ids of some rows: uint8, shape (n, 32)."""
        joined = np.stack([column[rows] for column in self.keys], axis=1).astype(">u8")
        return joined.view(np.uint8).reshape(-1, 32)

    def filtered(self, keep: NDArray[np.bool_]) -> Columns:
        """Return only the rows whose flag is set."""
        return Columns(
            [column[keep] for column in self.keys],
            self.packs[keep],
            self.offsets[keep],
            self.lengths[keep],
            self.plains[keep],
        )


def split_ids(ids: NDArray[np.uint8]) -> list[NDArray[np.uint64]]:
    """Return ids (uint8, shape (n, 32)) as four columns of native numbers."""
    numbers = np.ascontiguousarray(ids).reshape(-1, 32).view(">u8")
    return [numbers[:, part].astype(np.uint64) for part in range(4)]


def _has_ambiguous(keys: Sequence[NDArray[np.uint64]]) -> bool:
    """Whether different ids begin with the same 8 bytes."""
    tied = np.flatnonzero(keys[0][1:] == keys[0][:-1])
    return any(bool((column[tied] != column[tied + 1]).any()) for column in keys[1:])


def _distinct(
    keys: list[NDArray[np.uint64]],
    packs: NDArray[np.uint32],
    offsets: NDArray[np.uint32],
    order: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Flag the rows that differ from the one before: a pack may stand in two index files."""
    keep = np.zeros(len(order), np.bool_)
    keep[:1] = True
    for column in [*keys, packs.astype(np.uint64), offsets.astype(np.uint64)]:
        inorder = column[order]
        keep[1:] |= inorder[1:] != inorder[:-1]
    return keep


#: A new blob: number of the pack, offset, stored length, plain length (0: raw).
_Row = tuple[int, int, int, int]


class Index:
    """All blobs of a repository that may be counted on. Thread-safe.

    Lookups take no lock: arrays are replaced, never changed, and a new blob leaves the dict
    only after the arrays hold it.
    """

    def __init__(self, packs: Sequence[bytes], tables: Mapping[BlobKind, Columns]) -> None:
        self._lock = threading.Lock()
        self._packs = list(packs)
        self._tables = {kind: tables.get(kind, Columns.empty()) for kind in BlobKind}
        self._recent: dict[BlobKind, dict[bytes, _Row]] = {kind: {} for kind in BlobKind}

    @classmethod
    def empty(cls) -> Index:
        """Make an index of nothing."""
        return cls([], {})

    # -- looking --------------------------------------------------------------------

    @property
    def total(self) -> int:
        """How many blobs there are, of both kinds; one in several packs counts each time."""
        return sum(len(self._tables[kind]) + len(self._recent[kind]) for kind in BlobKind)

    def has(self, kind: BlobKind, blob_id: bytes) -> bool:
        """Whether a blob (id of 32 bytes) is stored and durable."""
        # The dict first: see the class's word on threads.
        return blob_id in self._recent[kind] or bool(self._tables[kind].rows(blob_id))

    def find(self, kind: BlobKind, blob_id: bytes) -> Location | None:
        """Return one place where a blob lies, or None."""
        return next(self.find_all(kind, blob_id), None)

    def find_all(self, kind: BlobKind, blob_id: bytes) -> Iterator[Location]:
        """Yield every place where a blob lies: more than one where it was stored twice."""
        recent = self._recent[kind].get(blob_id)
        if recent is not None:
            yield self._location(*recent)
        table = self._tables[kind]
        for row in table.rows(blob_id):
            yield self._location(
                int(table.packs[row]),
                int(table.offsets[row]),
                int(table.lengths[row]),
                int(table.plains[row]),
            )

    def find_many(self, kind: BlobKind, ids: NDArray[np.uint8]) -> Found:
        """Return where blobs lie: `ids` is uint8 of shape (n, 32)."""
        recent, table = self._recent[kind], self._tables[kind]
        rows = table.search(ids)
        present = rows >= 0
        result = np.zeros((4, len(rows)), np.int64)
        hit = rows[present]
        columns = [table.packs, table.offsets, table.lengths, table.plains]
        for line, column in enumerate(columns):
            result[line, present] = column[hit]
        if recent:
            for number in np.flatnonzero(~present).tolist():
                row = recent.get(ids[number].tobytes())
                if row is not None:
                    result[:, number] = row
                    present[number] = True
        packs, offsets, lengths, plains = result
        compressed = plains > 0
        raw_length = np.maximum(lengths - OVERHEAD, 0)
        return Found(
            present,
            packs.astype(np.uint32),
            offsets,
            lengths,
            np.where(compressed, plains, raw_length),
            compressed,
        )

    def pack_id(self, number: int) -> bytes:
        """Return the 32 bytes of a pack's name by its number."""
        return self._packs[number]

    def pack_name(self, number: int) -> str:
        """Return a pack's name (64 hex digits) by its number."""
        return self._packs[number].hex()

    @property
    def pack_count(self) -> int:
        """How many pack numbers there are, from 0; some may hold nothing."""
        return len(self._packs)

    def columns(self, kind: BlobKind) -> Columns:
        """Return all blobs of a kind as arrays, new ones merged in."""
        with self._lock:
            self._merge(kind)
            return self._tables[kind]

    def _location(self, pack: int, offset: int, length: int, plain: int) -> Location:
        return Location(
            self._packs[pack], offset, length, plain or length - OVERHEAD, compressed=plain > 0
        )

    # -- changing -------------------------------------------------------------------

    def add(self, pack: bytes, entries: Sequence[Entry]) -> None:
        """Count on the blobs of a pack that is durable now."""
        with self._lock:
            number = len(self._packs)
            self._packs.append(pack)
            for kind, blob_id, offset, length, plain in entries:
                if blob_id in self._recent[kind]:
                    self._merge(kind)  # a second copy: the arrays have room for both
                self._recent[kind][blob_id] = (number, offset, length, plain)
            for kind in BlobKind:
                if len(self._recent[kind]) >= _MERGE_AT:
                    self._merge(kind)

    def drop_missing_packs(self, present: Collection[str]) -> int:
        """Forget blobs of packs whose names are not in `present`; return how many blobs.

        Before writing: what an index promises and the store does not hold is stored again.
        """
        names = present if isinstance(present, set | frozenset) else set(present)
        with self._lock:
            there = np.array([pack.hex() in names for pack in self._packs], np.bool_)
            if there.all():
                return 0
            dropped = 0
            for kind in BlobKind:
                self._merge(kind)
                table = self._tables[kind]
                keep = there[table.packs]
                dropped += len(table) - int(keep.sum())
                self._tables[kind] = table.filtered(keep)
            return dropped

    def drop_incomplete_packs(self, sizes: Mapping[str, int]) -> int:
        """Forget blobs of packs that are gone or cut short; return how many blobs.

        `sizes` are the bytes of every pack in the store, by name.
        """
        ends = np.zeros(self.pack_count, np.int64)
        for kind in BlobKind:
            table = self.columns(kind)
            np.maximum.at(ends, table.packs, table.offsets.astype(np.int64) + table.lengths)
        whole = {
            name
            for number, end in enumerate(ends.tolist())
            # Behind the last blob there is the header.
            if sizes.get(name := self.pack_name(number), 0) > end
        }
        return self.drop_missing_packs(whole)

    def _merge(self, kind: BlobKind) -> None:
        """Move the new blobs into the arrays. The caller holds the lock."""
        recent, table = self._recent[kind], self._tables[kind]
        if not recent:
            return
        ids = np.frombuffer(b"".join(recent), np.uint8).reshape(-1, 32)
        rows = np.array(list(recent.values()), np.uint32)
        keys = [
            np.concatenate([old, new]) for old, new in zip(table.keys, split_ids(ids), strict=True)
        ]
        columns = (table.packs, table.offsets, table.lengths, table.plains)
        packs, offsets, lengths, plains = (
            np.concatenate([old, rows[:, number]]) for number, old in enumerate(columns)
        )
        self._tables[kind] = Columns.sorted_from(keys, packs, offsets, lengths, plains)
        self._recent[kind] = {}
