"""Members of Linux md arrays: kept whole, as what lies on them belongs to the array.

Source: Linux `include/uapi/linux/raid/md_p.h` and `drivers/md/md.c`. Version 0.90 and
1.0 lie at the end, so that the filesystem of a mirror shines through at the start.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB, SECTOR, align_down
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.probe import little, peek, text

_MAGIC = 0xA92B4EFC
_SUPERBLOCK = 256
_RESERVED_090 = 64 * KIB

_LEVELS = {-4: "multipath", -1: "linear", 0: "RAID0", 1: "RAID1", 10: "RAID10"}
_LEVELS |= {4: "RAID4", 5: "RAID5", 6: "RAID6"}


@dataclass(frozen=True, slots=True)
class _Superblock:
    version: str
    level: int
    disks: int
    uuid: str
    name: str


def _offsets_1(size: int) -> dict[str, int]:
    """Return where superblocks of version 1 can lie, in bytes."""
    sectors = size // SECTOR
    return {"1.2": 4 * KIB, "1.1": 0, "1.0": align_down(sectors - 16, 8) * SECTOR}


def _find(reader: Reader) -> _Superblock | None:
    for version, offset in _offsets_1(reader.size).items():
        data = peek(reader, offset, _SUPERBLOCK) if offset >= 0 else b""
        # Its own place is named in it: a disk inside a disk cannot be mistaken.
        if data and little(data, 0, 4) == _MAGIC and little(data, 4, 4) == 1:
            if little(data, 144, 8) * SECTOR != offset:
                continue
            level, disks = struct.unpack_from("<i", data, 72)[0], little(data, 92, 4)
            name = text(data[32:64])
            return _Superblock(version, level, disks, str(uuid.UUID(bytes=data[16:32])), name)
    return _find_090(reader)


def _find_090(reader: Reader) -> _Superblock | None:
    offset = align_down(reader.size, _RESERVED_090) - _RESERVED_090
    data = peek(reader, offset, _SUPERBLOCK) if offset >= 0 else b""
    # In the byte order of the machine that made it.
    for order in "<>":
        words = struct.unpack(f"{order}64I", data) if data else ()
        if words and words[:2] == (_MAGIC, 0) and 90 <= words[2] <= 91:
            level = words[7] - (1 << 32) if words[7] >> 31 else words[7]
            # Written as mdadm and blkid write it, the same in either byte order.
            raw = struct.pack(">4I", words[5], *words[13:16])
            version = f"0.{words[2]}"
            return _Superblock(version, level, words[10], str(uuid.UUID(bytes=raw)), "")
    return None


class MdMember:
    """md superblocks 0.90, 1.0, 1.1 and 1.2, of any level."""

    name = "md"

    def recognise(self, reader: Reader) -> bool:
        """Whether there is a superblock in one of the four places."""
        return _find(reader) is not None

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return the whole region."""
        del peers, state  # All of it, whatever happens inside.
        found = _find(reader)
        if found is None:
            raise NotUnderstood("md member without a superblock")
        level = _LEVELS.get(found.level, f"level {found.level}")
        return UsedMap(
            self.name,
            Extents.single(0, reader.size),
            True,
            notes=(
                f"member of an md array, {level} of {found.disks}, version {found.version}: "
                "kept whole as it is",
            ),
            label=found.name,
            uuid=found.uuid,
        )


KIND = MdMember()
