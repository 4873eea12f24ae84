"""Index files: from and to their JSON, and from all of them to an `Index`.

One file after the other is decoded and turned into arrays at once, so that the Python
objects of no more than one file (50,000 blobs) are alive.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import RepositoryDamaged
from freezeframe.repo.crypto import OVERHEAD
from freezeframe.repo.index import Columns, Index, split_ids
from freezeframe.repo.pack import BlobKind, Entry
from freezeframe.repo.sealed import decode
from freezeframe.repo.structs import IndexBlob, IndexFile, IndexPack
from freezeframe.store.base import Kind


@dataclass(frozen=True, slots=True)
class StoredPack:
    """A pack that is durable, and what is in it."""

    id: bytes
    entries: Sequence[Entry]


def encode_index(packs: Iterable[StoredPack]) -> bytes:
    """Return the JSON of an index file."""
    return msgspec.json.encode(
        IndexFile(
            packs=[
                IndexPack(
                    pack.id.hex(),
                    [
                        IndexBlob(blob_id.hex(), _NAMES[kind], offset, length, uncompressed)
                        for kind, blob_id, offset, length, uncompressed in pack.entries
                    ],
                )
                for pack in packs
            ]
        )
    )


def decode_index(text: bytes, name: str) -> IndexFile:
    """Return an index file from its JSON. Raises `RepositoryDamaged`."""
    return decode(text, IndexFile, Kind.INDEX, name)


#: Literals, as the struct wants them.
_NAMES: dict[BlobKind, Literal["data", "tree"]] = {BlobKind.DATA: "data", BlobKind.TREE: "tree"}


@dataclass(slots=True)
class _Growing:
    """Rows of one kind, file by file."""

    ids: list[NDArray[np.uint8]] = field(default_factory=list)
    packs: list[NDArray[np.uint32]] = field(default_factory=list)
    offsets: list[NDArray[np.uint32]] = field(default_factory=list)
    lengths: list[NDArray[np.uint32]] = field(default_factory=list)
    plains: list[NDArray[np.uint32]] = field(default_factory=list)


class IndexBuilder:
    """Collects index files, then becomes an `Index`."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._dead: set[bytes] = set()
        self._growing = {kind: _Growing() for kind in BlobKind}

    def add(self, file: IndexFile, name: str) -> None:
        """Take one index file. Raises `RepositoryDamaged`; nothing of it is then taken."""
        packs = file.packs or []
        numbers = [self._number(_unhex([pack.id], name)) for pack in packs]
        counts = [len(pack.blobs) for pack in packs]
        blobs = [blob for pack in packs for blob in pack.blobs]
        owner = np.repeat(np.array(numbers, np.uint32), counts)
        ids = np.frombuffer(_unhex([blob.id for blob in blobs], name), np.uint8).reshape(-1, 32)
        offsets = np.array([blob.offset for blob in blobs], np.uint32)
        lengths = np.array([blob.length for blob in blobs], np.uint32)
        plains = np.array([blob.uncompressed_length for blob in blobs], np.uint32)
        trees = np.array([blob.type == "tree" for blob in blobs], np.bool_)
        if (lengths < OVERHEAD).any():
            raise RepositoryDamaged(Kind.INDEX, name, "a blob in it is too short to be sealed")
        dead = [_unhex([pack.id], name) for pack in file.packs_to_delete]
        self._dead.update(dead)
        for kind, rows in ((BlobKind.DATA, ~trees), (BlobKind.TREE, trees)):
            growing = self._growing[kind]
            growing.ids.append(ids[rows])
            growing.packs.append(owner[rows])
            growing.offsets.append(offsets[rows])
            growing.lengths.append(lengths[rows])
            growing.plains.append(plains[rows])

    def build(self) -> Index:
        """Sort everything. The builder is empty afterwards."""
        packs = list(self._numbers)
        alive = np.array([pack not in self._dead for pack in packs], np.bool_)
        tables = {}
        for kind in BlobKind:
            growing = self._growing.pop(kind)
            if growing.ids:
                tables[kind] = _table(growing, alive)
        return Index(packs, tables)

    def _number(self, pack: bytes) -> int:
        return self._numbers.setdefault(pack, len(self._numbers))


def _table(growing: _Growing, alive: NDArray[np.bool_]) -> Columns:
    # Each list is emptied as soon as it is joined: the peak is what the memory limit is about.
    keys = [split_ids(ids) for ids in growing.ids]
    growing.ids.clear()
    joined = [np.concatenate([four[part] for four in keys]) for part in range(4)]
    keys.clear()
    columns = []
    for parts in (growing.packs, growing.offsets, growing.lengths, growing.plains):
        columns.append(np.concatenate(parts))
        parts.clear()
    packs, offsets, lengths, plains = columns
    columns.clear()
    table = Columns.sorted_from(joined, packs, offsets, lengths, plains)
    keep = alive[table.packs]
    return table if keep.all() else table.filtered(keep)


def _unhex(texts: Sequence[str], name: str) -> bytes:
    try:
        return binascii.unhexlify("".join(texts))
    except ValueError as error:  # binascii.Error is one
        raise RepositoryDamaged(Kind.INDEX, name, "an id in it is not hexadecimal") from error
