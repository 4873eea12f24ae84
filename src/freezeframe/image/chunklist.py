"""Numbers of chunks as text: `3,7-9`, as the kernel writes lists of processors.

A busy disk has very many short runs of changed chunks, and pairs in indented JSON would take
ten times as much in every manifest.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from freezeframe.core.errors import NotUnderstood
from freezeframe.core.extents import Extents

_ITEM = re.compile(r"(\d{1,15})(?:-(\d{1,15}))?", re.ASCII)


def encode(numbers: NDArray[np.int64]) -> str:
    """Write chunk numbers (int64, shape (n,), ascending)."""
    runs = Extents.from_blocks(numbers, 1)
    return ",".join(f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in runs)


def decode(text: str) -> Extents:
    """Read them back, as extents of chunk numbers.

    Raises `NotUnderstood` where they are not of that form, ascending and apart.
    """
    pairs = []
    for item in text.split(",") if text else ():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise NotUnderstood("a list of chunks that is not made of numbers")
        first = int(match[1])
        pairs.append((first, int(match[2] or first) + 1))
    found = Extents.of(pairs)
    if list(found) != pairs:
        raise NotUnderstood("a list of chunks that are not in order")
    return found
