"""Whether an NTFS volume was closed in peace: only then its bitmap is true on disk.

Three witnesses, as ntfs-3g asks them: the volume's flags, the restart pages of $LogFile
(`libntfs-3g/logfile.c`), and the hibernation file of Windows (`libntfs-3g/volume.c`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from freezeframe.core.errors import NotUnderstood
from freezeframe.fs.ntfs.structs import (
    BLOCK,
    DATA,
    INDEX_ALLOCATION,
    INDEX_ROOT,
    LOG_FILE,
    ROOT,
    VOLUME,
    VOLUME_CHKDSK_UNDERWAY,
    VOLUME_DIRTY,
    VOLUME_INFORMATION,
    VOLUME_NAME,
    unprotect,
)
from freezeframe.fs.ntfs.volume import Stream, Volume
from freezeframe.fs.probe import little, power_of_two

_VERSIONS = ((1, 2), (3, 0), (3, 1))

_EMPTY = b"\xff\xff\xff\xff"
_RESTART, _CHECKED = b"RSTR", b"CHKD"
_NO_CLIENT = 0xFFFF
_RESTART_CLEAN = 0x0002
#: Bytes before the array of clients: all fields asked for lie there, in the first block.
_RESTART_AREA = 48
_SMALLEST_PAGE = 512
_LARGEST_PAGE = 64 << 10
#: Drivers take no log smaller than that.
_SMALLEST_LOG = 2 * _LARGEST_PAGE

_HIBERNATION_FILE = "hiberfil.sys"
#: Saved, or just being restored; `wake` would be one that was used up.
_HIBERNATED = (b"hibr", b"HIBR", b"rstr", b"RSTR")
_HIBERNATION_HEADER = 4096
#: The root folder's index: more than that is no ordinary volume.
_LARGEST_INDEX = 16 << 20
_REFERENCE = (1 << 48) - 1
_LAST_ENTRY = 0x02


def check_clean(volume: Volume) -> str:
    """Return the volume's label; raise `NotUnderstood` where its bitmap may be stale."""
    information = volume.stream(VOLUME, VOLUME_INFORMATION)
    if information is None or len(information.value) < 12:
        raise NotUnderstood("NTFS without volume information")
    version = information.value[8], information.value[9]
    if version not in _VERSIONS:
        raise NotUnderstood(f"NTFS of the unknown version {version[0]}.{version[1]}")
    flags = little(information.value, 10, 2)
    if flags & VOLUME_DIRTY:
        raise NotUnderstood("NTFS is marked dirty: it was not unmounted, or wants chkdsk")
    if flags & VOLUME_CHKDSK_UNDERWAY:
        raise NotUnderstood("NTFS in the middle of chkdsk")
    _check_log(volume)
    _check_hibernation(volume)
    name = volume.stream(VOLUME, VOLUME_NAME)
    return name.value.decode("utf-16-le", "replace") if name else ""


# -- $LogFile -----------------------------------------------------------------------


class _RestartPage(NamedTuple):
    lsn: int
    version: tuple[int, int]
    clean: bool


def _check_log(volume: Volume) -> None:
    log = volume.stream(LOG_FILE, DATA)
    if log is None or log.resident or not log.plain or log.size < _SMALLEST_LOG:
        raise NotUnderstood("NTFS without a journal as it must be")
    first = volume.read(log, 0, BLOCK)
    if first[:4] == _EMPTY:
        _check_empty(volume, log)
        return
    size = little(first, 16, 4)
    if not power_of_two(size, _SMALLEST_PAGE, _LARGEST_PAGE):
        raise NotUnderstood("NTFS whose journal has pages of an impossible size")
    pages = [_restart_page(volume.read(log, n * size, size)) for n in (0, 1)]
    newest = max(pages)
    if newest.version != (1, 1):
        # 2.0: Windows 8 and later keep what they have not written yet in a cache of the
        # disk, and set 1.1 again when they let go of it.
        raise NotUnderstood(
            f"NTFS whose journal has version {newest.version[0]}.{newest.version[1]}: "
            "Windows was not shut down in full (fast startup), or the disk was pulled out"
        )
    if not newest.clean:
        raise NotUnderstood("NTFS whose journal was not closed")


def _check_empty(volume: Volume, log: Stream) -> None:
    """Look where pages could begin, as drivers do: emptied logs hold nothing but ones."""
    offset = _SMALLEST_PAGE
    while offset + BLOCK <= log.size:
        if volume.read(log, offset, 4) != _EMPTY:
            raise NotUnderstood("NTFS whose journal is empty in part")
        offset *= 2


def _restart_page(raw: bytes) -> _RestartPage:
    """Read a restart page; `NotUnderstood` where it is damaged."""
    magic = raw[:4]
    if magic not in (_RESTART, _CHECKED):
        raise NotUnderstood("NTFS whose journal has no restart page where it must be")
    # chkdsk writes pages without an update sequence.
    page = raw if magic == _CHECKED and not little(raw, 6, 2) else unprotect(raw, magic)
    start = little(page, 24, 2)
    if start % 8 or start < 30 or start + _RESTART_AREA > BLOCK - 2:
        raise NotUnderstood("NTFS whose journal has an impossible restart page")
    lsn = little(page, start, 8) if magic == _RESTART else little(page, 8, 8)
    in_use, flags = little(page, start + 12, 2), little(page, start + 14, 2)
    clean = in_use == _NO_CLIENT or bool(flags & _RESTART_CLEAN)
    return _RestartPage(lsn, (little(page, 28, 2), little(page, 26, 2)), clean)


# -- hibernation --------------------------------------------------------------------


def _check_hibernation(volume: Volume) -> None:
    for number in set(_hibernation_files(volume)):
        file = volume.stream(number, DATA)
        if file is None or file.size < _HIBERNATION_HEADER:
            continue
        if file.initialized < _HIBERNATION_HEADER:
            # Never written: nothing but zeros.
            continue
        if not file.plain:
            raise NotUnderstood("NTFS with a hibernation file of an unknown form")
        if volume.read(file, 0, 4) in _HIBERNATED:
            raise NotUnderstood("NTFS of a Windows that is hibernated, not shut down")


def _hibernation_files(volume: Volume) -> Iterator[int]:
    """Give the records that the root folder calls `hiberfil.sys`.

    All blocks are looked at, in use or not, in place of a search by collation: what is
    left over there from before may ask for a look too much, never one too few.
    """
    root = volume.stream(ROOT, INDEX_ROOT, "$I30")
    if root is None or not root.resident:
        raise NotUnderstood("NTFS without a root folder")
    # The header of the root is 16 bytes, of which nothing is needed.
    yield from _named_entries(root.value, 16)
    blocks = volume.stream(ROOT, INDEX_ALLOCATION, "$I30")
    if blocks is None:
        return
    if blocks.resident or not blocks.plain or blocks.size > _LARGEST_INDEX:
        raise NotUnderstood("NTFS with an impossible root folder")
    size = volume.geometry.index
    for offset in range(0, min(blocks.size, blocks.initialized) // size * size, size):
        raw = volume.read(blocks, offset, size)
        if raw[:4] == b"INDX":
            yield from _named_entries(unprotect(raw, b"INDX"), 24)


def _named_entries(data: bytes, header: int) -> Iterator[int]:
    """Walk index entries: `header` is where offsets in the index header count from."""
    offset = header + little(data, header, 4)
    stop = min(header + little(data, header + 4, 4), len(data))
    while offset + 16 <= stop:
        length, key, flags = (little(data, offset + at, 2) for at in (8, 10, 12))
        if flags & _LAST_ENTRY:
            return
        if length < 16 or offset + length > stop:
            break
        name = offset + 16
        if key >= 66 and name + key <= stop:
            characters = data[name + 66 : name + 66 + 2 * data[name + 64]]
            if characters.decode("utf-16-le", "replace").lower() == _HIBERNATION_FILE:
                yield little(data, offset, 8) & _REFERENCE
        offset += length
    raise NotUnderstood("NTFS folder whose index does not end")
