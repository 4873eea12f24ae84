"""Raw pieces of a layout, and the field's own dump: for people, beside the image."""

from __future__ import annotations

from collections.abc import Sequence

from freezeframe.block.base import Reader
from freezeframe.core.errors import FreezeframeError, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import MIB
from freezeframe.layout.base import Region, Role
from freezeframe.layout.gpt import Gpt
from freezeframe.system.run import run

#: What of the gap before the first partition is kept as a piece; the image has all of it.
_BOOT_GAP = 2 * MIB
#: Seconds for a program that reads a few sectors.
_PATIENCE = 30.0


def gpt_pieces(reader: Reader, gpt: Gpt) -> dict[str, bytes]:
    """Return both copies as they lie on disk.

    `gpt-primary.bin` is the header's sector and then the entries, `gpt-backup.bin` the
    entries and then the header's sector. A damaged copy is kept as well, as long as it
    can be read.
    """
    pieces = {}
    spans = {
        "gpt-primary.bin": gpt.primary_spans,
        "gpt-backup.bin": gpt.backup_spans[::-1],
    }
    for name, parts in spans.items():
        try:
            pieces[name] = b"".join(
                reader.read_at(start, min(stop, reader.size) - start) for start, stop in parts
            )
        except UnreadableRange:
            continue
    return pieces


def boot_gap_piece(reader: Reader, regions: Sequence[Region], content: Extents) -> dict[str, bytes]:
    """Return `boot-gap.bin`: the gap before the first partition, up to its last used byte.

    At most 2 MiB; none where the gap is zeros, unreadable, or there is no partition.
    """
    gap = None
    for region in regions:
        if region.role is Role.PARTITION:
            break
        if region.role is Role.GAP and gap is None:
            gap = region
    else:
        return {}
    if gap is None:
        return {}
    end = content.clip(gap.start, min(gap.stop, gap.start + _BOOT_GAP)).end
    if end <= gap.start:
        return {}
    try:
        return {"boot-gap.bin": reader.read_at(gap.start, end - gap.start)}
    except UnreadableRange:
        return {}


def sfdisk_dump(path: str | None, sector: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return `sfdisk.dump` and notes. A missing or failing program is a note."""
    if path is None:
        return {}, ()
    try:
        dump = run(("sfdisk", "--dump", path), timeout=_PATIENCE).stdout
    except FreezeframeError as error:
        return {}, (f"there is no sfdisk.dump: {error.message}",)
    if f"\nsector-size: {sector}\n".encode() not in dump:
        # It takes every file for a disk of 512-byte sectors.
        return {}, ("there is no sfdisk.dump: sfdisk counts in other sectors than the table",)
    return {"sfdisk.dump": dump}, ()
