"""Tables and arrays that are recognised only to leave their disk alone.

Sources: util-linux `libblkid/src/partitions/` and `superblocks/*_raid.c`, and the kernel's
`Documentation/admin-guide/md.rst` for md.
"""

from __future__ import annotations

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import UnreadableRange
from freezeframe.core.units import KIB, align_down

_SUN_MAGIC = b"\xda\xbe"
_SUN_MAGIC_AT = 508
_SUN_LABEL = 512

#: (offset, magic, name)
_TABLES = (
    (512, b"PM\0\0", "an Apple partition map"),
    (0, b"\x0b\xe5\xa9\x41", "an SGI disk label"),
    (0, b"\xc9\xc2\xd4\xc1", "an AIX disk label"),
    (512, b"\x57\x45\x56\x82", "a BSD disk label"),
    (64, b"\x57\x45\x56\x82", "a BSD disk label"),
)

_MD_MAGIC = b"\xfc\x4e\x2b\xa9"
#: (bytes before the disk's end, magic, name)
_ARRAYS = (
    (1024, b"Intel Raid ISM Cfg Sig. ", "Intel"),
    (512, b"\xde\x11\xde\x11", "DDF"),
    (512, b"\x11\xde\x11\xde", "DDF"),
    (1024, b"NVIDIA  ", "NVIDIA"),
    (512, b"$XIDE$", "LSI"),
    *((sectors * 512, b"Promise Technology, Inc.", "Promise") for sectors in (63, 255, 256, 16)),
)


def foreign_table(reader: Reader) -> str:
    """Return the name of a partition table that is neither GPT nor MBR; empty for none."""
    for offset, magic, name in _TABLES:
        if _read(reader, offset, len(magic)) == magic:
            return name
    label = _read(reader, 0, _SUN_LABEL)
    if label[_SUN_MAGIC_AT:][:2] == _SUN_MAGIC:
        # Two bytes may be chance: all of its words together make zero.
        words = np.frombuffer(label, ">u2")
        if not int(np.bitwise_xor.reduce(words)):
            return "a Sun disk label"
    return ""


def array_member(reader: Reader) -> tuple[int, str]:
    """Return (offset, name) of what makes the whole disk a member of an array.

    The name is empty for none. The table and filesystems one sees on such a disk are the
    array's, and lie elsewhere if it stripes. Only formats whose data begins at the disk's
    first byte: others show no table.
    """
    places = [(reader.size - back, magic, name) for back, magic, name in _ARRAYS]
    places.append((align_down(reader.size, 64 * KIB) - 64 * KIB, _MD_MAGIC, "md 0.90"))
    places.append((align_down(reader.size - 8 * KIB, 4 * KIB), _MD_MAGIC, "md 1.0"))
    for offset, magic, name in places:
        if _read(reader, offset, len(magic)) == magic:
            return offset, name
    return 0, ""


def _read(reader: Reader, offset: int, length: int) -> bytes:
    if offset < 0 or offset + length > reader.size:
        return b""
    try:
        return reader.read_at(offset, length)
    except UnreadableRange:
        return b""
