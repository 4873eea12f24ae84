"""Tell which files changed from one image to another: folder by folder, by what is said of them.

Contents are not read: a file counts as changed where its kind, size, time, owner, mode or link
target did. What a program rewrote and gave its old size and time is not noticed.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from freezeframe.access.files.base import Stat
from freezeframe.access.files.tree import Place, Tree
from freezeframe.access.files.walk import Guard
from freezeframe.app.files import View
from freezeframe.core.errors import FreezeframeError

#: Told of a place that cannot be read, and why.
OnProblem = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file that is not what it was."""

    #: The volume it was found on by itself; empty: in the tree the machine had.
    volume: str
    #: From the root of that, as it lies there: any bytes.
    path: bytes
    #: None where only the other image has it.
    old: Stat | None
    new: Stat | None
    #: What of it changed: `kind`, `content`, `mode`, `owner`, `target`, `attributes`.
    what: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """`+` for a new file, `-` for one that is gone, `M` for other content, `U` for the rest."""
        if self.old is None:
            return "+"
        if self.new is None:
            return "-"
        return "M" if {"kind", "content", "target"} & set(self.what) else "U"


def changed_files(old: View, new: View, on_problem: OnProblem) -> Iterator[FileChange]:
    """Give what differs between the files of two images, in order of path within each tree.

    Trees are the machine's, and each volume that is in none. What cannot be read is told to
    `on_problem` and left out.
    """
    olds = {where.volume: tree for where, tree in old.trees(on_problem)}
    news = {where.volume: tree for where, tree in new.trees(on_problem)}
    for volume in dict.fromkeys([*olds, *news]):
        if volume not in olds or volume not in news:
            only = "old" if volume in olds else "new"
            on_problem(volume or "the machine's tree", f"only the {only} image has it")
            continue
        yield from _Comparing(volume, olds[volume], news[volume], on_problem).run()


class _Comparing:
    """Two trees, gone through side by side: never more in memory than the folders on the way."""

    def __init__(self, volume: str, old: Tree, new: Tree, on_problem: OnProblem) -> None:
        self._volume = volume
        self._old = old
        self._new = new
        self._on_problem = on_problem
        self._guards = {id(old): Guard(), id(new): Guard()}

    def run(self) -> Iterator[FileChange]:
        waiting: list[tuple[Place | None, Place | None, int]] = [
            (self._old.root(), self._new.root(), 0)
        ]
        while waiting:
            one, other, depth = waiting.pop()
            before, after = self._stat(one), self._stat(other)
            if (one and not before) or (other and not after):
                continue  # has been told
            change = self._compare(one, other, before, after)
            if change is not None:
                yield change
            olds = self._inside(self._old, one, before, depth)
            news = self._inside(self._new, other, after, depth)
            if olds is None or news is None:
                continue
            names = sorted(olds.keys() | news.keys(), reverse=True)
            waiting.extend((olds.get(name), news.get(name), depth + 1) for name in names)

    def _stat(self, place: Place | None) -> Stat | None:
        if place is None:
            return None
        try:
            return place.stat()
        except FreezeframeError as error:
            self._tell(place, error)
            return None

    def _inside(
        self, tree: Tree, place: Place | None, stat: Stat | None, depth: int
    ) -> dict[bytes, Place] | None:
        """Return what a folder holds, nothing for other files; None where it cannot be read."""
        if place is None or stat is None or not stat.is_folder:
            return {}
        guard = self._guards[id(tree)]
        found: dict[bytes, Place] = {}
        try:
            guard.enter(place, depth)
            for child in tree.entries(place):
                guard.count(child)
                found[child.names[-1]] = child
        except FreezeframeError as error:
            self._tell(place, error)
            return None
        return found

    def _tell(self, place: Place, error: FreezeframeError) -> None:
        self._on_problem(place.path.decode("utf-8", "surrogateescape"), error.message)

    def _compare(
        self, one: Place | None, other: Place | None, before: Stat | None, after: Stat | None
    ) -> FileChange | None:
        place = other or one
        assert place is not None
        if one is None or other is None or before is None or after is None:
            return FileChange(self._volume, place.path, before, after)
        what = tuple(_differences(before, after))
        if before.is_link and after.is_link and self._link(one) != self._link(other):
            what = ("target", *(word for word in what if word != "content"))
        return FileChange(self._volume, place.path, before, after, what) if what else None

    def _link(self, place: Place) -> bytes | None:
        try:
            return place.read_link()
        except FreezeframeError as error:
            self._tell(place, error)
            return None


def _differences(before: Stat, after: Stat) -> Iterator[str]:
    if modes.S_IFMT(before.mode) != modes.S_IFMT(after.mode):
        yield "kind"
        return
    # A folder's size and time tell that names in it changed, and those are told themselves.
    if not before.is_folder and (before.size, before.mtime) != (after.size, after.mtime):
        yield "content"
    if before.mode != after.mode:
        yield "mode"
    if (before.uid, before.gid) != (after.uid, after.gid):
        yield "owner"
    if before.device != after.device:
        yield "kind"
    same = (before.size, before.mtime, before.mode, before.uid, before.gid, before.links)
    if (
        not before.is_folder
        and before.ctime != after.ctime
        and same
        == (
            after.size,
            after.mtime,
            after.mode,
            after.uid,
            after.gid,
            after.links,
        )
    ):
        # The inode was changed, and nothing else tells how: extended attributes, or a rename.
        yield "attributes"
