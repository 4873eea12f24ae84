"""What a mount shows: folders and files as values, made when somebody looks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from freezeframe.block.base import Reader, Writer
from freezeframe.block.memory import MemoryBlocks


@dataclass(frozen=True, slots=True)
class File:
    """A file: the bytes of a reader, and what takes those written to it, where it may be."""

    size: int
    #: Seconds since 1970.
    time: float
    #: Called for each time it is opened; the reader stays open.
    reader: Callable[[], Reader]
    writer: Writer | None = None
    #: Bytes it takes, without its holes; None: all of them.
    taken: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str
    time: float


class Folder:
    """A folder; what is in it is asked for once, by whoever comes first. Thread-safe.

    `private` folders are for the program itself: nobody else's to enter.
    """

    def __init__(
        self, entries: Callable[[], Mapping[str, Entry]], time: float, *, private: bool = False
    ) -> None:
        self.time = time
        self.private = private
        self._make = entries
        self._lock = threading.Lock()
        self._entries: Mapping[str, Entry] | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What is in it, by name. Raises what making it raises, each time anew."""
        with self._lock:
            if self._entries is None:
                self._entries = self._make()
            return self._entries


Entry: TypeAlias = File | Link | Folder


def find(root: Folder, path: str) -> Entry | None:
    """Return what lies at a path (`/`, `/a/b`); None where nothing does."""
    found: Entry = root
    for name in path.split("/"):
        if not name:
            continue
        if not isinstance(found, Folder):
            return None
        entry = found.entries.get(name)
        if entry is None:
            return None
        found = entry
    return found


def small_file(data: bytes, time: float) -> File:
    """Return a file of a few bytes that never change."""
    return File(len(data), time, lambda: MemoryBlocks(data))
