"""Files of FAT12, FAT16 and FAT32. Source: as `fs.fat.structs`, and fs/fat of Linux."""

from __future__ import annotations

import datetime as dt
import stat as modes
from collections.abc import Hashable, Iterator, Mapping
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
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.fat.structs import (
    ATTRIBUTE_LABEL,
    ATTRIBUTE_LONG_NAME,
    BOOT_SIZE,
    ENTRY_SIZE,
    looks_like_fat,
    parse_boot,
)
from freezeframe.fs.probe import little

_READ_ONLY, _FOLDER = 0x01, 0x10
_FREE, _END = 0xE5, 0x00
#: A first byte that is really 0xE5.
_KANJI = 0x05
_LOWER_NAME, _LOWER_EXTENSION = 0x08, 0x10
#: Characters of a long name in each of its entries, and the most of them.
_LONG_PARTS = ((1, 11), (14, 26), (28, 32))
_MOST_LONG = 20


class Fat:
    """A FAT, opened."""

    def __init__(self, reader: Reader) -> None:
        data = reader.read_at(0, BOOT_SIZE)
        if not looks_like_fat(data):
            raise NotUnderstood("no FAT")
        self.geometry = geometry = parse_boot(data)
        if geometry.span > reader.size:
            raise NotUnderstood("FAT that is larger than its region")
        self.reader = reader
        self.kind = geometry.kind
        self.span = geometry.span
        self.notes: tuple[str, ...] = ()
        if geometry.dirty:
            self.notes = ("it was in use when it was imaged: what was just being written may lack",)
        place = geometry.table_start + geometry.active[0] * geometry.table_size
        self._table = Table(reader, place, geometry.table_size, geometry.bits)
        self.heap = Heap(
            reader, geometry.data_start, geometry.cluster, geometry.clusters, self._after
        )
        self.root: Node = FatNode(self, bytes(ENTRY_SIZE), 0)

    def _after(self, cluster: int) -> int:
        bits = self.geometry.bits
        entry = self._table.after(cluster) & 0x0FFFFFFF
        # Eight values at the end say that there is no more.
        return 0 if entry >= (1 << min(bits, 28)) - 8 else entry

    def folder_runs(self, first: int) -> Iterator[tuple[int, int]]:
        """Give where a folder lies; 0 is the root."""
        geometry = self.geometry
        if not first and not geometry.root_cluster:
            yield geometry.root_start, geometry.root_size
        else:
            yield from self.heap.runs(first or geometry.root_cluster)


@dataclass(frozen=True, slots=True)
class FatNode(Plain, SearchedByAnyCase):
    """A file of a FAT: its entry of 32 bytes, and where that lies (0: the root)."""

    filesystem: Fat
    raw: bytes
    at: int

    @property
    def key(self) -> Hashable:
        """Where its entry lies: there are no hard links."""
        return self.at

    @property
    def _is_folder(self) -> bool:
        return not self.at or bool(self.raw[11] & _FOLDER)

    @property
    def _first(self) -> int:
        high = little(self.raw, 20, 2) if self.filesystem.geometry.bits == 32 else 0
        return little(self.raw, 26, 2) | high << 16

    def stat(self) -> Stat:
        """Tell its times and size; owners there are none."""
        raw = self.raw
        writable = 0 if raw[11] & _READ_ONLY else 0o200
        mode = modes.S_IFDIR | 0o755 if self._is_folder else modes.S_IFREG | 0o444 | writable
        return Stat(
            mode=mode,
            size=0 if self._is_folder else little(raw, 28, 4),
            mtime=moment(little(raw, 24, 2), little(raw, 22, 2)),
            atime=moment(little(raw, 18, 2), 0),
            born=moment(little(raw, 16, 2), little(raw, 14, 2), raw[13] * 10),
        )

    def content(self) -> Content:
        """Return a regular file's bytes."""
        if self._is_folder:
            raise NotUnderstood("it is no regular file")
        size = little(self.raw, 28, 4)
        return Chained(self.filesystem.heap, self._first, size, size)

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds."""
        if not self._is_folder:
            raise no_folder(self.filesystem.kind)
        if self.at and not self._first:
            raise NotUnderstood("a folder without clusters")
        long: dict[int, bytes] = {}
        check = -1
        for at, raw in self._entries():
            if raw[0] == _END:
                return
            if raw[0] == _FREE:
                long.clear()
            elif raw[11] & 0x3F == ATTRIBUTE_LONG_NAME:
                if raw[0] & 0x40:
                    long.clear()
                    check = raw[13]
                if raw[13] == check and 1 <= raw[0] & 0x3F <= _MOST_LONG:
                    long[raw[0] & 0x3F] = b"".join(raw[low:high] for low, high in _LONG_PARTS)
            else:
                name = _long_name(long) if long and check == _sum(raw) else _short_name(raw)
                long.clear()
                if not raw[11] & ATTRIBUTE_LABEL and name not in (b".", b".."):
                    yield Entry(name, FatNode(self.filesystem, raw, at))

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        step = self.filesystem.geometry.cluster
        for start, length in self.filesystem.folder_runs(self._first if self.at else 0):
            for done in range(0, length, step):
                data = self.filesystem.reader.read_at(start + done, min(step, length - done))
                for at in range(0, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE):
                    yield start + done + at, data[at : at + ENTRY_SIZE]


def moment(date: int, time: int, milliseconds: int = 0) -> int:
    """Turn a date and time of DOS, taken to be UTC, into nanoseconds since 1970."""
    try:
        day = dt.datetime(
            1980 + (date >> 9),
            date >> 5 & 15,
            date & 31,
            time >> 11,
            time >> 5 & 63,
            (time & 31) * 2,
            tzinfo=dt.UTC,
        )
    except ValueError:
        return 0  # what was never set, mostly
    return int(day.timestamp()) * 1_000_000_000 + milliseconds * 1_000_000


def _sum(raw: bytes) -> int:
    """Return the sum of a short name that its long name's entries carry."""
    total = 0
    for byte in raw[:11]:
        total = (((total & 1) << 7) + (total >> 1) + byte) & 0xFF
    return total


def _long_name(parts: Mapping[int, bytes]) -> bytes:
    raw = b"".join(parts[number] for number in sorted(parts))
    text = raw.decode("utf-16-le", "surrogatepass").split("\0", 1)[0]
    return text.encode("utf-8", "surrogatepass")


def _short_name(raw: bytes) -> bytes:
    first = b"\xe5" if raw[0] == _KANJI else raw[:1]
    name = (first + raw[1:8]).decode("cp437").rstrip(" ")
    extension = raw[8:11].decode("cp437").rstrip(" ")
    name = name.lower() if raw[12] & _LOWER_NAME else name
    extension = extension.lower() if raw[12] & _LOWER_EXTENSION else extension
    return (f"{name}.{extension}" if extension else name).encode()
