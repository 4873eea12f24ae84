"""What is mounted and swapped on, as values.

Formats: proc_pid_mountinfo(5) and proc_swaps(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")
#: XFS names its external log and realtime device, ext4 its journal's, so.
_SECOND_DEVICES = ("logdev", "rtdev", "journal_path", "journal_dev")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of a mountinfo file."""

    #: `8:1`; of no real device (`0:42`) for btrfs, overlay, network and memory filesystems.
    device: str
    #: What of the filesystem is mounted: `/`, a subvolume, a bind mount's folder.
    root: str
    point: str
    kind: str
    #: What was named as the device: mostly a path, not to be relied upon.
    source: str
    #: Options of the filesystem itself, shared by all its mounts.
    options: tuple[str, ...]
    #: In whose view it is mounted there: a process id; 0 for our own.
    namespace: int = 0
    #: The kernel's number of this mount, which no other has at the same time; 0: not known.
    number: int = 0

    @property
    def read_only(self) -> bool:
        """Whether the filesystem, and not just this mount of it, is read-only."""
        return "ro" in self.options

    @property
    def second_devices(self) -> tuple[str, ...]:
        """Return the other devices it writes to, where its options name them (log, journal)."""
        pairs = (option.partition("=") for option in self.options)
        return tuple(value for name, _, value in pairs if name in _SECOND_DEVICES)

    def option(self, name: str) -> str:
        """Return the value of `name=value` among the filesystem's options, or nothing."""
        for option in self.options:
            key, found, value = option.partition("=")
            if found and key == name:
                return value
        return ""


def _plain(field: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def parse_mountinfo(text: str, *, namespace: int = 0) -> list[Mount]:
    """Read the lines of a mountinfo file; lines that make no sense are left out."""
    found = []
    for line in text.splitlines():
        head, dash, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if not dash or len(fields) < 6 or len(rest) < 2:
            continue
        found.append(
            Mount(
                device=fields[2],
                root=_plain(fields[3]),
                point=_plain(fields[4]),
                kind=rest[0],
                source=_plain(rest[1]),
                options=tuple(_plain(option) for option in rest[-1].split(",")),
                namespace=namespace,
                number=int(fields[0]) if fields[0].isdecimal() else 0,
            )
        )
    return found


def own_mounts() -> list[Mount]:
    """Return what is mounted in this program's view."""
    return parse_mountinfo(_read(Path("/proc/self/mountinfo")))


def all_mounts() -> list[Mount]:
    """Return what is mounted in any view (containers have their own), ours first.

    Only the views of processes we may look at; root sees all of them.
    """
    seen = {_namespace("self")}
    found = own_mounts()
    for entry in processes():
        view = _namespace(entry)
        # A view that cannot be told from others is read: twice the same does no harm.
        if view and view in seen:
            continue
        seen.add(view)
        known = {(mount.device, mount.point) for mount in found}
        more = parse_mountinfo(_read(Path("/proc", entry, "mountinfo")), namespace=int(entry))
        found += [mount for mount in more if (mount.device, mount.point) not in known]
    return found


def processes() -> Iterable[str]:
    """Return the ids of all processes, as they are written in /proc."""
    return sorted((e.name for e in Path("/proc").iterdir() if e.name.isdigit()), key=int)


def _namespace(process: str) -> str:
    try:
        return str(Path("/proc", process, "ns/mnt").readlink())
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap area in use."""

    path: str
    #: `partition` for any block device, or `file`.
    kind: str


def parse_swaps(text: str) -> list[Swap]:
    """Read /proc/swaps."""
    rows = (line.split() for line in text.splitlines()[1:])
    return [Swap(_plain(row[0]), row[1]) for row in rows if len(row) >= 2]


def swaps() -> list[Swap]:
    """Return the swap areas in use."""
    return parse_swaps(_read(Path("/proc/swaps")))
