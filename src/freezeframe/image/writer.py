"""Write an image: chunks in any order, then trees, then the snapshot, last of all.

The layout of the tree is DESIGN's:

    freezeframe.json
    layout/<disk>/<piece>
    disks/<disk>/<segment>/data, used, sums

Every segment has a directory of its own, so that an unchanged one keeps its tree id and an
increment writes only the trees of segments that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import FreezeframeError
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, GRANULE, SEGMENT
from freezeframe.image import chunklist, sumsfile, usedfile
from freezeframe.image import manifest as manifests
from freezeframe.image.manifest import Manifest
from freezeframe.image.names import DATA, segment_name, zero_id
from freezeframe.image.parent import ParentDisk
from freezeframe.repo.fingerprint import LENGTH, Fingerprinter
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import Node, dir_node, encode_tree, file_node
from freezeframe.repo.writer import BlobHandle, BlobWriter

_PER_SEGMENT = SEGMENT // CHUNK
_ZEROS = bytes(CHUNK)


class _Disk:
    """The blobs of one disk: every chunk starts as zeros."""

    def __init__(self, size: int, parent: ParentDisk | None) -> None:
        self.size = size
        #: uint8, shape (chunks, 32); meaningless where a chunk is in `fine`.
        self.ids = np.empty((-(-size // CHUNK), 32), np.uint8)
        self.ids[:] = np.frombuffer(zero_id(CHUNK), np.uint8)
        if size % CHUNK:
            self.ids[-1] = np.frombuffer(zero_id(size % CHUNK), np.uint8)
        #: Chunks stored by granules: uint8, shape (granules, 32).
        self.fine: dict[int, NDArray[np.uint8]] = {}
        #: uint8, shape (chunks, 16), see `sumsfile`.
        self.sums = np.zeros((len(self.ids), LENGTH), np.uint8)
        self.parent = parent if parent is not None and parent.size == size else None


class ChunkStore:
    """One worker's way into the image; not to be shared between threads."""

    def __init__(
        self,
        disks: Sequence[_Disk],
        handle: BlobHandle,
        fingerprinter: Fingerprinter,
        *,
        granular: bool,
    ) -> None:
        self._disks = disks
        self._handle = handle
        self._fingerprinter = fingerprinter
        self._granular = granular

    def put(self, disk: int, number: int, chunk: memoryview, *, rewritten: bool = False) -> None:
        """Store chunk `number` of a disk; the buffer is free again on return.

        A chunk of zeros is known without hashing it, one that the parent has by its fast
        sum. A chunk that differs from the parent's is stored by granules: where a disk is
        written to, it will be again, a little everywhere. Not so one that is known to be
        `rewritten` all over: nothing of it is there already. A chunk may be stored again: the
        last one wins. Different threads must not store the same chunk at once.
        """
        target = self._disks[disk]
        if _is_zero(chunk):
            target.fine.pop(number, None)
            target.ids[number] = np.frombuffer(zero_id(len(chunk)), np.uint8)
            target.sums[number] = 0
            return
        total = np.frombuffer(self._fingerprinter.sum(chunk), np.uint8)
        parent = target.parent
        if parent is None or not parent.usable[number] or parent.zero[number]:
            self._whole(target, number, chunk)
        elif np.array_equal(parent.sums[number], total):
            _take_over(target, parent, number)
            self._handle.count_known(len(chunk))
        elif rewritten or not self._granular:
            self._whole(target, number, chunk)
        elif number in parent.fine:
            self._granules(target, number, chunk)
        else:
            self._changed(target, parent, number, chunk)
        target.sums[number] = total

    def put_fine(self, disk: int, number: int, chunk: memoryview) -> None:
        """Store chunk `number` of a disk by granules, whatever the parent has.

        But for a chunk of zeros, which has no parts worth telling apart.
        """
        if _is_zero(chunk):
            self.put(disk, number, chunk)
            return
        target = self._disks[disk]
        self._granules(target, number, chunk)
        target.sums[number] = np.frombuffer(self._fingerprinter.sum(chunk), np.uint8)

    def is_fine(self, disk: int, number: int) -> bool:
        """Whether chunk `number` is stored by granules in this image, as it stands now."""
        return number in self._disks[disk].fine

    def patch(
        self,
        disk: int,
        number: int,
        granules: Mapping[int, memoryview],
        content: Callable[[bytes], bytes],
    ) -> None:
        """Replace granules (by their number within the chunk) of a chunk stored before.

        Where the chunk is stored whole and not all of it is replaced, `content` gives the
        bytes of its blob by the blob's id; it is stored by granules from then on.
        """
        target = self._disks[disk]
        length = min(CHUNK, target.size - number * CHUNK)
        count = -(-length // GRANULE)
        ids = target.fine.get(number)
        if count == 1:  # a disk's last one: there is nothing to divide
            self.put(disk, number, granules[0])
            return
        if ids is None and len(granules) < count:
            old = target.ids[number].tobytes()
            whole = bytearray(length) if old == zero_id(length) else bytearray(content(old))
            for part, data in granules.items():
                whole[part * GRANULE : part * GRANULE + len(data)] = data
            self.put_fine(disk, number, memoryview(whole))
            return
        fine = np.empty((count, 32), np.uint8) if ids is None else ids.copy()
        for part, data in granules.items():
            blob_id = self._handle.put(BlobKind.DATA, data, closely=True)
            fine[part] = np.frombuffer(blob_id, np.uint8)
        target.fine[number] = fine
        # Not known without reading all of it.
        target.sums[number] = 0

    def _changed(self, disk: _Disk, parent: ParentDisk, number: int, chunk: memoryview) -> None:
        """Store a chunk that the parent has whole and, by its sum, otherwise.

        Without a sum that means nothing yet (an older image, a copied repository); and a
        chunk may have become what it once was.
        """
        blob_id = self._handle.name(chunk)
        same = blob_id == parent.ids[number].tobytes()
        if same or self._handle.knows(BlobKind.DATA, blob_id):
            self._whole(disk, number, chunk, blob_id)
        else:
            self._granules(disk, number, chunk)

    def _whole(
        self, disk: _Disk, number: int, chunk: memoryview, blob_id: bytes | None = None
    ) -> None:
        stored = self._handle.put(BlobKind.DATA, chunk, blob_id)
        disk.fine.pop(number, None)
        disk.ids[number] = np.frombuffer(stored, np.uint8)

    def _granules(self, disk: _Disk, number: int, chunk: memoryview) -> None:
        if len(chunk) <= GRANULE:  # a disk's last one: there is nothing to divide
            self._whole(disk, number, chunk)
            return
        parts = [chunk[start : start + GRANULE] for start in range(0, len(chunk), GRANULE)]
        # Divided for the first time, most of it has not changed and never will.
        again = number in disk.fine or (disk.parent is not None and number in disk.parent.fine)
        ids = [self._handle.put(BlobKind.DATA, part, closely=again) for part in parts]
        disk.fine[number] = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)


def _is_zero(chunk: memoryview) -> bool:
    # As flags: numpy looks at them 16 at a time and stops at the first that is set.
    return not np.frombuffer(chunk, np.bool_).any()


def _take_over(disk: _Disk, parent: ParentDisk, number: int) -> None:
    if (fine := parent.fine.get(number)) is not None:
        disk.fine[number] = fine
    else:
        disk.fine.pop(number, None)
        disk.ids[number] = parent.ids[number]


def _drop_unused(disk: _Disk, used: Extents) -> None:
    """Make zeros of the chunks that nobody uses: taken over, or stored before they were freed.

    Or what was deleted would be kept for as long as images are built one upon the other.
    """
    unused = np.ones(len(disk.ids), np.bool_)
    unused[used.units(CHUNK)] = False
    disk.ids[unused] = np.frombuffer(zero_id(CHUNK), np.uint8)
    if disk.size % CHUNK and unused[-1]:
        disk.ids[-1] = np.frombuffer(zero_id(disk.size % CHUNK), np.uint8)
    disk.sums[unused] = 0
    for number in [number for number in disk.fine if unused[number]]:
        del disk.fine[number]


class ImageWriter:
    """An image under way. Nothing of it can be seen before `commit` returns."""

    def __init__(
        self,
        repository: Repository,
        writer: BlobWriter,
        sizes: Sequence[int],
        parents: Sequence[ParentDisk | None] = (),
        *,
        granular: bool = True,
    ) -> None:
        """Start an image of disks of these sizes; `parents` are what an earlier one has of each.

        Without `granular` changed chunks are stored whole: only to measure what it saves.
        """
        self._repository = repository
        self._writer = writer
        self._handle = writer.handle()
        self._fingerprinter = Fingerprinter(repository.key)
        self._granular = granular
        known = parents or [None] * len(sizes)
        self._disks = [_Disk(size, parent) for size, parent in zip(sizes, known, strict=True)]

    def chunk_store(self) -> ChunkStore:
        """Return a way in for one more worker thread."""
        return ChunkStore(
            self._disks, self._writer.handle(), self._fingerprinter, granular=self._granular
        )

    def take_over(self, disk: int, numbers: NDArray[np.int64]) -> None:
        """Take these chunks as the disk's parent has them; all must be usable there."""
        target = self._disks[disk]
        parent = target.parent
        if not len(numbers):
            return
        if parent is None or not parent.usable[numbers].all():
            raise FreezeframeError("chunks to be taken over are not in the parent image")
        target.ids[numbers] = parent.ids[numbers]
        target.sums[numbers] = parent.sums[numbers]
        wanted = set(numbers.tolist())
        for number in wanted & target.fine.keys():
            del target.fine[number]
        for number in wanted & parent.fine.keys():
            target.fine[number] = parent.fine[number]

    def _described(self, manifest: Manifest) -> Manifest:
        """Return a manifest that says which chunks are stored by granules."""
        return msgspec.structs.replace(
            manifest,
            disks=tuple(
                msgspec.structs.replace(
                    record, fine=chunklist.encode(np.array(sorted(disk.fine), np.int64))
                )
                for record, disk in zip(manifest.disks, self._disks, strict=True)
            ),
        )

    def commit(
        self,
        manifest: Manifest,
        used: Sequence[Extents],
        pieces: Mapping[str, Mapping[str, bytes]],
        writers: Mapping[str, Mapping[str, bytes]] | None = None,
    ) -> tuple[Snapshot, Manifest]:
        """Write everything that is left, make it durable, then the snapshot; return what it holds.

        `used` is each disk's used map in bytes; `pieces` the layout's files by disk name;
        `writers` what applications want kept beside it, by folder and name.
        The manifest it holds, and returns, says besides which chunks are stored by granules.
        """
        for disk, extents in zip(self._disks, used, strict=True):
            _drop_unused(disk, extents)
        manifest = self._described(manifest)
        disks: list[Node] = []
        for record, disk, extents in zip(manifest.disks, self._disks, used, strict=True):
            disks.append(dir_node(record.name, self._disk_tree(disk, extents)))
        top = [
            dir_node("disks", self._tree(disks)),
            self._file(manifests.NAME, manifests.encode(manifest)),
            dir_node(
                "layout", self._folders({disk.name: pieces[disk.name] for disk in manifest.disks})
            ),
        ]
        if writers:
            top.append(dir_node("writers", self._folders(writers)))
        root = self._tree(top)
        self._writer.flush()
        snapshot = Snapshot.new(
            time=manifest.created,
            tree=root.hex(),
            paths=[disk.path for disk in manifest.disks],
            hostname=manifest.host.name,
            tags=[manifests.TAG, manifest.mode.value],
            program_version=manifest.program,
        )
        return self._repository.save_snapshot(snapshot), manifest

    def _disk_tree(self, disk: _Disk, used: Extents) -> bytes:
        """Write the zero blobs a disk refers to, its segments, and the tree over them."""
        for length in {min(CHUNK, disk.size), disk.size % CHUNK or CHUNK}:
            self._handle.put(BlobKind.DATA, _ZEROS[:length])
        segments = []
        last: tuple[bytes, bytes, int] | None = None
        tree = b""
        for number in range(-(-disk.size // SEGMENT)):
            start = number * SEGMENT
            length = min(SEGMENT, disk.size - start)
            held = usedfile.encode(used, start, length)
            known = _parent_segment(disk, number, held)
            if known is not None and self._handle.knows(BlobKind.TREE, known):
                segments.append(dir_node(segment_name(number), known))
                continue
            ids = _segment_ids(disk, number)
            sums = disk.sums[_chunks_of(number)].tobytes()
            # A huge disk is mostly segments nobody uses, one like the other.
            if (ids.tobytes(), held, length) != last:
                last = (ids.tobytes(), held, length)
                files = [
                    file_node(DATA, ids, length),
                    self._file(sumsfile.NAME, sums),
                    self._file(usedfile.NAME, held),
                ]
                tree = self._tree(files)
            segments.append(dir_node(segment_name(number), tree))
        return self._tree(segments)

    def _file(self, name: str, data: bytes) -> Node:
        pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
        ids = [self._handle.put(BlobKind.DATA, piece).hex() for piece in pieces]
        return file_node(name, ids, len(data))

    def _folders(self, folders: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """Write a tree of folders of small files."""
        return self._tree(
            [
                dir_node(name, self._tree([self._file(each, data) for each, data in files.items()]))
                for name, files in folders.items()
            ]
        )

    def _tree(self, nodes: list[Node]) -> bytes:
        ordered = sorted(nodes, key=lambda node: node.name.encode())
        return self._handle.put(BlobKind.TREE, encode_tree(ordered))


def _chunks_of(segment: int) -> slice[int, int, None]:
    return slice(segment * _PER_SEGMENT, (segment + 1) * _PER_SEGMENT)


def _fine_of(chunks: Mapping[int, NDArray[np.uint8]], segment: int) -> list[int]:
    """Return the chunks of a segment that are stored by granules, ascending."""
    here = _chunks_of(segment)
    if len(chunks) < _PER_SEGMENT:
        return sorted(number for number in chunks if here.start <= number < here.stop)
    return [number for number in range(here.start, here.stop) if number in chunks]


def _segment_ids(disk: _Disk, segment: int) -> NDArray[np.uint8]:
    """Return the ids of all blobs of a segment, in order: uint8, shape (n, 32)."""
    here = _chunks_of(segment)
    pieces: list[NDArray[np.uint8]] = []
    done = here.start
    for number in _fine_of(disk.fine, segment):
        pieces += [disk.ids[done:number], disk.fine[number]]
        done = number + 1
    return np.concatenate([*pieces, disk.ids[done : here.stop]])


def _parent_segment(disk: _Disk, segment: int, held: bytes) -> bytes | None:
    """Return the folder of the parent's segment where ours would be the same."""
    parent, here = disk.parent, _chunks_of(segment)
    known = parent.segments[segment] if parent is not None else None
    if parent is None or known is None or known[1] != held:
        return None
    ours, theirs = _fine_of(disk.fine, segment), _fine_of(parent.fine, segment)
    if ours != theirs or not parent.usable[here].all():
        return None
    coarse = np.ones(len(disk.ids[here]), np.bool_)
    coarse[np.array(ours, np.int64) - here.start] = False
    same = (
        np.array_equal(disk.ids[here][coarse], parent.ids[here][coarse])
        and np.array_equal(disk.sums[here], parent.sums[here])
        and all(np.array_equal(disk.fine[number], parent.fine[number]) for number in ours)
    )
    return known[0] if same else None
