"""Items of btrfs trees by their keys, with the blocks read last kept.

Source: as `fs.btrfs.structs`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from freezeframe.fs.btrfs.structs import POINTER, TreeRoot
from freezeframe.fs.btrfs.trees import Records, TreeReader, entries_of, items_of

#: Blocks kept: 16 KiB each mostly, and about as much again for their keys.
_KEPT = 512


class Key(NamedTuple):
    """The key of an item: keys are ordered as these three numbers are."""

    object: int
    kind: int
    offset: int


#: Larger than any offset there is.
LAST = 1 << 64


@dataclass(frozen=True, slots=True)
class _Block:
    """A block that was checked."""

    keys: list[Key]
    #: What each key points to; None in a leaf.
    pointers: Records | None
    raw: bytes
    #: Of a leaf: where the data of each item lies.
    places: list[tuple[int, int]]


class Trees:
    """Looks items up. Not to be shared between threads."""

    def __init__(self, reader: TreeReader) -> None:
        self.reader = reader
        self._kept: OrderedDict[tuple[int, int, int], _Block] = OrderedDict()

    def between(self, root: TreeRoot, low: Key, high: Key) -> Iterator[tuple[Key, bytes]]:
        """Give the items from key `low` to `high`, both included, ascending.

        Raises `NotUnderstood` where a block is damaged in all its copies.
        """
        #: The next one last: what points to a block, and the block's level.
        waiting = [(self.reader.root_pointer(root), root.level)]
        while waiting:
            pointer, level = waiting.pop()
            block = self._block(pointer, root, level)
            if block.pointers is None:
                first, stop = bisect_left(block.keys, low), bisect_right(block.keys, high)
                for index in range(first, stop):
                    at, size = block.places[index]
                    yield block.keys[index], block.raw[at : at + size]
                continue
            # What is looked for may begin in the child before the first larger key.
            first = max(bisect_right(block.keys, low) - 1, 0)
            stop = bisect_right(block.keys, high)
            below = block.pointers[first:stop]
            waiting += [(below[n : n + 1], level - 1) for n in range(len(below) - 1, -1, -1)]

    def item(self, root: TreeRoot, key: Key) -> bytes | None:
        """Return one item; None where there is none such."""
        return next((data for _, data in self.between(root, key, key)), None)

    def _block(self, pointer: Records, root: TreeRoot, level: int) -> _Block:
        name = (int(pointer["logical"][0]), int(pointer["generation"][0]), level)
        known = self._kept.get(name)
        if known is not None:
            self._kept.move_to_end(name)
            return known
        rows = next(self.reader.blocks(pointer, root, level))
        entries = entries_of(rows, POINTER) if level else items_of(rows)
        keys = [
            Key(*fields)
            for fields in zip(
                entries["object"].tolist(),
                entries["type"].tolist(),
                entries["offset"].tolist(),
                strict=True,
            )
        ]
        places: list[tuple[int, int]] = []
        if not level:
            places = list(zip(entries["data"].tolist(), entries["size"].tolist(), strict=True))
        block = _Block(keys, entries if level else None, rows.tobytes(), places)
        self._kept[name] = block
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return block
