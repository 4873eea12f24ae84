"""Which processes have a file or device open: /proc/<pid>/fd and fdinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from freezeframe.system.mounts import processes

_FLAGS = re.compile(r"^flags:\s*([0-7]+)", re.MULTILINE)
_INODE = re.compile(r"^ino:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Opener:
    """A process that has something open."""

    pid: int
    name: str
    writing: bool

    def __str__(self) -> str:
        """Name it as people look it up: `pid 123 (qemu-system-x86)`."""
        return f"pid {self.pid} ({self.name})"


def process_name(pid: int) -> str:
    """Return the short name of a process; `?` where it has gone."""
    try:
        return Path("/proc", str(pid), "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"


def openers_of_devices(numbers: Set[int], names: Set[str]) -> list[Opener]:
    """Return the other processes that have one of these block devices open.

    `numbers` are `st_rdev` values; `names` kernel names (`sda1`), so that a node outside
    /dev is noticed. Descriptors of anything else are not looked at, because looking at a
    file of a dead network server never returns.
    """

    def matches(link: str, descriptor: Path) -> bool:
        if not (link.startswith("/dev/") or Path(link).name in names):
            return False
        return descriptor.stat().st_rdev in numbers

    return list(_openers(matches))


def openers_of_file(device: int, inode: int) -> list[Opener]:
    """Return the other processes that have this file open (`st_dev`, `st_ino`)."""

    def matches(link: str, descriptor: Path) -> bool:
        if not link.startswith("/"):
            return False
        # The inode number in fdinfo (5.14) spares asking the filesystem of every open file.
        told = _INODE.search(_fdinfo(descriptor))
        if told is not None and int(told[1]) != inode:
            return False
        status = descriptor.stat()
        return (status.st_dev, status.st_ino) == (device, inode)

    return list(_openers(matches))


def _fdinfo(descriptor: Path) -> str:
    path = descriptor.parent.parent / "fdinfo" / descriptor.name
    return path.read_text(encoding="ascii", errors="replace")


def _is_writing(descriptor: Path) -> bool:
    found = _FLAGS.search(_fdinfo(descriptor))
    # Flags that cannot be read are taken for the worse.
    return found is None or int(found[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _openers(matches: Callable[[str, Path], bool]) -> Iterator[Opener]:
    """Look through the descriptors of every process but this one."""
    for process in processes():
        pid = int(process)
        if pid == os.getpid():
            continue
        modes = list(_matching(Path("/proc", process, "fd"), matches))
        if modes:
            yield Opener(pid, process_name(pid), any(modes))


def _matching(folder: Path, matches: Callable[[str, Path], bool]) -> Iterator[bool]:
    """Give, for each descriptor that matches, whether it may write."""
    try:
        descriptors = list(folder.iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            if matches(str(descriptor.readlink()), descriptor):
                yield _is_writing(descriptor)
        except OSError:
            continue  # closed while we looked


def started_at(pid: int) -> int:
    """Return when a process began, in ticks since the machine's start; 0 where there is none.

    With it a process is told from a later one that got its number (proc_pid_stat(5), field 22).
    """
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The name, in brackets, may hold blanks and brackets itself.
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else 0
