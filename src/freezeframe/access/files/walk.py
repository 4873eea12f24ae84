"""Going through all files below a folder: each once, however the filesystem was crafted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from freezeframe.access.files.tree import Names, Place, Tree
from freezeframe.core.errors import FreezeframeError, NotUnderstood

#: Folders in folders; a path of Linux has 4096 bytes, and no tree people made comes near this.
DEEPEST = 400
#: No filesystem keeps a name in less than this many bytes, so it cannot have more names.
_SMALLEST_NAME = 8
_FEWEST = 1000

#: Told of each file that cannot be read, and why.
OnError = Callable[[Place, FreezeframeError], None]


class Guard:
    """Ends walks that have no end: circles of folders, more names than there can be."""

    def __init__(self) -> None:
        self._folders: set[tuple[Names, Hashable]] = set()
        self._left: dict[str, int] = {}

    def enter(self, place: Place, depth: int) -> None:
        """Take note of a folder that is about to be listed; raises `NotUnderstood`."""
        if depth > DEEPEST:
            raise NotUnderstood(f"folders are nested deeper than {DEEPEST}")
        key = place.mount, place.node.key
        if key in self._folders:
            raise NotUnderstood("the folder lies in several places: a damaged filesystem")
        self._folders.add(key)

    def count(self, place: Place) -> None:
        """Take note of a name in a folder; raises `NotUnderstood`."""
        volume = place.volume.name
        if volume not in self._left:
            # What snapshots share of a btrfs is counted as often as it is seen.
            shared = 1000 if place.filesystem.kind == "btrfs" else 1
            self._left[volume] = _FEWEST + place.filesystem.span // _SMALLEST_NAME * shared
        self._left[volume] -= 1
        if self._left[volume] < 0:
            raise NotUnderstood("there are more names than the filesystem has room for")


def walk(tree: Tree, start: Place, on_error: OnError) -> Iterator[Place]:
    """Give a file and all below it, folders before what they hold, in the filesystem's order."""
    guard = Guard()
    yield start
    waiting: list[tuple[Place, Iterator[Place]]] = []
    if _enter(tree, start, guard, waiting, on_error):
        while waiting:
            folder, entries = waiting[-1]
            try:
                place = next(entries, None)
                if place is not None:
                    guard.count(place)
            except FreezeframeError as error:
                on_error(folder, error)
                place = None
            if place is None:
                waiting.pop()
                continue
            yield place
            _enter(tree, place, guard, waiting, on_error)


def _enter(
    tree: Tree,
    place: Place,
    guard: Guard,
    waiting: list[tuple[Place, Iterator[Place]]],
    on_error: OnError,
) -> bool:
    """Go into a folder next; False where it is none, or cannot be read."""
    try:
        if not place.stat().is_folder:
            return False
        guard.enter(place, len(waiting))
    except FreezeframeError as error:
        on_error(place, error)
        return False
    waiting.append((place, tree.entries(place)))
    return True
