"""Who reads sequentially, and where: so that what comes next is there before it is asked for."""

from __future__ import annotations

import threading

from freezeframe.core.units import CHUNK

#: Readers that are followed at once: a few copies, and a filesystem's own.
_STREAMS = 16
#: Reads of several threads overtake each other by this much, in bytes.
_SLACK = 2 * CHUNK


class _Stream:
    """One reader: where it has got to, and up to where it was read ahead for."""

    __slots__ = ("ahead", "position", "window")

    def __init__(self, position: int) -> None:
        self.position = position
        self.window = 0
        self.ahead = position


class Streams:
    """Follows the readers of one disk. Thread-safe. Offsets and lengths in bytes."""

    def __init__(self, furthest: int) -> None:
        self._lock = threading.Lock()
        #: Nothing is read further ahead than this.
        self._furthest = furthest
        #: The last one used is the last.
        self._streams: list[_Stream] = []

    def note(self, offset: int, length: int) -> tuple[int, int]:
        """Take note of a read; return the [start, stop) to begin to read now, often empty.

        The first read of a stream asks for nothing: it may be the only one. From the second
        on the stretch doubles.
        """
        stop = offset + length
        with self._lock:
            for number in range(len(self._streams) - 1, -1, -1):
                stream = self._streams[number]
                if stream.position - _SLACK <= offset <= stream.position + _SLACK:
                    break
            else:
                self._streams = [*self._streams[1 - _STREAMS :], _Stream(stop)]
                return stop, stop
            if number != len(self._streams) - 1:
                self._streams.append(self._streams.pop(number))
            if stop <= stream.position:
                return stop, stop
            stream.position = stop
            if stop + stream.window // 2 <= stream.ahead:
                return stop, stop
            stream.window = min(max(2 * stream.window, CHUNK), self._furthest)
            start = max(stop, stream.ahead)
            stream.ahead = stop + stream.window
            return start, stream.ahead
