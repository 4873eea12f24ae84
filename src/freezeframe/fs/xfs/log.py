"""Whether the log of an XFS filesystem is clean: its last record is an unmount record.

Every sector of the log carries the number of the cycle (round) it was written in, so the
head is where that number falls by one. The kernel's xlog_find_head and xlog_find_tail decide
likewise; where those would mend, this refuses.
"""

from __future__ import annotations

import numpy as np

from freezeframe.block.base import Reader
from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Int64Array
from freezeframe.core.units import MIB
from freezeframe.fs.crc32c import crc32c
from freezeframe.fs.xfs import structs
from freezeframe.fs.xfs.structs import LOG_SECTOR

#: Sectors before the head in which records may be incomplete.
_WINDOW = structs.LOG_RECORDS_IN_FLIGHT * structs.LOG_LARGEST_RECORD // LOG_SECTOR


class _Log:
    """The sectors of a log, and their cycles."""

    def __init__(self, reader: Reader, offset: int, length: int) -> None:
        self._reader = reader
        self._offset = offset
        self.sectors = length // LOG_SECTOR

    def read(self, first: int, count: int) -> bytes:
        """Read `count` sectors from `first`, going on at the start past the end."""
        before_end = min(count, self.sectors - first)
        data = self._reader.read_at(self._offset + first * LOG_SECTOR, before_end * LOG_SECTOR)
        if before_end < count:
            data += self._reader.read_at(self._offset, (count - before_end) * LOG_SECTOR)
        return data

    def cycle(self, sector: int) -> int:
        """Return the cycle a sector was written in."""
        return int(_cycles(self.read(sector, 1))[0])


def _first_words(data: bytes) -> Int64Array:
    return np.frombuffer(data, ">u4").reshape(-1, LOG_SECTOR // 4)[:, 0].astype(np.int64)


def _cycles(data: bytes) -> Int64Array:
    words = np.frombuffer(data, ">u4").reshape(-1, LOG_SECTOR // 4)
    return np.where(words[:, 0] == structs.LOG_MAGIC, words[:, 1], words[:, 0]).astype(np.int64)


def verify_log_clean(reader: Reader, offset: int, length: int, uuid: bytes) -> None:
    """Raise `NotUnderstood` unless the log at `offset` (both in bytes) ends with an unmount.

    A log of nothing but zeros was never used and is clean.
    """
    log = _Log(reader, offset, length)
    first, last = log.cycle(0), log.cycle(log.sectors - 1)
    if first == 0:
        _verify_zero(log)
        return
    if _is_formatted(log, first, last, uuid):
        return
    head = log.sectors if first == last else _find_head(log, first, last)
    window = min(_WINDOW, log.sectors)
    start = (head - window) % log.sectors
    data = log.read(start, window)
    cycles = _cycles(data)
    # Sectors from before the log's end were written one cycle earlier.
    wrapped = max(0, window - head)
    if (cycles[wrapped:] != first).any() or (cycles[:wrapped] != last).any():
        raise NotUnderstood("the XFS log has unfinished writes: it was not unmounted cleanly")
    headers = np.flatnonzero(_first_words(data) == structs.LOG_MAGIC)
    if not len(headers):
        raise NotUnderstood("the XFS log has no record before its head")
    record = int(headers[-1])
    place = (start + record) % log.sectors
    _verify_unmount(data[record * LOG_SECTOR :], place, uuid)


def _is_formatted(log: _Log, first: int, last: int, uuid: bytes) -> bool:
    """Whether xfs_repair or xfs_admin wrote this log anew, and nobody wrote to it since.

    They put an unmount record without a checksum at the start, and records of the cycle
    before from some way on. Zeros lie between, which no mounted filesystem leaves in a log
    that went round; its first record goes to the start.
    """
    if last != first - 1 or not last:
        return False
    window = min(_WINDOW, log.sectors)
    data = log.read(0, window)
    words = _first_words(data)
    if words[0] != structs.LOG_MAGIC or any(data[structs.LOG_CHECKSUM :][:4]):
        return False
    zeros = np.flatnonzero(words == 0)
    if not len(zeros):
        return False
    begin, end = int(zeros[0]), int(zeros[-1]) + 1
    if any(data[begin * LOG_SECTOR : end * LOG_SECTOR]) or (_cycles(data)[end:] != last).any():
        return False
    _verify_unmount(data[: begin * LOG_SECTOR], 0, uuid)
    return True


def _verify_zero(log: _Log) -> None:
    step = MIB // LOG_SECTOR
    for first in range(0, log.sectors, step):
        if any(log.read(first, min(step, log.sectors - first))):
            raise NotUnderstood("the XFS log begins with zeros, but holds something")


def _find_head(log: _Log, first: int, last: int) -> int:
    """Return the first sector of the cycle before, by bisection."""
    if last != first - 1:
        raise NotUnderstood(f"the XFS log begins in cycle {first} and ends in cycle {last}")
    low, high = 0, log.sectors - 1
    while high - low > 1:
        middle = (low + high) // 2
        cycle = log.cycle(middle)
        if cycle == first:
            low = middle
        elif cycle == last:
            high = middle
        else:
            raise NotUnderstood(f"the XFS log has cycle {cycle} between {first} and {last}")
    return high


def _verify_unmount(record: bytes, place: int, uuid: bytes) -> None:
    """Check that `record` is one unmount record, all of it, and belongs at sector `place`."""
    _, cycle, version, length, own_place, _, checksum, _, operations = (
        structs.LOG_HEADER.unpack_from(record)
    )
    if own_place != cycle << 32 | place:
        raise NotUnderstood("the last record of the XFS log is not where it says")
    owner = record[structs.LOG_HEADER_UUID : structs.LOG_HEADER_UUID + 16]
    if any(owner) and owner != uuid:
        raise NotUnderstood("the XFS log belongs to another filesystem")
    header_sectors = _header_sectors(record, version)
    body = header_sectors * LOG_SECTOR
    if body + -(-length // LOG_SECTOR) * LOG_SECTOR != len(record):
        raise NotUnderstood("the last record of the XFS log is not complete")
    if operations != 1 or length < structs.LOG_OPERATION.size:
        raise NotUnderstood("the XFS log holds changes not yet written: not unmounted cleanly")
    _, _, client, flags, _ = structs.LOG_OPERATION.unpack_from(record, body)
    if client != structs.LOG_CLIENT or not flags & structs.LOG_UNMOUNT:
        raise NotUnderstood("the XFS log holds changes not yet written: not unmounted cleanly")
    # Whoever formats or repairs a filesystem writes a record without a checksum.
    if checksum and not _checksum_matches(record, header_sectors, length):
        raise NotUnderstood("the last record of the XFS log does not have the checksum it states")


def _header_sectors(record: bytes, version: int) -> int:
    if not version & structs.LOG_VERSION_2:
        return 1
    at = structs.LOG_HEADER_SIZE_FIELD
    size = int.from_bytes(record[at : at + 4], "big")
    if size > structs.LOG_LARGEST_RECORD:
        raise NotUnderstood(f"the XFS log states records of {size} bytes")
    return max(1, -(-size // structs.LOG_HEADER_COVERS))


def _checksum_matches(record: bytes, header_sectors: int, length: int) -> bool:
    at = structs.LOG_CHECKSUM
    stored = int.from_bytes(record[at : at + 4], "little")
    body = header_sectors * LOG_SECTOR
    for covered in structs.LOG_HEADER_LENGTHS:
        register = crc32c(record[:at] + bytes(4) + record[at + 4 : covered])
        for sector in range(1, header_sectors):
            more = sector * LOG_SECTOR
            register = crc32c(record[more : more + structs.LOG_MORE_HEADER_LENGTH], register)
        register = crc32c(record[body : body + length], register)
        if register ^ 0xFFFFFFFF == stored:
            return True
    return False
