"""Pending sets: what was harvested since an image of one repository, kept until the next.

A file in memory of one byte a granule. A harvest adds to the set of every repository before
it takes a mark away from the kernel, so a mark is always in one of the two places.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.closing import Closing
from freezeframe.core.errors import TrackingUnavailable


class PendingSet(Closing):
    """One pending set, mapped. Not thread-safe; the tracker's lock keeps others out."""

    def __init__(self, path: Path, granules: int) -> None:
        """Open one that was made by `create`. Raises `OSError`; `ValueError` for its size."""
        self.path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_size != granules:
                raise ValueError(f"{path} is not of {granules} granules")
            self._memory = mmap.mmap(descriptor, granules)
        finally:
            os.close(descriptor)
        #: uint8, one a granule: 0 or 1.
        self.marks: NDArray[np.uint8] = np.frombuffer(self._memory, dtype=np.uint8)

    def add(self, flags: NDArray[np.uint8]) -> None:
        """Add marks: uint8, one a granule. Allocates nothing."""
        np.bitwise_or(self.marks, flags, out=self.marks)

    def granules(self) -> NDArray[np.int64]:
        """Return the granules in it, ascending, int64."""
        return np.flatnonzero(self.marks.view(np.bool_)).astype(np.int64, copy=False)

    def prepare(self) -> None:
        """Touch every page for writing, so that none has to be found later."""
        pages = self.marks[:: mmap.PAGESIZE]
        np.bitwise_or(pages, 0, out=pages)

    def close(self) -> None:
        """Unmap it; the set stays."""
        del self.marks
        self._memory.close()


def create(path: Path, granules: int) -> None:
    """Make an empty set, all its memory taken. Raises `TrackingUnavailable` for lack of it.

    A write to a mapped page that tmpfs has no memory for would be the end of the process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, granules)
    except OSError as error:
        path.unlink()
        raise TrackingUnavailable(
            f"no memory for {granules} marks in {path.parent}: {error.strerror}",
            hint="make that filesystem larger: mount -o remount,size=…",
        ) from error
    finally:
        os.close(descriptor)
