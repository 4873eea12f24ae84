"""Damage a filesystem again and again, and read all of its files each time.

Run as a program, in a process of its own with limits:
`python -m freezeframe.testing.filefuzz KIND IMAGE ROUNDS SEED`. It prints how often something
was refused, and fails where anything but an error the program can explain comes out.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from pathlib import Path

import numpy as np

from freezeframe.access.files.base import STEP
from freezeframe.access.files.tree import Place, volume_tree
from freezeframe.access.files.volumes import Volume
from freezeframe.access.files.walk import walk
from freezeframe.block.base import Reader
from freezeframe.block.memory import MemoryBlocks
from freezeframe.core.errors import FreezeframeError
from freezeframe.fs.base import PeerList
from freezeframe.fs.crc32c import crc32c

#: Bytes this process may have, and seconds of processor time.
_MEMORY = 1 << 30
_SECONDS = 120
#: Of each file, as much is read: a crafted one may say it has exabytes.
_READ = 4 * STEP
#: Metadata lie there, mostly: the rest of a block is data, which nobody checks.
_BLOCK = 4096
_BTRFS_NODE = 16384
_BTRFS_SUPERBLOCK = 65536
_FSID = slice(0x20, 0x30)


def main() -> None:
    """Read the arguments, and do it."""
    kind, image, rounds, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    disk = MemoryBlocks(image.read_bytes())
    used = _metadata(kind, disk.read_at(0, disk.size))
    refused = 0
    for number in range(rounds):
        some = random.Random(f"{seed} {number}")
        undo = _damage(kind, disk, used, some)
        refused += read_all(kind, disk)
        for at, data in reversed(undo):
            disk.write_at(at, data)
    print(f"{rounds} rounds, {refused} refusals")


def _metadata(kind: str, whole: bytes) -> list[int]:
    """Return blocks that hold something with structure: few distinct bytes, not all the same."""
    blocks = np.frombuffer(whole, np.uint8, len(whole) // _BLOCK * _BLOCK).reshape(-1, _BLOCK)
    if kind == "btrfs":
        fsid = np.frombuffer(whole, np.uint8, 16, _BTRFS_SUPERBLOCK + 0x20)
        found = [
            number
            for number in range(0, len(blocks), _BTRFS_NODE // _BLOCK)
            if (blocks[number][_FSID] == fsid).all()
        ]
        return found or [_BTRFS_SUPERBLOCK // _BLOCK]
    return [n for n in np.flatnonzero(blocks.any(axis=1)).tolist() if _structured(blocks[n])]


def _structured(block: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bool:
    return bool((block == 0).sum() > _BLOCK // 16)


def _damage(
    kind: str, disk: MemoryBlocks, used: list[int], some: random.Random
) -> list[tuple[int, bytes]]:
    """Change some bytes; return what was there before."""
    undo = []
    size = _BTRFS_NODE if kind == "btrfs" else _BLOCK
    for _ in range(some.choice((1, 1, 2, 4, 16))):
        start = some.choice(used) * _BLOCK
        before = disk.read_at(start, min(size, disk.size - start))
        undo.append((start, before))
        data = bytearray(before)
        # What is there rather than the zeros between.
        at = some.choice([at for at, byte in enumerate(data) if byte] or [0])
        length = some.choice((1, 1, 2, 4, 8))
        value = some.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\1", some.randbytes(1)))
        data[at : at + length] = (value * length)[: len(data) - at]
        if some.random() < 0.2:
            data = bytearray(disk.read_at(some.choice(used) * _BLOCK, len(before)))
        if kind == "btrfs":
            _sign(data, 4096 if start == _BTRFS_SUPERBLOCK else size)
        disk.write_at(start, data)
    return undo


def _sign(data: bytearray, size: int) -> None:
    """Give a block of btrfs the checksum it needs to be believed."""
    total = crc32c(bytes(data[0x20:size])) ^ 0xFFFFFFFF
    data[:4] = total.to_bytes(4, "little")


def read_all(kind: str, reader: Reader) -> int:
    """Read every file of a filesystem; return how often something was refused."""
    volume = Volume(
        name="it",
        content=kind,
        size=reader.size,
        label="",
        uuid="",
        aliases=frozenset(),
        _reader=lambda: reader,
        _peers=lambda: PeerList((reader,)),
    )
    refused: list[str] = []
    try:
        tree = volume_tree(volume)
        start = tree.root()
    except FreezeframeError:
        return 1
    for place in walk(tree, start, lambda _, error: refused.append(error.message)):
        try:
            _read(place)
        except FreezeframeError as error:
            refused.append(error.message)
    return len(refused)


def _read(place: Place) -> None:
    stat = place.stat()
    place.xattrs()
    if stat.is_link:
        place.read_link()
    if stat.is_file:
        left = _READ
        for _, data in place.data():
            left -= len(data)
            if left < 0:
                return
    os.makedev(*stat.device)


if __name__ == "__main__":
    main()
