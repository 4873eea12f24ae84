"""Files of exFAT. Source: as `fs.exfat.structs`."""

from __future__ import annotations

import stat as modes
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from freezeframe.access.files.base import (
    Content,
    Entry,
    Node,
    Plain,
    SearchedByAnyCase,
    Stat,
    no_folder,
)
from freezeframe.access.files.clusters import Chained, Heap, Table
from freezeframe.access.files.fat import moment
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.exfat.structs import (
    BOOT_SIZE,
    ENTRY_END,
    ENTRY_SIZE,
    LARGEST_CLUSTER,
    parse_boot,
)
from freezeframe.fs.probe import little

_FILE, _STREAM, _NAME = 0x85, 0xC0, 0xC1
_READ_ONLY, _FOLDER = 0x01, 0x10
_CONTIGUOUS = 0x02
_NAME_PART = 30
_FLAGS_AT, _DIRTY = 106, 0x02
#: Entries of one file: itself, its stream, 255 characters of name; others may follow.
_MOST_ENTRIES = 255
_QUARTER = 15 * 60 * 1_000_000_000


class ExFat:
    """An exFAT, opened."""

    kind = "exfat"

    def __init__(self, reader: Reader) -> None:
        data = bytearray(reader.read_at(0, BOOT_SIZE))
        self.notes: tuple[str, ...] = ()
        if data[_FLAGS_AT] & _DIRTY:
            # It is read as it is, which is all anybody could do: it has no log.
            data[_FLAGS_AT] &= ~_DIRTY
            self.notes = ("it was in use when it was imaged: what was just being written may lack",)
        geometry = parse_boot(bytes(data))
        if geometry.span > reader.size:
            raise NotUnderstood("exFAT that is larger than its region")
        self.reader = reader
        self.geometry = geometry
        self.span = geometry.span
        self._table = Table(reader, geometry.table_start, geometry.table_size, 32)
        self.heap = Heap(
            reader, geometry.heap_start, geometry.cluster, geometry.clusters, self._after
        )
        self.root: Node = ExFatNode(self, b"", b"", 0)

    def _after(self, cluster: int) -> int:
        entry = self._table.after(cluster)
        return 0 if entry > LARGEST_CLUSTER else entry


@dataclass(frozen=True, slots=True)
class ExFatNode(Plain, SearchedByAnyCase):
    """A file of an exFAT: its two entries, and where the first lies (0: the root)."""

    filesystem: ExFat
    file: bytes
    stream: bytes
    at: int

    @property
    def key(self) -> Hashable:
        """Where its entry lies: there are no hard links."""
        return self.at

    @property
    def _is_folder(self) -> bool:
        return not self.at or bool(little(self.file, 4, 2) & _FOLDER)

    def stat(self) -> Stat:
        """Tell its times and size; owners there are none."""
        if not self.at:
            return Stat(mode=modes.S_IFDIR | 0o755, size=0, mtime=0)
        raw = self.file
        writable = 0 if little(raw, 4, 2) & _READ_ONLY else 0o200
        mode = modes.S_IFDIR | 0o755 if self._is_folder else modes.S_IFREG | 0o444 | writable
        return Stat(
            mode=mode,
            size=0 if self._is_folder else little(self.stream, 24, 8),
            mtime=_moment(raw, 12, 21, 23),
            atime=_moment(raw, 16, 0, 24),
            born=_moment(raw, 8, 20, 22),
        )

    def _bytes(self) -> Chained:
        raw = self.stream
        size = little(raw, 24, 8)
        contiguous = bool(raw[1] & _CONTIGUOUS)
        first = little(raw, 20, 4)
        return Chained(self.filesystem.heap, first, size, little(raw, 8, 8), contiguous)

    def content(self) -> Content:
        """Return a regular file's bytes."""
        if self._is_folder:
            raise NotUnderstood("it is no regular file")
        return self._bytes()

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds."""
        if not self._is_folder:
            raise no_folder("exfat")
        file, stream, place, left = b"", b"", 0, 0
        name = b""
        for at, raw in self._entries():
            if raw[0] == ENTRY_END:
                return
            if raw[0] == _FILE:
                file, stream, name, place, left = raw, b"", b"", at, raw[1]
                continue
            if not left:
                continue
            left -= 1
            if raw[0] == _STREAM and not stream:
                stream = raw
            elif raw[0] == _NAME:
                name += raw[2 : 2 + _NAME_PART]
            if not left and stream:
                text = name[: 2 * stream[3]].decode("utf-16-le", "surrogatepass")
                node = ExFatNode(self.filesystem, file, stream, place)
                yield Entry(text.encode("utf-8", "surrogatepass"), node)

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        heap, step = self.filesystem.heap, self.filesystem.geometry.cluster
        if self.at:
            own = self._bytes()
            if not own.first:
                return
            clusters = -(-own.size // heap.cluster) if own.contiguous else 0
            runs = heap.runs(own.first, contiguous=clusters)
        else:
            runs = heap.runs(self.filesystem.geometry.root_cluster)
        for start, length in runs:
            for done in range(0, length, step):
                data = self.filesystem.reader.read_at(start + done, step)
                for at in range(0, step, ENTRY_SIZE):
                    yield start + done + at, data[at : at + ENTRY_SIZE]


def _moment(raw: bytes, at: int, hundredths: int, zone: int) -> int:
    """Return a time: date and time of DOS, hundredths of seconds, quarters of hours from UTC."""
    more = raw[hundredths] * 10 if hundredths else 0
    when = moment(little(raw, at + 2, 2), little(raw, at, 2), more)
    if not raw[zone] & 0x80:
        return when
    quarters = (raw[zone] & 0x7F) - (0x80 if raw[zone] & 0x40 else 0)
    return when - quarters * _QUARTER
