"""How fast to copy ahead: as asked, and no faster than the applications bear."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from freezeframe.system import sysfs
from freezeframe.system.sysfs import Node

#: Seconds between two looks at how long the applications' writes take.
_EVERY = 0.1
#: Fewer writes than this in that time say nothing.
_FEWEST = 10
#: Writes may take so many times as long as in calm, and so much longer (ms), before we slow down.
_FACTOR, _SLACK = 1.5, 0.2
#: For each second of work no more than so many of rest.
_LONGEST_REST = 4.0


@dataclass(frozen=True, slots=True)
class _Counters:
    """Writes completed since boot, and the milliseconds they took together."""

    writes: int
    milliseconds: int


class Pace:
    """Makes workers rest. Thread-safe.

    `limit` in bytes a second for all workers together, None for none. With `back_off`,
    workers rest the longer the more the writes of others to `nodes` (whole disks) take
    compared with what they took in calm; the calm is what was seen best, from `watch` on.
    """

    def __init__(
        self, nodes: Sequence[Node], *, limit: int | None = None, back_off: bool = True
    ) -> None:
        self._nodes = list(nodes)
        self._limit = limit
        self._back_off = back_off
        self._lock = threading.Lock()
        self._free = 0.0
        self._seen = _read(self._nodes)
        self._looked = time.monotonic()
        self._calm: float | None = None
        #: Seconds of rest for each second of work.
        self.rest = 0.0

    def watch(self) -> None:
        """See how long writes take in calm: call it when some time has passed without copying."""
        with self._lock:
            self._look()

    def worked(self, seconds: float, amount: int) -> None:
        """Rest after having read `amount` bytes and worked on them for so many seconds."""
        pause = 0.0
        with self._lock:
            now = time.monotonic()
            if self._back_off and now - self._looked >= _EVERY:
                self._look()
            if self._limit:
                self._free = max(self._free, now) + amount / self._limit
                pause = self._free - now
        time.sleep(max(pause, seconds * self.rest))

    def _look(self) -> None:
        """Compare the writes since the last look with those in calm. The caller holds the lock."""
        counters = _read(self._nodes)
        writes = counters.writes - self._seen.writes
        taken = counters.milliseconds - self._seen.milliseconds
        self._seen, self._looked = counters, time.monotonic()
        if writes < _FEWEST:
            self.rest = max(self.rest - 0.5, 0.0)
            return
        each = taken / writes
        self._calm = each if self._calm is None else min(self._calm, each)
        if each > self._calm * _FACTOR + _SLACK:
            self.rest = min(max(self.rest * 2, 0.25), _LONGEST_REST)
        else:
            self.rest = max(self.rest - 0.1, 0.0)


def _read(nodes: Sequence[Node]) -> _Counters:
    """Read /sys/block/*/stat (Documentation/block/stat.rst): fields 5 and 8 are of writes."""
    writes = milliseconds = 0
    for node in nodes:
        fields = sysfs.read_text(node.folder / "stat").split()
        if len(fields) >= 8:
            writes += int(fields[4])
            milliseconds += int(fields[7])
    return _Counters(writes, milliseconds)
