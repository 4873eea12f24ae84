"""Swap space: its header is kept, what was swapped out is worthless after a restart.

Source: Linux `include/linux/swap.h` (`union swap_header`) and util-linux `mkswap`; the
signatures of hibernation images as `libblkid/src/superblocks/swap.c` lists them.
"""

from __future__ import annotations

import uuid

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents
from freezeframe.core.units import KIB
from freezeframe.fs.base import Peers, State, UsedMap
from freezeframe.fs.probe import big, little, peek, text

#: The signature ends the first page, whose size is the machine's.
_PAGE_SIZES = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)
_SIGNATURE_SIZE = 10
_VERSION_1, _VERSION_0 = b"SWAPSPACE2", b"SWAP-SPACE"
#: The kernel puts these in the signature's place when it hibernates.
_HIBERNATED = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")
#: TuxOnIce does so at the very start.
_TUX_ON_ICE = b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"

#: After the room for boot code.
_HEADER = 1024
#: All that is kept: boot code, header, list of bad pages, of the largest page there is.
_KEPT = 64 * KIB


def _signature(reader: Reader) -> tuple[bytes, int]:
    """Return the signature and the page size it was found with; nothing and 0 without."""
    if peek(reader, 0, len(_TUX_ON_ICE)) == _TUX_ON_ICE:
        return _TUX_ON_ICE, _PAGE_SIZES[0]
    for page in _PAGE_SIZES:
        found = peek(reader, page - _SIGNATURE_SIZE, _SIGNATURE_SIZE)
        if found in (_VERSION_1, _VERSION_0) or found.startswith(_HIBERNATED):
            return found, page
    return b"", 0


class Swap:
    """Linux swap space of both versions, pages of 4 to 64 KiB, either byte order."""

    name = "swap"

    def recognise(self, reader: Reader) -> bool:
        """Whether the first page, of any size, ends with a signature."""
        return bool(_signature(reader)[1])

    def used_map(self, reader: Reader, peers: Peers, *, state: State = State.AT_REST) -> UsedMap:
        """Return the first 64 KiB; raises `NotUnderstood` for a hibernated machine's."""
        del peers, state  # Nothing of what is swapped out is kept, in use or not.
        signature, page = _signature(reader)
        if not page:
            raise NotUnderstood("swap without a signature")
        if signature not in (_VERSION_1, _VERSION_0):
            raise NotUnderstood("swap that holds the memory of a hibernated machine")
        header = reader.read_at(_HEADER, 44)
        known = signature == _VERSION_1
        if known and 1 not in (little(header, 0, 4), big(header, 0, 4)):
            raise NotUnderstood("swap of an unknown version")
        pages = little(header, 4, 4) if little(header, 0, 4) == 1 else big(header, 4, 4)
        return UsedMap(
            self.name,
            Extents.single(0, min(_KEPT, reader.size)),
            True,
            notes=("only the header is kept",),
            label=text(header[28:44]) if known else "",
            uuid=str(uuid.UUID(bytes=header[12:28])) if known and any(header[12:28]) else "",
            block_size=page,
            span=(pages + 1) * page if known else 0,
        )


KIND = Swap()
