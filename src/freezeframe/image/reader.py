"""Read an image: the one road from a snapshot to a disk's bytes.

Everything that reads images (restore, verify, later devices and files) goes through here.
Blobs of a segment may have any length: offsets come from the index, never from a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import (
    FreezeframeError,
    NoSuchImage,
    NotUnderstood,
    RepositoryDamaged,
)
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, GIB, SEGMENT
from freezeframe.image import manifest as manifests
from freezeframe.image import sumsfile, usedfile
from freezeframe.image.manifest import DiskRecord, Manifest
from freezeframe.image.names import DATA, segment_name, zero_id
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import Node, content_ids, decode_tree

#: Bytes of a piece of the layout, at most: a LUKS header has 16 MiB, nothing has more.
_LARGEST_PIECE = GIB


@dataclass(frozen=True, slots=True)
class DiskBlobs:
    """Where a disk's bytes lie: blob `i` covers [starts[i], starts[i] + lengths[i])."""

    #: int64, shape (n,), ascending; from 0 and without gaps where nothing is damaged.
    starts: NDArray[np.int64]
    #: int64, shape (n,), in bytes.
    lengths: NDArray[np.int64]
    #: uint8, shape (n, 32).
    ids: NDArray[np.uint8]
    #: bool, shape (n,): known to hold zeros only, without reading.
    zero: NDArray[np.bool_]
    #: What the image answers for, in bytes of the disk.
    used: Extents

    def data_extents(self) -> Extents:
        """Return what may hold something but zeros."""
        return self._extents(~self.zero)

    def zero_extents(self) -> Extents:
        """Return what is known to hold zeros only."""
        return self._extents(self.zero)

    def _extents(self, keep: NDArray[np.bool_]) -> Extents:
        return Extents.from_arrays(self.starts[keep], (self.starts + self.lengths)[keep])

    def groups(self, numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Join blob numbers (ascending) that are neighbours in one chunk: (first, stop) of each.

        To be read and written in one go: a call for each granule costs more than its bytes.
        """
        return grouped(self.starts, numbers)

    def touching(self, extents: Extents) -> NDArray[np.bool_]:
        """Flag the blobs that hold any byte of a set: bool, shape (n,)."""
        if not extents:
            return np.zeros(len(self.starts), np.bool_)
        first = np.searchsorted(extents.stops, self.starts, "right")
        following = np.append(extents.starts, np.iinfo(np.int64).max)[first]
        flags: NDArray[np.bool_] = following < self.starts + self.lengths
        return flags


def grouped(starts: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Join blob numbers as `DiskBlobs.groups` does; `starts` are of all blobs, in bytes."""
    if not len(numbers):
        return []
    chunk = starts[numbers] // CHUNK
    breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(chunk) != 0)) + 1
    firsts = numbers[np.append(0, breaks)]
    lasts = numbers[np.append(breaks, len(numbers)) - 1]
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment's blobs and used map; offsets in bytes from its start."""

    ids: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    zero: NDArray[np.bool_]
    used: Extents


@dataclass(frozen=True, slots=True)
class SegmentParts:
    """One segment as it lies in the repository; offsets in bytes from its start."""

    #: Id of its folder, 32 bytes.
    tree: bytes
    #: uint8, shape (n, 32).
    ids: NDArray[np.uint8]
    #: int64, shape (n,), both.
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    #: bool, shape (n,).
    zero: NDArray[np.bool_]
    used: Extents
    #: The file `used` as it is.
    used_file: bytes
    #: The file `sums`: uint8, shape (chunks, 16); None where there is none, or none that fits.
    sums: NDArray[np.uint8] | None
    #: Whether a new image may refer to the folder: all that it names is in the index.
    reusable: bool

    @property
    def size(self) -> int:
        """Bytes of the segment."""
        return int(self.starts[-1] + self.lengths[-1]) if len(self.starts) else 0


#: Told of each stretch [start, stop) of a disk that cannot be known, and why.
OnDamage = Callable[[int, int, FreezeframeError], None]


class ImageReader:
    """One image, opened. Thread-safe."""

    def __init__(self, repository: Repository, index: Index, snapshot: Snapshot) -> None:
        self.repository = repository
        self.index = index
        self.snapshot = snapshot
        self.blobs = BlobReader(repository, index)
        self._root = self._tree(bytes.fromhex(snapshot.tree))
        #: Each disk's segments, by its name: listed once.
        self._folders: dict[str, dict[str, Node]] = {}
        self.manifest: Manifest = manifests.decode(
            self._content(self._node(self._root, manifests.NAME), manifests.LARGEST),
            snapshot.short_id,
        )

    # -- the parts ------------------------------------------------------------------

    def pieces(self, disk: DiskRecord) -> dict[str, bytes]:
        """Return the layout's files of a disk by name: raw pieces and dumps."""
        files = self._subtree(self._subtree(self._root, "layout"), disk.name)
        return {name: self._content(node, _LARGEST_PIECE) for name, node in files.items()}

    def disk_blobs(self, disk: DiskRecord, *, on_damage: OnDamage | None = None) -> DiskBlobs:
        """Return where each byte of a disk lies, and what of it is used.

        Raises `RepositoryDamaged` where trees or blobs are missing, or do not add up to the
        disk's size; or tells `on_damage` of each such segment and leaves it out.
        """
        try:
            folders = self._segment_folders(disk)
        except FreezeframeError as error:
            if on_damage is None:
                raise
            on_damage(0, disk.size, error)
            return _assemble([], [])
        known: dict[tuple[str | None, int], _Segment] = {}
        bases, segments = [], []
        for number, base in enumerate(range(0, disk.size, SEGMENT)):
            size = min(SEGMENT, disk.size - base)
            try:
                node = self._node(folders, segment_name(number))
                # Segments nobody uses are all the same one: decoded and held once.
                key = (node.subtree, size)
                if key not in known:
                    files = self._folder(node)
                    known[key] = self._segment(node.name, files, size, self._used_file(files))
            except FreezeframeError as error:
                if on_damage is None:
                    raise
                on_damage(base, base + size, error)
                continue
            bases.append(base)
            segments.append(known[key])
        return _assemble(bases, segments)

    def segment_tree(self, disk: DiskRecord, number: int) -> str:
        """Return the id of a segment's folder: where two images have the same, so is the segment.

        Raises `RepositoryDamaged` where it is not there.
        """
        return self._node(self._segment_folders(disk), segment_name(number)).subtree or ""

    def segment_parts(self, disk: DiskRecord, number: int) -> SegmentParts:
        """Return one segment as it lies in the repository. For who reads a little.

        Raises `RepositoryDamaged` where its trees or blobs are missing, or do not add up.
        """
        node = self._node(self._segment_folders(disk), segment_name(number))
        return self._segment_parts(node, min(SEGMENT, disk.size - number * SEGMENT))

    def _segment_folders(self, disk: DiskRecord) -> dict[str, Node]:
        if disk.name not in self._folders:
            self._folders[disk.name] = self._subtree(self._subtree(self._root, "disks"), disk.name)
        return self._folders[disk.name]

    def read_group(self, blobs: DiskBlobs, first: int, stop: int) -> bytes:
        """Return the bytes of the blobs `first` to before `stop`, neighbours on the disk.

        What is known to be zeros is not read. Raises `RepositoryDamaged` naming the blob that
        cannot be.
        """
        zero = blobs.zero[first:stop]
        if stop - first == 1 and not zero[0]:
            return self.blobs.read(BlobKind.DATA, blobs.ids[first].tobytes())
        parts = [bytes(length) for length in blobs.lengths[first:stop].tolist()]
        rows = np.flatnonzero(~zero)
        if len(rows):
            read = self.blobs.read_many(BlobKind.DATA, blobs.ids[rows + first])
            for row, part in zip(rows.tolist(), read, strict=True):
                parts[row] = part
        return b"".join(parts)

    def segments(self, disk: DiskRecord, *, on_damage: OnDamage) -> Iterator[SegmentParts | None]:
        """Yield a disk's segments in order, as a next image may build on them.

        Of one where anything is missing or makes no sense `on_damage` is told, and it is
        None. Raises `RepositoryDamaged` where the segments cannot even be listed.
        """
        folders = self._segment_folders(disk)
        last: tuple[str | None, int] | None = None
        parts: SegmentParts | None = None
        for number, base in enumerate(range(0, disk.size, SEGMENT)):
            size = min(SEGMENT, disk.size - base)
            try:
                node = self._node(folders, segment_name(number))
                # On a huge disk most segments are nobody's, one like the other.
                if parts is None or last != (node.subtree, size):
                    last, parts = (node.subtree, size), self._segment_parts(node, size)
            except FreezeframeError as error:
                on_damage(base, base + size, error)
                last = parts = None
            yield parts

    def _segment_parts(self, node: Node, size: int) -> SegmentParts:
        files = self._folder(node)
        held = self._used_file(files)
        segment = self._segment(node.name, files, size, held)
        sums = None
        if sumsfile.NAME in files:
            sums = sumsfile.decode(
                self._content(files[sumsfile.NAME], sumsfile.LARGEST), -(-size // CHUNK)
            )
        return SegmentParts(
            tree=bytes.fromhex(node.subtree or ""),
            ids=segment.ids,
            starts=segment.starts,
            lengths=segment.lengths,
            zero=segment.zero,
            used=segment.used,
            used_file=held or b"",
            sums=sums,
            reusable=held is not None and sums is not None,
        )

    def _segment(
        self, name: str, files: dict[str, Node], size: int, used_file: bytes | None
    ) -> _Segment:
        ids = content_ids(self._node(files, DATA))
        lengths = self._lengths(ids)
        if int(lengths.sum()) != size:
            raise RepositoryDamaged(
                "image",
                self.snapshot.short_id,
                f"its segment {name} holds {int(lengths.sum())} bytes, not {size}",
            )
        starts = np.cumsum(lengths) - lengths
        return _Segment(ids, starts, lengths, _zeros(ids, lengths), self._used(used_file, size))

    def _used_file(self, files: dict[str, Node]) -> bytes | None:
        if usedfile.NAME not in files:
            return None
        return self._content(files[usedfile.NAME], usedfile.LARGEST)

    def _used(self, used_file: bytes | None, size: int) -> Extents:
        if used_file is None:
            return Extents.single(0, size)
        try:
            return usedfile.decode(used_file, 0, size)
        except NotUnderstood as error:
            raise RepositoryDamaged("image", self.snapshot.short_id, error.message) from error

    def _lengths(self, ids: NDArray[np.uint8]) -> NDArray[np.int64]:
        found = self.index.find_many(BlobKind.DATA, ids)
        if not found.present.all():
            missing = ids[int(np.flatnonzero(~found.present)[0])].tobytes().hex()
            raise RepositoryDamaged("blob", missing, "it is in no index of the repository")
        return found.plain_lengths

    # -- trees ----------------------------------------------------------------------

    def _tree(self, tree_id: bytes) -> dict[str, Node]:
        return {node.name: node for node in decode_tree(self.blobs.read(BlobKind.TREE, tree_id))}

    def _subtree(self, nodes: dict[str, Node], name: str) -> dict[str, Node]:
        return self._folder(self._node(nodes, name))

    def _folder(self, node: Node) -> dict[str, Node]:
        try:
            tree_id = bytes.fromhex(node.subtree or "")
        except ValueError:
            tree_id = b""
        if len(tree_id) != 32:
            raise RepositoryDamaged("image", self.snapshot.short_id, f"{node.name} is no folder")
        return self._tree(tree_id)

    def _node(self, nodes: dict[str, Node], name: str) -> Node:
        if name not in nodes:
            raise RepositoryDamaged("image", self.snapshot.short_id, f"{name} is missing from it")
        return nodes[name]

    def _content(self, node: Node, largest: int) -> bytes:
        """Return a small file's bytes, `largest` at most."""
        ids = content_ids(node)
        size = int(self._lengths(ids).sum())
        if size > largest:
            raise RepositoryDamaged(
                "image", self.snapshot.short_id, f"its {node.name} has {size} bytes"
            )
        return b"".join(self.blobs.read(BlobKind.DATA, blob.tobytes()) for blob in ids)


def _zeros(ids: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Flag the blobs that hold zeros only, by their ids."""
    zero = np.zeros(len(ids), np.bool_)
    for length in np.unique(lengths).tolist():
        if length <= CHUNK:
            known = np.frombuffer(zero_id(length), np.uint8)
            zero |= (lengths == length) & (ids == known).all(axis=1)
    return zero


def _assemble(bases: Sequence[int], segments: Sequence[_Segment]) -> DiskBlobs:
    count = sum(len(segment.ids) for segment in segments)
    blobs = DiskBlobs(
        starts=np.empty(count, np.int64),
        lengths=np.empty(count, np.int64),
        ids=np.empty((count, 32), np.uint8),
        zero=np.empty(count, np.bool_),
        used=Extents.joined(
            segment.used.shift(base) for base, segment in zip(bases, segments, strict=True)
        ),
    )
    first = 0
    for base, segment in zip(bases, segments, strict=True):
        here = slice(first, first := first + len(segment.ids))
        blobs.starts[here] = segment.starts + base
        blobs.lengths[here] = segment.lengths
        blobs.ids[here] = segment.ids
        blobs.zero[here] = segment.zero
    return blobs


# -- finding images ------------------------------------------------------------------


def images(
    repository: Repository, *, on_damage: Callable[[RepositoryDamaged], None] | None = None
) -> list[Snapshot]:
    """Return the snapshots that are images of ours, oldest first.

    A damaged snapshot raises `RepositoryDamaged`, or is told to `on_damage` and left out.
    """
    found = repository.snapshots(on_damage=on_damage)
    return [shot for shot in found if manifests.TAG in (shot.tags or ())]


def find_image(found: Sequence[Snapshot], name: str) -> Snapshot:
    """Return the image with that id or unambiguous prefix, or `latest`.

    Raises `NoSuchImage`.
    """
    if not found:
        raise NoSuchImage(
            "the repository holds no image yet", hint="make one: freezeframe backup SOURCE"
        )
    if name == "latest":
        return found[-1]
    matches = [shot for shot in found if name and shot.id.startswith(name.lower())]
    if len(matches) == 1:
        return matches[0]
    problem = "more than one image begins" if matches else "no image begins"
    raise NoSuchImage(f"{problem} with {name!r}", hint="list them with: freezeframe images")
