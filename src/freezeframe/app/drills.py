"""The restore drills of a repository's images."""

from __future__ import annotations

from freezeframe.core.errors import FreezeframeError
from freezeframe.image.drill import Drill, DrillEntry, drills_by_tree, read_drill
from freezeframe.image.reader import ImageReader
from freezeframe.repo.repository import Repository


def all_drills(repository: Repository) -> dict[str, list[DrillEntry]]:
    """Return the drills by the tree of the image they are of, oldest first.

    What is damaged of them is left out: `check` tells of it.
    """
    return drills_by_tree(repository.snapshots(on_damage=lambda _: None))


def drills_of(image: ImageReader) -> list[Drill | FreezeframeError]:
    """Read the drills of an image, oldest first; the error of one that cannot be read."""
    found: list[Drill | FreezeframeError] = []
    for entry in all_drills(image.repository).get(image.snapshot.tree, ()):
        try:
            found.append(read_drill(image.repository, image.index, entry))
        except FreezeframeError as error:
            found.append(error)
    return found


__all__ = ["Drill", "DrillEntry", "all_drills", "drills_of"]
