"""How files of images are shown: a line each, as `ls -l` does, and their JSON."""

from __future__ import annotations

import datetime as dt
import os
import stat as modes

from rich.table import Table
from rich.text import Text

from freezeframe.access.files.base import Stat
from freezeframe.access.files.volumes import Volume
from freezeframe.app.files import Listed, View
from freezeframe.cli.terminal import plain
from freezeframe.core.errors import FreezeframeError
from freezeframe.core.units import human_size

_TYPES = {
    modes.S_IFREG: "file",
    modes.S_IFDIR: "folder",
    modes.S_IFLNK: "link",
    modes.S_IFCHR: "character device",
    modes.S_IFBLK: "block device",
    modes.S_IFIFO: "fifo",
    modes.S_IFSOCK: "socket",
}


def moment(nanoseconds: int) -> str:
    """Write a time in UTC, to the second; as a number where no calendar has it."""
    try:
        when = dt.datetime.fromtimestamp(nanoseconds // 1_000_000_000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return str(nanoseconds // 1_000_000_000)
    return f"{when:%Y-%m-%d %H:%M:%S}"


def file_line(listed: Listed) -> Text:
    """Return a file as one line."""
    stat = listed.stat
    if isinstance(stat, FreezeframeError):
        return plain(f"? {os.fsdecode(listed.place.path)}: {stat.message}")
    name = os.fsdecode((listed.place.names or (b"/",))[-1])
    leads = f" -> {os.fsdecode(listed.target)}" if stat.is_link else ""
    size = f"{stat.device[0]}, {stat.device[1]}" if _is_device(stat) else str(stat.size)
    owner = "-" if stat.uid is None else str(stat.uid)
    group = "-" if stat.gid is None else str(stat.gid)
    return plain(
        f"{modes.filemode(stat.mode)} {stat.links:>3} {owner:>5} {group:>5} {size:>12}"
        f" {moment(stat.mtime)} {name}{leads}"
    )


def _is_device(stat: Stat) -> bool:
    return modes.S_ISCHR(stat.mode) or modes.S_ISBLK(stat.mode)


def file_fields(listed: Listed, place: str) -> dict[str, object]:
    """Return a file as JSON. Times are nanoseconds since 1970."""
    stat = listed.stat
    if isinstance(stat, FreezeframeError):
        return {"path": place, "text": stat.message}
    return {
        "path": place,
        "type": _TYPES.get(modes.S_IFMT(stat.mode), "unknown"),
        "mode": f"{modes.S_IMODE(stat.mode):04o}",
        "uid": stat.uid,
        "gid": stat.gid,
        "size": stat.size,
        "links": stat.links,
        "mtime_ns": stat.mtime,
        "atime_ns": stat.atime,
        "ctime_ns": stat.ctime,
        "target": os.fsdecode(listed.target) if stat.is_link else None,
    }


def volume_fields(volume: Volume, view: View) -> dict[str, object]:
    """Return a volume as JSON."""
    return {
        "volume": volume.name,
        "content": volume.content,
        "label": volume.label,
        "uuid": volume.uuid,
        "size": volume.size,
        "readable": volume.readable,
        "paths": view.paths_of(volume),
    }


def volume_table(view: View) -> Table:
    """Return the volumes of an image as a table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("volume", "content", "label", "size", "files at"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    short = view.image.snapshot.short_id
    for volume in view.volumes:
        at = [f"{short}:{path}" for path in view.paths_of(volume)]
        if volume.readable:
            at.append(f"{short}:{volume.name}:/")
        table.add_row(
            plain(volume.name),
            plain(volume.content),
            plain(volume.label),
            human_size(volume.size),
            plain("  ".join(at)),
        )
    return table
