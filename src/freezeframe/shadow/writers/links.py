"""Where the files of a data folder really lie."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from freezeframe.system.mounts import Mount, own_mounts

#: Nothing of these is there after a restart.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "mqueue", "cgroup2"})


def resolved(
    folder: Path, *, inside: Iterable[str] = (), more: Iterable[Path] = ()
) -> tuple[Path, ...]:
    """Return a folder, `more`, what links in folders `inside` it lead to, what is mounted there.

    Absolute, links followed, each once, the folder first; without what is in memory. Names
    only: no file is opened, and nothing that is no link is asked about.
    """
    found = [folder.resolve(), *(path.resolve() for path in more)]
    for name in inside:
        found += [link.resolve() for link in links_in(folder / name)]
    # A log folder may be a filesystem of its own without any link.
    mounts = own_mounts()
    points = (Path(mount.point) for mount in mounts)
    found += [point for point in points if any(point.is_relative_to(each) for each in found)]
    # Such as statistics that are gathered anew.
    kept = [path for path in found[1:] if _kind_of(path, mounts) not in _IN_MEMORY]
    return tuple(dict.fromkeys([found[0], *kept]))


def _kind_of(path: Path, mounts: Iterable[Mount]) -> str:
    """Return the kind of filesystem a path lies on, by its name."""
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    # Of those mounted at one place the last one is seen.
    return max(above, key=lambda each: len(each.point)).kind if above else ""


def links_in(folder: Path) -> list[Path]:
    """Return the symbolic links in a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_symlink()]
    except OSError:
        return []
