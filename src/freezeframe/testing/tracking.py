"""Disks whose writes are tracked, and what their content says of the marks."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.units import GRANULE
from freezeframe.system import sysfs
from freezeframe.system.loop import attached
from freezeframe.system.mounts import own_mounts
from freezeframe.system.run import run
from freezeframe.system.sysfs import Node
from freezeframe.tracking import Tracker, start
from freezeframe.tracking.tracker import stop_number

#: As systemd mounts them at boot; machines without it (containers, small test machines) lack them.
_MOUNTS = {"/sys/fs/bpf": "bpf", "/sys/kernel/tracing": "tracefs"}


def ensure_mounts() -> None:
    """Mount what a system has from boot on: the BPF filesystem and tracefs. They stay."""
    there = {mount.point for mount in own_mounts()}
    for point, kind in _MOUNTS.items():
        if point not in there:
            run(["mount", "-t", kind, kind, point])


def node_of(device: str | Path) -> Node:
    """Return the block device a path names; `AssertionError` for no such."""
    node = sysfs.node_of(device)
    assert node is not None, device
    return node


def drop_caches(device: str | Path) -> None:
    """Have nothing of a device in the page cache: what is read next is what lies on it."""
    run(["blockdev", "--flushbufs", str(device)])


@contextmanager
def tracked(device: str | Path, *, force_classic: bool = False) -> Iterator[Tracker]:
    """Track a device, and stop in the end."""
    ensure_mounts()
    node = node_of(device)
    try:
        with start(node, force_classic=force_classic) as tracker:
            yield tracker
    finally:
        stop_number(node.whole.number)


@contextmanager
def tracked_loop(
    path: Path, size: int, *, sector: int = 512, force_classic: bool = False
) -> Iterator[tuple[str, Tracker]]:
    """Give a loop device over a new sparse file of `size` bytes, and its tracker."""
    path.touch()
    os.truncate(path, size)
    with (
        attached(path, sector=sector) as device,
        tracked(device, force_classic=force_classic) as tracker,
    ):
        yield device, tracker
    path.unlink()


def content(path: str | Path) -> NDArray[np.uint8]:
    """Return all bytes, uint8, of a file or device in rows of one granule (the last one padded)."""
    data = Path(path).read_bytes()
    rows = -(-len(data) // GRANULE)
    padded = np.zeros(rows * GRANULE, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded.reshape(rows, GRANULE)


def digests(path: str | Path) -> NDArray[np.uint8]:
    """Return a digest of each granule, uint8 in rows of 16: for disks larger than memory."""
    with Path(path).open("rb") as file:
        rows = [
            hashlib.blake2b(piece, digest_size=16).digest()
            for piece in iter(lambda: file.read(GRANULE), b"")
        ]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), 16)


def changed_granules(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the granules in which two contents, or digests, differ, ascending, int64."""
    return np.flatnonzero((before != after).any(axis=1)).astype(np.int64)


class DirectFile:
    """A device opened past the page cache: what is written is there when the call returns."""

    def __init__(self, device: str | Path) -> None:
        self.descriptor = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self._buffer = mmap.mmap(-1, 16 << 20)

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, offset: int, data: bytes) -> None:
        """Write data; offset and length are multiples of the sector."""
        self._buffer[: len(data)] = data
        with memoryview(self._buffer) as view:
            done = os.pwrite(self.descriptor, view[: len(data)], offset)
        assert done == len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Read as much as there is, `length` bytes at most."""
        with memoryview(self._buffer) as view:
            done = os.preadv(self.descriptor, [view[:length]], offset)
        return self._buffer[:done]

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)
        self._buffer.close()
