"""Writes that this machine's kernel tells no BPF program of, counted by another way.

A Linux 6.18 was seen to run no BPF program in a soft interrupt that comes while a thread of
its init is on the processor: one write in 40,000. freezeframe finds that out afterwards and
reads everything again; a test that counts marks, or waits for an increment, has to be run
again. Functions of ftrace are run all the same, so a buffer of its own tells when it happened.
"""

from __future__ import annotations

import os
from pathlib import Path

from freezeframe.testing.tracking import ensure_mounts

_TRACING = Path("/sys/kernel/tracing")
#: Major number of loop devices.
_LOOP = 7


class LeftOutWrites:
    """Counts requests of loop devices that completed while init was on the processor.

    Closed in the end.
    """

    def __init__(self) -> None:
        """Begin to count. Raises `OSError` without the right to."""
        ensure_mounts()
        self._folder = _TRACING / "instances" / f"freezeframe-tests-{os.getpid()}"
        self._folder.mkdir()
        threads = " ".join(path.name for path in Path("/proc/1/task").iterdir())
        (self._folder / "set_event_pid").write_text(threads)
        event = self._folder / "events/block/block_rq_complete"
        (event / "filter").write_text(f"dev >= {_LOOP << 20} && dev < {_LOOP + 1 << 20}")
        (event / "enable").write_text("1")

    def count(self) -> int:
        """Return how many there were; more than fit into the buffer are not counted."""
        lines = (self._folder / "trace").read_text().splitlines()
        return sum(not line.startswith("#") for line in lines)

    def close(self) -> None:
        """Stop, and forget them."""
        self._folder.rmdir()
