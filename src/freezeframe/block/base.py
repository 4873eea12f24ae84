"""What every reader and writer of bytes at offsets promises."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from freezeframe.core.errors import SourceError
from freezeframe.core.extents import Extents


def verify_inside(name: str, size: int, offset: int, length: int) -> None:
    """Raise `SourceError` where `length` bytes at `offset` are not all of a reader's `size`."""
    if offset < 0 or length < 0 or offset + length > size:
        raise SourceError(f"{name}: {length} bytes at {offset} pass its end")


class Reader(Protocol):
    """Bytes at offsets, read only.

    Thread-safe: any number of threads may call at once; there is no seek position.
    Repeatable: the same range reads the same as long as nobody writes it.
    """

    @property
    def name(self) -> str:
        """What to call it in messages: a path, mostly."""

    @property
    def size(self) -> int:
        """Its length in bytes, fixed at opening."""

    @property
    def sector(self) -> int:
        """Its logical sector in bytes: 512 or 4096; 512 for files and memory."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes at `offset`, neither needs to be aligned.

        Raises `UnreadableRange` on a medium error, `SourceError` where the range
        passes the end, or the source shrank or vanished.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (writable, contiguous bytes, owned by the caller) from `offset`.

        Same errors as `read_at`. After an error the buffer holds anything.
        """

    def data_extents(self) -> Extents:
        """Return what may hold something but zeros; the rest is known to be zeros (holes)."""

    def close(self) -> None:
        """Release it. Closing again is fine; reading after it is not."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Writer(Reader, Protocol):
    """Bytes at offsets, read and written. Thread-safe for ranges that do not overlap."""

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`, neither needs to be aligned.

        Raises `TargetUnsuitable` where the range passes the end or the medium fails.
        """

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, by the cheapest way there is."""

    def discard(self, offset: int, length: int) -> bool:
        """Tell the device the range is not needed; what it reads afterwards is undefined.

        False where it cannot; the range is then as it was.
        """

    def flush(self) -> None:
        """Return once all that was written is on stable storage."""
