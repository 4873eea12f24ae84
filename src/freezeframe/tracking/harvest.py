"""Taking marks: the one piece of code that clears what the kernel has marked.

One byte a granule, and plain stores on both sides. A bitmap would lose marks: clearing a bit
is a read and a write, and what the kernel sets between the two is gone (seen: 10,404 of
65,536,000 in 2.7 s).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import FreezeframeError
from freezeframe.tracking.pending import PendingSet

#: Granules looked at in one go: 4 GiB of disk, and no larger array than half a MiB is made.
_BLOCK = 65536


class HarvestOverflow(FreezeframeError):
    """More granules are marked than there is room for. Nothing was taken: make room, or copy."""

    def __init__(self, marked: int, room: int) -> None:
        super().__init__(f"{marked} granules are marked, and there is room for {room}")
        self.marked = marked
        self.room = room


def harvest(
    flags: NDArray[np.uint8],
    copy: NDArray[np.uint8],
    pending: Collection[PendingSet],
    into: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the granules marked in `flags`, ascending, int64, and clear them there.

    `flags` and `copy` are uint8, one a granule, of the same length; `copy` is overwritten.
    With `into`, the result is a view of its beginning. Raises `HarvestOverflow`, having
    cleared nothing, where it is too small.

    Marks are copied first. What is in the copy goes into every pending set, then 0 is stored
    at just those places. A write that the copy missed keeps its mark; one whose mark comes
    between copy and clearing is in what is read of the granule afterwards. That the zero is
    seen by other processors before the read begins needs no barrier of ours: a read of a disk
    is a system call with several inside.
    """
    np.copyto(copy, flags)
    found = int(np.count_nonzero(copy.view(np.bool_)))
    if into is None:
        into = np.empty(found, np.int64)
    elif into.size < found:
        raise HarvestOverflow(found, into.size)
    for one in pending:
        one.add(copy)
    filled = 0
    for start in range(0, copy.size if found else 0, _BLOCK):
        marked = np.flatnonzero(copy[start : start + _BLOCK].view(np.bool_))
        if marked.size:
            marked += start
            flags[marked] = 0
            into[filled : filled + marked.size] = marked
            filled += marked.size
    return into[:filled]
