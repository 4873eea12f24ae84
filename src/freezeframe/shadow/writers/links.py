"""Where the files of a data folder really lie."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from freezeframe.system.mounts import own_mounts


def resolved(
    folder: Path, *, inside: Iterable[str] = (), more: Iterable[Path] = ()
) -> tuple[Path, ...]:
    """Return a folder, `more`, what links in folders `inside` it lead to, what is mounted there.

    Absolute, links followed, each once, the folder first. Names only: no file is opened, and
    nothing that is no link is asked about.
    """
    found = [folder.resolve(), *(path.resolve() for path in more)]
    for name in inside:
        found += [link.resolve() for link in links_in(folder / name)]
    # A log folder may be a filesystem of its own without any link.
    points = (Path(mount.point) for mount in own_mounts())
    mounted = [point for point in points if any(point.is_relative_to(each) for each in found)]
    return tuple(dict.fromkeys([*found, *mounted]))


def links_in(folder: Path) -> list[Path]:
    """Return the symbolic links in a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_symlink()]
    except OSError:
        return []
