"""Files of ext2, ext3 and ext4.

Source: Documentation/filesystems/ext4 of the Linux kernel, ext2_fs.h of e2fsprogs, and
fs/ext4 of Linux for what those leave open. The journal is not replayed.
"""

from __future__ import annotations

import stat as modes
import struct
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from freezeframe.access.files import ext_xattr
from freezeframe.access.files.base import (
    LONGEST_LINK,
    Content,
    Entry,
    Held,
    Node,
    OnDisk,
    Piece,
    Searched,
    Stat,
    no_folder,
    read_small,
)
from freezeframe.access.files.ext_blocks import extent_runs, indirect_runs
from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.ext import structs
from freezeframe.fs.ext.checksums import verify_superblock
from freezeframe.fs.ext.geometry import Geometry, geometry_of
from freezeframe.fs.ext.structs import Incompat, Superblock

ROOT = 2
_KNOWN = int(
    Incompat.FILETYPE
    | Incompat.RECOVER
    | Incompat.META_BG
    | Incompat.EXTENTS
    | Incompat.BIT64
    | Incompat.MMP
    | Incompat.FLEX_BG
    | Incompat.EA_INODE
    | Incompat.CSUM_SEED
    | Incompat.LARGEDIR
    | Incompat.INLINE_DATA
    | Incompat.ENCRYPT
    | Incompat.CASEFOLD
)

_FLAG_ENCRYPTED, _FLAG_EXTENTS, _FLAG_INLINE = 0x800, 0x80000, 0x10000000
#: What is found of `i_block`: an inline file begins there, a short link lies there whole.
_SHORT = 60
#: First bytes of an inline folder: the number of its parent.
_INLINE_PARENT = 4
#: mode, uid, size, atime, ctime, mtime, dtime, gid, links, blocks, flags
_INODE = struct.Struct("<HHIIIIIHHII")
_DESCRIPTORS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode, parsed."""

    raw: bytes
    mode: int
    size: int
    flags: int
    links: int
    #: `i_block`, 60 bytes.
    block: bytes

    @property
    def extra(self) -> int:
        """Bytes of fields behind the first 128."""
        if len(self.raw) < 132:
            return 0
        extra = int.from_bytes(self.raw[128:130], "little")
        return extra if 128 + extra <= len(self.raw) else 0

    def number(self, offset: int, size: int) -> int:
        """Return a field; 0 where the inode is too short for it."""
        if offset >= 128 and offset + size > 128 + self.extra:
            return 0
        return int.from_bytes(self.raw[offset : offset + size], "little")

    def time(self, offset: int, extra: int) -> int:
        """Return a time in nanoseconds; two bits of the extra field are more of the seconds."""
        seconds = int.from_bytes(self.raw[offset : offset + 4], "little", signed=True)
        more = self.number(extra, 4)
        return (seconds + ((more & 3) << 32)) * 1_000_000_000 + (more >> 2)


class Ext:
    """An ext filesystem, opened. Raises `NotUnderstood` for features it does not know."""

    def __init__(self, reader: Reader) -> None:
        raw = reader.read_at(structs.SUPERBLOCK_OFFSET, structs.SUPERBLOCK_SIZE)
        own = Superblock.parse(raw)
        verify_superblock(own, raw)
        unknown = own.incompat & ~_KNOWN
        if own.revision > 1 or unknown:
            raise NotUnderstood(f"ext with features that are not known: {unknown:#x}")
        self.reader = reader
        self.geometry: Geometry = geometry_of(own, reader.size)
        self.superblock = own
        self.kind = own.kind
        self.span = self.geometry.span
        self.block_size = self.geometry.block_size
        self.notes: tuple[str, ...] = ()
        if own.incompat & Incompat.RECOVER:
            self.notes = (
                "its journal was not replayed: it was in use, or crashed. Names, sizes and"
                " contents that were only in the journal are not seen",
            )
        self._locations = self.geometry.descriptor_locations()
        self._tables: OrderedDict[int, int] = OrderedDict()
        self.root: Node = ExtNode(self, ROOT)

    def inode(self, number: int) -> Inode:
        """Read an inode; raises `NotUnderstood` for one that cannot be."""
        own, geometry = self.superblock, self.geometry
        if not 1 <= number <= own.inodes:
            raise NotUnderstood(f"inode {number} does not exist")
        group, index = divmod(number - 1, own.inodes_per_group)
        at = self._table(group) * self.block_size + index * own.inode_size
        if at + own.inode_size > geometry.span:
            raise NotUnderstood(f"inode {number} lies outside of the filesystem")
        raw = self.reader.read_at(at, own.inode_size)
        mode, _, size, _, _, _, _, _, links, _, flags = _INODE.unpack_from(raw)
        if modes.S_ISREG(mode) or (modes.S_ISDIR(mode) and own.incompat & Incompat.LARGEDIR):
            size |= int.from_bytes(raw[0x6C:0x70], "little") << 32
        if not mode:
            raise NotUnderstood(f"inode {number} is not in use")
        return Inode(raw, mode, size, flags, links, raw[0x28:0x64])

    def _table(self, group: int) -> int:
        """Return the block a group's inodes begin at."""
        if group in self._tables:
            self._tables.move_to_end(group)
            return self._tables[group]
        size = self.superblock.descriptor_size
        block, index = divmod(group, self.geometry.descriptors_per_block)
        at = int(self._locations[block]) * self.block_size + index * size
        raw = self.reader.read_at(at, size)
        table = int.from_bytes(raw[8:12], "little")
        if size >= structs.DESCRIPTOR_SIZE_64BIT:
            table |= int.from_bytes(raw[0x28:0x2C], "little") << 32
        if not 0 < table < self.superblock.blocks:
            raise NotUnderstood(f"the inodes of group {group} lie outside of the filesystem")
        self._tables[group] = table
        if len(self._tables) > _DESCRIPTORS_KEPT:
            self._tables.popitem(last=False)
        return table

    def block(self, number: int) -> bytes:
        """Read a block; raises `NotUnderstood` for one outside of the filesystem."""
        if not 0 < number < self.superblock.blocks:
            raise NotUnderstood(f"block {number} does not exist")
        return self.reader.read_at(number * self.block_size, self.block_size)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A content that lies in blocks."""

    filesystem: Ext
    inode: Inode

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.inode.size

    def pieces(self) -> Iterator[Piece]:
        """Give what is mapped and was written."""
        filesystem, unit = self.filesystem, self.filesystem.block_size
        follow = extent_runs if self.inode.flags & _FLAG_EXTENTS else indirect_runs
        wanted, total = -(-self.size // unit), 0
        for first, place, count in follow(filesystem.block, self.inode.block, wanted, unit):
            if not 0 < place <= place + count <= filesystem.superblock.blocks:
                raise NotUnderstood("a file with blocks that do not exist")
            start = first * unit
            length = min(count * unit, self.size - start)
            total += length
            if total > filesystem.span:
                raise NotUnderstood("a file with more blocks than there are")
            if length > 0:
                yield Piece(start, length, OnDisk(filesystem.reader, place * unit))


@dataclass(frozen=True, slots=True)
class ExtNode(Searched):
    """A file of an ext filesystem, by the number of its inode."""

    filesystem: Ext
    inode_number: int

    @property
    def key(self) -> Hashable:
        """The inode's number."""
        return self.inode_number

    def stat(self) -> Stat:
        """Tell its owner, times and size."""
        own = self.filesystem.inode(self.inode_number)
        device = (0, 0)
        if modes.S_ISCHR(own.mode) or modes.S_ISBLK(own.mode):
            device = _device(own.block)
        return Stat(
            mode=own.mode,
            size=own.size,
            uid=own.number(2, 2) | own.number(0x78, 2) << 16,
            gid=own.number(0x18, 2) | own.number(0x7A, 2) << 16,
            atime=own.time(0x8, 0x8C),
            ctime=own.time(0xC, 0x84),
            mtime=own.time(0x10, 0x88),
            born=own.time(0x90, 0x94) if own.number(0x90, 4) else None,
            links=own.links,
            device=device,
        )

    def content(self) -> Content:
        """Return a regular file's bytes."""
        own = self.filesystem.inode(self.inode_number)
        if not modes.S_ISREG(own.mode):
            raise NotUnderstood("it is no regular file")
        return self._bytes(own)

    def _bytes(self, own: Inode) -> Content:
        if own.flags & _FLAG_ENCRYPTED:
            raise NotUnderstood("it is encrypted: only its own system can read it")
        if own.flags & _FLAG_INLINE:
            return Held(self._inline(own), own.size)
        return Mapped(self.filesystem, own)

    def _inline(self, own: Inode) -> bytes:
        return own.block + ext_xattr.inline_data(own.raw, 128 + own.extra)

    def read_link(self) -> bytes:
        """Return where a symbolic link leads."""
        own = self.filesystem.inode(self.inode_number)
        if not modes.S_ISLNK(own.mode):
            raise NotUnderstood("it is no symbolic link")
        if own.size < _SHORT and not own.flags & (_FLAG_EXTENTS | _FLAG_INLINE | _FLAG_ENCRYPTED):
            return own.block[: own.size]
        return read_small(self._bytes(own), LONGEST_LINK, "a symbolic link")

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds."""
        own = self.filesystem.inode(self.inode_number)
        if not modes.S_ISDIR(own.mode):
            raise no_folder(self.filesystem.kind)
        if own.flags & _FLAG_ENCRYPTED:
            raise NotUnderstood("it is encrypted: only its own system can read it")
        for block in self._folder_blocks(own):
            yield from self._names(block)

    def _folder_blocks(self, own: Inode) -> Iterator[bytes]:
        if own.flags & _FLAG_INLINE:
            yield own.block[_INLINE_PARENT:]
            yield ext_xattr.inline_data(own.raw, 128 + own.extra)
            return
        unit = self.filesystem.block_size
        if own.size > self.filesystem.span:
            raise NotUnderstood("a folder larger than its filesystem")
        for piece in Mapped(self.filesystem, own).pieces():
            for at in range(0, piece.length, unit):
                yield piece.source.read(at, min(unit, piece.length - at))

    def _names(self, block: bytes) -> Iterator[Entry]:
        at = 0
        while at + 8 <= len(block):
            number, length, size = struct.unpack_from("<IHB", block, at)
            if length in (0, 0xFFFF):
                length = 1 << 16
            elif self.filesystem.block_size > 1 << 16:
                length = (length & 0xFFFC) | (length & 3) << 16
            if not self.filesystem.superblock.incompat & Incompat.FILETYPE:
                size |= block[at + 7] << 8
            if length < 8 + size or length % 4 or at + length > len(block):
                raise NotUnderstood("a folder with a damaged block")
            name = block[at + 8 : at + 8 + size]
            if number and name not in (b"", b".", b".."):
                yield Entry(name, ExtNode(self.filesystem, number))
            at += length

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return extended attributes."""
        own = self.filesystem.inode(self.inode_number)
        found = ext_xattr.in_inode(own.raw, 128 + own.extra, self._value)
        block = own.number(0x68, 4) | own.number(0x76, 2) << 32
        if block:
            found |= ext_xattr.in_block(self.filesystem.block(block), self._value)
        return found

    def _value(self, number: int, size: int) -> bytes:
        """Read a large value, which has an inode to itself."""
        return read_small(
            Mapped(self.filesystem, self.filesystem.inode(number)), 1 << 16, "an attribute"
        )[:size]


def _device(block: bytes) -> tuple[int, int]:
    """Return major and minor, by the old way of writing them or the new."""
    old, new = struct.unpack_from("<II", block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return (new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00)


def recognise(reader: Reader) -> bool:
    """Whether it is one; a journal on a device of its own holds no files."""
    if reader.size < structs.SUPERBLOCK_OFFSET + structs.SUPERBLOCK_SIZE:
        return False
    raw = reader.read_at(structs.SUPERBLOCK_OFFSET, structs.SUPERBLOCK_SIZE)
    magic = int.from_bytes(raw[0x38:0x3A], "little")
    return magic == structs.MAGIC and not Superblock.parse(raw).incompat & Incompat.JOURNAL_DEV
