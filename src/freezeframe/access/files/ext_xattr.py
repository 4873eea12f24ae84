"""Extended attributes of ext: in the inode, in a block beside it, or in inodes of their own.

Source: fs/ext4/xattr.h of Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from freezeframe.access.files import acl
from freezeframe.access.files.base import LARGEST_XATTR
from freezeframe.core.errors import NotUnderstood

_MAGIC = (0xEA020000).to_bytes(4, "little")
_BLOCK_HEADER = 32
#: name length, name index, where the value is, its inode, its size, hash
_ENTRY = struct.Struct("<BBHIII")
_SYSTEM_DATA = (7, b"data")
_PREFIXES = {1: b"user.", 4: b"trusted.", 6: b"security.", 7: b"system."}
_ACLS = {2: acl.ACCESS, 3: acl.DEFAULT}

#: Reads a value from an inode: number of the inode, bytes.
ReadValue = Callable[[int, int], bytes]


def in_inode(raw: bytes, start: int, read: ReadValue) -> dict[bytes, bytes]:
    """Return the attributes that lie in an inode, behind its fields."""
    if raw[start : start + 4] != _MAGIC:
        return {}
    return _named(raw, start + 4, start + 4, read)


def in_block(raw: bytes, read: ReadValue) -> dict[bytes, bytes]:
    """Return the attributes of a block; raises `NotUnderstood`."""
    if raw[:4] != _MAGIC:
        raise NotUnderstood("a damaged block of extended attributes")
    return _named(raw, _BLOCK_HEADER, 0, read)


def inline_data(raw: bytes, start: int) -> bytes:
    """Return what of a file's content lies among the attributes of its inode."""
    if raw[start : start + 4] != _MAGIC:
        return b""
    for index, name, at, _, size in _entries(raw, start + 4):
        if (index, name) == _SYSTEM_DATA:
            return raw[start + 4 + at : start + 4 + at + size]
    return b""


def _named(raw: bytes, first: int, base: int, read: ReadValue) -> dict[bytes, bytes]:
    found = {}
    for index, name, at, inode, size in _entries(raw, first):
        if (index, name) == _SYSTEM_DATA:
            continue
        if size > LARGEST_XATTR:
            raise NotUnderstood("an extended attribute that is too large")
        value = read(inode, size) if inode else raw[base + at : base + at + size]
        if len(value) != size:
            raise NotUnderstood("an extended attribute that is cut short")
        if index in _ACLS:
            found[_ACLS[index]] = acl.from_ext(value)
        elif index in _PREFIXES:
            found[_PREFIXES[index] + name] = value
    return found


def _entries(raw: bytes, at: int) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Give name index, name, place, inode and size of each value."""
    while at + 4 <= len(raw) and raw[at : at + 4] != b"\0\0\0\0":
        if at + _ENTRY.size > len(raw):
            raise NotUnderstood("extended attributes that are cut short")
        length, index, place, inode, size, _ = _ENTRY.unpack_from(raw, at)
        name = raw[at + _ENTRY.size : at + _ENTRY.size + length]
        yield index, name, place, inode, size
        at += (_ENTRY.size + length + 3) & ~3
