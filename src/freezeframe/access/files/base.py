"""What every reader of a filesystem's files promises."""

from __future__ import annotations

import stat as modes
import struct
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import MIB

#: Bytes of a symbolic link's target, at most: PATH_MAX of Linux.
LONGEST_LINK = 4096
#: Bytes of one extended attribute, at most: XATTR_SIZE_MAX of Linux.
LARGEST_XATTR = 64 * 1024
#: Bytes of content handed over at once.
STEP = MIB


@dataclass(frozen=True, slots=True)
class Stat:
    """What a filesystem says of one file. Times are nanoseconds since 1970."""

    #: As `st_mode`: the kind of file, and who may do what.
    mode: int
    size: int
    mtime: int
    #: None where the filesystem keeps none.
    uid: int | None = None
    gid: int | None = None
    atime: int | None = None
    ctime: int | None = None
    born: int | None = None
    #: Names it has, in all folders.
    links: int = 1
    #: Major and minor number of a device node.
    device: tuple[int, int] = (0, 0)

    @property
    def is_folder(self) -> bool:
        """Whether it holds other files."""
        return modes.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return modes.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return modes.S_ISLNK(self.mode)


class Source(Protocol):
    """Where bytes of a file come from."""

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset` of the piece; raises `UnreadableRange`."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Bytes that lie in the filesystem as they are."""

    reader: Reader
    at: int

    def read(self, offset: int, length: int) -> bytes:
        """Read from the filesystem."""
        return self.reader.read_at(self.at + offset, length)


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bytes that were found beside a file's other facts."""

    data: bytes

    def read(self, offset: int, length: int) -> bytes:
        """Cut them out."""
        return self.data[offset : offset + length]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, start + length) of a file."""

    start: int
    length: int
    source: Source


class Content(Protocol):
    """The bytes of a file: what no piece holds are zeros (holes, and what was never written)."""

    @property
    def size(self) -> int:
        """Its length in bytes."""

    def pieces(self) -> Iterator[Piece]:
        """Give what holds data, ascending, without overlap, none past the end."""


@dataclass(frozen=True, slots=True)
class Held:
    """A short content that is in memory; zeros follow it up to `size`."""

    data: bytes
    size: int

    def pieces(self) -> Iterator[Piece]:
        """Give all of it."""
        if length := min(len(self.data), self.size):
            yield Piece(0, length, InMemory(self.data))


class Node(Protocol):
    """One file, folder, link or device of a filesystem. Reads when it is asked, not before.

    All methods raise `NotUnderstood` for what is damaged or of a kind that cannot be read
    (encrypted), and `UnreadableRange` where the image is.
    """

    @property
    def key(self) -> Hashable:
        """What tells it from all other files of its filesystem: the same for all its names."""

    def stat(self) -> Stat:
        """Tell its owner, times and size."""

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds, without `.` and `..`, in no order.

        Raises `NotUnderstood` for what is no folder.
        """

    def lookup(self, name: bytes) -> Node | None:
        """Return what a folder has under a name; None where there is no such."""

    def read_link(self) -> bytes:
        """Return where a symbolic link leads."""

    def content(self) -> Content:
        """Return a regular file's bytes."""

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return extended attributes by full name, in the form `setxattr` takes."""


class Searched:
    """A node whose folders are gone through to find a name."""

    __slots__ = ()

    def lookup(self: Node, name: bytes) -> Node | None:
        """Return what a folder has under a name."""
        return next((entry.node for entry in self.entries() if entry.name == name), None)


class SearchedByAnyCase:
    """As `Searched`, where upper and lower case are the same; a name that is the same wins."""

    __slots__ = ()

    def lookup(self: Node, name: bytes) -> Node | None:
        """Return what a folder has under a name."""
        wanted = name.decode("utf-8", "surrogateescape").casefold()
        found = None
        for entry in self.entries():
            if entry.name == name:
                return entry.node
            if found is None and entry.name.decode("utf-8", "surrogateescape").casefold() == wanted:
                found = entry.node
        return found


class Plain:
    """A node of a filesystem that has neither links nor attributes."""

    __slots__ = ()

    def read_link(self) -> bytes:
        """Refuse."""
        raise NotUnderstood("it is no symbolic link")

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return none."""
        return {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a folder."""

    name: bytes
    node: Node


class Filesystem(Protocol):
    """One filesystem, opened for reading."""

    @property
    def kind(self) -> str:
        """The word for it: `ext4`, `xfs`, `btrfs`, `ntfs`, `fat32`, `exfat`."""

    @property
    def span(self) -> int:
        """Bytes it covers."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who reads it should know: a log that was not replayed."""

    @property
    def root(self) -> Node:
        """The folder at its top."""


def stream(content: Content) -> Iterator[tuple[int, bytes]]:
    """Give a file's data as (offset, bytes), ascending, `STEP` bytes at a time at most.

    Raises `NotUnderstood` where pieces are out of order or pass the end.
    """
    reached = 0
    for piece in content.pieces():
        if piece.start < reached or piece.start + piece.length > content.size:
            raise NotUnderstood("a file whose pieces overlap or pass its end")
        for done in range(0, piece.length, STEP):
            length = min(STEP, piece.length - done)
            yield piece.start + done, piece.source.read(done, length)
        reached = piece.start + piece.length


def read_range(content: Content, offset: int, length: int) -> bytes:
    """Read bytes of a file, holes as zeros; fewer where it ends before."""
    stop = min(offset + length, content.size)
    result = bytearray(max(stop - offset, 0))
    for piece in content.pieces():
        low, high = max(piece.start, offset), min(piece.start + piece.length, stop)
        if low < high:
            data = piece.source.read(low - piece.start, high - low)
            result[low - offset : high - offset] = data
        if piece.start >= stop:
            break
    return bytes(result)


def read_small(content: Content, most: int, what: str) -> bytes:
    """Read all of a content that cannot be larger than `most` bytes; raises `NotUnderstood`."""
    if content.size > most:
        raise NotUnderstood(f"{what} of {content.size} bytes")
    return read_range(content, 0, content.size)


@contextmanager
def understood() -> Iterator[None]:
    """Within, what impossible numbers lead to becomes `NotUnderstood`: a crafted filesystem."""
    try:
        yield
    except (struct.error, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise NotUnderstood(f"its structures make no sense ({error})") from error


def no_folder(kind: str) -> NotUnderstood:
    """Return the error for listing what is no folder."""
    return NotUnderstood(f"{kind}: it is no folder")
