"""Extended attributes of XFS. Source: as `xfs_structs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from freezeframe.access.files import acl
from freezeframe.access.files.base import LARGEST_XATTR
from freezeframe.access.files.xfs_fork import Extent
from freezeframe.access.files.xfs_structs import (
    ATTRIBUTE_LEAVES,
    ATTRIBUTE_NODES,
    LEAF_ENTRY,
    LEAF_HEADER_SIZE,
    LINKS_SIZE,
    NODE_HEADER_SIZE,
    REMOTE_HEADER,
    REMOTE_MAGIC,
    AttributeFlag,
)
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.units import MIB
from freezeframe.fs.probe import big
from freezeframe.fs.xfs.structs import VERSION_5

#: Reads a block of the fork by its number there.
ReadBlock = Callable[[int], bytes]
#: All attributes of one file, at most; a kernel lists names of 64 KiB together.
_MOST_BYTES = 64 * MIB
_SGI_ACLS = {b"SGI_ACL_FILE": acl.ACCESS, b"SGI_ACL_DEFAULT": acl.DEFAULT}


def bounded(extents: Iterable[Extent], block_size: int) -> Iterator[Extent]:
    """Give extents; raises `NotUnderstood` where they hold more than attributes can."""
    total = 0
    for extent in extents:
        total += extent.count * block_size
        if total > _MOST_BYTES:
            raise NotUnderstood("extended attributes of an impossible size")
        yield extent


def short(raw: bytes) -> dict[bytes, bytes]:
    """Return attributes that lie in their inode."""
    count = raw[2]
    found: dict[bytes, bytes] = {}
    at = 4
    for _ in range(count):
        if at + 3 > len(raw):
            raise NotUnderstood("extended attributes that are cut short")
        size, value_size, flags = raw[at : at + 3]
        value = at + 3 + size
        if value + value_size > len(raw):
            raise NotUnderstood("extended attributes that are cut short")
        _add(found, flags, raw[at + 3 : value], raw[value : value + value_size])
        at = value + value_size
    return found


def of_blocks(read: ReadBlock, version: int, blocks: int) -> dict[bytes, bytes]:
    """Return attributes that lie in blocks, `blocks` of them; raises `NotUnderstood`."""
    found: dict[bytes, bytes] = {}
    number, seen = _first_leaf(read, version), 0
    while True:
        leaf = read(number)
        if big(leaf, 8, 2) not in ATTRIBUTE_LEAVES:
            raise NotUnderstood("a damaged block of extended attributes")
        _leaf(leaf, read, version, found)
        number, seen = big(leaf, 0, 4), seen + 1
        if not number:
            return found
        if seen > blocks:
            raise NotUnderstood("extended attributes that go in circles")


def _first_leaf(read: ReadBlock, version: int) -> int:
    number = 0
    for _ in range(8):
        block = read(number)
        if big(block, 8, 2) not in ATTRIBUTE_NODES:
            return number
        number = big(block, NODE_HEADER_SIZE[version] + 4, 4)
    raise NotUnderstood("extended attributes in a tree that is too deep")


def _leaf(leaf: bytes, read: ReadBlock, version: int, found: dict[bytes, bytes]) -> None:
    start, count = LEAF_HEADER_SIZE[version], big(leaf, LINKS_SIZE[version], 2)
    if start + count * LEAF_ENTRY.size > len(leaf):
        raise NotUnderstood("a damaged block of extended attributes")
    for number in range(count):
        _, at, flags = LEAF_ENTRY.unpack_from(leaf, start + number * LEAF_ENTRY.size)
        if flags & AttributeFlag.LOCAL:
            value_size, size = big(leaf, at, 2), big(leaf, at + 2, 1)
            name = leaf[at + 3 : at + 3 + size]
            value = leaf[at + 3 + size : at + 3 + size + value_size]
        else:
            block, value_size, size = big(leaf, at, 4), big(leaf, at + 4, 4), big(leaf, at + 8, 1)
            name = leaf[at + 9 : at + 9 + size]
            if flags & AttributeFlag.INCOMPLETE:
                continue
            value = _remote(read, block, value_size, version)
        if len(name) != size or len(value) != value_size:
            raise NotUnderstood("a damaged block of extended attributes")
        _add(found, flags, name, value)


def _remote(read: ReadBlock, block: int, size: int, version: int) -> bytes:
    """Read a value that lies in blocks of its own."""
    if size > LARGEST_XATTR:
        raise NotUnderstood("an extended attribute that is too large")
    parts, left = [], size
    while left > 0:
        raw = read(block)
        if version == VERSION_5:
            if raw[:4] != REMOTE_MAGIC:
                raise NotUnderstood("a damaged extended attribute")
            raw = raw[REMOTE_HEADER:]
        parts.append(raw[:left])
        left -= len(parts[-1])
        block += 1
    return b"".join(parts)


def _add(found: dict[bytes, bytes], flags: int, name: bytes, value: bytes) -> None:
    if flags & (AttributeFlag.INCOMPLETE | AttributeFlag.PARENT):
        return
    if flags & AttributeFlag.ROOT:
        if name in _SGI_ACLS:
            found[_SGI_ACLS[name]] = acl.from_xfs(value)
        else:
            found[b"trusted." + name] = value
    elif flags & AttributeFlag.SECURE:
        found[b"security." + name] = value
    else:
        found[b"user." + name] = value
