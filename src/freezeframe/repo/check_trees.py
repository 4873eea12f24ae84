"""Check snapshots: that everything is there that they refer to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged
from freezeframe.core.progress import Progress
from freezeframe.repo.check_packs import BlobKey
from freezeframe.repo.index import Index
from freezeframe.repo.pack import BlobKind
from freezeframe.repo.reader import BlobReader
from freezeframe.repo.snapshots import Snapshot
from freezeframe.repo.trees import Node, content_ids, decode_tree
from freezeframe.system.workers import run_workers


@dataclass(slots=True)
class _Seen:
    """One tree: its folders (name, tree id), and what is wrong in it itself."""

    folders: list[tuple[str, bytes]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TreeFinding:
    """What is wrong in one snapshot, and where."""

    snapshot: str
    path: str
    text: str


def check_trees(
    reader: BlobReader,
    index: Index,
    snapshots: Sequence[Snapshot],
    bad: Collection[BlobKey],
    progress: Progress,
) -> list[TreeFinding]:
    """Walk every tree of the snapshots once, in threads, and look for all that is missing.

    `bad` are blobs already known to be unreadable. Returns a finding for each snapshot and
    folder that is hit, in the snapshots' order.
    """
    progress.start("check trees", 0)
    seen: dict[bytes, _Seen] = {}
    guard = threading.Lock()
    waiting = {root for shot in snapshots if (root := _id(shot.tree))}

    def look(tree: bytes) -> None:
        found = _look_at(reader, index, tree, bad)
        with guard:
            seen[tree] = found

    def make_worker() -> Callable[[bytes], None]:
        return look

    while waiting:
        run_workers(sorted(waiting), make_worker)
        below = {child for tree in waiting for _, child in seen[tree].folders}
        waiting = below - seen.keys()
    return [finding for shot in snapshots for finding in _of_snapshot(shot, seen)]


def _look_at(reader: BlobReader, index: Index, tree: bytes, bad: Collection[BlobKey]) -> _Seen:
    found = _Seen()
    try:
        nodes = decode_tree(reader.read(BlobKind.TREE, tree))
    except FreezeframeError as error:
        found.wrong.append(error.message)
        return found
    for node in nodes:
        try:
            _look_at_node(index, node, bad, found)
        except RepositoryDamaged as error:
            found.wrong.append(error.message)
    return found


def _look_at_node(index: Index, node: Node, bad: Collection[BlobKey], found: _Seen) -> None:
    if node.type == "dir":
        child = _id(node.subtree or "")
        if child is None:
            found.wrong.append(f"{node.name}: a folder without a tree")
        else:
            found.folders.append((node.name, child))
    if node.type != "file" and not node.content:
        return
    ids = content_ids(node)
    if not len(ids):
        return
    missing = ~index.find_many(BlobKind.DATA, ids).present
    if bad:
        hit = [(BlobKind.DATA, blob_id.tobytes()) in bad for blob_id in ids]
        missing |= hit
    if missing.any():
        first = int(missing.argmax())
        found.wrong.append(
            f"{node.name}: {int(missing.sum())} of {len(ids)} blobs cannot be read,"
            f" the first is {ids[first].tobytes().hex()[:16]}"
        )


def _of_snapshot(shot: Snapshot, seen: dict[bytes, _Seen]) -> list[TreeFinding]:
    """Walk one snapshot through trees already looked at; each tree once."""
    root = _id(shot.tree)
    if root is None:
        return [TreeFinding(shot.id, "/", "the id of its tree is none")]
    findings: list[TreeFinding] = []
    visited = {root}
    stack = [("/", root)]
    while stack:
        path, tree = stack.pop()
        findings += [TreeFinding(shot.id, path, text) for text in seen[tree].wrong]
        for name, child in reversed(seen[tree].folders):
            if child not in visited:
                visited.add(child)
                stack.append((f"{path}{name}/", child))
    return findings


def _id(text: str) -> bytes | None:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        return None
    return found if len(found) == 32 else None
