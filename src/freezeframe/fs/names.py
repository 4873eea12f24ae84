"""Formats that are known by name only: no used map, so all of them is kept.

Source of the signatures: util-linux `libblkid/src/superblocks/`.
"""

from __future__ import annotations

from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.units import KIB, MIB
from freezeframe.fs.probe import little, peek


@dataclass(frozen=True, slots=True)
class Signature:
    """Bytes at a place that give a format away; a negative `offset` counts from the end."""

    name: str
    offset: int
    magic: bytes


_ISO = 32 * KIB + 1
_UFS_MAGIC = 0x55C  # 1372, where a UFS superblock keeps it
_BCACHE = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
_BCACHEFS = bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")

#: Long enough never to appear by chance.
SIGNATURES = (
    Signature("bitlocker", 3, b"-FVE-FS-"),
    Signature("refs", 3, b"ReFS\0\0\0\0"),
    Signature("iso9660", _ISO, b"CD001"),
    Signature("udf", _ISO, b"BEA01"),
    Signature("udf", _ISO, b"NSR02"),
    Signature("squashfs", 0, b"hsqs"),
    Signature("squashfs", 0, b"sqsh"),
    Signature("erofs", 1024, bytes.fromhex("e2e1f5e0")),
    Signature("bcache", 4 * KIB + 24, _BCACHE),
    Signature("bcachefs", 4 * KIB + 24, _BCACHEFS),
    Signature("reiserfs", 64 * KIB + 52, b"ReIsErFs"),
    Signature("reiserfs", 64 * KIB + 52, b"ReIsEr2Fs"),
    Signature("reiserfs", 64 * KIB + 52, b"ReIsEr3Fs"),
    Signature("reiserfs", 8 * KIB + 52, b"ReIsErFs"),
    Signature("reiserfs", 8 * KIB + 20, b"ReIsErFs"),
    Signature("reiser4", 64 * KIB, b"ReIsEr4"),
    Signature("jfs", 32 * KIB, b"JFS1"),
    Signature("apfs", 32, b"NXSB"),
    Signature("hfs+", 1024, b"H+\0\x04"),
    Signature("hfs+", 1024, b"HX\0\x05"),
    Signature("vmfs", 1 * MIB, bytes.fromhex("0dd001c0")),
    Signature("vmfs", 2 * MIB, bytes.fromhex("5ef1abf1")),
    *(
        Signature("ufs", base * KIB + _UFS_MAGIC, magic)
        for base in (0, 8, 64, 256)
        for magic in (
            bytes.fromhex("54190100"),
            bytes.fromhex("00011954"),
            bytes.fromhex("19015419"),
            bytes.fromhex("19540119"),
        )
    ),
    # Arrays made by firmware: the filesystem of a mirror shines through, as with md.
    Signature("isw_raid_member", -1024, b"Intel Raid ISM Cfg Sig. "),
    Signature("ddf_raid_member", -512, bytes.fromhex("de11de11")),
    Signature("ddf_raid_member", -512, bytes.fromhex("11de11de")),
)

_ZFS_MAGIC = 0x00BAB10C
#: The ring of uberblocks of the first label: one a KiB, if not larger.
_ZFS_RING, _ZFS_RING_SIZE = 128 * KIB, 128 * KIB

_MINIX_MAGICS = (0x137F, 0x138F, 0x2468, 0x2478)
_MINIX_3_MAGIC = 0x4D5A
_NILFS_MAGIC = 0x3434


def named(reader: Reader) -> str:
    """Return the name of a format with a strong signature; empty where there is none.

    Raises `UnreadableRange`.
    """
    for signature in SIGNATURES:
        if peek(reader, signature.offset, len(signature.magic)) == signature.magic:
            return signature.name
    ring = peek(reader, _ZFS_RING, _ZFS_RING_SIZE)
    magics = (_ZFS_MAGIC.to_bytes(8, "little"), _ZFS_MAGIC.to_bytes(8, "big"))
    if any(ring[at : at + 8] in magics for at in range(0, len(ring), KIB)):
        return "zfs_member"
    return ""


def guessed(reader: Reader) -> str:
    """Return a name by a signature so short that it may be chance; empty where there is none.

    Only for regions that nothing else recognises.
    """
    data = peek(reader, 1024, 64)
    if not data:
        return ""
    if little(data, 0, 4) == 2 and little(data, 6, 2) == _NILFS_MAGIC:
        return "nilfs2"
    # Sizes of the maps in blocks: none is empty.
    version_3 = little(data, 24, 2) == _MINIX_3_MAGIC and little(data, 6, 2)
    if version_3 or (little(data, 16, 2) in _MINIX_MAGICS and little(data, 4, 2)):
        return "minix"
    return ""
