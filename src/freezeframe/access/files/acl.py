"""Access control lists, from the forms filesystems keep them in to the one `setxattr` takes.

Source: `fs/ext4/acl.c`, `fs/xfs/xfs_acl.c` and `include/uapi/linux/posix_acl_xattr.h` of Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from freezeframe.core.errors import NotUnderstood

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.Struct("<I")
_XATTR_VERSION, _EXT_VERSION = 2, 1
_ENTRY = struct.Struct("<HHI")
_SHORT_ENTRY = struct.Struct("<HH")
_XFS_COUNT = struct.Struct(">I")
_XFS_ENTRY = struct.Struct(">IIHH")
_USER, _GROUP = 2, 8
_NO_ID = 0xFFFFFFFF


def _encoded(entries: Iterable[tuple[int, int, int]]) -> bytes:
    parts = [_VERSION.pack(_XATTR_VERSION)]
    parts += [
        _ENTRY.pack(tag, permissions, owner if tag in (_USER, _GROUP) else _NO_ID)
        for tag, permissions, owner in entries
    ]
    return b"".join(parts)


def from_ext(raw: bytes) -> bytes:
    """Turn an ext2/3/4 list into the kernel's form; raises `NotUnderstood`."""
    if len(raw) < _VERSION.size or _VERSION.unpack_from(raw)[0] != _EXT_VERSION:
        raise NotUnderstood("an access control list of an unknown version")
    entries = []
    at = _VERSION.size
    while at < len(raw):
        if at + _SHORT_ENTRY.size > len(raw):
            raise NotUnderstood("an access control list that is cut short")
        tag, permissions = _SHORT_ENTRY.unpack_from(raw, at)
        owner, length = _NO_ID, _SHORT_ENTRY.size
        if tag in (_USER, _GROUP):
            if at + _ENTRY.size > len(raw):
                raise NotUnderstood("an access control list that is cut short")
            owner, length = _ENTRY.unpack_from(raw, at)[2], _ENTRY.size
        entries.append((tag, permissions, owner))
        at += length
    return _encoded(entries)


def from_xfs(raw: bytes) -> bytes:
    """Turn an XFS list into the kernel's form; raises `NotUnderstood`."""
    if len(raw) < _XFS_COUNT.size:
        raise NotUnderstood("an access control list that is cut short")
    (count,) = _XFS_COUNT.unpack_from(raw)
    if _XFS_COUNT.size + count * _XFS_ENTRY.size > len(raw):
        raise NotUnderstood("an access control list that is cut short")
    found = []
    for number in range(count):
        at = _XFS_COUNT.size + number * _XFS_ENTRY.size
        tag, owner, permissions, _ = _XFS_ENTRY.unpack_from(raw, at)
        found.append((tag, permissions, owner))
    return _encoded(found)
