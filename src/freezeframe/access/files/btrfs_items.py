"""Items of btrfs subvolumes: inodes, names, extents.

Source: the btrfs on-disk format documentation and `btrfs_tree.h` of Linux.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from freezeframe.core.errors import NotUnderstood


class Kind(enum.IntEnum):
    """Types of items."""

    INODE = 1
    XATTR = 24
    NAME_BY_HASH = 84
    NAME = 96
    EXTENT = 108
    ROOT = 132
    SUBVOLUME = 156


#: The subvolume at the top, and the folder that names the default one.
TOP_SUBVOLUME, ROOT_FOLDER = 5, 6
#: The inode number of a subvolume's own folder.
FIRST_INODE = 256

#: generation, transaction, size, bytes, group, links, uid, gid, mode, device, flags, sequence
_INODE = struct.Struct("<QQQQQIIIIQQQ")
_TIMES_AT, _TIME = 112, struct.Struct("<qI")
_INODE_SIZE = 160
#: key of what it names (object, type, offset), transaction, data length, name length, type
_NAME = struct.Struct("<QBQQHHB")
#: folder, sequence, name length
_SUBVOLUME = struct.Struct("<QQH")
#: generation, bytes once unpacked, compression, encryption, other encoding, type
_EXTENT = struct.Struct("<QQBBHB")
#: where it lies, how many bytes there, first of them (unpacked), how many
_EXTENT_PLACE = struct.Struct("<QQQQ")
EXTENT_INLINE, EXTENT_REGULAR, EXTENT_RESERVED = 0, 1, 2


class Inode(NamedTuple):
    """What an inode item says. Times in nanoseconds since 1970."""

    size: int
    links: int
    uid: int
    gid: int
    mode: int
    device: tuple[int, int]
    atime: int
    ctime: int
    mtime: int
    born: int


class Name(NamedTuple):
    """A name and what it is for: a folder's, or an attribute's."""

    name: bytes
    #: Number and type of the item that is named.
    object: int
    kind: int
    value: bytes


class Extent(NamedTuple):
    """An extent of a file."""

    kind: int
    #: Bytes once unpacked, of all that lies in the place.
    unpacked: int
    compression: int
    inline: bytes
    #: Logical address, 0 for a hole; bytes there; what of it, once unpacked.
    place: int
    stored: int
    first: int
    length: int


def _cut_short(what: str) -> NotUnderstood:
    return NotUnderstood(f"btrfs with {what} that is cut short")


def parse_inode(raw: bytes) -> Inode:
    """Take an inode item apart; raises `NotUnderstood`."""
    if len(raw) < _INODE_SIZE:
        raise _cut_short("an inode")
    _, _, size, _, _, links, uid, gid, mode, device, _, _ = _INODE.unpack_from(raw)
    times = []
    for number in range(4):
        seconds, rest = _TIME.unpack_from(raw, _TIMES_AT + number * _TIME.size)
        times.append(seconds * 1_000_000_000 + rest)
    numbers = (device >> 20, device & 0xFFFFF)
    return Inode(size, links, uid, gid, mode, numbers, *times)


def parse_names(raw: bytes) -> Iterator[Name]:
    """Take an item of names or attributes apart: there may be several whose hashes are one."""
    at = 0
    while at < len(raw):
        if at + _NAME.size > len(raw):
            raise _cut_short("a name")
        target, kind, _, _, value_size, size, _ = _NAME.unpack_from(raw, at)
        name, at = at + _NAME.size, at + _NAME.size + size + value_size
        if at > len(raw):
            raise _cut_short("a name")
        yield Name(raw[name : name + size], target, kind, raw[name + size : at])


def parse_subvolume(raw: bytes) -> tuple[int, bytes]:
    """Return folder and name by which one subvolume holds another."""
    if len(raw) < _SUBVOLUME.size:
        raise _cut_short("a subvolume's name")
    folder, _, size = _SUBVOLUME.unpack_from(raw)
    return folder, raw[_SUBVOLUME.size : _SUBVOLUME.size + size]


def parse_extent(raw: bytes) -> Extent:
    """Take an extent item apart; raises `NotUnderstood`."""
    if len(raw) < _EXTENT.size:
        raise _cut_short("an extent")
    _, unpacked, compression, encryption, other, kind = _EXTENT.unpack_from(raw)
    if encryption or other:
        raise NotUnderstood("a file that is encrypted or encoded in an unknown way")
    if kind == EXTENT_INLINE:
        return Extent(kind, unpacked, compression, raw[_EXTENT.size :], 0, 0, 0, unpacked)
    if kind not in (EXTENT_REGULAR, EXTENT_RESERVED):
        raise NotUnderstood(f"a file with extents of the unknown type {kind}")
    if len(raw) < _EXTENT.size + _EXTENT_PLACE.size:
        raise _cut_short("an extent")
    fields = _EXTENT_PLACE.unpack_from(raw, _EXTENT.size)
    return Extent(kind, unpacked, compression, b"", *fields)
