"""Files of btrfs, with its subvolumes as folders where they lie.

Source: the btrfs on-disk format documentation, and fs/btrfs of Linux for what that leaves open.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from freezeframe.access.files.base import (
    LONGEST_LINK,
    Content,
    Entry,
    InMemory,
    Node,
    Piece,
    Plain,
    Stat,
    no_folder,
    read_small,
)
from freezeframe.access.files.btrfs_items import (
    EXTENT_INLINE,
    EXTENT_RESERVED,
    FIRST_INODE,
    ROOT_FOLDER,
    TOP_SUBVOLUME,
    Inode,
    Kind,
    Name,
    parse_extent,
    parse_inode,
    parse_names,
    parse_subvolume,
)
from freezeframe.access.files.btrfs_tree import LAST, Key, Trees
from freezeframe.access.files.unpack import unlzo, unzlib, unzstd
from freezeframe.block.base import Reader
from freezeframe.core.errors import FreezeframeError, NotUnderstood, SourceError, UnreadableRange
from freezeframe.core.units import MIB
from freezeframe.fs.base import Peers
from freezeframe.fs.btrfs.chunks import ChunkMap
from freezeframe.fs.btrfs.members import check_features, find_members, read_superblock
from freezeframe.fs.btrfs.structs import MAGIC, MAGIC_AT, SUPERBLOCK_AT, TreeRoot, parse_root
from freezeframe.fs.btrfs.trees import TreeReader
from freezeframe.fs.btrfs.used import read_chunks
from freezeframe.fs.crc32c import crc32c
from freezeframe.fs.probe import peek

#: What a name's hash starts from.
_HASH_SEED = 0xFFFFFFFE
#: Of what is compressed, the kernel makes 128 KiB at most.
_LARGEST_PACKED = MIB
_ZLIB, _LZO, _ZSTD = 1, 2, 3


class Btrfs:
    """A btrfs, opened through all its members that the image holds.

    Raises `NotUnderstood` for features it does not know.
    """

    kind = "btrfs"

    def __init__(self, reader: Reader, peers: Peers) -> None:
        superblock = read_superblock(reader)
        check_features(superblock)
        members = find_members(reader, superblock, peers)
        chunks, devices = read_chunks(superblock, members)
        self._members = members.readers
        self._chunks: ChunkMap = chunks
        self._trees = Trees(TreeReader(superblock, members.readers, chunks))
        self._root_tree = superblock.root_tree
        self._roots: dict[int, TreeRoot] = {}
        self.sector = superblock.sector
        self.span = sum(device.size for device in devices)
        notes = list(members.notes)
        if len(members.readers) < len(devices):
            notes.append("not all devices of it are in this image: what lies on them is missing")
        if superblock.log_tree:
            notes.append(
                "its log was not replayed: it was in use, or crashed. What was written since the"
                " last commit (30 s at most) and made durable is not seen"
            )
        self.notes = tuple(notes)
        self.root: Node = BtrfsNode(self, TOP_SUBVOLUME, FIRST_INODE)

    @property
    def default(self) -> Node:
        """The subvolume that is mounted where none is named; the top where that is not clear."""
        low = Key(ROOT_FOLDER, Kind.NAME_BY_HASH, 0)
        for _, raw in self._trees.between(self._root_tree, low, low._replace(offset=LAST)):
            for name in parse_names(raw):
                if name.name == b"default" and name.kind == Kind.ROOT:
                    return BtrfsNode(self, name.object, FIRST_INODE)
        return self.root

    def is_subvolume(self, node: Node) -> bool:
        """Whether a folder is a subvolume's own."""
        return isinstance(node, BtrfsNode) and node.inode_number == FIRST_INODE

    def items(self, subvolume: int, low: Key, high: Key) -> Iterator[tuple[Key, bytes]]:
        """Give items of a subvolume."""
        return self._trees.between(self._tree(subvolume), low, high)

    def _tree(self, subvolume: int) -> TreeRoot:
        known = self._roots.get(subvolume)
        if known is None:
            low = Key(subvolume, Kind.ROOT, 0)
            found = None
            for _, raw in self._trees.between(self._root_tree, low, low._replace(offset=LAST)):
                found = parse_root(subvolume, raw, shared=True)
            if found is None:
                raise NotUnderstood(f"btrfs without the subvolume {subvolume}")
            known = self._roots[subvolume] = found
        return known

    def holds(self, parent: int, folder: int, name: bytes, child: int) -> bool:
        """Whether a subvolume really lies there: a snapshot keeps names of others', too."""
        raw = self._trees.item(self._root_tree, Key(parent, Kind.SUBVOLUME, child))
        return raw is not None and parse_subvolume(raw) == (folder, name)

    def read(self, logical: int, length: int) -> bytes:
        """Read bytes by their logical address, from the first copy that can be read."""
        chunk = self._chunks.chunk_of(logical, length)
        problem: FreezeframeError = NotUnderstood("a file on a device that this image lacks")
        for copy in chunk.copies(logical, length):
            if any(place.device not in self._members for place in copy):
                continue
            try:
                return b"".join(
                    self._members[place.device].read_at(place.offset, place.length)
                    for place in copy
                )
            except (UnreadableRange, SourceError) as error:
                problem = error
        raise problem


@dataclass(frozen=True, slots=True)
class OnChunks:
    """Bytes that lie at a logical address as they are."""

    filesystem: Btrfs
    logical: int

    def read(self, offset: int, length: int) -> bytes:
        """Read from the filesystem."""
        return self.filesystem.read(self.logical + offset, length)


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes of a compressed extent."""

    filesystem: Btrfs
    logical: int
    stored: int
    compression: int
    unpacked: int
    first: int

    def read(self, offset: int, length: int) -> bytes:
        """Unpack the extent, and cut them out."""
        data = self.filesystem.read(self.logical, self.stored)
        whole = _unpack(data, self.compression, self.unpacked, self.filesystem.sector)
        start = self.first + offset
        return whole[start : start + length].ljust(length, b"\0")


def _unpack(data: bytes, compression: int, size: int, sector: int) -> bytes:
    if size > _LARGEST_PACKED:
        raise NotUnderstood("a compressed extent of an impossible size")
    if compression == _ZLIB:
        return unzlib(data, size)
    if compression == _LZO:
        return unlzo(data, size, sector)
    if compression == _ZSTD:
        return unzstd(data, size)
    raise NotUnderstood(f"a file compressed in the unknown way {compression}")


@dataclass(frozen=True, slots=True)
class Mapped:
    """A file's extents."""

    node: BtrfsNode
    size: int

    def pieces(self) -> Iterator[Piece]:
        """Give what was written, up to the size."""
        filesystem = self.node.filesystem
        reached = 0
        for key, raw in self.node.items(Kind.EXTENT):
            extent = parse_extent(raw)
            if key.offset < reached:
                raise NotUnderstood("a file with extents out of order")
            reached = key.offset + extent.length
            length = min(extent.length, self.size - key.offset)
            if length <= 0 or extent.kind == EXTENT_RESERVED:
                continue
            if extent.kind == EXTENT_INLINE:
                data = extent.inline
                if extent.compression:
                    data = _unpack(data, extent.compression, extent.unpacked, filesystem.sector)
                data = data[:length]
                yield Piece(key.offset, len(data), InMemory(data))
            elif extent.place and extent.compression:
                if extent.stored > _LARGEST_PACKED:
                    raise NotUnderstood("a compressed extent of an impossible size")
                packed = Packed(
                    filesystem,
                    extent.place,
                    extent.stored,
                    extent.compression,
                    extent.unpacked,
                    extent.first,
                )
                yield Piece(key.offset, length, packed)
            elif extent.place:
                yield Piece(key.offset, length, OnChunks(filesystem, extent.place + extent.first))


@dataclass(frozen=True, slots=True)
class BtrfsNode:
    """A file of a btrfs, by subvolume and number of its inode."""

    filesystem: Btrfs
    subvolume: int
    inode_number: int

    @property
    def key(self) -> Hashable:
        """Subvolume and inode."""
        return self.subvolume, self.inode_number

    def items(self, kind: Kind) -> Iterator[tuple[Key, bytes]]:
        """Give its items of a type."""
        low = Key(self.inode_number, kind, 0)
        return self.filesystem.items(self.subvolume, low, low._replace(offset=LAST))

    def inode(self) -> Inode:
        """Read its inode."""
        for _, raw in self.items(Kind.INODE):
            return parse_inode(raw)
        raise NotUnderstood(f"btrfs without the inode {self.inode_number}")

    def stat(self) -> Stat:
        """Tell its owner, times and size."""
        own = self.inode()
        return Stat(
            mode=own.mode,
            size=own.size,
            uid=own.uid,
            gid=own.gid,
            atime=own.atime,
            ctime=own.ctime,
            mtime=own.mtime,
            born=own.born or None,
            links=own.links,
            device=own.device if modes.S_ISCHR(own.mode) or modes.S_ISBLK(own.mode) else (0, 0),
        )

    def content(self) -> Content:
        """Return a regular file's bytes."""
        own = self.inode()
        if not modes.S_ISREG(own.mode):
            raise NotUnderstood("it is no regular file")
        return Mapped(self, own.size)

    def read_link(self) -> bytes:
        """Return where a symbolic link leads."""
        own = self.inode()
        if not modes.S_ISLNK(own.mode):
            raise NotUnderstood("it is no symbolic link")
        return read_small(Mapped(self, own.size), LONGEST_LINK, "a symbolic link")

    def entries(self) -> Iterator[Entry]:
        """Give what a folder holds."""
        if not modes.S_ISDIR(self.inode().mode):
            raise no_folder("btrfs")
        for _, raw in self.items(Kind.NAME):
            for name in parse_names(raw):
                yield Entry(name.name, self._named(name))

    def lookup(self, name: bytes) -> Node | None:
        """Return what a folder has under a name, by its hash."""
        key = Key(self.inode_number, Kind.NAME_BY_HASH, crc32c(name, _HASH_SEED))
        for _, raw in self.filesystem.items(self.subvolume, key, key):
            for found in parse_names(raw):
                if found.name == name:
                    return self._named(found)
        return None

    def _named(self, name: Name) -> Node:
        if name.kind != Kind.ROOT:
            return BtrfsNode(self.filesystem, self.subvolume, name.object)
        if self.filesystem.holds(self.subvolume, self.inode_number, name.name, name.object):
            return BtrfsNode(self.filesystem, name.object, FIRST_INODE)
        return Nothing((self.subvolume, self.inode_number, name.object))

    def xattrs(self) -> Mapping[bytes, bytes]:
        """Return extended attributes."""
        return {
            name.name: name.value for _, raw in self.items(Kind.XATTR) for name in parse_names(raw)
        }


@dataclass(frozen=True, slots=True)
class Nothing(Plain):
    """An empty folder: where a snapshot has the name of a subvolume, and not what it held."""

    key: Hashable

    def stat(self) -> Stat:
        """Tell it as Linux does."""
        return Stat(mode=modes.S_IFDIR | 0o755, size=0, mtime=0, uid=0, gid=0)

    def entries(self) -> Iterator[Entry]:
        """Give nothing."""
        return iter(())

    def lookup(self, name: bytes) -> Node | None:
        """Find nothing."""
        del name
        return None

    def content(self) -> Content:
        """Refuse: it is a folder."""
        raise NotUnderstood("it is no regular file")


def recognise(reader: Reader) -> bool:
    """Whether it is one."""
    return peek(reader, SUPERBLOCK_AT + MAGIC_AT, len(MAGIC)) == MAGIC
