"""Read an image: the one road from a snapshot to a disk's bytes.

Everything that reads images (restore, verify, later devices and files) goes through here.
Blobs of a segment may have any length: offsets come from the index, never from a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import NoSuchImage, NotUnderstood, RepositoryDamaged
from freezeframe.core.extents import Extents
from freezeframe.core.units import CHUNK, SEGMENT
from freezeframe.image import manifest as manifests
from freezeframe.image import usedfile
from freezeframe.image.manifest import DiskRecord, Manifest
from freezeframe.image.writer import DATA, segment_name, zero_id
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.repository import Repository
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import Node, content_ids, decode_tree


@dataclass(frozen=True, slots=True)
class DiskBlobs:
    """Where a disk's bytes lie: blob `i` covers [starts[i], starts[i] + lengths[i])."""

    #: int64, shape (n,), ascending without gaps, from 0.
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
        keep = ~self.zero
        return Extents.from_arrays(self.starts[keep], (self.starts + self.lengths)[keep])

    def covering(self, start: int, stop: int) -> range:
        """Return the numbers of the blobs that hold any of [start, stop)."""
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        last = int(np.searchsorted(self.starts, stop, "left"))
        return range(max(first, 0), last)


class ImageReader:
    """One image, opened. Thread-safe."""

    def __init__(self, repository: Repository, index: Index, snapshot: Snapshot) -> None:
        self.repository = repository
        self.index = index
        self.snapshot = snapshot
        self.blobs = BlobReader(repository, index)
        self._root = self._tree(bytes.fromhex(snapshot.tree))
        self.manifest: Manifest = manifests.decode(
            self._content(self._node(self._root, manifests.NAME)), snapshot.short_id
        )

    # -- the parts ------------------------------------------------------------------

    def pieces(self, disk: DiskRecord) -> dict[str, bytes]:
        """Return the layout's files of a disk by name: raw pieces and dumps."""
        layouts = self._subtree(self._root, "layout")
        return {
            name: self._content(node) for name, node in self._subtree(layouts, disk.name).items()
        }

    def disk_blobs(self, disk: DiskRecord) -> DiskBlobs:
        """Return where each byte of a disk lies, and what of it is used.

        Raises `RepositoryDamaged` where trees or blobs are missing, or do not add up to the
        disk's size.
        """
        disks = self._subtree(self._root, "disks")
        segments = self._subtree(disks, disk.name)
        ids, used = [], Extents.empty()
        lengths = []
        for number, start in enumerate(range(0, disk.size, SEGMENT)):
            size = min(SEGMENT, disk.size - start)
            name = segment_name(number)
            files = self._subtree(segments, name)
            here = content_ids(self._node(files, DATA))
            sizes = self._lengths(here)
            if int(sizes.sum()) != size:
                raise RepositoryDamaged(
                    "image",
                    self.snapshot.short_id,
                    f"segment {name} of {disk.name} holds {int(sizes.sum())} bytes, not {size}",
                )
            ids.append(here)
            lengths.append(sizes)
            used = used | self._used(files, start, size)
        return _assemble(ids, lengths, used)

    def _used(self, files: dict[str, Node], start: int, size: int) -> Extents:
        if usedfile.NAME not in files:
            return Extents.single(start, start + size)
        data = self._content(files[usedfile.NAME])
        try:
            return usedfile.decode(data, start, size)
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
        node = self._node(nodes, name)
        if not node.subtree:
            raise RepositoryDamaged("image", self.snapshot.short_id, f"{name} is no folder")
        return self._tree(bytes.fromhex(node.subtree))

    def _node(self, nodes: dict[str, Node], name: str) -> Node:
        if name not in nodes:
            raise RepositoryDamaged("image", self.snapshot.short_id, f"{name} is missing from it")
        return nodes[name]

    def _content(self, node: Node) -> bytes:
        return b"".join(
            self.blobs.read(BlobKind.DATA, blob.tobytes()) for blob in content_ids(node)
        )


def _assemble(
    ids: list[NDArray[np.uint8]], lengths: list[NDArray[np.int64]], used: Extents
) -> DiskBlobs:
    all_ids = np.concatenate(ids) if ids else np.empty((0, 32), np.uint8)
    all_lengths = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
    starts = np.cumsum(all_lengths) - all_lengths
    zero = np.zeros(len(all_ids), np.bool_)
    for length in np.unique(all_lengths).tolist():
        if length <= CHUNK:
            zero |= (all_lengths == length) & (
                all_ids == np.frombuffer(zero_id(length), np.uint8)
            ).all(axis=1)
    return DiskBlobs(starts, all_lengths, all_ids, zero, used)


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
    matches = [shot for shot in found if shot.id.startswith(name.lower())]
    if len(matches) == 1:
        return matches[0]
    problem = "more than one image begins" if matches else "no image begins"
    raise NoSuchImage(f"{problem} with {name!r}", hint="list them with: freezeframe images")
