"""Files of XFS.

Source: as `xfs_structs`. The log is not replayed. A freeze writes everything back to its
place before it leaves the log dirty (xfs_log_quiesce of Linux), so that an image of a frozen
XFS lacks nothing.
"""

from __future__ import annotations

import stat as modes
import struct
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from freezeframe.access.files import xfs_attributes, xfs_folder
from freezeframe.access.files.base import (
    LONGEST_LINK,
    Content,
    Entry,
    Node,
    OnDisk,
    Piece,
    Searched,
    Stat,
    no_folder,
    read_small,
)
from freezeframe.access.files.xfs_fork import Extent, Fork, fork_extents
from freezeframe.access.files.xfs_structs import (
    BIG_TIME_FROM,
    FLAG2_BIG_COUNTS,
    FLAG2_BIG_TIME,
    FLAG_REALTIME,
    FORKS_AT,
    INODE_MAGIC,
    LARGEST_INODE,
    LINK_HEADER,
    LINK_MAGIC,
    SMALLEST_INODE,
    Format,
)
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood, UnreadableRange
from freezeframe.fs.probe import big, power_of_two
from freezeframe.fs.xfs import structs
from freezeframe.fs.xfs.log import verify_log_clean
from freezeframe.fs.xfs.structs import (
    VERSION_4,
    VERSION_5,
    VERSION_MASK,
    Features2,
    Incompat,
    Superblock,
)
from freezeframe.fs.xfs.used import log_range

_KNOWN = int(
    Incompat.FTYPE
    | Incompat.SPARSE_INODES
    | Incompat.META_UUID
    | Incompat.BIGTIME
    | Incompat.NREXT64
    | Incompat.EXCHANGE_RANGE
    | Incompat.PARENT
    | Incompat.NEEDS_REPAIR
)
_SECOND = 1_000_000_000


class Xfs:
    """An XFS, opened. Raises `NotUnderstood` for features it does not know."""

    kind = "xfs"

    def __init__(self, reader: Reader) -> None:
        raw = reader.read_at(0, structs.SMALLEST_SECTOR)
        own = Superblock.parse(raw)
        self.version = own.version & VERSION_MASK
        if self.version not in (VERSION_4, VERSION_5):
            raise NotUnderstood(f"XFS of version {self.version}")
        if self.version == VERSION_5 and own.incompat & ~_KNOWN:
            raise NotUnderstood(f"XFS with features that are not known: {own.incompat:#x}")
        self.reader = reader
        self.superblock = own
        self.block_size = own.block_size
        self.inode_size, self._per_block = big(raw, 104, 2), big(raw, 106, 2)
        self._log_per_block = raw[123]
        self.folder_block = own.block_size << min(raw[192], 16)
        self._root_number = big(raw, 56, 8)
        new = self.version == VERSION_5
        self.has_types = bool(
            own.incompat & Incompat.FTYPE if new else own.features2 & Features2.FTYPE
        )
        self._check(own)
        self.span = own.blocks * own.block_size
        if self.span > reader.size:
            raise NotUnderstood("XFS that is larger than its region")
        self.notes = _notes(reader, own)
        self.root: Node = XfsNode(self, self._root_number)

    def _check(self, own: Superblock) -> None:
        sizes = (
            power_of_two(own.block_size, 512, 65536),
            power_of_two(self.inode_size, SMALLEST_INODE, LARGEST_INODE),
            self.inode_size << self._log_per_block == own.block_size,
            self._per_block == 1 << self._log_per_block,
            self.folder_block <= 65536,
            0 < own.group_blocks <= 1 << own.log_of_group_blocks,
            own.log_of_group_blocks < 32,
            0 < own.blocks <= own.group_blocks * own.groups,
        )
        if not all(sizes):
            raise NotUnderstood("XFS with a superblock that makes no sense")

    def place(self, block: int) -> int:
        """Return the byte a block begins at, by its number (group and block within it)."""
        own = self.superblock
        group, inside = (
            block >> own.log_of_group_blocks,
            block & ((1 << own.log_of_group_blocks) - 1),
        )
        number = group * own.group_blocks + inside
        if inside >= own.group_blocks or number >= own.blocks:
            raise NotUnderstood("a block that does not exist")
        return number * own.block_size

    def read_block(self, block: int, length: int) -> bytes:
        """Read some bytes from the start of a block."""
        at = self.place(block)
        if at + length > self.span:
            raise NotUnderstood("a block that does not exist")
        return self.reader.read_at(at, length)

    def inode(self, number: int) -> Inode:
        """Read an inode; raises `NotUnderstood` for one that cannot be."""
        block, index = number >> self._log_per_block, number & (self._per_block - 1)
        at = self.place(block) + index * self.inode_size
        raw = self.reader.read_at(at, self.inode_size)
        version = raw[4]
        if raw[:2] != INODE_MAGIC or version not in FORKS_AT:
            raise NotUnderstood(f"inode {number} is damaged")
        if version == max(FORKS_AT) and big(raw, 152, 8) != number:
            raise NotUnderstood(f"inode {number} says it is another")
        if not big(raw, 2, 2):
            raise NotUnderstood(f"inode {number} is not in use")
        return Inode(self, number, raw)


def _notes(reader: Reader, own: Superblock) -> tuple[str, ...]:
    try:
        verify_log_clean(reader, *log_range(own), own.uuid)
    except (NotUnderstood, UnreadableRange):
        return (
            "its log was not replayed. Of an image that was made while it was frozen, nothing is"
            " missing; of one that crashed, names, sizes and contents that were only in the log"
            " are not seen",
        )
    return ()


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode: its fields are read when they are wanted."""

    filesystem: Xfs
    number: int
    raw: bytes

    def field(self, offset: int, size: int) -> int:
        """Return a field."""
        return big(self.raw, offset, size)

    @property
    def mode(self) -> int:
        """As `st_mode`."""
        return self.field(2, 2)

    @property
    def size(self) -> int:
        """Bytes of what it holds."""
        return self.field(56, 8)

    @property
    def _new(self) -> bool:
        return self.raw[4] >= max(FORKS_AT)

    def flag2(self, bit: int) -> bool:
        """Whether a flag of the newer field is set."""
        return self._new and bool(self.field(120, 8) & bit)

    def time(self, offset: int) -> int:
        """Return a time in nanoseconds."""
        if self.flag2(FLAG2_BIG_TIME):
            return self.field(offset, 8) + BIG_TIME_FROM * _SECOND
        seconds, rest = struct.unpack_from(">iI", self.raw, offset)
        return int(seconds) * _SECOND + int(rest)

    def data_fork(self) -> Fork:
        """Return where what it holds lies."""
        start, middle = FORKS_AT[self.raw[4]], self._middle()
        count = self.field(24, 8) if self.flag2(FLAG2_BIG_COUNTS) else self.field(76, 4)
        return Fork(self.raw[5], count, self.raw[start : middle or len(self.raw)])

    def attribute_fork(self) -> Fork | None:
        """Return where its attributes lie; None where it has none."""
        middle = self._middle()
        if not middle:
            return None
        count = self.field(76, 4) if self.flag2(FLAG2_BIG_COUNTS) else self.field(80, 2)
        return Fork(self.raw[83], count, self.raw[middle:])

    def _middle(self) -> int:
        """Return where the attribute fork begins; 0 where there is none."""
        if not self.raw[82]:
            return 0
        middle = FORKS_AT[self.raw[4]] + self.raw[82] * 8
        if middle >= len(self.raw):
            raise NotUnderstood(f"inode {self.number} is damaged")
        return middle


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a fork maps, as bytes."""

    filesystem: Xfs
    fork: Fork
    size: int

    def pieces(self) -> Iterator[Piece]:
        """Give what was written, up to the size."""
        unit = self.filesystem.block_size
        for extent in self.extents():
            start = extent.first * unit
            if start >= self.size:
                return
            length = min(extent.count * unit, self.size - start)
            at = self.filesystem.place(extent.block)
            if at + length > self.filesystem.span:
                raise NotUnderstood("a file with blocks that do not exist")
            yield Piece(start, length, OnDisk(self.filesystem.reader, at))

    def extents(self) -> Iterator[Extent]:
        """Give extents that were written, ascending."""
        filesystem = self.filesystem
        yield from fork_extents(self.fork, filesystem.read_block, filesystem.block_size)


@dataclass(frozen=True, slots=True)
class XfsNode(Searched):
    """A file of an XFS, by the number of its inode."""

    filesystem: Xfs
    inode_number: int

    @property
    def key(self) -> Hashable:
        """The inode's number."""
        return self.inode_number

    def stat(self) -> Stat:
        """Tell its owner, times and size."""
        own = self.filesystem.inode(self.inode_number)
        device = (0, 0)
        if own.raw[5] == Format.DEVICE:
            number = big(own.data_fork().raw, 0, 4)
            device = (number >> 18 & 0x3FFF, number & 0x3FFFF)
        return Stat(
            mode=own.mode,
            size=own.size,
            uid=own.field(8, 4),
            gid=own.field(12, 4),
            atime=own.time(32),
            mtime=own.time(40),
            ctime=own.time(48),
            born=own.time(144) if own.raw[4] >= max(FORKS_AT) else None,
            links=own.field(16, 4) if own.raw[4] > 1 else own.field(6, 2),
            device=device,
        )

    def content(self) -> Content:
        """Return a regular file's bytes."""
        own = self.filesystem.inode(self.inode_number)
        if not modes.S_ISREG(own.mode):
            raise NotUnderstood("it is no regular file")
        if own.field(90, 2) & FLAG_REALTIME:
            raise NotUnderstood("it lies on a realtime device")
        return Mapped(self.filesystem, own.data_fork(), own.size)

    def read_link(self) -> bytes:
        """Return where a symbolic link leads."""
        own = self.filesystem.inode(self.inode_number)
        if not modes.S_ISLNK(own.mode) or own.size > LONGEST_LINK:
            raise NotUnderstood("it is no symbolic link, or a damaged one")
        fork = own.data_fork()
        if fork.form == Format.LOCAL:
            return fork.raw[: own.size]
        unit = self.filesystem.block_size
        headers = LINK_HEADER if self.filesystem.version == VERSION_5 else 0
        blocks = -(-own.size // (unit - headers))
        raw = read_small(Mapped(self.filesystem, fork, blocks * unit), 1 << 17, "a symbolic link")
        if not headers:
            return raw[: own.size]
        parts = [raw[at : at + unit] for at in range(0, len(raw), unit)]
        if any(part[:4] != LINK_MAGIC for part in parts):
            raise NotUnderstood("a damaged symbolic link")
        return b"".join(part[headers:] for part in parts)[: own.size]

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds."""
        own = self.filesystem.inode(self.inode_number)
        if not modes.S_ISDIR(own.mode):
            raise no_folder("xfs")
        fork = own.data_fork()
        types = self.filesystem.has_types
        if fork.form == Format.LOCAL:
            found = xfs_folder.short_names(fork.raw, types=types)
        else:
            found = xfs_folder.names(
                self._folder_blocks(fork), self.filesystem.version, types=types
            )
        for name, number in found:
            yield Entry(name, XfsNode(self.filesystem, number))

    def _folder_blocks(self, fork: Fork) -> Iterator[bytes]:
        filesystem, unit = self.filesystem, self.filesystem.folder_block
        # Names lie below an offset of 32 GiB, indexes of them behind it.
        mapped = Mapped(filesystem, fork, xfs_folder.NAMES_UP_TO)
        read = 0
        rest = b""
        for piece in mapped.pieces():
            read += piece.length
            if read > filesystem.span:
                raise NotUnderstood("a folder larger than its filesystem")
            if rest and piece.start % unit != len(rest) % unit:
                raise NotUnderstood("a folder with parts of blocks")
            for at in range(0, piece.length, unit):
                # A block of a folder may lie in several pieces.
                rest += piece.source.read(at, min(unit, piece.length - at))
                if len(rest) >= unit:
                    yield rest[:unit]
                    rest = rest[unit:]

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return extended attributes."""
        own = self.filesystem.inode(self.inode_number)
        fork = own.attribute_fork()
        if fork is None:
            return {}
        if fork.form == Format.LOCAL:
            return xfs_attributes.short(fork.raw)
        unit, filesystem = self.filesystem.block_size, self.filesystem
        places = {
            extent.first + number: extent.block + number
            for extent in xfs_attributes.bounded(
                fork_extents(fork, filesystem.read_block, unit), unit
            )
            for number in range(extent.count)
        }

        if not places:
            return {}

        def read(block: int) -> bytes:
            if block not in places:
                raise NotUnderstood("extended attributes with a hole")
            return filesystem.read_block(places[block], unit)

        return xfs_attributes.of_blocks(read, filesystem.version, len(places))


def recognise(reader: Reader) -> bool:
    """Whether it is one."""
    return (
        reader.size >= structs.SMALLEST_SECTOR and reader.read_at(0, 4) == structs.SUPERBLOCK_MAGIC
    )
