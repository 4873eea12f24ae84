"""Partition tables as they lie on disk.

GPT: UEFI specification 2.10, chapter 5 (little-endian, GUIDs with their first three
fields byte-swapped). MBR and extended boot records: the same chapter's "legacy MBR", and
what DOS, Linux and every fdisk have agreed on since.
"""

from __future__ import annotations

import struct
import uuid

# -- MBR ----------------------------------------------------------------------------

#: Length of the structure; the rest of a larger sector is not part of it.
MBR_SIZE = 512
#: Boot code lies before it; on disks that Windows or Linux know, the disk's id follows.
MBR_DISK_ID = struct.Struct("<I")
MBR_DISK_ID_AT = 440
MBR_ENTRIES_AT = 446
MBR_ENTRY_COUNT = 4
#: boot indicator, first CHS, type, last CHS, first sector, number of sectors.
MBR_ENTRY = struct.Struct("<B3sB3sII")
MBR_MAGIC = b"\x55\xaa"
MBR_MAGIC_AT = 510

MBR_INACTIVE = 0x00
MBR_ACTIVE = 0x80

MBR_TYPE_EMPTY = 0x00
MBR_TYPES_EXTENDED = frozenset((0x05, 0x0F, 0x85))
#: The one entry of a protective MBR: it keeps tools that know no GPT away.
MBR_TYPE_PROTECTIVE = 0xEE

#: Largest value of the sector fields: where an MBR ends, whatever the disk's size.
MBR_MAX_SECTOR = 0xFFFFFFFF
#: CHS of everything beyond 1023 cylinders of 255 heads and 63 sectors.
CHS_BEYOND = b"\xfe\xff\xff"
CHS_HEADS = 255
CHS_SECTORS = 63
CHS_CYLINDERS = 1024

# -- filesystem boot sectors that also end with the magic -----------------------------

#: (offset, bytes): names that FAT, NTFS, exFAT, ReFS and BitLocker put into sector 0.
BOOT_SECTOR_NAMES = (
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (3, b"-FVE-FS-"),
    (3, b"ReFS\0\0\0\0"),
    (54, b"FAT12   "),
    (54, b"FAT16   "),
    (54, b"FAT     "),
    (82, b"FAT32   "),
)
#: bytes a sector, sectors a cluster, reserved sectors, copies of the FAT; at 11.
BOOT_SECTOR_GEOMETRY = struct.Struct("<HBHB")
BOOT_SECTOR_GEOMETRY_AT = 11
BOOT_SECTOR_MEDIA_AT = 21
#: First bytes of the jump over the parameters: a short one, a near one.
BOOT_SECTOR_JUMPS = (0xEB, 0xE9)

# -- GPT ----------------------------------------------------------------------------

GPT_SIGNATURE = b"EFI PART"
GPT_REVISION = 0x00010000
#: signature, revision, header size, header CRC, reserved, own LBA, other copy's LBA,
#: first and last usable LBA, disk GUID, entries' LBA, count, size of one, entries' CRC.
GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
GPT_HEADER_CRC_AT = 16
#: type GUID, own GUID, first and last LBA, attributes, name in UTF-16LE.
GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
#: The specification's least room for entries, in bytes, and the usual number of them.
GPT_ENTRIES_ROOM = 16384
#: More than this nobody writes (32,768 entries of 128 bytes): a crafted header.
GPT_ENTRIES_LIMIT = 4 << 20
GPT_ENTRY_SIZE_LIMIT = 4096
#: Attribute bit: what a BIOS boots from.
GPT_LEGACY_BOOTABLE = 1 << 2


def guid_text(raw: bytes) -> str:
    """Write the 16 bytes of a GUID on disk as text, lower case."""
    return str(uuid.UUID(bytes_le=raw))


def chs(sector: int) -> bytes:
    """Return the three bytes of a sector's cylinder, head and sector address."""
    cylinder, rest = divmod(sector, CHS_HEADS * CHS_SECTORS)
    head, number = divmod(rest, CHS_SECTORS)
    if cylinder >= CHS_CYLINDERS:
        return CHS_BEYOND
    return bytes((head, (number + 1) | (cylinder >> 8) << 6, cylinder & 0xFF))
