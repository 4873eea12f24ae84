"""Chains of clusters, as FAT and exFAT keep files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from freezeframe.access.files.base import OnDisk, Piece
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood

_PAGE = 4096
_PAGES_KEPT = 1024


class Table:
    """A table of clusters, read in pages, the ones used last kept."""

    def __init__(self, reader: Reader, start: int, size: int, bits: int) -> None:
        self._reader = reader
        self._start = start
        self._size = size
        self._bits = bits
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def after(self, cluster: int) -> int:
        """Return the raw entry of a cluster; raises `NotUnderstood` past the table's end."""
        bits = self._bits
        at = cluster * bits // 8
        raw = int.from_bytes(self._bytes(at, 4 if bits == 32 else 2), "little")
        if bits == 12:
            return raw >> 4 if cluster & 1 else raw & 0xFFF
        return raw

    def _bytes(self, at: int, length: int) -> bytes:
        if at < 0 or at + length > self._size:
            raise NotUnderstood("a file with clusters that do not exist")
        page, inside = divmod(at, _PAGE)
        data = self._page(page)[inside : inside + length]
        return data + self._page(page + 1)[: length - len(data)] if len(data) < length else data

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            at = number * _PAGE
            length = min(_PAGE, self._size - at)
            self._pages[number] = self._reader.read_at(self._start + at, length)
            if len(self._pages) > _PAGES_KEPT:
                self._pages.popitem(last=False)
        self._pages.move_to_end(number)
        return self._pages[number]


@dataclass(frozen=True, slots=True)
class Heap:
    """Where clusters lie, and which follows which."""

    reader: Reader
    #: Where cluster 2, the first, begins, in bytes.
    start: int
    cluster: int
    count: int
    #: Gives the cluster after another; 0 at the end of a chain.
    after: Callable[[int], int]

    def runs(self, first: int, *, contiguous: int = 0) -> Iterator[tuple[int, int]]:
        """Give (where in bytes, how many bytes) of a chain; `contiguous` clusters without one.

        Raises `NotUnderstood` where it goes in circles or leaves the filesystem.
        """
        if contiguous:
            if not 2 <= first <= first + contiguous <= self.count + 2:
                raise NotUnderstood("a file with clusters that do not exist")
            yield self._place(first), contiguous * self.cluster
            return
        begin, length, seen = first, 0, 0
        here = first
        while here:
            if not 2 <= here < self.count + 2:
                raise NotUnderstood("a file with clusters that do not exist")
            seen += 1
            if seen > self.count:
                raise NotUnderstood("a file whose clusters go in circles")
            if length and here != begin + length:
                yield self._place(begin), length * self.cluster
                begin, length = here, 0
            length += 1
            here = self.after(here)
        if length:
            yield self._place(begin), length * self.cluster

    def _place(self, cluster: int) -> int:
        return self.start + (cluster - 2) * self.cluster


@dataclass(frozen=True, slots=True)
class Chained:
    """A file's bytes, in a chain of clusters."""

    heap: Heap
    first: int
    size: int
    #: Bytes that were ever written; the rest are zeros.
    written: int
    contiguous: bool = False

    def pieces(self) -> Iterator[Piece]:
        """Give what was written."""
        if not self.first or not self.written:
            return
        start = 0
        clusters = -(-self.size // self.heap.cluster) if self.contiguous else 0
        for at, length in self.heap.runs(self.first, contiguous=clusters):
            length = min(length, min(self.size, self.written) - start)
            if length <= 0:
                return
            yield Piece(start, length, OnDisk(self.heap.reader, at))
            start += length
        if start < min(self.size, self.written):
            raise NotUnderstood("a file whose clusters end before it does")
