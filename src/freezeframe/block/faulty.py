"""A disk that fails as told: for tests, below the code that is tested."""

from __future__ import annotations

import threading
import time

from freezeframe.block.base import Reader, Writer
from freezeframe.core.closing import Closing
from freezeframe.core.errors import SourceError, TargetUnsuitable, UnreadableRange
from freezeframe.core.extents import Extents


class FaultyReader(Closing):
    """A reader whose chosen bytes cannot be read, which shrinks, vanishes, or is slow.

    `bad` bytes fail any read that touches their sector. From `vanish_after` reads on, every
    read says the device has gone; from `shrink_after` reads on it ends at `shrink_to`
    bytes. Each read takes `delay` seconds longer. `reads` counts them.
    """

    def __init__(
        self,
        base: Reader,
        *,
        bad: Extents | None = None,
        vanish_after: int | None = None,
        shrink_to: int | None = None,
        shrink_after: int = 0,
        delay: float = 0.0,
    ) -> None:
        self._base = base
        self._bad = (bad or Extents.empty()).aligned(base.sector)
        self._vanish_after = vanish_after
        self._shrink_to = base.size if shrink_to is None else shrink_to
        self._shrink_after = shrink_after
        self._delay = delay
        self._lock = threading.Lock()
        self.reads = 0
        self.name = base.name
        self.size = base.size
        self.sector = base.sector

    def read_at(self, offset: int, length: int) -> bytes:
        """Read, or fail as told."""
        self._before(offset, length)
        return self._base.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, or fail as told with something else in it."""
        try:
            self._before(offset, len(buffer))
        except UnreadableRange:
            buffer[:] = b"\xee" * len(buffer)
            raise
        self._base.read_into(offset, buffer)

    def _before(self, offset: int, length: int) -> None:
        with self._lock:
            done = self.reads
            self.reads += 1
        if self._delay:
            time.sleep(self._delay)
        if self._vanish_after is not None and done >= self._vanish_after:
            raise SourceError(f"{self.name} has gone")
        if done >= self._shrink_after and offset + length > self._shrink_to:
            raise SourceError(f"{self.name} shrank to {self._shrink_to} bytes")
        if self._bad.touches(offset, offset + length):
            raise UnreadableRange(self.name, offset, length, "Input/output error")

    def data_extents(self) -> Extents:
        """Return the base's."""
        return self._base.data_extents()

    def close(self) -> None:
        """Close the base."""
        self._base.close()


class FaultyWriter(FaultyReader):
    """A writer whose chosen bytes cannot be written, or that takes only so many writes."""

    def __init__(
        self,
        base: Writer,
        *,
        bad: Extents | None = None,
        bad_writes: Extents | None = None,
        fail_after_writes: int | None = None,
        delay: float = 0.0,
    ) -> None:
        super().__init__(base, bad=bad, delay=delay)
        self._writer = base
        self._bad_writes = (bad_writes or Extents.empty()).aligned(base.sector)
        self._fail_after = fail_after_writes
        self.writes = 0

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write, or fail as told, having written nothing."""
        self._before_write(offset, len(data))
        self._writer.write_at(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Zero, or fail as told."""
        self._before_write(offset, length)
        self._writer.zero(offset, length)

    def _before_write(self, offset: int, length: int) -> None:
        with self._lock:
            done = self.writes
            self.writes += 1
        if self._delay:
            time.sleep(self._delay)
        if self._fail_after is not None and done >= self._fail_after:
            raise TargetUnsuitable(f"{self.name}: there is no room left beneath it")
        if self._bad_writes.touches(offset, offset + length):
            raise TargetUnsuitable(f"{self.name} cannot be written at {offset}: Input/output error")

    def discard(self, offset: int, length: int) -> bool:
        """Discard, as the base does."""
        return self._writer.discard(offset, length)

    def flush(self) -> None:
        """Flush the base."""
        self._writer.flush()
