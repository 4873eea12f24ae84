"""What btrfs-progs say of a btrfs, mapped to its devices one block at a time.

An independent opinion for used maps: the extents and chunks are what `btrfs
inspect-internal dump-tree` prints, and the arithmetic is the plainest there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeframe.core.units import KIB
from freezeframe.system.run import run

_BLOCK = 4 * KIB
_ELEMENT = 64 * KIB
_CHUNK = re.compile(r"CHUNK_ITEM (\d+)\)")
_LENGTH = re.compile(r"length (\d+) owner \d+ stripe_len \d+ type (\S+)")
_STRIPE = re.compile(r"stripe \d+ devid (\d+) offset (\d+)")
_DATA = re.compile(r"item \d+ key \((\d+) EXTENT_ITEM (\d+)\)")
_METADATA = re.compile(r"item \d+ key \((\d+) METADATA_ITEM \d+\)")


@dataclass(slots=True)
class _Chunk:
    start: int
    length: int
    profile: str
    #: (device id, offset on it)
    stripes: list[tuple[int, int]]


def _dump(tree: str, devices: list[Path | str]) -> str:
    # The tool finds other members only among block devices; files have none.
    command = ("btrfs", "inspect-internal", "dump-tree", "-t", tree, str(devices[0]))
    return run(command).stdout.decode(errors="replace")


def _chunks(text: str) -> list[_Chunk]:
    found: list[_Chunk] = []
    for line in text.splitlines():
        if match := _CHUNK.search(line):
            found.append(_Chunk(int(match[1]), 0, "", []))
        elif match := _LENGTH.search(line):
            found[-1].length = int(match[1])
            found[-1].profile = match[2].rpartition("|")[2]
        elif match := _STRIPE.search(line):
            found[-1].stripes.append((int(match[1]), int(match[2])))
    return found


def _extents(text: str, node: int) -> Iterator[tuple[int, int]]:
    for match in _DATA.finditer(text):
        yield int(match[1]), int(match[2])
    for match in _METADATA.finditer(text):
        yield int(match[1]), node


def _places(chunk: _Chunk, offset: int) -> Iterator[tuple[int, int]]:
    """Give (device id, byte) of each copy of a block; parity is left out."""
    stripes = chunk.stripes
    count = len(stripes)
    number = offset // _ELEMENT
    inside = offset % _ELEMENT
    if chunk.profile in ("RAID5", "RAID6"):
        data = count - (1 if chunk.profile == "RAID5" else 2)
        chosen = [(number // data + number % data) % count]
        row = number // data
    elif chunk.profile == "RAID0":
        chosen, row = [number % count], number // count
    elif chunk.profile == "RAID10":
        pair = number % (count // 2)
        chosen, row = [2 * pair, 2 * pair + 1], number // (count // 2)
    else:
        chosen, row, inside = list(range(count)), 0, offset
    for index in chosen:
        yield stripes[index][0], stripes[index][1] + row * _ELEMENT + inside


def needed_blocks(devices: list[Path | str], node: int) -> dict[int, set[int]]:
    """Return the 4 KiB blocks that extents take, by device id: offsets in bytes.

    Data and metadata in all their copies; parity, superblocks and reserved areas not.
    """
    chunks = _chunks(_dump("chunk", devices))
    found: dict[int, set[int]] = {}
    for start, length in _extents(_dump("extent", devices), node):
        chunk = next(c for c in chunks if c.start <= start < c.start + c.length)
        for logical in range(start, start + length, _BLOCK):
            for device, offset in _places(chunk, logical - chunk.start):
                found.setdefault(device, set()).add(offset)
    return found
