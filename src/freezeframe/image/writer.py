"""Write an image: chunks in any order, then trees, then the snapshot, last of all.

The layout of the tree is DESIGN's:

    freezeframe.json
    layout/<disk>/<piece>
    disks/<disk>/<segment>/data, used

Every segment has a directory of its own, so that an unchanged one keeps its tree id and an
increment writes only the trees of segments that changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, SEGMENT
from freezeframe.image import manifest as manifests
from freezeframe.image import usedfile
from freezeframe.image.manifest import Manifest
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import Node, dir_node, encode_tree, file_node
from freezeframe.repo.writer import BlobHandle, BlobWriter

DATA = "data"
_PER_SEGMENT = SEGMENT // CHUNK
_ZEROS = bytes(CHUNK)


def zero_id(length: int) -> bytes:
    """Return the blob id of `length` zero bytes."""
    return hashlib.sha256(_ZEROS[:length]).digest()


class _Disk:
    """The blob ids of one disk: uint8, shape (chunks, 32); every chunk starts as zeros."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ids = np.empty((-(-size // CHUNK), 32), np.uint8)
        self.ids[:] = np.frombuffer(zero_id(CHUNK), np.uint8)
        if size % CHUNK:
            self.ids[-1] = np.frombuffer(zero_id(size % CHUNK), np.uint8)


class ChunkStore:
    """One worker's way into the image; not to be shared between threads."""

    def __init__(self, disks: Sequence[_Disk], handle: BlobHandle) -> None:
        self._disks = disks
        self._handle = handle

    def put(self, disk: int, number: int, chunk: memoryview) -> None:
        """Store chunk `number` of a disk; the buffer is free again on return.

        A chunk of zeros is known without hashing it. A chunk may be stored again: the last
        one wins. Different threads must not store the same chunk at once.
        """
        # As flags: numpy looks at them 16 at a time and stops at the first that is set.
        if not np.frombuffer(chunk, np.bool_).any():
            blob_id = zero_id(len(chunk)) if len(chunk) != CHUNK else _ZERO_CHUNK
        else:
            blob_id = self._handle.put(BlobKind.DATA, chunk)
        self._disks[disk].ids[number] = np.frombuffer(blob_id, np.uint8)


_ZERO_CHUNK = zero_id(CHUNK)


class ImageWriter:
    """An image under way. Nothing of it can be seen before `commit` returns."""

    def __init__(self, repository: Repository, writer: BlobWriter, sizes: Sequence[int]) -> None:
        self._repository = repository
        self._writer = writer
        self._handle = writer.handle()
        self._disks = [_Disk(size) for size in sizes]

    def chunk_store(self) -> ChunkStore:
        """Return a way in for one more worker thread."""
        return ChunkStore(self._disks, self._writer.handle())

    def commit(
        self,
        manifest: Manifest,
        used: Sequence[Extents],
        pieces: Mapping[str, Mapping[str, bytes]],
    ) -> Snapshot:
        """Write everything that is left, make it durable, then the snapshot.

        `used` is each disk's used map in bytes; `pieces` the layout's files by disk name.
        """
        disks: list[Node] = []
        layouts: list[Node] = []
        for record, disk, extents in zip(manifest.disks, self._disks, used, strict=True):
            disks.append(dir_node(record.name, self._disk_tree(disk, extents)))
            files = [self._file(name, data) for name, data in pieces[record.name].items()]
            layouts.append(dir_node(record.name, self._tree(files)))
        root = self._tree(
            [
                dir_node("disks", self._tree(disks)),
                self._file(manifests.NAME, manifests.encode(manifest)),
                dir_node("layout", self._tree(layouts)),
            ]
        )
        self._writer.flush()
        snapshot = Snapshot.new(
            time=manifest.created,
            tree=root.hex(),
            paths=[disk.path for disk in manifest.disks],
            hostname=manifest.host.name,
            tags=[manifests.TAG, manifest.mode.value],
            program_version=manifest.program,
        )
        return self._repository.save_snapshot(snapshot)

    def _disk_tree(self, disk: _Disk, used: Extents) -> bytes:
        """Write the zero blobs a disk refers to, its segments, and the tree over them."""
        for length in {min(CHUNK, disk.size), disk.size % CHUNK or CHUNK}:
            self._handle.put(BlobKind.DATA, _ZEROS[:length])
        segments = []
        last: tuple[bytes, bytes, int] | None = None
        tree = b""
        for number, first in enumerate(range(0, len(disk.ids), _PER_SEGMENT)):
            start = number * SEGMENT
            length = min(SEGMENT, disk.size - start)
            ids = disk.ids[first : first + _PER_SEGMENT]
            held = usedfile.encode(used, start, length)
            # A huge disk is mostly segments nobody uses, one like the other.
            if (ids.tobytes(), held, length) != last:
                last = (ids.tobytes(), held, length)
                files = [file_node(DATA, ids, length), self._file(usedfile.NAME, held)]
                tree = self._tree(files)
            segments.append(dir_node(segment_name(number), tree))
        return self._tree(segments)

    def _file(self, name: str, data: bytes) -> Node:
        pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        ids = [self._handle.put(BlobKind.DATA, piece).hex() for piece in pieces]
        return file_node(name, ids, len(data))

    def _tree(self, nodes: list[Node]) -> bytes:
        ordered = sorted(nodes, key=lambda node: node.name.encode())
        return self._handle.put(BlobKind.TREE, encode_tree(ordered))


def segment_name(number: int) -> str:
    """Return the folder of a segment: zero-padded, so that a shell lists them in order."""
    return f"{number:05d}"
