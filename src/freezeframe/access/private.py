"""A private layer over a disk of an image: written to, thrown away, the image unharmed.

A filesystem that was in use when it was imaged wants to replay its journal before it shows
its files, and the kernel does that even where it mounts read-only, if the device lets it. So
it gets a device that does.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

from freezeframe.block.base import Reader, verify_inside
from freezeframe.block.descriptor import read_fully, write_fully
from freezeframe.core.closing import Closing
from freezeframe.core.errors import TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents
from freezeframe.core.units import GIB

#: Bytes that are kept as one: what kernels write at least, mostly.
_BLOCK = 4096
#: A layer takes no more, if nobody says otherwise: logs have 2 GiB at most, mostly megabytes.
LIMIT = 4 * GIB


class PrivateLayer(Closing):
    """A `block.base.Writer` whose writes lie in an unnamed sparse file. Thread-safe.

    Closing it drops the writes and leaves `base` open. Raises `TargetUnsuitable` once more
    than `limit` bytes were written, or the folder is full.
    """

    def __init__(self, base: Reader, *, limit: int = LIMIT, folder: Path | None = None) -> None:
        self._base = base
        self.name = f"{base.name} (private layer)"
        self.size = base.size
        self.sector = base.sector
        self._limit = limit // _BLOCK
        self._lock = threading.Lock()
        #: Numbers of the blocks that were written: they are the file's, each at its place.
        self._written: set[int] = set()
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        os.ftruncate(self._file.fileno(), self.size)

    @property
    def written(self) -> int:
        """How many bytes the layer holds."""
        return len(self._written) * _BLOCK

    # -- reading ------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`; errors as the base's."""
        verify_inside(self.name, self.size, offset, length)
        if not self._touches(offset, length):
            return self._base.read_at(offset, length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`: what was written, else the base's."""
        verify_inside(self.name, self.size, offset, len(buffer))
        if not self._touches(offset, len(buffer)):
            self._base.read_into(offset, buffer)
            return
        with self._lock:
            self._fill(offset, buffer)

    def _touches(self, offset: int, length: int) -> bool:
        if not self._written or not length:
            return False
        blocks = range(offset // _BLOCK, (offset + length - 1) // _BLOCK + 1)
        with self._lock:
            return any(block in self._written for block in blocks)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        """Do it run by run: neighbours from one source in one go."""
        position, stop = offset, offset + len(buffer)
        while position < stop:
            block = position // _BLOCK
            ours = block in self._written
            while (block + 1) * _BLOCK < stop and (block + 1 in self._written) is ours:
                block += 1
            upto = min(stop, (block + 1) * _BLOCK)
            part = buffer[position - offset : upto - offset]
            if ours:
                self._read_ours(position, part)
            else:
                self._base.read_into(position, part)
            position = upto

    def _read_ours(self, offset: int, buffer: memoryview) -> None:
        try:
            whole = read_fully(self._file.fileno(), offset, buffer) == len(buffer)
        except OSError as error:
            raise UnreadableRange(self.name, offset, len(buffer), str(error.strerror)) from error
        if not whole:
            raise UnreadableRange(self.name, offset, len(buffer), "its file was cut short")

    # -- writing ------------------------------------------------------------------------

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`, to the layer."""
        length = len(data)
        if offset < 0 or offset + length > self.size:
            raise TargetUnsuitable(f"{self.name}: {length} bytes at {offset} pass its end")
        if not length:
            return
        first, last = offset // _BLOCK, (offset + length - 1) // _BLOCK
        with self._lock:
            new = {block for block in range(first, last + 1) if block not in self._written}
            if len(self._written) + len(new) > self._limit:
                raise TargetUnsuitable(f"{self.name} holds {self.written} bytes and takes no more")
            try:
                # The first and the last may be written in part: they need the rest beneath.
                for block in {first, last} & new:
                    start = block * _BLOCK
                    if start < offset or start + _BLOCK > offset + length:
                        beneath = self._base.read_at(start, min(_BLOCK, self.size - start))
                        write_fully(self._file.fileno(), start, memoryview(beneath))
                write_fully(self._file.fileno(), offset, memoryview(data))
            except OSError as error:
                raise TargetUnsuitable(
                    f"{self.name} cannot be written to: {error.strerror}"
                ) from error
            self._written |= new

    def zero(self, offset: int, length: int) -> None:
        """Write zeros."""
        for at in range(offset, offset + length, _BLOCK * 256):
            self.write_at(at, bytes(min(_BLOCK * 256, offset + length - at)))

    def discard(self, offset: int, length: int) -> bool:  # noqa: ARG002
        """Do nothing: what it reads afterwards is anybody's guess, so it may be the same."""
        return False

    def flush(self) -> None:
        """Do nothing: it does not outlive the process."""

    # -- the rest of a reader -----------------------------------------------------------

    def data_extents(self) -> Extents:
        """Return the base's, and what was written."""
        with self._lock:
            ours = Extents.of(
                (block * _BLOCK, min((block + 1) * _BLOCK, self.size)) for block in self._written
            )
        return self._base.data_extents() | ours

    def close(self) -> None:
        """Drop the writes."""
        self._file.close()
